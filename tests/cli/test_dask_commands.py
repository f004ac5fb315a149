"""`spptransfer extract --engine dask`, with a scheduler and workers in processes of their own."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from small_projects import draw_folder, write_pipeline

from spptransfer.cache import FeatureCache
from spptransfer.cache.rows import COLUMNS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("distributed") is None,
        reason="dask[distributed] is not installed",
    ),
]

PER_CLASS = 300  # with three classes, eight parts
PATIENCE = 240
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "15s",
}


class Cluster(NamedTuple):
    """A scheduler's address and its workers, which no nanny brings back to life."""

    address: str
    workers: list[subprocess.Popen]


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Images, a pipeline file, and the cache that one process makes of them."""
    folder = tmp_path_factory.mktemp("work")
    draw_folder(folder / "photos", per_class=PER_CLASS)
    write_pipeline(
        folder / "small.yaml", Path("photos"), features={"scales": [64], "precision": "float32"}
    )
    result = finish(extract(folder, "alone", "--jobs", "1", "--engine", "threads"))
    assert result["rows"] == {"ok": 3 * PER_CLASS, "failed": 0, "reused": 0}
    return folder


def extract(folder: Path, cache_dir: str, *options: str) -> subprocess.Popen:
    line = [sys.executable, "-m", "spptransfer", "extract", "small.yaml", "--json", "--quiet"]
    return subprocess.Popen(
        [*line, "--device", "cpu", "--cache-dir", cache_dir, *options],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> dict:
    """Wait for a command that succeeds; gives its last line."""
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    return json.loads(out.splitlines()[-1])


@pytest.fixture
def cluster(tmp_path) -> Iterator[Cluster]:
    """A scheduler and two workers, whose current folder is not that of the command."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str) -> subprocess.Popen:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments],
                cwd=tmp_path,
                env=ENVIRONMENT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        note = tmp_path / "scheduler.json"
        here = ["--host", "127.0.0.1", "--no-dashboard"]
        start("scheduler", "--port", "0", "--scheduler-file", str(note), *here)
        wait_until(note.exists)
        address = json.loads(note.read_text())["address"]
        options = ["--nthreads", "1", "--no-nanny", "--local-directory", str(tmp_path / "scratch")]
        yield Cluster(address, [start("worker", address, *options, *here) for _ in range(2)])


def wait_until(condition) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def check_same(work: Path, path: str) -> None:
    """Compare a cache with that of one process, number by number, then byte by byte."""
    (alone,) = (work / "alone").glob("*.h5")
    expected, found = FeatureCache.open(alone), FeatureCache.open(path)
    assert found.ids == expected.ids
    assert found.digests() == expected.digests()
    for name in COLUMNS:
        np.testing.assert_array_equal(found.column(name), expected.column(name), name)
    assert found.matrix().tobytes() == expected.matrix().tobytes()
    assert Path(path).read_bytes() == alone.read_bytes()


def test_a_cluster_makes_the_same_cache_as_one_process(work, cluster):
    result = finish(extract(work, "dask", "--engine", "dask", "--scheduler", cluster.address))
    assert result["rows"] == {"ok": 3 * PER_CLASS, "failed": 0, "reused": 0}
    assert not list((work / "dask").glob("*.parts"))
    check_same(work, result["cache"])


def test_a_worker_killed_in_the_middle_changes_nothing(work, cluster):
    process = extract(work, "killed", "--engine", "dask", "--scheduler", cluster.address)
    wait_until(lambda: list((work / "killed").glob("*.parts/part-*.h5")) or process.poll())
    cluster.workers[0].send_signal(signal.SIGKILL)
    done = len(list((work / "killed").glob("*.parts/part-*.h5")))
    assert 1 <= done < 3 * PER_CLASS / 128, "the kill came too late to say anything"
    result = finish(process)
    assert result["rows"]["ok"] == 3 * PER_CLASS
    assert cluster.workers[1].poll() is None
    check_same(work, result["cache"])


def test_a_scheduler_that_is_not_there_is_one_clear_line(work, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(ENVIRONMENT, "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "1s")
        process = extract(work, "nobody", "--engine", "dask", "--scheduler", "tcp://127.0.0.1:1")
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2, err
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("spptransfer: no Dask scheduler answers at 'tcp://")
