from __future__ import annotations

import dataclasses

import drafted_caches
import pytest
from cache_files import CHANNELS, make_cache, make_ids, make_rows, make_spec

from spptransfer.cache import FeatureCache
from spptransfer.cache.inventory import inspect, list_caches, precision_note, prune
from spptransfer.cache.unfinished import draft_files, parts_folder, write_part
from spptransfer.cache.workspace import Workspace
from spptransfer.errors import CacheError

SPEC = make_spec()


def begin(path, ids):
    """Leave an unfinished cache behind."""
    with Workspace(path, spec=SPEC, channels=CHANNELS, dataset="made up", ids=ids) as space:
        rows, features = make_rows(ids[:4], SPEC)
        write_part(space.folder, 0, rows, features, spec=SPEC, channels=CHANNELS, dataset="made up")


@pytest.fixture
def folder(tmp_path):
    make_cache(tmp_path / "done.h5", 10, failed=[1])
    begin(tmp_path / "begun.h5", make_ids(9))
    make_cache(tmp_path / "damaged.h5")
    content = bytearray((tmp_path / "damaged.h5").read_bytes())
    content[60] = ord("1" if content[60] == ord("0") else "0")  # within the header's hash
    (tmp_path / "damaged.h5").write_bytes(content)
    (tmp_path / "foreign.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    (tmp_path / "notes.txt").touch()
    return tmp_path


def test_caches_are_listed_with_what_they_hold(folder):
    infos = {info.path.name: info for info in list_caches(folder)}
    assert list(infos) == ["begun.h5", "damaged.h5", "done.h5"]
    done, begun, damaged = infos["done.h5"], infos["begun.h5"], infos["damaged.h5"]
    assert (done.rows, done.failed, done.complete, done.dataset) == (9, 1, True, "made up")
    assert done.spec == SPEC
    assert done.bytes == done.path.stat().st_size
    assert (begun.rows, begun.complete, begun.spec) == (4, False, SPEC)
    assert not damaged.complete
    assert "damaged" in damaged.error


def test_a_damaged_cache_is_listed_whatever_its_folder_is_called(folder, tmp_path_factory):
    moved = folder.rename(tmp_path_factory.mktemp("all") / "no feature cache")
    assert "damaged.h5" in [info.path.name for info in list_caches(moved)]


def test_a_folder_that_is_not_there_holds_no_caches(tmp_path):
    assert list_caches(tmp_path / "none") == []


def test_a_description_reads_line_by_line(folder):
    text = inspect(folder / "done.h5").describe()
    assert f"fingerprint: {SPEC.fingerprint}" in text
    assert "rows: 9 with features, 1 failed" in text
    assert "levels: [4]" in text
    assert "backbone: squeezenet1_1" in text


def test_a_cache_that_is_not_there_is_one_clear_line(tmp_path):
    with pytest.raises(CacheError, match="there is no cache"):
        inspect(tmp_path / "a.h5")


def names(removals):
    return [removal.path.name for removal in removals]


def test_pruning_only_says_what_would_go_unless_told_otherwise(folder):
    before = sorted(folder.rglob("*"))
    removals = prune(folder)
    assert names(removals) == ["begun.h5.parts", "damaged.h5", "done.h5"]
    assert all(removal.bytes > 0 for removal in removals)
    assert sorted(folder.rglob("*")) == before


def test_pruning_keeps_what_pipelines_refer_to(folder):
    prune(folder, keep=[folder / "done.h5"], dry_run=False)
    assert sorted(path.name for path in folder.iterdir()) == ["done.h5", "foreign.h5", "notes.txt"]
    assert names(prune(folder, keep=[folder / "begun.h5"], caches=False)) == []


def test_a_draft_is_unfinished_whoever_asks_for_it_by_name(tmp_path):
    drafted_caches.begin(tmp_path / "a.h5", range(8))
    (draft,) = draft_files(parts_folder(tmp_path / "a.h5"))
    info = inspect(draft)
    assert (info.complete, info.rows) == (False, 8)
    assert "state: unfinished" in info.describe()
    with pytest.raises(CacheError, match="it is not finished yet"):
        FeatureCache.open(draft)


def test_the_note_of_a_pruned_cache_goes_with_it_and_no_file_of_the_users(folder):
    users = [folder / name for name in ("done.notes.json", "done.json", "done.h5.json")]
    kept = precision_note(folder / "damaged.h5")
    for path in (precision_note(folder / "done.h5"), kept, *users):
        path.touch()
    prune(folder, keep=[folder / "damaged.h5"], dry_run=False)
    assert not precision_note(folder / "done.h5").exists()
    assert not (folder / "done.h5").exists()
    assert all(path.exists() for path in (kept, *users))


def test_pruning_leaves_alone_what_is_being_written(folder):
    with Workspace(
        folder / "done.h5", spec=SPEC, channels=CHANNELS, dataset="made up", ids=make_ids(10)
    ):
        assert names(prune(folder)) == ["begun.h5.parts", "damaged.h5"]
    assert parts_folder(folder / "begun.h5").exists()


def test_an_info_is_a_value(folder):
    info = inspect(folder / "done.h5")
    assert dataclasses.replace(info) == info
