from __future__ import annotations

import dataclasses
import logging
import os
import shutil

import numpy as np
import pytest
from cache_files import make_cache, make_ids, make_rows, make_spec, open_writer
from damaged_caches import flip, overwrite, position_of, unfinished_file, unfinished_files

from spptransfer.cache import FeatureCache, Labels
from spptransfer.cache.rows import FAILED
from spptransfer.cache.verify import verify
from spptransfer.cache.writer import merge
from spptransfer.errors import CacheError, SpecMismatchError

SPEC = make_spec()
IDS = make_ids(12)


def writer(path, spec=SPEC, ids=IDS, labels=None):
    return open_writer(path, ids, spec, labels)


def put(space, positions, seed=0, failed=(), computed_by="torch 2", spec=SPEC):
    rows, features = make_rows(IDS, spec, failed=failed, seed=seed)
    positions = np.array(positions, np.intp)
    some = {block: values[positions] for block, values in features.items()}
    space.put(positions, rows.take(positions), some, computed_by)


def begin(path, positions, **given):
    with writer(path) as space:
        put(space, positions, **given)


def go_on(path, labels=None):
    """What is known; then the rest is put, and the file finished."""
    with writer(path, labels=labels) as space:
        known = np.flatnonzero(space.known).tolist()
        for position in sorted(set(range(12)) - set(known)):
            put(space, [position])
        space.finish()
    return known


def matrix(path, ids=None):
    return FeatureCache.open(path).matrix(ids)


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_finished(path):
    make_cache(path.with_name("at once.h5"), 12, SPEC, labels=None)
    assert path.read_bytes() == path.with_name("at once.h5").read_bytes()
    assert files_in(path.parent) == ["a.h5", "at once.h5"]
    assert verify(path) == []


def test_rows_put_in_any_order_are_the_file_written_at_once(tmp_path):
    with writer(tmp_path / "a.h5") as space:
        for positions in ([7, 8], [0], [9, 11], [1, 2, 3, 5, 6], [10], [4]):
            put(space, positions)
        space.finish()
    assert_finished(tmp_path / "a.h5")


def test_a_row_put_again_takes_the_place_of_the_former_one(tmp_path):
    path = tmp_path / "a.h5"
    begin(path, range(12), seed=9, failed=[3])
    with writer(path) as space:
        put(space, range(12))
        space.finish()
    assert_finished(path)


@pytest.mark.parametrize(
    "dataset", ["rows/status", "rows/checksum", "features/spp/scale_64/level_4"]
)
def test_a_row_of_which_something_never_got_to_the_disk_is_made_again(tmp_path, dataset):
    begin(tmp_path / "a.h5", range(8))
    overwrite(tmp_path / "a.h5", dataset, 3)
    assert go_on(tmp_path / "a.h5") == [0, 1, 2, 4, 5, 6, 7]
    assert_finished(tmp_path / "a.h5")


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "another's"])
def test_a_damaged_unfinished_file_is_made_again_with_a_warning(tmp_path, caplog, damage):
    path = tmp_path / "a.h5"
    begin(path, range(8))
    file = unfinished_file(path)
    if damage == "another's":
        with writer(tmp_path / "b.h5", ids=IDS[::-1]) as other:
            other.begin()
            shutil.copy(unfinished_file(tmp_path / "b.h5"), file)
    else:
        content = file.read_bytes()
        file.write_bytes({"cut": content[:-9000], "empty": b"", "text": b"no file " * 999}[damage])
    with caplog.at_level(logging.WARNING):
        assert go_on(path) == []
    assert "made again" in caplog.text
    assert_finished(path)


def test_an_error_before_rows_are_looked_at_loses_none(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    begin(path, range(12))

    def interrupt(*given, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("hashlib.blake2b", interrupt)
        with pytest.raises(KeyboardInterrupt), writer(path):
            pass
    assert go_on(path) == list(range(12))


def test_a_file_begun_in_another_version_is_neither_used_nor_lost(tmp_path):
    import h5py

    path = tmp_path / "a.h5"
    begin(path, range(8))
    for version in (5, 4):
        with h5py.File(unfinished_file(path), "r+", locking=False) as file:
            file.attrs.modify("format_version", version)
        if version == 5:
            with pytest.raises(CacheError, match="begun in format version 5; this release writes"):
                go_on(path)
    assert go_on(path) == list(range(8))


@pytest.mark.parametrize("finished", [True, False])
def test_rows_of_another_spec_are_neither_used_nor_lost(tmp_path, finished):
    path = tmp_path / "a.h5"
    begin(path, range(12))
    if finished:
        go_on(path)
    other = dataclasses.replace(SPEC, view="warp")
    with pytest.raises(SpecMismatchError, match="view: full is not warp"), writer(path, other):
        pass
    assert go_on(path) == list(range(12))


# --- updates ------------------------------------------------------------------------------------


def test_a_file_in_a_wholly_other_order_is_brought_into_the_right_one(tmp_path):
    path, ids = tmp_path / "a.h5", make_ids(900)
    make_cache(path, ids=ids, spec=SPEC, labels=None, failed=(5, 800))
    before = path.read_bytes()
    with writer(path, ids=[ids[i] for i in np.random.default_rng(0).permutation(900)]) as space:
        assert space.failures() == {ids[5]: "reason 5", ids[800]: "reason 800"}
        space.finish()
    assert verify(path) == []
    with writer(path, ids=ids) as space:
        space.finish()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "targets", [np.linspace(0, 1, 12), np.full(12, 1 << 40), np.zeros(11, int)]
)
def test_labels_that_no_file_can_hold_are_refused_before_any_work(tmp_path, targets):
    with pytest.raises(CacheError, match="do not fit 12 rows"):
        writer(tmp_path / "a.h5", labels=Labels(("ant", "bee"), targets))


def test_several_labels_per_image_are_an_indicator_and_none_are_none(tmp_path):
    targets = np.array([[1, -1], [0, 1]] * 6)
    go_on(tmp_path / "a.h5", Labels(("a", "b"), targets))
    labels = FeatureCache.open(tmp_path / "a.h5").labels()
    np.testing.assert_array_equal(labels, targets)
    assert labels.dtype == np.int8
    go_on(tmp_path / "a.h5")
    with pytest.raises(CacheError, match="holds no labels"):
        FeatureCache.open(tmp_path / "a.h5").labels()


def test_rows_of_a_killed_run_are_used_when_the_images_are_others_by_then(tmp_path):
    path, others = tmp_path / "a.h5", [*IDS[3:], "new.jpg"]
    begin(path, range(8))
    with writer(path, ids=others) as space:
        assert np.flatnonzero(space.known).tolist() == list(range(5))
    with writer(path, ids=others) as space:
        rows, features = make_rows(others, SPEC)
        new = np.flatnonzero(~space.known)
        space.put(new, rows.take(new), {b: v[new] for b, v in features.items()}, "torch 2")
    assert len(unfinished_files(path)) == 2
    with writer(path, ids=others) as space:
        space.finish()
    make_cache(tmp_path / "b.h5", 12, SPEC)
    np.testing.assert_array_equal(matrix(path, IDS[3:8]), matrix(tmp_path / "b.h5", IDS[3:8]))
    assert files_in(tmp_path) == ["a.h5", "b.h5"]


def test_a_run_for_other_images_that_wrote_nothing_leaves_the_rows_of_a_killed_one(tmp_path):
    begin(tmp_path / "a.h5", range(8))
    with writer(tmp_path / "a.h5", ids=["typo/" + id for id in IDS]) as space:
        space.begin()
    assert go_on(tmp_path / "a.h5") == list(range(8))
    assert_finished(tmp_path / "a.h5")


@pytest.mark.parametrize("finished_is_older", [True, False])
def test_of_several_files_that_have_a_row_the_one_written_last_counts(tmp_path, finished_is_older):
    path = tmp_path / "a.h5"
    make_cache(path, 12, SPEC, labels=None)
    expected = matrix(path)
    begin(path, range(12), seed=7)
    for file, age in ((path, 1), (unfinished_file(path), 2 if finished_is_older else 0)):
        os.utime(file, (age, age))
    go_on(path)
    assert np.array_equal(matrix(path), expected) != finished_is_older


def test_damaged_rows_are_never_carried_into_a_new_file(tmp_path):
    path = tmp_path / "a.h5"
    make_cache(path, 12, SPEC, labels=None)
    flip(path, position_of(path, "features/spp/scale_64/level_4", 6))
    before = path.read_bytes()
    with (
        writer(path, ids=IDS[1:]) as space,
        pytest.raises(CacheError, match="not what was written"),
    ):
        space.finish()
    assert path.read_bytes() == before


def test_a_file_is_not_finished_before_every_image_has_a_row(tmp_path):
    with writer(tmp_path / "a.h5") as space:
        put(space, range(6))
        with pytest.raises(CacheError, match="not every image has a row"):
            space.finish()
    assert go_on(tmp_path / "a.h5") == list(range(6))


def test_nothing_is_left_where_no_row_was_written(tmp_path):
    with writer(tmp_path / "a.h5") as space:
        assert space.begin() > 0
        assert len(unfinished_files(tmp_path / "a.h5")) == 1
    assert files_in(tmp_path) == []


def test_rows_of_other_ids_are_not_put(tmp_path):
    rows, features = make_rows(IDS[::-1], SPEC)
    with writer(tmp_path / "a.h5") as space, pytest.raises(ValueError, match="not those of the"):
        space.put(np.arange(12), rows, features, "torch 2")


def test_who_computed_is_remembered_over_a_kill_unless_none_of_it_is_left(tmp_path):
    path = tmp_path / "a.h5"
    begin(path, [0], computed_by="openvino 3")
    go_on(path)
    assert FeatureCache.open(path).computed_by == ("openvino 3", "torch 2")
    path.unlink()
    begin(path, [3], computed_by="openvino 3")
    overwrite(path, "rows/status", 3)
    go_on(path)
    assert FeatureCache.open(path).computed_by == ("torch 2",)


def test_a_long_reason_of_a_failure_is_cut_between_characters(tmp_path):
    rows, features = make_rows(IDS[:1], SPEC, failed=[0])
    rows.error[0] = "x" + "ü" * 300
    with writer(tmp_path / "a.h5", ids=IDS[:1]) as space:
        space.put(np.arange(1), rows, features, "torch 2")
        space.finish()
    assert FeatureCache.open(tmp_path / "a.h5").failures == {IDS[0]: "x" + "ü" * 78 + "..."}
    assert FeatureCache.open(tmp_path / "a.h5").rows_at(slice(None)).status.tolist() == [FAILED]


# --- other writers ------------------------------------------------------------------------------


def test_a_second_writer_is_told_who_writes_and_since_when(tmp_path):
    path, link = tmp_path / "a.h5", tmp_path / "link.h5"
    make_cache(path, 12, SPEC)
    link.symlink_to(path)
    told = pytest.raises(CacheError, match=rf"written by process {os.getpid()} on .* since 20")
    with writer(path):
        with told, writer(link):
            pass
        with told:
            merge(path, [path, link])
    with writer(link) as space:
        put(space, [1], seed=4)
        space.finish()
    assert link.is_symlink()


# --- disks that are full, or only to be read ----------------------------------------------------


def fill(disk, free):
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - free))
    return ballast


LARGE = make_spec(levels=(40,))  # 19 kB a row


def test_a_disk_too_small_for_all_rows_is_refused_before_any_is_computed(small_disk):
    ballast = fill(small_disk, 200_000)
    with (
        writer(small_disk / "a.h5", LARGE) as space,
        pytest.raises(CacheError, match=r"disk is full .*\(.* kB are needed\).*free some space"),
    ):
        space.begin()
    assert files_in(small_disk) == ["ballast"]
    ballast.unlink()
    with writer(small_disk / "a.h5", LARGE) as space:
        assert 230_000 < space.begin() < 400_000
        put(space, range(10), spec=LARGE)
    fill(small_disk, 150_000)
    with writer(small_disk / "a.h5", LARGE) as space:
        assert space.begin() < 150_000  # what is there already needs no room any more
