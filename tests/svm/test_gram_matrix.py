"""A Gram matrix of which one half is kept gives every fit what the whole one would."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from releases import needs

from spptransfer.errors import ConfigError
from spptransfer.svm import LinearSVM, LinearSVMCV, RowSubset, _gram_matrix, gram_matrix
from spptransfer.svm._gram_matrix import mirror

SMALL_BLOCKS = {"TILE_BYTES": 1, "TILE_COLUMNS": 7, "BLOCK_BYTES": 1, "PANEL_ROWS": 64}


def features(n_rows, n_columns=30, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal((n_rows, n_columns)).astype(dtype)


@pytest.fixture
def small_blocks(monkeypatch):
    for name, value in SMALL_BLOCKS.items():
        monkeypatch.setattr(_gram_matrix, name, value)


@pytest.mark.parametrize("stored", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_rows", [1, 2, 63, 64, 65, 200])
@pytest.mark.usefixtures("small_blocks")
def test_it_is_the_product_whatever_the_blocks(n_rows, dtype, stored):
    X = features(n_rows, dtype=stored)
    gram = gram_matrix(X, dtype)
    assert (gram.shape, gram.dtype) == ((n_rows, n_rows), np.dtype(dtype))
    whole = np.asarray(gram)
    np.testing.assert_allclose(whole, X.astype(float) @ X.T.astype(float), atol=2e-5)
    np.testing.assert_array_equal(whole, whole.T)


@pytest.mark.parametrize("stored", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.usefixtures("small_blocks")
def test_rows_outside_memory_have_the_same_one(stored, dtype, tmp_path):
    X = features(150, dtype=stored)
    np.save(tmp_path / "X.npy", X)
    outside = gram_matrix(np.load(tmp_path / "X.npy", mmap_mode="r"), dtype)
    np.testing.assert_allclose(np.asarray(outside), np.asarray(gram_matrix(X, dtype)), atol=2e-5)


def test_a_matrix_without_columns_has_products_of_nothing():
    np.testing.assert_array_equal(np.asarray(gram_matrix(np.empty((3, 0), np.float32))), 0)


@pytest.mark.usefixtures("small_blocks")
def test_rows_that_nobody_will_ask_for_can_be_left_out():
    X = features(300)
    rows = np.random.default_rng(0).permutation(300)[:140]
    gram = gram_matrix(X, np.float64, rows=rows)
    assert gram.shape == (140, 140)
    np.testing.assert_allclose(gram.of(rows[:50]), X[rows[:50]].astype(float) @ X[rows[:50]].T)
    left_out = np.setdiff1d(np.arange(rows.max()), rows)[0]
    with pytest.raises(ConfigError, match=f"row {left_out} was left out of this Gram matrix"):
        gram.of([rows[0], left_out])
    with pytest.raises(ConfigError, match="rows go from 0 to 300; allowed: 0 to 299"):
        gram_matrix(X, rows=[0, 300])


@pytest.mark.usefixtures("small_blocks")
def test_hardly_more_than_one_half_is_kept():
    gram = gram_matrix(features(1000), np.float64)
    assert 0.5 < gram.nbytes / (8 * 1000**2) < 0.55


@given(
    st.lists(st.integers(0, 149), max_size=200),
    st.sampled_from([np.float32, np.float64]),
    st.booleans(),
)
def test_the_part_of_some_rows_is_that_of_the_whole(rows, dtype, ascending):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL_BLOCKS.items():
            patch.setattr(_gram_matrix, name, value)
        gram = gram_matrix(features(150), dtype)
    rows = np.array(sorted(rows) if ascending else rows, dtype=int)
    np.testing.assert_array_equal(gram.of(rows), np.asarray(gram)[np.ix_(rows, rows)])


def test_it_survives_being_sent_elsewhere():
    gram = gram_matrix(features(20), np.float64)
    np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(gram))), np.asarray(gram))


def test_as_an_array_it_has_any_precision():
    gram = gram_matrix(features(9), np.float64)
    assert np.asarray(gram, np.float32).dtype == np.float32


@needs("numpy", "2", "arrays are not told that a copy is unwanted")
def test_as_an_array_it_is_always_a_copy():
    gram = gram_matrix(features(9), np.float64)
    with pytest.raises(ValueError, match="the whole is a copy"):
        np.array(gram, copy=False)


@pytest.mark.parametrize("make", [lambda X: gram_matrix(X).of, lambda X: lambda r: RowSubset(X, r)])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0, 5], r"rows go from 0 to 5; allowed: 0 to 4"),
        ([-1, 2], r"rows go from -1 to 2; allowed: 0 to 4"),
        ([0.0, 1.0], r"rows has shape \(2,\) and type float64; allowed"),
        ([True, False, True, True, True], r"rows has shape \(5,\) and type bool; allowed"),
        ([[0, 1]], r"rows has shape \(1, 2\) and type int64; allowed"),
    ],
)
def test_what_are_no_numbers_of_rows_is_refused(rows, message, make):
    with pytest.raises(ConfigError, match=message):
        make(features(5))(rows)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_fit_takes_it_as_it_takes_an_array(dtype):
    X, y = features(60, 90), np.arange(60) % 3
    gram = gram_matrix(X, dtype)
    for model in (LinearSVM(), LinearSVMCV((0.1, 1.0))):
        kept = model.fit(X, y, gram=gram).coef_
        np.testing.assert_array_equal(kept, model.fit(X, y, gram=np.asarray(gram)).coef_)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("with_gram", [False, True])
def test_training_on_a_subset_is_training_on_a_copy_of_it(with_gram, dtype):
    X, y = features(90, 120, dtype=dtype), np.arange(90) % 3
    rows = np.random.default_rng(0).permutation(90)[:60]
    gram = gram_matrix(X, np.float64).of(rows) if with_gram else None
    for model in (LinearSVM(), LinearSVMCV((0.1, 1.0))):
        copied = model.fit(X[rows], y[rows], gram=gram).coef_
        subset = model.fit(RowSubset(X, rows), y[rows], gram=gram).coef_
        np.testing.assert_allclose(subset, copied, rtol=0, atol=1e-5)


def test_of_a_subset_only_its_rows_are_sent_elsewhere():
    X = features(1000)
    subset = RowSubset(X, [7, 3, 999])
    sent = pickle.dumps(subset)
    assert len(sent) < 10_000
    there = pickle.loads(sent)
    assert (len(there), there.shape, there.dtype) == (3, (3, 30), X.dtype)
    np.testing.assert_array_equal(there[:], X[[7, 3, 999]])
    np.testing.assert_array_equal(subset[1:], X[[3, 999]])


def test_a_mirrored_matrix_is_what_was_below_the_diagonal():
    square = np.arange(16.0).reshape(4, 4)
    expected = np.tril(square) + np.tril(square, -1).T
    mirror(square)
    np.testing.assert_array_equal(square, expected)
