from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from cache_files import make_rows, make_spec
from hypothesis import given
from hypothesis import strategies as st

from spptransfer.cache.layout import blocks_of
from spptransfer.cache.rows import IdIndex, Rows, checksums, decode, encode

names = st.text(max_size=12).filter(lambda text: not text.endswith("\0"))
unusual = st.lists(
    st.one_of(names, st.binary(max_size=9).map(lambda raw: raw.decode("utf-8", "surrogateescape"))),
    max_size=20,
    unique=True,
).map(lambda ids: [id for id in ids if not id.endswith("\0")])


def encodable(ids):
    try:
        encode(ids)
    except UnicodeEncodeError:
        return False
    return True


@given(unusual.filter(encodable))
def test_text_comes_back_as_it_was_stored(ids):
    assert decode(encode(ids)) == ids


@given(unusual.filter(encodable), unusual.filter(encodable))
def test_the_index_finds_what_a_dict_finds(ids, others):
    expected = {id: position for position, id in enumerate(ids)}
    wanted = [*others, *ids]
    found = IdIndex(encode(ids)).find(wanted)
    assert found.tolist() == [expected.get(id, -1) for id in wanted]


def test_an_id_longer_than_all_stored_ones_is_unknown_though_it_begins_like_one():
    assert IdIndex(encode(["abc", "abd"])).find(["abcd", "abc\0", "ab"]).tolist() == [-1, -1, -1]


def test_ids_that_occur_twice_are_named():
    assert IdIndex(encode(["b", "a", "b", "c", "c", "b"])).duplicates() == ["b", "c"]


def test_rows_have_failed_until_something_is_known():
    rows = Rows.empty(["a", "b"])
    assert len(rows) == 2
    assert rows.status.tolist() == [1, 1]


def test_rows_taken_over_keep_every_column():
    rows, _ = make_rows(["a", "b"], make_spec(), failed=[1])
    table = Rows.empty([""] * 3)
    table.put(np.array([2, 0]), rows)
    assert table.ids == ["b", "", "a"]
    assert table.error == ["reason 1", "", ""]
    assert table.digest[[2, 0]].tolist() == rows.digest.tolist()


SPEC = make_spec(scales=(48, 64))
BLOCKS = blocks_of(SPEC, 3)


def changed_rows(change):
    rows, features = make_rows(["a", "b", "c"], SPEC)
    before = checksums(rows, features, BLOCKS)
    change(rows, features)
    return (checksums(rows, features, BLOCKS) != before).any(axis=1).tolist()


@pytest.mark.parametrize(
    "change",
    [
        lambda rows, features: rows.ids.__setitem__(1, "B"),
        lambda rows, features: rows.digest.__setitem__(1, b"f" * 64),
        lambda rows, features: rows.height.__setitem__(1, 41),
        lambda rows, features: rows.width.__setitem__(1, 41),
        lambda rows, features: rows.status.__setitem__(1, 1),
        lambda rows, features: features[BLOCKS[0]].__setitem__((1, 5), 0),
        lambda rows, features: features[BLOCKS[1]].__setitem__((1, -1), 0),
    ],
)
def test_a_checksum_covers_its_own_row_and_all_that_matters_of_it(change):
    assert changed_rows(change) == [False, True, False]


@pytest.mark.parametrize("name", ["size", "modified", "changed"])
def test_a_checksum_does_not_cover_what_only_this_machine_says(name):
    assert not any(changed_rows(lambda rows, features: getattr(rows, name).fill(7)))


def test_all_columns_of_the_table_are_taken_over():
    fields = {field.name for field in dataclasses.fields(Rows)}
    from spptransfer.cache.rows import COLUMNS

    assert fields == {"ids", "error", *COLUMNS}
