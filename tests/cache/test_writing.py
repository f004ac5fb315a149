from __future__ import annotations

import errno
import json
import os
import stat

import h5py
import numpy as np
import pytest
from cache_files import in_chunks, make_cache, make_ids, make_rows, make_spec

from spptransfer.cache import FeatureCache, files
from spptransfer.cache.files import appearing, human_bytes, remove_leftovers
from spptransfer.cache.ids import encoded_width
from spptransfer.cache.outline import Labels
from spptransfer.cache.rows import checksums
from spptransfer.cache.verify import verify
from spptransfer.cache.writing import write_cache
from spptransfer.errors import CacheError


def write(path, chunks, ids):
    write_cache(
        path,
        spec=make_spec(),
        channels=3,
        dataset="made up",
        count=len(ids),
        id_width=encoded_width(ids),
        chunks=chunks,
        labels=None,
    )


def test_plain_h5py_reads_a_cache(tmp_path):
    spec = make_spec(levels=(4, 3), scales=(64, 48), storage="float16")
    rows, features = make_cache(tmp_path / "a.h5", 10, spec, failed=[2])
    with h5py.File(tmp_path / "a.h5") as file:
        assert json.loads(file.attrs["spec"]) == spec.to_dict()
        assert file.attrs["fingerprint"] == spec.fingerprint
        assert file.attrs["format"] == "spptransfer-features"
        assert [id.decode() for id in file["rows/id"][()]] == rows.ids
        assert file["rows/digest"][3] == rows.digest[3]
        assert file["rows/status"][()].tolist() == rows.status.tolist()
        assert file["failures/row"][()].tolist() == [2]
        assert file["failures/error"][0] == b"reason 2"
        assert file["labels/classes"][()].tolist() == [b"ant", b"bee", b"cat"]
        for block, values in features.items():
            np.testing.assert_array_equal(file[block.name][()], values)
        order = file["rows/by_id"][()]
        assert [rows.ids[i] for i in order] == sorted(rows.ids)


def test_the_numbers_lie_where_the_header_says(tmp_path):
    make_cache(tmp_path / "a.h5", 7, failed=[1])
    cache = FeatureCache.open(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        for name in cache.file.header.extents:
            np.testing.assert_array_equal(cache.file.array(name), file[name][()])


def test_the_same_rows_give_the_same_bytes(tmp_path):
    make_cache(tmp_path / "a.h5")
    make_cache(tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_features_lie_on_pages_of_their_own(tmp_path):
    make_cache(tmp_path / "a.h5", 100, make_spec(levels=(6,)))
    extents = FeatureCache.open(tmp_path / "a.h5").file.header.extents
    assert extents["features/scale_64/level_6"].offset % 4096 == 0


def test_an_error_in_the_middle_leaves_nothing_behind(tmp_path):
    ids = make_ids(8)
    rows, features = make_rows(ids, make_spec())

    def breaking():
        yield from list(in_chunks(rows, features, 4))[:1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.h5", breaking(), ids)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [make_ids(4), make_ids(9), [*make_ids(7), "a longer " * 9]])
def test_rows_must_be_as_many_and_their_ids_as_short_as_announced(tmp_path, wrong):
    ids = make_ids(8)
    rows, features = make_rows(wrong, make_spec())
    with pytest.raises(ValueError, match="announced"):
        write(tmp_path / "a.h5", in_chunks(rows, features, 4), ids)


def test_a_cache_without_labels_says_so(tmp_path):
    make_cache(tmp_path / "a.h5", labels=None)
    cache = FeatureCache.open(tmp_path / "a.h5")
    assert cache.classes == ()
    with pytest.raises(CacheError, match="holds no labels"):
        cache.labels()


def test_several_labels_per_image_are_an_indicator(tmp_path):
    targets = np.array([[1, -1], [0, 1], [-1, -1]], dtype=np.int8)
    make_cache(tmp_path / "a.h5", 3, labels=Labels(("a", "b"), targets))
    labels = FeatureCache.open(tmp_path / "a.h5").labels()
    np.testing.assert_array_equal(labels, targets)
    assert labels.dtype == np.int8


def test_the_space_needed_is_stated_where_it_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: type("usage", (), {"free": 900}))
    with pytest.raises(CacheError, match=r"disk is full .*\(.* kB are needed\).*free some space"):
        make_cache(tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "passes"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_folder_that_cannot_be_forced_onto_the_disk_is_no_error_where_none_can(
    tmp_path, monkeypatch, number, passes
):
    fsync = os.fsync

    def only_files(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    if passes:
        make_cache(tmp_path / "a.h5")
        assert len(FeatureCache.open(tmp_path / "a.h5")) == 10
    else:
        with pytest.raises(CacheError, match="Input/output error"):
            make_cache(tmp_path / "a.h5")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EFBIG, "File too large"),
        OSError("Can't write data (file write failed: time = ..., errno = 28, error message = ..."),
        RuntimeError("Unable to flush file (errno = 28, error message = 'No space left')"),
    ],
)
def test_a_disk_that_fills_up_while_writing_is_one_clear_line(tmp_path, error):
    def fail():
        with appearing(tmp_path / "a") as name:
            name.write_text("half")
            raise error

    with pytest.raises(CacheError, match="the disk is full"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_vanished_is_one_clear_line(tmp_path):
    with pytest.raises(CacheError, match=r"cannot write .*No such file"):
        make_cache(tmp_path / "gone" / "a.h5")


def test_temporary_files_of_the_dead_are_removed_and_of_the_living_kept(tmp_path):
    with appearing(tmp_path / "a.h5") as mine:
        mine.touch()
        dead = mine.with_name(mine.name.replace(f".{mine.name.split('.')[-2]}.", ".4194304."))
        elsewhere = tmp_path / "a.h5.other-host.1.tmp"
        for file in (dead, elsewhere):
            file.touch()
        remove_leftovers(tmp_path)
        assert mine.exists()
        assert elsewhere.exists()
        assert not dead.exists()


def test_sizes_are_shown_with_three_digits_or_so():
    assert [human_bytes(n) for n in (0, 999, 1000, 10**9, 10**16)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "1.0 GB",
        "10000.0 TB",
    ]


def test_reasons_of_any_length_come_back_from_whatever_chunk_they_were_in(tmp_path):
    ids = make_ids(20)
    rows, features = make_rows(ids, make_spec(), failed=[0, 5, 6, 19])
    rows.error[5], rows.error[19] = "", "ü" * 300
    write(tmp_path / "a.h5", in_chunks(rows, features, 3), ids)
    cache = FeatureCache.open(tmp_path / "a.h5")
    assert cache.failures == {ids[i]: rows.error[i] for i in (0, 5, 6, 19)}
    assert cache.rows.error == rows.error
    assert cache.rows_at(np.array([19, 7, 5, 0])).error == [rows.error[i] for i in (19, 7, 5, 0)]


def test_rows_that_were_checked_keep_the_checksums_that_vouch_for_them(tmp_path):
    # What changes in memory between the check and the disk is found out.
    ids = make_ids(8)
    rows, features = make_rows(ids, make_spec())
    (first, second) = in_chunks(rows, features, 4)
    known = checksums(first.rows, first.features, list(features))
    for values in first.features.values():
        values[2] += 1
    write(tmp_path / "a.h5", [first._replace(checksums=known), second], ids)
    wrong = [problem.id for problem in verify(tmp_path / "a.h5")]
    assert wrong == [ids[2]]
