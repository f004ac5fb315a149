"""Drafts that are damaged, of another layout, or no longer one's own."""

from __future__ import annotations

import builtins
import dataclasses
import errno
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from cache_files import CHANNELS, make_ids, make_rows
from drafted_caches import (
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
from unfinished_caches import draft_of, overwrite

from spptransfer.cache import FeatureCache
from spptransfer.cache.inventory import inspect
from spptransfer.cache.outline import Outline
from spptransfer.cache.rows import Chunk
from spptransfer.cache.unfinished import (
    draft_files,
    is_begun,
    note_file,
    open_draft,
    parts_folder,
    write_part,
)
from spptransfer.errors import CacheError, SpecMismatchError


@pytest.mark.parametrize("damage", ["cut", "empty", "note cut", "note lost", "note foreign"])
def test_a_damaged_draft_is_made_again_with_a_warning(tmp_path, caplog, damage):
    path = tmp_path / "a.h5"
    begin(path, range(8))
    draft = draft_of(path)
    note = note_file(draft)
    if damage == "note lost":
        note.unlink()
    elif damage.startswith("note"):
        note.write_bytes({"note cut": note.read_bytes()[:-9], "note foreign": b"[]"}[damage])
    else:
        draft.write_bytes(draft.read_bytes()[: {"cut": -9, "empty": 0}[damage]])
    with caplog.at_level(logging.WARNING):
        assert go_on(path) == []
    assert "made again" in caplog.text
    assert_finished(path)


@pytest.mark.parametrize("content", [b'{"extents": {}, "file_bytes": "x"}', b"{}", b"null"])
def test_a_note_with_any_content_is_a_warning(tmp_path, caplog, content):
    path = tmp_path / "a.h5"
    begin(path, range(8))
    note_file(draft_of(path)).write_bytes(content)
    assert not is_begun(path)
    assert go_on(path) == []
    assert "made again" in caplog.text


@pytest.mark.parametrize("what", ["note", "draft"])
def test_a_passing_error_of_the_disk_costs_nothing(tmp_path, monkeypatch, what):
    path = tmp_path / "a.h5"
    begin(path, range(8))
    unreadable = {"note": note_file, "draft": lambda draft: draft}[what](draft_of(path))
    with monkeypatch.context() as patched:
        for place in ((Path, "read_bytes"), (builtins, "open")):
            patched.setattr(*place, _failing_for(unreadable, getattr(*place)))
        with pytest.raises(CacheError, match=r"cannot .* '.*draft-.*': Stale file handle"):
            go_on(path)
    assert go_on(path) == list(range(8))
    assert_finished(path)


def _failing_for(unreadable, original):
    def read(path, *given, **options):
        if path == unreadable:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return original(path, *given, **options)

    return read


def test_a_draft_of_a_later_release_is_neither_used_nor_lost(tmp_path):
    path = tmp_path / "a.h5"
    begin(path, range(8))
    note = note_file(draft_of(path))
    content = note.read_text()
    note.write_text(content.replace('"format_version": 2', '"format_version": 3'))
    with pytest.raises(CacheError, match="begun in format version 3; this release writes 2"):
        go_on(path)
    note.write_text(content)
    assert go_on(path) == list(range(8))


def test_a_kill_while_a_draft_is_given_another_name_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    with monkeypatch.context() as patched:
        patched.setattr(Outline, "header_bytes", property(lambda self: 65536))
        begin(path, range(8))
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", _interrupt)
        with pytest.raises(KeyboardInterrupt), workspace(path) as space:
            put(space, [9])
    assert go_on(path) == list(range(8))
    assert_finished(path)


def test_a_note_that_cannot_be_written_leaves_no_draft_in_use(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    with workspace(path) as space:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", _full)
            with pytest.raises(CacheError, match="disk is full"):
                put(space, [0])
        put(space, [1])
    assert go_on(path) == [1]


def test_the_note_of_a_draft_that_is_moved_is_on_the_disk_before_the_draft_moves(
    tmp_path, monkeypatch
):
    path, forced = tmp_path / "a.h5", []
    with monkeypatch.context() as patched:
        patched.setattr(Outline, "header_bytes", property(lambda self: 65536))
        begin(path, range(8))
    fsync, rename = os.fsync, Path.rename

    def notice(descriptor):
        forced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def check(source, target):
        assert note_file(target).stat().st_ino in forced
        return rename(source, target)

    monkeypatch.setattr(os, "fsync", notice)
    monkeypatch.setattr(Path, "rename", check)
    with workspace(path) as space:
        put(space, [9])
    assert len(draft_files(parts_folder(path))) == 2


@pytest.mark.parametrize("lost", ["gone", "another's", "empty"])
def test_who_lost_the_lock_writes_no_more(tmp_path, lost):
    path = tmp_path / "a.h5"
    with workspace(path) as space:
        put(space, range(6))
        lock = parts_folder(path) / "lock"
        if lost == "gone":
            lock.unlink()
        else:
            other = {"process": 1, "host": "elsewhere", "since": "2026-01-01"}
            lock.write_text(json.dumps(other) if lost == "another's" else "")
        with pytest.raises(CacheError, match=r"taken over by|cannot go on writing"):
            put(space, [7])
        space.adopt(np.arange(len(space.known)))
        with pytest.raises(CacheError, match=r"taken over by|cannot go on writing"):
            space.finish(None)
    assert not path.exists()
    if lost == "another's":
        with pytest.raises(CacheError, match="written by process 1 on elsewhere"):
            go_on(path)
        lock.unlink()
    assert go_on(path) == list(range(6))


def test_who_puts_after_the_end_is_told(tmp_path):
    path = tmp_path / "a.h5"
    with workspace(path) as space:
        put(space, range(12))
        space.finish(None)
        with pytest.raises(CacheError, match="no longer being written"):
            put(space, [3], seed=1)
    with pytest.raises(CacheError):
        put(space, [3], seed=1)
    assert_finished(path)


def test_the_latest_of_a_draft_and_a_part_counts(tmp_path):
    path = tmp_path / "a.h5"
    for first in ("part", "draft"):
        with workspace(path) as space:
            given = chunk(range(12), seed=7)
            part = write_part(
                space.folder, 0, *given[:2], spec=SPEC, channels=CHANNELS, dataset="made up"
            )
            space.put(np.arange(12), chunk(range(12)), TORCH)
            ages = {part: 2 - (first == "part"), draft_of(path): 2 - (first == "draft")}
            for file, age in ages.items():
                os.utime(file, (age, age))
        with workspace(path) as space:
            space.finish(None)
        same = np.array_equal(
            FeatureCache.open(path).matrix(), finished_at_once(tmp_path / "at once.h5")
        )
        assert same == (first == "part")
        path.unlink()


def test_who_computed_nothing_is_not_named(tmp_path):
    path = tmp_path / "a.h5"
    begin(path, [3], computed_by=["openvino 3"])
    overwrite(path, "rows/checksum", 3)
    go_on(path)
    assert FeatureCache.open(path).computed_by == ("torch 2",)


def test_rows_are_copied_where_another_version_of_hdf5_lays_files_out_in_another_way(
    tmp_path, monkeypatch
):
    path = tmp_path / "a.h5"
    with monkeypatch.context() as patched:
        patched.setattr(Outline, "header_bytes", property(lambda self: 65536))
        begin(path, range(8))
    draft = draft_of(path).stat().st_ino
    assert go_on(path) == list(range(8))
    assert path.stat().st_ino != draft
    assert_finished(path)


def test_rows_of_another_spec_are_neither_used_nor_lost(tmp_path):
    path = tmp_path / "a.h5"
    begin(path, range(12))
    other = dataclasses.replace(SPEC, view="warp")
    with pytest.raises(SpecMismatchError, match="view: full is not warp"), workspace(path, other):
        pass
    assert go_on(path) == list(range(12))


def test_what_goes_wrong_before_rows_are_looked_at_loses_none(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    begin(path, range(12))
    monkeypatch.setattr("spptransfer.cache.workspace.intact_rows", _interrupt)
    with pytest.raises(KeyboardInterrupt), workspace(path):
        pass
    monkeypatch.undo()
    assert go_on(path) == list(range(12))


def _interrupt(*given):
    raise KeyboardInterrupt


def test_a_draft_without_any_whole_row_is_gone_on_with(tmp_path):
    path = tmp_path / "a.h5"
    begin(path, [3])
    overwrite(path, "rows/checksum", 3)
    assert go_on(path) == []
    assert_finished(path)


def test_who_computed_is_remembered_over_a_kill(tmp_path):
    path = tmp_path / "a.h5"
    begin(path, [0], computed_by=["openvino 3"])
    with workspace(path) as space:
        put(space, [1], computed_by=["torch 2", "openvino 3"])
    go_on(path)
    assert FeatureCache.open(path).computed_by == ("openvino 3", "torch 2")


def test_nothing_is_left_where_no_row_was_written(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    monkeypatch.setattr("spptransfer.cache.positioned._sync_data", _full)
    with workspace(path) as space, pytest.raises(CacheError, match="disk is full"):
        put(space, [0])
    assert not parts_folder(path).exists()
    assert not is_begun(path)


def _full(descriptor):
    raise OSError(28, "No space left on device")


def test_a_draft_without_a_whole_row_is_not_begun(tmp_path):
    path = tmp_path / "a.h5"
    begin(path, [3])
    overwrite(path, "rows/checksum", 3)
    assert not is_begun(path)
    with workspace(path):
        pass
    assert not parts_folder(path).exists()


def test_an_unfinished_cache_is_listed_with_the_space_that_it_takes(tmp_path):
    path = tmp_path / "a.h5"
    ids = make_ids(30_000)
    with workspace(path, ids=ids) as space:
        rows, features = make_rows(ids[:5], SPEC)
        space.put(np.arange(5), Chunk(rows, features), TORCH)
        assert draft_of(path).stat().st_size > 5_000_000
        info = inspect(path)
    assert (info.rows, info.failed, info.complete) == (5, 0, False)
    assert info.spec == SPEC
    assert info.computed_by == ("torch 2",)
    assert 0 < info.bytes < 500_000


def test_a_draft_that_is_finished_meanwhile_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([self / "draft-0.h5"]))
    assert draft_files(tmp_path) == [tmp_path / "draft-0.h5"]
    with pytest.raises(CacheError, match=r"cannot read '.*draft-0.json': No such file"):
        open_draft(tmp_path / "draft-0.h5")
