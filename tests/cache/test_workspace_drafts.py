"""Rows written where they will stay: what of them is there after a kill or a power cut."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest
from cache_files import CHANNELS, make_cache, make_rows
from drafted_caches import (
    BLOCK,
    IDS,
    SPEC,
    TORCH,
    assert_finished,
    begin,
    chunk,
    finished_at_once,
    go_on,
    put,
    workspace,
)
from unfinished_caches import draft_of, drafted_rows, overwrite

from spptransfer.cache import FeatureCache
from spptransfer.cache.inventory import inspect
from spptransfer.cache.rows import Chunk
from spptransfer.cache.unfinished import (
    draft_files,
    is_begun,
    open_draft,
    parts_folder,
    write_part,
)
from spptransfer.cache.verify import verify


def test_the_draft_becomes_the_finished_file_and_nothing_is_copied(tmp_path):
    path = tmp_path / "a.h5"
    with workspace(path) as space:
        put(space, range(12))
        draft = draft_of(path).stat()
        space.finish(None)
    assert path.stat().st_ino == draft.st_ino
    assert_finished(path)


def test_threads_put_rows_at_once(tmp_path):
    path = tmp_path / "a.h5"
    with workspace(path) as space:
        threads = [
            threading.Thread(
                target=space.put, args=(np.array([k, k + 6]), chunk([k, k + 6]), [f"runtime {k}"])
            )
            for k in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        space.adopt(np.arange(12))
        space.finish(None)
    assert_finished(path)
    assert FeatureCache.open(path).computed_by == tuple(f"runtime {k}" for k in range(6))


def test_rows_outlive_their_writer_and_are_taken_over_where_they_lie(tmp_path):
    path = tmp_path / "a.h5"
    begin(path, [2, 3, 7])
    draft = draft_of(path).stat()
    assert is_begun(path)
    assert go_on(path) == [2, 3, 7]
    assert path.stat().st_ino == draft.st_ino
    assert_finished(path)


def _put_until_killed(path, ready):
    with workspace(path) as space:
        space.put(np.array([5]), chunk([5]), TORCH)
        ready.set()
        time.sleep(60)


def test_rows_of_a_killed_writer_are_there_although_it_never_adopted_them(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_put_until_killed, args=(tmp_path / "a.h5", ready))
    process.start()
    assert ready.wait(30)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert go_on(tmp_path / "a.h5") == [5]
    assert_finished(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("dataset", "content"),
    [
        ("rows/checksum", b""),
        ("rows/checksum", b"\1\2"),
        (BLOCK.name, b""),
        (BLOCK.name, b"\0"),
        ("rows/digest", b"x"),
        ("rows/height", b"\7"),
        ("rows/status", b"\1"),
        ("rows/id", b"y"),
    ],
)
def test_a_row_that_was_left_half_done_is_made_again(tmp_path, dataset, content):
    path = tmp_path / "a.h5"
    begin(path, range(8))
    overwrite(path, dataset, 4, content)
    assert go_on(path) == [0, 1, 2, 3, 5, 6, 7]
    assert_finished(path)


def test_a_row_of_another_place_is_not_taken_for_this_one(tmp_path):
    path = tmp_path / "a.h5"
    begin(path, range(8))
    extents = open_draft(draft_of(path)).header.extents
    content = draft_of(path).read_bytes()
    for name in [BLOCK.name, *(f"rows/{n}" for n in ("id", "digest", "checksum"))]:
        offset, size = extents[name].offset, extents[name].nbytes // 12
        overwrite(path, name, 6, content[offset + 2 * size : offset + 3 * size])
    assert go_on(path) == [0, 1, 2, 3, 4, 5, 7]
    assert_finished(path)


def test_failed_rows_are_made_again_after_a_kill(tmp_path):
    path = tmp_path / "a.h5"
    begin(path, range(8), failed=[1, 6])
    info = inspect(path)
    assert (info.rows, info.failed, info.complete) == (6, 2, False)
    assert go_on(path) == [0, 2, 3, 4, 5, 7]
    assert_finished(path)


def test_failures_are_known_before_the_file_is_finished_and_after(tmp_path):
    path = tmp_path / "a.h5"
    with workspace(path) as space:
        put(space, range(6), failed=[1])
        put(space, range(6, 12), failed=[9, 6])
        expected = {IDS[i]: f"reason {i}" for i in (1, 6, 9)}
        assert dict(space.known_failures()) == expected
        space.finish(None)
    assert FeatureCache.open(path).failures == expected
    with workspace(path, ids=IDS[::-1]) as space:
        assert dict(space.known_failures()) == expected
        space.finish(None)
    assert FeatureCache.open(path).failures == expected


@pytest.mark.parametrize("other", [IDS[::-1], IDS[3:], [*IDS, "one more.jpg"]])
def test_rows_are_copied_where_the_list_of_images_changed(tmp_path, other):
    path = tmp_path / "a.h5"
    begin(path, range(2, 9))
    expected = dict(zip(IDS, finished_at_once(tmp_path / "at once.h5"), strict=True))
    with workspace(path, ids=other) as space:
        assert {other[i] for i in np.flatnonzero(space.known)} == set(IDS[2:9]) & set(other)
        for position in np.flatnonzero(~space.known):
            rows, features = make_rows([other[position]], SPEC, seed=5)
            space.adopt(space.put(np.array([position]), Chunk(rows, features), TORCH))
        space.finish(None)
    cache = FeatureCache.open(path)
    assert cache.ids == list(other)
    for id in set(IDS[2:9]) & set(other):
        np.testing.assert_array_equal(cache.matrix([id])[0], expected[id])
    assert verify(path) == []
    assert not parts_folder(path).exists()


def test_rows_of_two_lists_of_images_and_of_parts_come_together(tmp_path):
    path = tmp_path / "a.h5"
    begin(path, [0, 1, 2])
    with workspace(path, ids=IDS[::-1]) as space:
        put_at = {11 - i: i for i in (5, 6)}
        for position, row in put_at.items():
            space.adopt(space.put(np.array([position]), chunk([row]), TORCH))
    assert len(draft_files(parts_folder(path))) == 2
    with workspace(path) as space:
        given = chunk([8, 9])
        part = write_part(
            space.folder, 0, *given[:2], spec=SPEC, channels=CHANNELS, dataset="made up"
        )
        space.adopt(part)
    assert go_on(path) == [0, 1, 2, 5, 6, 8, 9]
    assert_finished(path)


def test_an_update_copies_the_rows_that_stay(tmp_path):
    path = tmp_path / "a.h5"
    make_cache(path, 12, SPEC, labels=None)
    with workspace(path) as space:
        put(space, [3, 4], seed=9)
        space.finish(None)
    expected = finished_at_once(tmp_path / "at once.h5")
    changed = make_rows(IDS, SPEC, seed=9)[1][BLOCK]
    expected[[3, 4]] = changed[[3, 4]]
    np.testing.assert_array_equal(FeatureCache.open(path).matrix(), expected)
    assert verify(path) == []


def test_a_kill_while_parts_are_copied_loses_neither_them_nor_what_was_copied(
    tmp_path, monkeypatch
):
    path = tmp_path / "a.h5"
    make_cache(path, 12, SPEC, labels=None)
    with workspace(path) as space:
        put(space, [3, 4], seed=9)
    from spptransfer.cache.draft import Draft

    monkeypatch.setattr(Draft, "seal", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    with workspace(path) as space, pytest.raises(KeyboardInterrupt):
        space.finish(None)
    monkeypatch.undo()
    assert sorted(drafted_rows(path)) == list(range(12))
    with workspace(path) as space:
        assert space.known.all()
        space.finish(None)
    assert verify(path) == []
