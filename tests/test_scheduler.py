"""A Dask scheduler is asked for before the work that needs it."""

from __future__ import annotations

import socket

import pytest
from small_projects import draw_folder, experiment

from spptransfer.errors import ConfigError
from spptransfer.experiment import Shards, extract_features, run
from spptransfer.scheduler import check_scheduler

pytest.importorskip("distributed", reason="dask[distributed] is not installed")


@pytest.mark.parametrize("address", ["nonsense", "foo://a:1", "tls://127.0.0.1:1"])
def test_what_is_no_address_is_refused_in_one_line(address):
    with pytest.raises(ConfigError, match=f"^x: no Dask scheduler answers at '{address}'$"):
        check_scheduler(address, "x")


@pytest.mark.slow
def test_something_that_listens_and_says_nothing_is_no_scheduler():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match="no Dask scheduler answers"):
            check_scheduler(address, "x")


def test_nothing_is_extracted_for_a_scheduler_that_is_not_there(tmp_path):
    images = draw_folder(tmp_path / "photos")
    given = {"engine": "dask", "scheduler": "nonsense", "C": [0.1, 1.0]}
    asked = experiment(images, tmp_path, classifier=given, protocol={"splits": 2, "folds": 2})
    with pytest.raises(ConfigError, match=r"^classifier\.scheduler: no Dask scheduler answers"):
        run(asked, "spptransfer run small.yaml")
    with pytest.raises(ConfigError, match=r"^--scheduler: no Dask scheduler answers"):
        extract_features([asked], Shards(2, scheduler="nonsense"))
    assert not asked.cache[0].parent.exists()
