"""A kill at every single call that changes a disk: the same command ends in the same bytes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cache_files import CHANNELS, make_ids, make_rows, make_spec

from spptransfer.cache import positioned
from spptransfer.cache.outline import Labels
from spptransfer.cache.rows import Chunk
from spptransfer.cache.unfinished import parts_folder, write_part
from spptransfer.cache.verify import verify
from spptransfer.cache.workspace import Workspace

CALLS = ("pwrite", "fsync", "replace", "rename", "ftruncate", "unlink", "open", "close")
KILLED = 77
SPEC = make_spec(levels=(3, 2), scales=(64, 96), storage="float16")
IDS = [f"ü/{id}" for id in make_ids(10)]
OTHERS = [*IDS[3:], "new.jpg", IDS[1]]
RENEWED = {IDS[1], IDS[6], IDS[7]}
BROKEN = {IDS[5], IDS[8]}


def rows_of(ids, renewed=()) -> Chunk:
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
    return Chunk(table, {b: np.concatenate([f[b] for f in features]) for b in features[0]})


def extract(path: Path, ids, renewed=()) -> None:
    """Bring a cache up to date, in the order in which an extraction does so."""
    space = Workspace(path, spec=SPEC, channels=CHANNELS, dataset="made up", ids=ids)
    labels = Labels(("ant", "bee"), np.arange(len(ids), dtype=np.int32) % 2)
    expected = rows_of(ids, renewed)
    with space:
        todo = ~space.known
        for positions, rows in space.known_rows():
            todo[positions] |= rows.digest != expected.rows.digest[positions]
        if todo.any():
            space.begin()
        for start in range(0, len(ids), 4):
            positions = start + np.flatnonzero(todo[start : start + 4])
            if len(positions):
                some = {b: values[positions] for b, values in expected.features.items()}
                chunk = Chunk(expected.rows.take(positions), some)
                space.adopt(space.put(positions, chunk, ["torch 2"]))
        space.finish(labels)


def nothing(path: Path) -> None:
    """A first extraction."""


def finished(path: Path) -> None:
    """An update of images, of some rows and of the labels."""
    extract(path, IDS)


def unfinished(path: Path) -> None:
    """A draft for another list, and a part of a worker process."""
    with Workspace(path, spec=SPEC, channels=CHANNELS, dataset="made up", ids=IDS) as space:
        space.put(np.arange(6), rows_of(IDS[:6]), ["torch 2"])
    rows, features = rows_of(IDS[6:8])[:2]
    about = {"spec": SPEC, "channels": CHANNELS, "dataset": "made up", "computed_by": ["torch 2"]}
    write_part(parts_folder(path), 1, rows, features, **about)


def killed_at(number: int, work: Callable[[], None], half: bool) -> bool:
    """Whether a process was killed at a call of that number: before it, or half way through."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED
    status, calls = 1, itertools.count(1)

    def counted(name: str, real: Callable) -> Callable:
        def call(*given, **named):
            if next(calls) != number:
                return real(*given, **named)
            try:
                if half and name == "pwrite":
                    real(given[0], bytes(given[1])[: len(given[1]) // 2], given[2])
                elif half:
                    real(*given, **named)
            finally:
                os._exit(KILLED)

        return call

    try:
        for name in CALLS:
            setattr(os, name, counted(name, getattr(os, name)))
        positioned._sync_data = counted("fdatasync", positioned._sync_data)
        work()
        status = 0
    finally:
        os._exit(status)


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("before", [nothing, finished, unfinished])
def test_wherever_it_is_killed_the_next_run_ends_in_the_same_bytes(tmp_path, before, half):
    whole = tmp_path / "whole" / "a.h5"
    whole.parent.mkdir()
    before(whole)
    extract(whole, OTHERS, RENEWED)
    expected = whole.read_bytes()
    assert verify(whole) == []
    for number in itertools.count(1):
        path = tmp_path / str(number) / "a.h5"
        path.parent.mkdir()
        before(path)
        was_killed = killed_at(number, lambda: extract(path, OTHERS, RENEWED), half)  # noqa: B023
        if was_killed:
            extract(path, OTHERS, RENEWED)
        assert path.read_bytes() == expected, f"killed at call {number}"
        assert [file.name for file in path.parent.iterdir()] == ["a.h5"]
        if not was_killed:
            break
    assert number > 60
