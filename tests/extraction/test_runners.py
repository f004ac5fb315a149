"""A Dask cluster makes what one process makes, whoever computes; its threads share a network."""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from extraction_cases import CHANNELS, SPEC, backbone, make_dataset, many_images, run, run_together
from runtime_cases import PACKAGES, need

from spptransfer import backbones
from spptransfer.cache import FeatureCache
from spptransfer.errors import CacheError, ConfigError
from spptransfer.extraction import runners
from spptransfer.extraction.parts import PartSettings
from spptransfer.extraction.runners import PartTask
from spptransfer.runtimes import describe_runtime

LAYERS = ("conv4", "larger", "fc6")


class Loading:
    """Loads a backbone and notes in which process."""

    def __init__(self, notes: Path, name: str, **layers) -> None:
        self.notes = notes
        self.name = name
        self.layers = layers

    def __call__(self):
        with self.notes.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return backbones.load(self.name, "random", **self.layers)

    def processes(self) -> list[int]:
        return list(map(int, self.notes.read_text().split()))


def task(load) -> PartTask:
    settings = PartSettings(Path("parts"), SPEC, CHANNELS, "folder")
    return PartTask((settings,), load, "cpu")


def test_threads_of_a_worker_load_the_network_once(monkeypatch):
    monkeypatch.setattr(runners, "_COMPUTERS", {})
    together, loads = threading.Barrier(4), []

    def load():
        loads.append(1)
        return backbone()

    work = task(load)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: together.wait() * 0 or work._computer_here(), range(4)))
    assert len(loads) == 1
    assert all(computer is found[0] for computer in found)


def test_a_worker_that_cannot_compute_says_where_it_is(monkeypatch):
    monkeypatch.setattr(runners, "_COMPUTERS", {})
    monkeypatch.setattr(runners.platform, "node", lambda: "node 7")

    def load():
        raise ConfigError("no such thing")

    with pytest.raises(ConfigError, match=r"^a worker on 'node 7' cannot compute: no such thing$"):
        task(load)._computer_here()


def local_cluster(workers: int = 2, threads: int = 1):
    distributed = pytest.importorskip("distributed", reason="dask[distributed] is not installed")
    return distributed.LocalCluster(
        n_workers=workers, threads_per_worker=threads, processes=True, dashboard_address=":0"
    )


@pytest.fixture(scope="module")
def cluster():
    """Two workers of two threads each."""
    with local_cluster(threads=2) as cluster:
        yield {"engine": "dask", "scheduler": cluster.scheduler_address}


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["torch", *PACKAGES])
def test_a_cluster_gives_the_same_bytes_with_every_runtime(runtime, cluster, tmp_path):
    need(runtime)
    dataset = make_dataset(tmp_path / "images", many_images(40))
    run_together(dataset, tmp_path / "here", LAYERS, runtime=runtime)
    run_together(dataset, tmp_path / "dask", LAYERS, runtime=runtime, **cluster)
    for name in LAYERS:
        here, dask = (tmp_path / folder / f"{name}.h5" for folder in ("here", "dask"))
        assert FeatureCache.open(dask).computed_by == (describe_runtime(runtime),)
        assert dask.read_bytes() == here.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["torch", *PACKAGES])
def test_networks_are_opened_in_the_workers_and_once_in_each(runtime, cluster, tmp_path):
    """ResNet's blocks are followed, with any runtime, while other threads ask for the network."""
    need(runtime)
    dataset = make_dataset(tmp_path / "images", many_images(24))
    spec = dataclasses.replace(SPEC, backbone="resnet18", layer="layer2")
    load = Loading(tmp_path / "processes", "resnet18", layer="layer2")
    options = {"channels": 128, "load_backbone": load, "runtime": runtime}
    run(dataset, tmp_path / "a.h5", spec, **options, **cluster)
    opened = load.processes()
    assert len(set(opened)) == len(opened) <= 2
    assert os.getpid() not in opened


@pytest.mark.slow
def test_a_worker_of_one_thread_alone_does_all_the_work(tmp_path):
    dataset = make_dataset(tmp_path / "images", many_images(8))
    load = Loading(tmp_path / "processes", "squeezenet1_1", layer="fire4")
    with local_cluster(workers=1) as cluster:
        where = {"engine": "dask", "scheduler": cluster.scheduler_address}
        run(dataset, tmp_path / "a.h5", load_backbone=load, **where)
    assert len(load.processes()) == 1
    assert os.getpid() not in load.processes()


@pytest.mark.slow
def test_a_scheduler_without_workers_gets_one_that_joins_or_is_one_clear_line(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(runners, "_PATIENCE", 1)
    dataset = make_dataset(tmp_path / "images", many_images(8))
    with local_cluster(workers=0) as cluster:
        where = {"engine": "dask", "scheduler": cluster.scheduler_address}
        with pytest.raises(ConfigError, match=r"^the Dask scheduler at 'tcp.*' has no workers$"):
            run(dataset, tmp_path / "a.h5", **where)
        monkeypatch.setattr(runners, "_PATIENCE", 60)
        threading.Timer(0.5, cluster.scale, [1]).start()
        assert run(dataset, tmp_path / "a.h5", **where).added == 8


class _Slow:
    """Loads the backbone, but not soon; leaves a note that somebody is at it."""

    def __init__(self, note):
        self.note = note

    def __call__(self):
        self.note.touch()
        time.sleep(600)


@pytest.mark.slow
def test_a_cluster_whose_last_worker_dies_at_work_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(runners, "_PATIENCE", 60)
    dataset = make_dataset(tmp_path / "images", many_images(8))
    with local_cluster(workers=0) as cluster:
        address, note = cluster.scheduler_address, tmp_path / "note"
        command = [sys.executable, "-m", "dask", "worker", address, "--no-nanny"]
        paths = os.pathsep.join(sys.path)
        worker = subprocess.Popen(
            [*command, "--local-directory", str(tmp_path / "scratch")],
            env={**os.environ, "PYTHONPATH": paths},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

        def kill():
            while not note.exists():
                time.sleep(0.05)
            runners._PATIENCE = 1
            worker.kill()

        threading.Thread(target=kill, daemon=True).start()
        where = {"engine": "dask", "scheduler": address, "load_backbone": _Slow(note)}
        with pytest.raises(ConfigError, match=r"^the Dask scheduler at 'tcp.*' has no workers$"):
            run(dataset, tmp_path / "a.h5", **where)
        worker.wait(30)


@pytest.mark.slow
def test_parts_that_take_workers_with_them_are_one_clear_line(tmp_path):
    dask = pytest.importorskip("dask", reason="dask[distributed] is not installed")
    dataset = make_dataset(tmp_path / "images", many_images(8))
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        cluster = local_cluster()
    where = {"engine": "dask", "scheduler": cluster.scheduler_address}
    with cluster, pytest.raises(CacheError, match="a worker process died"):
        run(dataset, tmp_path / "a.h5", load_backbone=functools.partial(os._exit, 9), **where)


@pytest.mark.slow
def test_a_network_is_opened_for_as_many_threads_as_a_worker_has(cluster):
    from distributed import Client

    with Client(cluster["scheduler"]) as client:
        assert client.submit(runners._tasks_at_once).result() == 2
    assert runners._tasks_at_once() == 1


@pytest.mark.slow
@pytest.mark.parametrize("runtime", list(PACKAGES))
def test_workers_that_lack_the_runtime_are_one_clear_line(runtime, tmp_path, monkeypatch):
    need(runtime)
    hidden = f"import sys; sys.modules[{PACKAGES[runtime][0]!r}] = None"
    (tmp_path / "sitecustomize.py").write_text(hidden)
    dataset = make_dataset(tmp_path / "images", many_images(8))
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
        cluster = local_cluster()
    where = {"engine": "dask", "scheduler": cluster.scheduler_address}
    with cluster, pytest.raises(ConfigError) as caught:
        run(dataset, tmp_path / "a.h5", runtime=runtime, **where)
    told = f"runtime '{runtime}' is not installed: pip install 'spptransfer[{runtime}]'"
    assert str(caught.value).startswith("a worker on '")
    assert str(caught.value).endswith(f" cannot compute: {told}")
