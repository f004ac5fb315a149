"""Kills, full disks and dead workers: what is finished stays, and the end is always the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from extraction_cases import CHANNELS, SPEC, StopAfter, backbone, make_dataset, many_images, run

from spptransfer.cache import FeatureCache
from spptransfer.cache.files import is_alive
from spptransfer.cache.unfinished import part_files, parts_folder
from spptransfer.cache.verify import verify
from spptransfer.errors import CacheError
from spptransfer.extraction import Interrupted

TESTS = Path(__file__).resolve().parent.parent

KILLING = """
import os, random, signal, sys, time
from pathlib import Path
from extraction_cases import backbone, make_dataset, many_images, run

folder, images, kills = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
dataset = make_dataset(folder / "images", many_images(images))
backbone()

def extract(path):
    child = os.fork()
    if child == 0:
        try:
            run(dataset, path, part_rows=1)
            os._exit(0)
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr, flush=True)
            os._exit(1)
    return child

start = time.monotonic()
_, status = os.waitpid(extract(folder / "reference.h5"), 0)
assert status == 0
duration = time.monotonic() - start
reference = (folder / "reference.h5").read_bytes()
killed = finished = rounds = 0
path = folder / "killed.h5"
chance = random.Random(20)
while killed < kills:
    child = extract(path)
    time.sleep(chance.uniform(0, duration * chance.choice([0.1, 0.4, 1.0])))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        killed += 1
        continue
    assert status == 0, status
    assert path.read_bytes() == reference
    assert not list(folder.glob("killed.h5*.tmp")) and not list(folder.glob("*.parts"))
    finished += 1
    path.unlink()
_, status = os.waitpid(extract(path), 0)
assert status == 0 and path.read_bytes() == reference
print(killed, finished)
"""


KILLING_SEVERAL = """
import os, random, shutil, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)  # threads of an operator do not survive a fork
from extraction_cases import make_dataset, many_images, mini, run_alone, run_together

folder, images, kills = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
names = ("conv1", "conv4", "larger", "crop", "fc6", "fc7")
dataset = make_dataset(folder / "images", many_images(images))
mini()

def in_child(work):
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr, flush=True)
            os._exit(1)
    return child

def together(path):
    return in_child(lambda: run_together(dataset, path, names, part_rows=1))

def alone():
    for name in names:
        run_alone(dataset, folder / "alone", name, part_rows=1)

_, status = os.waitpid(in_child(alone), 0)
assert status == 0
start = time.monotonic()
_, status = os.waitpid(together(folder / "at_once"), 0)
assert status == 0
duration = time.monotonic() - start
reference = {name: (folder / "alone" / f"{name}.h5").read_bytes() for name in names}

def compare(path):
    for name in names:
        assert (path / f"{name}.h5").read_bytes() == reference[name], name
    assert sorted(file.name for file in path.iterdir()) == sorted(f"{name}.h5" for name in names)

compare(folder / "at_once")
killed = 0
chance = random.Random(20)
path = folder / "killed"
while killed < kills:
    child = together(path)
    time.sleep(chance.uniform(0, duration * chance.choice([0.1, 0.4, 1.0])))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        killed += 1
        continue
    assert status == 0, status
    compare(path)
    shutil.rmtree(path)
_, status = os.waitpid(together(path), 0)
assert status == 0
compare(path)
print(killed)
"""


def start_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_a_hundred_kills_at_random_moments_lose_nothing(tmp_path):
    done = start_python(KILLING, tmp_path, 30, 110)
    assert done.returncode == 0, done.stderr[-2000:]
    killed, _ = map(int, done.stdout.split())
    assert killed >= 100
    assert verify(tmp_path / "killed.h5") == []


def test_a_few_kills_at_random_moments_lose_nothing(tmp_path):
    done = start_python(KILLING, tmp_path, 8, 4)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_kills_of_a_pass_for_several_caches_leave_those_of_uninterrupted_single_ones(tmp_path):
    done = start_python(KILLING_SEVERAL, tmp_path, 20, 40)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == 40
    for name in ("conv1", "crop", "fc7"):
        assert verify(tmp_path / "killed" / f"{name}.h5") == []


def test_a_few_kills_of_a_pass_for_several_caches_lose_nothing(tmp_path):
    done = start_python(KILLING_SEVERAL, tmp_path, 6, 4)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 700 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_too_small_for_all_rows_is_refused_before_any_is_computed(tmp_path, small_disk):
    dataset = make_dataset(tmp_path / "images", many_images(24))
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(550_000))
    with pytest.raises(CacheError, match=r"disk is full while writing .* are needed\)"):
        run(dataset, small_disk / "a.h5", load_backbone=lambda: pytest.fail("computed"))
    assert list(small_disk.iterdir()) == [ballast]
    ballast.unlink()
    assert run(dataset, small_disk / "a.h5").added == 24


def test_worker_processes_keep_what_is_finished_where_the_disk_is_full(tmp_path, small_disk):
    """Their parts and the finished file are both there in the end."""
    dataset = make_dataset(tmp_path / "images", many_images(24))
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(300_000))
    with pytest.raises(CacheError, match=r"disk is full while writing .* are needed\)"):
        run(dataset, small_disk / "a.h5", engine="processes", jobs=1)
    kept = part_files(parts_folder(small_disk / "a.h5"))
    assert len(kept) > 3
    assert not list(small_disk.rglob("*.tmp"))
    ballast.unlink()
    assert run(dataset, small_disk / "a.h5").unchanged == 4 * len(kept)
    run(dataset, tmp_path / "b.h5")
    assert (small_disk / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # HDF5's own
@pytest.mark.parametrize("free", [0, 20_000, 100_000, 200_000])
def test_a_disk_that_fills_up_meanwhile_keeps_what_is_finished_and_the_same_command_goes_on(
    tmp_path, small_disk, monkeypatch, free
):
    monkeypatch.setattr("spptransfer.cache.draft.check_space", lambda path, needed: None)
    dataset = make_dataset(tmp_path / "images", many_images(24))
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - free))
    with pytest.raises(CacheError, match=r"disk is full while writing .*a\.h5.*is kept"):
        run(dataset, small_disk / "a.h5")
    assert not list(small_disk.rglob("*.tmp"))
    assert not (small_disk / "a.h5").exists()
    ballast.unlink()
    report = run(dataset, small_disk / "a.h5")
    assert (report.unchanged > 0) == (free >= 100_000)
    assert report.unchanged < 24
    run(dataset, tmp_path / "b.h5")
    assert (small_disk / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_read_only_folder_is_one_clear_line_and_loses_nothing(tmp_path, small_disk):
    dataset = make_dataset(tmp_path / "images", many_images(5))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(CacheError, match="Read-only file system"):
        run(dataset, small_disk / "a.h5")
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert run(dataset, small_disk / "a.h5").added == 5


def test_a_cache_that_lacks_nothing_is_used_where_nothing_can_be_written(tmp_path, small_disk):
    dataset = make_dataset(tmp_path / "images", many_images(5))
    run(dataset, small_disk / "a.h5")
    before = (small_disk / "a.h5").read_bytes()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    report = run(dataset, small_disk / "a.h5", load_backbone=lambda: pytest.fail("computed"))
    assert (report.unchanged, report.added) == (5, 0)
    with pytest.raises(CacheError, match=r"cannot write '.*': Read-only file system"):
        run(dataset, small_disk / "a.h5", redo=["0001.png"])
    with pytest.raises(CacheError, match=r"cannot write '.*': Read-only file system"):
        run(make_dataset(tmp_path / "more", many_images(6)), small_disk / "a.h5")
    assert (small_disk / "a.h5").read_bytes() == before


@pytest.mark.slow
def test_worker_processes_give_the_same_bytes_as_threads(tmp_path):
    dataset = make_dataset(tmp_path / "images", many_images(20))
    run(dataset, tmp_path / "threads.h5", jobs=1)
    run(dataset, tmp_path / "processes.h5", engine="processes")
    threads, processes = (
        (tmp_path / f"{name}.h5").read_bytes() for name in ("threads", "processes")
    )
    assert threads == processes


EXTRACTING = """
import sys
from pathlib import Path
from extraction_cases import make_dataset, many_images, run

folder = Path(sys.argv[1])
dataset = make_dataset(folder / "images", many_images(4))

class Slow:
    def __call__(self):
        import os, time
        (folder / f"worker-{os.getpid()}").touch()
        time.sleep(600)

run(dataset, folder / "a.h5", engine="processes", jobs=2, part_rows=1, load_backbone=Slow())
"""


@pytest.mark.slow
def test_worker_processes_end_with_the_one_that_is_killed(tmp_path):
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    parent = subprocess.Popen(
        [sys.executable, "-c", EXTRACTING, str(tmp_path)], env={**os.environ, "PYTHONPATH": paths}
    )
    wait_until(lambda: len(list(tmp_path.glob("worker-*"))) == 2)
    workers = [int(note.name.removeprefix("worker-")) for note in tmp_path.glob("worker-*")]
    assert all(map(is_alive, workers))
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(map(is_alive, workers)))


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_who_stops_worker_processes_is_not_warned_that_he_did(tmp_path, recwarn):
    dataset = make_dataset(tmp_path / "images", many_images(24))
    with pytest.raises(Interrupted):
        run(dataset, tmp_path / "a.h5", engine="processes", jobs=2, part_rows=1, stop=StopAfter(2))
    assert not [warning for warning in recwarn if "tasks" in str(warning.message)]
    assert not run(dataset, tmp_path / "a.h5").failures


class _SuicidalOnce:
    """Loads the backbone, but kills the first worker process that comes here."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __call__(self):
        try:
            self.marker.touch(exist_ok=False)
        except FileExistsError:
            return backbone()
        os.kill(os.getpid(), 9)
        raise AssertionError("unreachable")


@pytest.mark.slow
def test_a_killed_worker_process_is_one_clear_line_and_the_next_run_goes_on(tmp_path):
    dataset = make_dataset(tmp_path / "images", many_images(12))
    kill = _SuicidalOnce(tmp_path / "marker")
    with pytest.raises(CacheError, match="worker process died"):
        run(dataset, tmp_path / "a.h5", engine="processes", load_backbone=kill)
    assert not run(dataset, tmp_path / "a.h5", engine="processes", load_backbone=kill).failures
    run(dataset, tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


@pytest.mark.slow
def test_a_dask_cluster_that_loses_a_worker_gives_the_same_bytes(tmp_path):
    distributed = pytest.importorskip("distributed", reason="dask[distributed] is not installed")
    dataset = make_dataset(tmp_path / "images", many_images(30))
    run(dataset, tmp_path / "threads.h5", jobs=1)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        report = run(
            dataset,
            tmp_path / "dask.h5",
            engine="dask",
            scheduler=cluster.scheduler_address,
            load_backbone=_SuicidalOnce(tmp_path / "marker"),
        )
    assert (tmp_path / "marker").exists()
    assert not report.failures
    assert (tmp_path / "dask.h5").read_bytes() == (tmp_path / "threads.h5").read_bytes()


def test_a_second_extraction_is_told_who_is_at_it(tmp_path):
    dataset = make_dataset(tmp_path / "images", many_images(4))
    refused = []

    def meanwhile():
        with pytest.raises(CacheError, match=f"being written by process {os.getpid()}") as caught:
            run(dataset, tmp_path / "a.h5")
        refused.append(str(caught.value))
        return backbone()

    run(dataset, tmp_path / "a.h5", load_backbone=meanwhile)
    assert len(refused) == 1
    cache = FeatureCache.open(tmp_path / "a.h5", SPEC)
    assert np.isfinite(cache.matrix()).all()
    assert cache.channels == CHANNELS
