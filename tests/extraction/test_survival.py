"""Kills, full disks and second writers: what is finished stays, and the end is always the same."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess

import numpy as np
import pytest
from conftest import python
from extraction_cases import (
    SPEC,
    TORCH,
    forbidden,
    make_dataset,
    many_images,
    net,
    open_folder,
    run,
)

from spptransfer.cache import FeatureCache
from spptransfer.cache.verify import verify
from spptransfer.errors import CacheError

KILLING = """
import os, random, shutil, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)  # threads of an operator do not survive a fork
from extraction_cases import make_dataset, many_images, run_several

folder, count, kills, *names = sys.argv[1:]
folder, count, kills = Path(folder), int(count), int(kills)
dataset = make_dataset(folder / "images", many_images(count))

def in_child(path):
    child = os.fork()
    if child == 0:
        try:
            run_several(dataset, path, names)
            os._exit(0)
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr, flush=True)
            os._exit(1)
    return child

def compare(path):
    for name in names:
        expected = (folder / "reference" / f"{name}.h5").read_bytes()
        assert (path / f"{name}.h5").read_bytes() == expected, name
    left = {file.name for file in path.iterdir()} - {f"{name}.h5" for name in names}
    assert not left, left

start = time.monotonic()
_, status = os.waitpid(in_child(folder / "reference"), 0)
assert status == 0
duration = time.monotonic() - start
killed, chance, path = 0, random.Random(20), folder / "killed"
while killed < kills:
    child = in_child(path)
    time.sleep(chance.uniform(0, duration * chance.choice([0.1, 0.4, 1.0])))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        killed += 1
        continue
    assert status == 0, status
    compare(path)
    shutil.rmtree(path)
_, status = os.waitpid(in_child(path), 0)
assert status == 0
compare(path)
print(killed)
"""


@pytest.mark.parametrize(
    ("count", "kills", "names"),
    [
        (140, 8, ["low", "larger", "crop", "vector", "both"]),
        pytest.param(300, 40, ["high"], marks=pytest.mark.slow),
    ],
)
def test_kills_at_random_moments_lose_nothing(tmp_path, count, kills, names):
    assert int(python(KILLING, tmp_path, count, kills, *names)) == kills
    for name in names:
        assert verify(tmp_path / "killed" / f"{name}.h5") == []


# ---- disks ----


def test_the_disk_must_have_room_for_all_caches_at_once(tmp_path, small_disk):
    dataset = make_dataset(tmp_path / "images", many_images(300))
    paths, specs = [small_disk / "a.h5", small_disk / "b.h5"], [SPEC, SPEC]
    run(dataset, tmp_path / "a.h5")
    alone = (tmp_path / "a.h5").stat().st_size
    (small_disk / "ballast").write_bytes(bytes(1_000_000 - int(1.5 * alone)))
    with pytest.raises(CacheError, match=r"disk is full while writing '.*b\.h5' "):
        run(dataset, paths, specs, net(forbidden))
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # HDF5's own
@pytest.mark.parametrize("free", [0, 20_000, 150_000])
def test_a_disk_that_fills_up_meanwhile_keeps_what_is_finished_and_the_same_command_goes_on(
    tmp_path, small_disk, free
):
    dataset, ballast = make_dataset(tmp_path / "images", many_images(300)), small_disk / "ballast"
    alone = dataclasses.replace(TORCH, threads=1)  # no other thread writes while it fills up

    def fill(batch):
        if not ballast.exists():
            ballast.write_bytes(bytes(max(0, shutil.disk_usage(small_disk).free - free)))

    with pytest.raises(CacheError, match=r"disk is full while writing .*a\.h5.*is kept"):
        run(dataset, small_disk / "a.h5", backbone=net(fill), options=alone)
    assert not list(small_disk.rglob("*.tmp"))
    assert not (small_disk / "a.h5").exists()
    ballast.unlink()
    done = run(dataset, small_disk / "a.h5")
    assert (done.unchanged > 0) == (free == 150_000)
    assert done.unchanged < 300
    run(dataset, tmp_path / "b.h5")
    assert (small_disk / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_cache_that_lacks_nothing_is_used_where_nothing_can_be_written(tmp_path, small_disk):
    dataset = make_dataset(tmp_path / "images", many_images(5))
    run(dataset, small_disk / "a.h5")
    before = (small_disk / "a.h5").read_bytes()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = run(dataset, small_disk / "a.h5", backbone=net(forbidden))
    assert (done.unchanged, done.added) == (5, 0)
    for name, given in (("a.h5", {"redo": ["0001.png"]}), ("new.h5", {})):
        with pytest.raises(CacheError, match="Read-only file system") as told:
            run(dataset, small_disk / name, backbone=net(forbidden), **given)
        assert "\n" not in str(told.value)
    assert (small_disk / "a.h5").read_bytes() == before


# ---- others at work ----


def test_a_cache_can_be_read_while_it_is_brought_up_to_date(tmp_path):
    dataset = make_dataset(tmp_path / "images", many_images(6))
    run(open_folder(dataset.root, dataset.ids[:3]), tmp_path / "a.h5")
    before, seen = FeatureCache.open(tmp_path / "a.h5").matrix(), []
    run(
        dataset,
        tmp_path / "a.h5",
        backbone=net(lambda batch: seen.append(FeatureCache.open(tmp_path / "a.h5").matrix())),
    )
    assert seen
    for matrix in seen:
        np.testing.assert_array_equal(matrix, before)
    assert len(FeatureCache.open(tmp_path / "a.h5")) == 6
