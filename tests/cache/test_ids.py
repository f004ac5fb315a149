from __future__ import annotations

import errno
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spptransfer.cache.ids import SortedIndex, decode, encode, sort_ids
from spptransfer.errors import CacheError


def is_encodable(id):
    try:
        return not id.endswith("\0") and bool(encode([id]).size)
    except UnicodeEncodeError:
        return False


names = st.one_of(
    st.text(max_size=12),
    st.binary(max_size=9).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
)
unusual = st.lists(names.filter(is_encodable), max_size=20, unique=True)


def sorted_index(ids):
    encoded = encode(ids)
    return SortedIndex(encoded, np.argsort(encoded, kind="stable"))


@given(unusual)
def test_text_comes_back_as_it_was_stored(ids):
    assert decode(encode(ids)) == ids


@given(ids=unusual, others=unusual)
@settings(max_examples=50)
def test_an_index_finds_what_a_dict_finds(ids, others):
    expected = {id: position for position, id in enumerate(ids)}
    wanted = [*others, *ids]
    found = sorted_index(ids).find(wanted)
    assert found.tolist() == [expected.get(id, -1) for id in wanted]


def test_an_id_longer_than_all_stored_ones_is_unknown_though_it_begins_like_one():
    assert sorted_index(["abc", "abd"]).find(["abcd", "abc\0", "ab"]).tolist() == [-1, -1, -1]


@given(st.lists(st.lists(names.filter(is_encodable), max_size=8), max_size=6))
@settings(max_examples=50)
def test_runs_are_merged_into_the_order_of_sorting_all_at_once(runs):
    ids = [id.encode("utf-8", "surrogateescape") for run in runs for id in run]
    with tempfile.TemporaryDirectory() as folder:
        found = list(sort_ids(map(encode, runs), folder))
    assert found == sorted((id, position) for position, id in enumerate(ids))


def test_runs_longer_than_what_is_merged_at_once_lose_nothing(tmp_path):
    numbers = np.random.default_rng(0).permutation(5000)
    ids = np.array([f"{number}" for number in numbers], dtype="S5")
    found = list(sort_ids(np.split(ids, [3000, 3001]), tmp_path))
    assert [position for _, position in found] == np.argsort(ids).tolist()
    assert list(tmp_path.iterdir()) == []


def test_a_scratch_file_that_cannot_be_written_is_one_clear_line(tmp_path):
    with pytest.raises(CacheError, match=r"cannot write .*No such file"):
        list(sort_ids([], tmp_path / "gone"))

    def full():
        yield encode(["a"])
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CacheError, match="the disk is full"):
        list(sort_ids(full(), tmp_path))
