from __future__ import annotations

import numpy as np
import pytest
from cache_files import make_cache, make_ids, make_rows, make_spec, open_writer
from damaged_caches import unfinished_file

from spptransfer.cache import FeatureCache
from spptransfer.cache.inventory import inspect, is_begun, list_caches, precision_note, prune
from spptransfer.errors import CacheError

SPEC = make_spec()


def begin(path, ids, count=4):
    """Leave an unfinished cache behind."""
    with open_writer(path, ids) as space:
        space.put(np.arange(count), *make_rows(ids[:count], SPEC), "torch 2")


@pytest.fixture
def folder(tmp_path):
    make_cache(tmp_path / "done.h5", 10, failed=[1])
    begin(tmp_path / "begun.h5", make_ids(9))
    make_cache(tmp_path / "damaged.h5")
    content = bytearray((tmp_path / "damaged.h5").read_bytes())
    content[5000] ^= 1
    (tmp_path / "damaged.h5").write_bytes(content)
    (tmp_path / "foreign.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "my.partial").touch()
    return tmp_path


def test_caches_are_listed_with_what_they_hold(folder):
    infos = {info.path.name: info for info in list_caches(folder)}
    assert list(infos) == ["begun.h5", "damaged.h5", "done.h5"]
    done, begun, damaged = infos["done.h5"], infos["begun.h5"], infos["damaged.h5"]
    assert (done.rows, done.failed, done.complete, done.dataset) == (9, 1, True, "made up")
    assert done.spec == SPEC
    assert (begun.rows, begun.complete, begun.spec) == (4, False, SPEC)
    assert begun.computed_by == {"torch 2"}
    assert "state: unfinished" in begun.describe()
    assert is_begun(folder / "begun.h5")
    assert not is_begun(folder / "done.h5")
    assert not damaged.complete
    assert "damaged" in damaged.error


def test_an_unfinished_cache_is_listed_with_the_space_that_it_takes(tmp_path):
    path, ids = tmp_path / "a.h5", make_ids(30_000)
    with open_writer(path, ids) as space:
        space.put(np.arange(5), *make_rows(ids[:5], SPEC), "torch 2")
        assert unfinished_file(path).stat().st_size > 10_000_000
        info = inspect(path)
    assert (info.rows, info.failed, info.complete) == (5, 0, False)
    assert 0 < info.bytes < 3_000_000


def test_an_unfinished_file_is_no_cache_whoever_asks_for_it_by_name(tmp_path):
    begin(tmp_path / "a.h5", make_ids(9))
    with pytest.raises(CacheError, match="it is not finished yet; run the command"):
        FeatureCache.open(unfinished_file(tmp_path / "a.h5"))


def test_a_folder_that_is_not_there_holds_no_caches(tmp_path):
    assert list_caches(tmp_path / "none") == []


def test_a_cache_that_is_not_there_is_one_clear_line(tmp_path):
    with pytest.raises(CacheError, match="there is no cache"):
        inspect(tmp_path / "a.h5")


def names(removals):
    return [removal.path.name.partition(".h5")[0] for removal in removals]


def test_pruning_keeps_what_pipelines_refer_to(folder):
    (folder / "killed.h5.lock").touch()
    assert names(prune(folder, keep=[folder / "begun.h5"], caches=False)) == []
    removals = prune(folder, keep=[folder / "done.h5"], dry_run=False)
    assert all(removal.bytes > 0 for removal in removals)
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["done.h5", "foreign.h5", "my.partial", "notes.txt"]


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
    with (
        open_writer(folder / "done.h5", make_ids(10)),
        open_writer(folder / "begun.h5", make_ids(9)),
    ):
        assert names(prune(folder, dry_run=False)) == ["damaged"]
    assert is_begun(folder / "begun.h5")
