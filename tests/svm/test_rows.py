"""Products with rows that are read piece by piece are the products."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spptransfer.svm import _rows
from spptransfer.svm._rows import Rows, converted, even_slices


@settings(deadline=None)
@given(
    st.integers(1, 200),
    st.integers(1, 50),
    st.integers(1, 5),
    st.sampled_from([np.float16, np.float32, np.float64]),
    st.sampled_from([1, 4000, 2**20]),
    st.sampled_from([1, 7, 16, 3200]),
)
def test_sums_over_rows_and_columns_do_not_depend_on_the_tiles(
    n_rows, n_columns, n_problems, stored, tile_bytes, tile_columns
):
    rng = np.random.default_rng(n_rows * n_columns)
    X = rng.standard_normal((n_rows, n_columns)).astype(stored)
    weights = rng.standard_normal((n_rows, n_problems))
    coefficients = rng.standard_normal((n_columns, n_problems))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_rows, "TILE_BYTES", tile_bytes)
        patch.setattr(_rows, "TILE_COLUMNS", tile_columns)
        combined, scores = Rows(X).combine(weights), Rows(X).scores(coefficients)
    wide = X.astype(float)
    np.testing.assert_allclose(combined, wide.T @ weights, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(scores, wide @ coefficients, rtol=1e-11, atol=1e-11)


def test_float32_rows_are_summed_in_float64():
    X = np.full((4000, 3), np.float32(0.1))
    found = Rows(X).combine(np.ones((4000, 1)))
    np.testing.assert_allclose(found, 4000 * float(np.float32(0.1)), rtol=1e-13)
    scores = Rows(np.ascontiguousarray(X.T)).scores(np.ones((4000, 1)))
    np.testing.assert_allclose(scores, 4000 * float(np.float32(0.1)), rtol=1e-13)


def test_a_product_reads_every_row_once():
    class Source:
        shape, dtype = (500, 40), np.dtype(np.float32)
        read = 0

        def __getitem__(self, where):
            Source.read += where.stop - where.start
            return np.ones((where.stop - where.start, 40), np.float32)

    rows = Rows(Source(), block_bytes=2**12)
    rows.combine(np.ones((500, 2)))
    assert (Source.read, rows.rows_read, rows.passes) == (500, 500, 1)


@given(st.integers(0, 300), st.integers(1, 320))
def test_slices_of_columns_are_few_and_cover_all(size, most):
    slices = even_slices(size, most)
    widths = [part.stop - part.start for part in slices]
    assert (slices[0].start, slices[-1].stop, sum(widths)) == (0, size, size)
    assert max(widths) <= most
    assert len(slices) == max(1, -(-size // most))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_finite_half_is_widened_exactly(dtype):
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].reshape(8, -1)
    halves.flags.writeable = False
    wide = converted(halves[:, ::2], np.empty(2**16, dtype))
    np.testing.assert_array_equal(wide, halves[:, ::2].astype(dtype))
    np.testing.assert_array_equal(np.signbit(wide), np.signbit(halves[:, ::2]))
