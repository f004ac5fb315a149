"""Wherever a process is killed, the same command ends in the bytes of an uninterrupted one."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from cache_files import make_ids, make_rows, make_spec, open_writer

from spptransfer.cache import Labels
from spptransfer.cache.rows import RowTable
from spptransfer.cache.verify import verify
from spptransfer.cache.writer import CacheWriter

# What changes the disk: HDF5's own writes go through the first two.
CALLS = [(h5py.Dataset, "__setitem__"), (h5py.Group, "create_dataset")]
CALLS += [(os, name) for name in ("fsync", "replace", "unlink", "open")]
KILLED = 77
SPEC = make_spec(levels=(3, 2), storage="float16")
IDS = [f"ü/{id}" for id in make_ids(8)]
OTHERS = [*IDS[3:], "new.jpg", IDS[1]]
RENEWED = {IDS[1], IDS[6]}
BROKEN = {IDS[5]}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")


def rows_of(ids, renewed=()) -> tuple[RowTable, dict]:
    """What an extraction finds: the numbers of a row depend on its id and version alone."""
    found = [
        make_rows([id], SPEC, seed=sum(id.encode()) + (id in renewed), failed=[0] * (id in BROKEN))
        for id in ids
    ]
    tables, features = zip(*found, strict=True)
    table = tables[0].take(np.zeros(len(ids), np.intp))
    for i, one in enumerate(tables):
        for name, column in vars(one).items():
            getattr(table, name)[i] = column[0]
    return table, {block: np.concatenate([f[block] for f in features]) for block in features[0]}


def begun(path: Path, ids) -> CacheWriter:
    labels = Labels(("ant", "bee"), np.arange(len(ids), dtype=np.int32) % 2)
    return open_writer(path, ids, SPEC, labels)


def extract(path: Path, ids, renewed=()) -> None:
    """Bring a cache up to date, in the order in which an extraction does so."""
    expected, features = rows_of(ids, renewed)
    with begun(path, ids) as writer:
        todo = ~writer.known
        for positions, rows in writer.known_rows():
            todo[positions] |= rows.digest != expected.digest[positions]
        if todo.any():
            writer.begin()
        for start in range(0, len(ids), 4):
            positions = start + np.flatnonzero(todo[start : start + 4])
            if len(positions):
                some = {block: values[positions] for block, values in features.items()}
                writer.put(positions, expected.take(positions), some, "torch 2")
        writer.finish()


def nothing(path: Path) -> None:
    """A first extraction."""


def finished(path: Path) -> None:
    """An update of images, of some rows and of the labels."""
    extract(path, IDS)


def unfinished(path: Path) -> None:
    """An unfinished file for another list of images."""
    with begun(path, IDS) as writer:
        writer.put(np.arange(6), *rows_of(IDS[:6]), "torch 2")


def in_a_child(work: Callable[[], None]) -> int:
    """Start a process that does some work and ends without any cleaning up."""
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def killed_at(number: int, work: Callable[[], None]) -> bool:
    """Whether a process was killed at a call of that number, a write half way through."""
    calls = itertools.count(1)

    def counted(name: str, real: Callable) -> Callable:
        def call(*given, **named):
            if next(calls) != number:
                return real(*given, **named)
            try:
                if name == "__setitem__" and isinstance(given[1], slice):
                    node, run, values = given
                    half = len(values) // 2
                    real(node, slice(run.start, run.start + half), values[:half])
            finally:
                os._exit(KILLED)

        return call

    def patched() -> None:
        for owner, name in CALLS:
            setattr(owner, name, counted(name, getattr(owner, name)))
        work()

    return os.waitstatus_to_exitcode(os.waitpid(in_a_child(patched), 0)[1]) == KILLED


@pytest.fixture
def folder():
    """A folder in memory where there is such a thing: a disk takes its time for each sync."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


@pytest.fixture
def made(folder, request):
    """What was there before the kill, and what an uninterrupted run makes of it."""
    for name in ("before", "whole"):
        (folder / name).mkdir()
        request.param(folder / name / "a.h5")
    extract(folder / "whole" / "a.h5", OTHERS, RENEWED)
    assert verify(folder / "whole" / "a.h5") == []
    return (folder / "whole" / "a.h5").read_bytes()


def afresh(folder: Path) -> Path:
    shutil.rmtree(folder / "trial", ignore_errors=True)
    shutil.copytree(folder / "before", folder / "trial")
    return folder / "trial" / "a.h5"


@pytest.mark.slow
@pytest.mark.parametrize("made", [nothing, finished, unfinished], indirect=True)
def test_killed_at_any_call_the_next_run_ends_in_the_same_bytes(folder, made):
    for number in itertools.count(1):
        path = afresh(folder)
        was_killed = killed_at(number, lambda: extract(path, OTHERS, RENEWED))  # noqa: B023
        if was_killed:
            extract(path, OTHERS, RENEWED)
        assert path.read_bytes() == made, f"killed at call {number}"
        assert [file.name for file in path.parent.iterdir()] == ["a.h5"]
        if not was_killed:
            break
    assert number > 50


@pytest.mark.parametrize("made", [finished], indirect=True)
def test_killed_again_and_again_at_any_moment_it_ends_in_the_same_bytes(folder, made):
    chance, kills = random.Random(0), 0
    for _ in range(12):
        path = afresh(folder)
        for _ in range(chance.randrange(1, 4)):
            child = in_a_child(lambda: extract(path, OTHERS, RENEWED))  # noqa: B023
            time.sleep(chance.uniform(0, 0.06))
            os.kill(child, signal.SIGKILL)
            kills += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        extract(path, OTHERS, RENEWED)
        assert path.read_bytes() == made
        assert [file.name for file in path.parent.iterdir()] == ["a.h5"]
    assert kills >= 12
