"""Row blocks of a data matrix that may be larger than memory, and products with it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from spptransfer.errors import ConfigError
from spptransfer.svm._threads import for_each
from spptransfer.svm._types import Array

BLOCK_BYTES = 12 * 2**20


class Rows:
    """A matrix that is only ever read as ``source[start:stop]``.

    Products are accumulated in float64 whatever the source's precision: they are what the
    certificate rests on. ``passes`` counts how often the rows were read.
    """

    def __init__(self, source: Any, block_bytes: int = BLOCK_BYTES) -> None:
        self.source = source
        self.shape: tuple[int, int] = tuple(source.shape)
        self.block_bytes = block_bytes
        self.passes = 0

    @property
    def working_dtype(self) -> np.dtype[Any]:
        """Float64 for float64 data, float32 for everything smaller."""
        return np.dtype(np.float64 if self.source.dtype == np.float64 else np.float32)

    def block_slices(self, dtype: Any) -> list[slice]:
        """Consecutive slices whose rows take about ``block_bytes`` in a precision."""
        n_rows, n_columns = self.shape
        length = max(64, self.block_bytes // (np.dtype(dtype).itemsize * max(1, n_columns)))
        return [slice(at, min(at + length, n_rows)) for at in range(0, n_rows, length)]

    def block(self, where: slice, dtype: Any) -> Array:
        """Some rows in a precision, without a copy where they have it already."""
        return np.asarray(self.source[where]).astype(dtype, copy=False)

    def blocks(self, dtype: Any) -> Iterator[tuple[slice, Array]]:
        """All rows once."""
        self.passes += 1
        for where in self.block_slices(dtype):
            yield where, self.block(where, dtype)

    def check_finite(self) -> None:
        """Refuse NaN and infinities, naming the first row that has one."""
        for where, block in self.blocks(self.working_dtype):
            # A sum is finite only if its terms are, save for an overflow that the second look
            # clears; it needs no mask of the block's size.
            if np.isfinite(block.sum(dtype=np.float64)):
                continue
            bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
            if len(bad):
                raise ConfigError(f"row {where.start + bad[0]} of X contains NaN or infinity")

    def mean_square(self) -> float:
        """The mean squared length of a row."""
        total = sum(
            float(np.einsum("ij,ij->", block, block, dtype=np.float64))
            for _, block in self.blocks(self.working_dtype)
        )
        return total / self.shape[0]

    def gram(self, dtype: Any) -> Array:
        """The inner products of all pairs of rows, shape (n_rows, n_rows)."""
        n_rows = self.shape[0]
        gram = np.empty((n_rows, n_rows), dtype=dtype)
        self.passes += 1

        def fill(pair: tuple[slice, slice]) -> None:
            left, right = pair
            block = self.block(left, dtype)
            product = block @ (block if left == right else self.block(right, dtype)).T
            gram[left, right] = product
            gram[right, left] = product.T

        for_each(fill, combinations_with_replacement(self.block_slices(dtype), 2))
        return gram

    def scores(self, coefficients: Array) -> Array:
        """``X @ coefficients`` in float64."""
        scores = np.empty((self.shape[0], coefficients.shape[1]), order="F")
        self.passes += 1

        def fill(where: slice) -> None:
            scores[where] = self.block(where, np.float64) @ coefficients

        for_each(fill, self.block_slices(np.float64))
        return scores

    def combine(self, weights: Array, dtype: Any = np.float64) -> Array:
        """``X.T @ weights``, in float64 or with only the blocks' sums in it."""
        total = np.zeros((self.shape[1], weights.shape[1]))
        for where, block in self.blocks(dtype):
            total += block.T @ weights[where].astype(dtype, copy=False)
        return np.asfortranarray(total)

    def normal_product(
        self, vectors: Array, weights: Array | None, constant: Array
    ) -> tuple[Array, Array]:
        """``X.T @ (weights * image)`` with ``image = X @ vectors + constant``, in one pass.

        Both in the vectors' precision; the blocks' sums are added up in float64.
        """
        image = np.empty((self.shape[0], vectors.shape[1]), dtype=vectors.dtype, order="F")
        total = np.zeros(vectors.shape)
        for where, block in self.blocks(vectors.dtype):
            image[where] = block @ vectors
            image[where] += constant
            part = image[where] if weights is None else weights[where] * image[where]
            total += block.T @ part
        return np.asfortranarray(total), image


def gram_matrix(X: Any, dtype: Any = np.float32) -> Array:
    """Inner products of all pairs of rows, to be shared by many fits.

    Parameters
    ----------
    X : ndarray or row source, shape (n_samples, n_features)
        Features, read in blocks of rows.
    dtype : data-type, default=float32
        Precision of the products. A float64 Gram matrix takes twice the time, and fits that are
        given it certify their results without reading X again.

    Returns
    -------
    ndarray, shape (n_samples, n_samples)
        ``X @ X.T``. The rows of one fit are ``gram[np.ix_(rows, rows)]``.

    Raises
    ------
    ConfigError
        If a row of X contains NaN or infinity.

    Examples
    --------
    >>> import numpy as np
    >>> from spptransfer.svm import LinearSVM, gram_matrix
    >>> X = np.eye(4, 6)
    >>> gram = gram_matrix(X)
    >>> rows = [0, 1, 3]
    >>> LinearSVM().fit(X[rows], [0, 1, 1], gram=gram[np.ix_(rows, rows)]).coef_.shape
    (1, 6)
    """
    rows = Rows(X)
    rows.check_finite()
    return rows.gram(np.dtype(dtype))
