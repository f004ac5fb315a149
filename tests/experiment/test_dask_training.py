"""A pipeline file's `engine: dask` reaches the choice of C."""

from __future__ import annotations

import pytest
from small_projects import draw_folder, experiment

from spptransfer.experiment import extract_features, run

distributed = pytest.importorskip("distributed", reason="dask[distributed] is not installed")

SETTINGS = {"C": [0.1, 1.0]}


def trained(images, work, **classifier):
    settings = {"classifier": SETTINGS | classifier, "protocol": {"splits": 2, "folds": 2}}
    trained = experiment(images, work, **settings)
    return run(trained, "spptransfer train small.yaml", from_cache=True).results


def test_a_pipeline_trains_on_a_cluster_and_finds_the_same(tmp_path):
    images = draw_folder(tmp_path / "photos")
    extract_features([experiment(images, tmp_path)])
    alone = trained(images, tmp_path)
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=False,
        dashboard_address=None,
        protocol="tcp://",
    ) as workers:
        spread = trained(images, tmp_path, engine="dask", scheduler=workers.scheduler_address)
    assert spread["headline"] == alone["headline"]
    for here, there in zip(alone["splits"], spread["splits"], strict=True):
        assert there["C"] == here["C"]
