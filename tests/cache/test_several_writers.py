"""A cache that more than one wants to write: who was taken for dead, merges, repairs, prunings."""

from __future__ import annotations

import fcntl
import json
import os

import numpy as np
import pytest
from cache_files import CHANNELS, make_cache, make_spec
from drafted_caches import IDS, SPEC, assert_finished, begin, chunk, go_on, put, workspace
from unfinished_caches import drafted_rows

from spptransfer.cache import FeatureCache, inventory
from spptransfer.cache.inventory import prune
from spptransfer.cache.lock import STALE_SECONDS
from spptransfer.cache.merge import merge
from spptransfer.cache.unfinished import draft_files, parts_folder, write_part
from spptransfer.cache.verify import rescue, verify
from spptransfer.errors import CacheError


@pytest.fixture
def elsewhere(monkeypatch):
    """Change the host, in a folder that knows no locks: the last holder was silent for long."""

    def flock(file, operation):
        raise OSError(95, "no locks")

    def change(path, host):
        monkeypatch.setattr("socket.gethostname", lambda: host)
        lock = parts_folder(path) / "lock"
        silent = lock.stat().st_mtime - STALE_SECONDS - 60
        os.utime(lock, (silent, silent))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr("spptransfer.cache.lock._boot_id", lambda: "")
    return change


# --- a writer that was taken for dead comes back ------------------------------------------------


def test_who_comes_back_without_rows_leaves_the_draft_of_the_next_one(tmp_path, elsewhere):
    path = tmp_path / "a.h5"
    with workspace(path) as late:
        late.begin()
        elsewhere(path, "another")
        successor = workspace(path)
        with successor:
            put(successor, range(8))
            with pytest.raises(CacheError, match="taken over by"):
                put(late, [8])
            late.__exit__()
            assert drafted_rows(path) == list(range(8))
            put(successor, range(8, 12))
            successor.finish(None)
    assert_finished(path)


def test_who_comes_back_while_copying_writes_over_nothing(tmp_path, elsewhere):
    path, more = tmp_path / "a.h5", [*IDS[:11], "z.jpg"]
    begin(path, range(12))
    go_on(path)
    with workspace(path, ids=more) as late:
        put(late, [11])
        copies = late._elsewhere()
        first = next(copies)

        def slowly():
            elsewhere(path, "another")
            successor = workspace(path, ids=more)
            successor.__enter__()
            put(successor, range(4), seed=1)
            successor.__exit__()
            yield first

        late._elsewhere = slowly
        with pytest.raises(CacheError, match=r"taken over by|cannot go on writing"):
            late.finish(None)
    with workspace(path, ids=more) as last:
        put(last, [11])
        last.finish(None)
    renewed = chunk(range(4), seed=1).rows.digest.tolist()
    assert FeatureCache.open(path).rows.digest[:4].tolist() == renewed


def test_who_comes_back_with_nothing_to_do_removes_nothing(tmp_path, elsewhere):
    path = tmp_path / "a.h5"
    begin(path, range(12))
    go_on(path)
    with workspace(path) as late:
        elsewhere(path, "another")
        with workspace(path) as successor:
            put(successor, range(8), seed=1)
            with pytest.raises(CacheError, match="taken over by"):
                late.finish(None)
            assert drafted_rows(path) == list(range(8))


# --- what lies there from before ----------------------------------------------------------------


def put_part(path, positions, number=0, **given):
    rows, features = chunk(positions, **given)[:2]
    rows.digest[:] = [f"{position:064x}".encode() for position in positions]  # the same images
    about = {"spec": SPEC, "channels": CHANNELS, "dataset": "made up"}
    return write_part(parts_folder(path), number, rows, features, **about)


def test_a_part_that_is_made_again_replaces_the_one_of_its_name(tmp_path):
    path = tmp_path / "a.h5"
    parts_folder(path).mkdir()
    before = put_part(path, range(6), failed=range(6))
    put_part(path, range(6, 12), number=1)
    with workspace(path) as space:
        assert len(list(space.known_failures())) == 6
        again = put_part(path, range(6), seed=1)
        assert again == before
        space.adopt(again)
        assert list(space.known_failures()) == []
        space.finish(None)
    cache = FeatureCache.open(path)
    (block,) = cache.blocks
    assert len(cache) == 12
    expected = chunk(range(6), seed=1).features[block]
    np.testing.assert_array_equal(cache.read(block, slice(0, 6)), expected)


def test_a_run_for_other_images_leaves_the_rows_of_a_killed_one(tmp_path):
    path = tmp_path / "a.h5"
    begin(path, range(8))
    with pytest.raises(KeyboardInterrupt), workspace(path, ids=["typo/" + id for id in IDS]):
        raise KeyboardInterrupt
    assert go_on(path) == list(range(8))
    assert_finished(path)


def test_a_draft_older_than_the_finished_file_brings_nothing_back(tmp_path, monkeypatch):
    path, more = tmp_path / "a.h5", [*IDS, "z.jpg"]
    begin(path, range(12))
    replace = os.replace

    def killed(source, target):
        replace(source, target)
        if target == path:
            raise KeyboardInterrupt

    rows = chunk([*range(12), 0], seed=1)
    with workspace(path, ids=more) as space, monkeypatch.context() as patched:
        rows.rows.ids[12:] = ["z.jpg"]
        space.adopt(space.put(np.arange(13), rows, ["torch 2"]))
        patched.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            space.finish(None)
    assert draft_files(parts_folder(path)) != []
    finished = path.read_bytes()
    with workspace(path, ids=more) as space:
        space.finish(None)
    assert path.read_bytes() == finished
    assert not parts_folder(path).exists()


def test_a_workspace_that_is_entered_again_takes_stock_anew(tmp_path):
    path = tmp_path / "a.h5"
    space = workspace(path)
    with space:
        put(space, range(12), failed=[3])
        space.finish(None)
    finished = path.read_bytes()
    with space:
        assert [len(rows) for _, rows in space.known_rows()] == [12]
        assert [reason for _, reason in space.known_failures()] == ["reason 3"]
        space.finish(None)
    assert path.read_bytes() == finished


def test_a_link_and_its_file_are_one_cache(tmp_path):
    (tmp_path / "disk").mkdir()
    path, link = tmp_path / "disk" / "a.h5", tmp_path / "a.h5"
    link.symlink_to(path)
    make_cache(path, 12, SPEC, labels=None)
    with workspace(link) as space:
        put(space, range(12))
        with pytest.raises(CacheError, match="is being written by"), workspace(path):
            pass
        space.finish(None)
    assert link.is_symlink()
    assert FeatureCache.open(path).computed_by == ("torch 2",)


# --- merging, repairing, pruning ----------------------------------------------------------------


def test_nothing_is_merged_into_a_cache_that_somebody_writes(tmp_path):
    path = tmp_path / "a.h5"
    make_cache(path, 4, SPEC)
    make_cache(tmp_path / "b.h5", 8, SPEC)
    before = path.read_bytes()
    with workspace(path), pytest.raises(CacheError, match="is being written by"):
        merge(path, [path, tmp_path / "b.h5"])
    assert path.read_bytes() == before
    assert len(merge(path, [path, tmp_path / "b.h5"])) == 8
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.h5", "b.h5"]


def test_a_cache_that_is_no_source_is_not_merged_over(tmp_path):
    make_cache(tmp_path / "a.h5", 4, SPEC)
    make_cache(tmp_path / "c.h5", 4, make_spec(weights_sha256="ff"))
    before = (tmp_path / "c.h5").read_bytes()
    with pytest.raises(CacheError, match=r"c\.h5' is there already"):
        merge(tmp_path / "c.h5", [tmp_path / "a.h5"])
    assert (tmp_path / "c.h5").read_bytes() == before


def test_a_finished_file_that_is_replaced_meanwhile_is_not_read_under_another_spec(tmp_path):
    path = tmp_path / "a.h5"
    make_cache(path, 12, SPEC, labels=None)
    expected = FeatureCache.open(path).matrix()
    make_cache(tmp_path / "b.h5", 12, make_spec(weights_sha256="ff"), labels=None, seed=1)
    with workspace(path, ids=IDS[::-1]) as space:
        os.replace(tmp_path / "b.h5", path)
        space.finish(None)
    np.testing.assert_array_equal(FeatureCache.open(path).matrix(), expected[::-1])


def test_a_file_that_is_replaced_while_it_is_verified_is_not_called_damaged(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    make_cache(path, 12, SPEC)
    make_cache(tmp_path / "b.h5", 6, SPEC, seed=1)
    intact = FeatureCache(path).file.__class__.is_intact

    def replaced(file):
        if (tmp_path / "b.h5").exists():
            os.replace(tmp_path / "b.h5", path)
        return intact(file)

    monkeypatch.setattr("spptransfer.cache.mapped.MappedFile.is_intact", replaced)
    assert verify(path) == []
    assert FeatureCache.open(path).count == 6


def test_what_is_rescued_is_the_file_that_is_there_when_its_turn_comes(tmp_path):
    path = tmp_path / "a.h5"
    make_cache(path, 4, SPEC, labels=None)
    with workspace(path), pytest.raises(CacheError, match="is being written by"):
        rescue(path, {IDS[0]})
    make_cache(path, 12, SPEC, labels=None)
    rescue(path, {IDS[0]})
    assert not path.exists()
    assert go_on(path) == list(range(1, 12))


def test_parts_that_a_run_goes_on_with_meanwhile_are_not_pruned(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    begin(path, range(8))
    listed = inventory.list_caches
    runs = []

    def run_begins(folder):
        runs.append(workspace(path))
        runs[0].__enter__()
        return listed(folder)

    monkeypatch.setattr(inventory, "list_caches", run_begins)
    assert prune(tmp_path, dry_run=False) == []
    put(runs[0], range(8, 12))
    runs[0].finish(None)
    runs[0].__exit__()
    assert_finished(path)


def test_a_lock_note_of_somebody_else_is_left_when_a_folder_is_left(tmp_path):
    path = tmp_path / "a.h5"
    with workspace(path):
        lock = parts_folder(path) / "lock"
        lock.write_text(json.dumps({"process": 1, "host": "elsewhere", "since": "2026-01-01"}))
    assert "elsewhere" in lock.read_text()
