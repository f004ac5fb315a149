from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from cache_files import make_rows, make_spec

from spptransfer.cache.layout import blocks_of
from spptransfer.cache.rows import COLUMNS, Rows, checksums


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
    assert fields == {"ids", "error", *COLUMNS}


def test_a_table_shows_how_many_rows_it_has_not_which():
    rows, _ = make_rows([str(i) for i in range(300)], make_spec(), failed=[1, 7])
    assert repr(rows) == "<Rows: 300 images, 2 failed>"
    assert repr(rows.take(np.array([0, 2]))) == "<Rows: 2 images>"


@pytest.mark.parametrize("count", [0, 1, 2, 3, 50])
@pytest.mark.parametrize("n_threads", [1, 2, 7])
def test_checksums_do_not_depend_on_how_many_threads_take_them(count, n_threads, monkeypatch):
    rows, features = make_rows([f"{i}" for i in range(count)], SPEC)
    alone = checksums(rows, features, BLOCKS)
    monkeypatch.setattr("spptransfer.cache.rows.WORTH_THREADS", -1)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(n_threads))
    np.testing.assert_array_equal(checksums(rows, features, BLOCKS), alone)
    assert alone.shape == (count, 16)
