"""A Gram matrix of many rows, of which each fit takes some."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from spptransfer.svm._rows import Rows, mirror
from spptransfer.svm._subset import row_numbers
from spptransfer.svm._types import Array


class GramMatrix:
    """The inner products of all pairs of rows, of which only one half is kept.

    Made by `gram_matrix`. As an array (``numpy.asarray``) it is the whole matrix.

    Attributes
    ----------
    shape : tuple of int
        ``(n_samples, n_samples)``.
    dtype : dtype
        Precision of the products.
    nbytes : int
        What it takes: hardly more than half of the whole matrix.
    """

    def __init__(self, rows: Rows, dtype: npt.DTypeLike) -> None:
        self.shape = rows.shape[0], rows.shape[0]
        self.dtype = np.dtype(dtype)
        pairs = rows.gram_pairs(self.dtype)
        columns = sorted({(right.start, right.stop) for _, right in pairs})
        # A panel has some columns, from the diagonal downwards.
        self._starts = np.array([start for start, _ in columns], dtype=np.intp)
        self._panels = [
            np.empty((len(self) - start, stop - start), self.dtype) for start, stop in columns
        ]
        rows.fill_gram(pairs, self._block, self._complete)

    def _panel(self, right: slice) -> Array:
        return self._panels[int(np.searchsorted(self._starts, right.start))]

    def _block(self, left: slice, right: slice) -> Array:
        return self._panel(right)[left.start - right.start : left.stop - right.start]

    def _complete(self, left: slice, right: slice) -> None:
        if left.start == right.start:
            mirror(self._panel(right)[: right.stop - right.start])

    def __len__(self) -> int:
        """The number of rows."""
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return sum(panel.nbytes for panel in self._panels)

    def of(self, rows: npt.ArrayLike) -> Array:
        """The inner products of some rows, as a fit on them takes it.

        Parameters
        ----------
        rows : array-like of int, shape (n,)
            Numbers of rows, in any order.

        Returns
        -------
        ndarray, shape (n, n)
            ``X[rows] @ X[rows].T``.

        Raises
        ------
        ConfigError
            If a number is not that of a row.
        """
        numbers = row_numbers(rows, len(self))
        if (np.diff(numbers) >= 0).all():
            return self._ascending(numbers)
        places = np.argsort(np.argsort(numbers, kind="stable"), kind="stable")
        return self._ascending(np.sort(numbers))[np.ix_(places, places)]

    def _ascending(self, numbers: Array) -> Array:
        """Panel by panel, and mirrored."""
        gram = np.empty((len(numbers), len(numbers)), self.dtype)
        for start, panel in zip(self._starts, self._panels, strict=True):
            first, stop = np.searchsorted(numbers, [start, start + panel.shape[1]])
            if first == stop:
                continue
            below = panel.take(numbers[first:] - start, axis=0)
            part = below.take(numbers[first:stop] - start, axis=1)
            gram[first:, first:stop] = part
            gram[first:stop, stop:] = part[stop - first :].T
        return gram

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """The whole matrix."""
        if copy is False:
            raise ValueError("a GramMatrix keeps one half of the matrix: the whole is a copy")
        whole = self._ascending(np.arange(len(self)))
        return whole if dtype is None else whole.astype(dtype, copy=False)


def gram_matrix(X: Any, dtype: npt.DTypeLike = np.float32) -> GramMatrix:
    """Inner products of all pairs of rows, to be shared by many fits.

    Parameters
    ----------
    X : ndarray or row source, shape (n_samples, n_features)
        Features, read in blocks of rows.
    dtype : data-type, default=float32
        Precision of the products. A float64 Gram matrix takes some four times as long, and fits
        that are given it certify their results without reading X again.

    Returns
    -------
    GramMatrix
        ``X @ X.T``. What a fit on some of the rows takes is ``gram.of(rows)``.

    Raises
    ------
    ConfigError
        If a row of X contains NaN or infinity.

    See Also
    --------
    RowSubset : rows that go with ``gram.of(rows)``, without a copy of them.

    Examples
    --------
    >>> import numpy as np
    >>> from spptransfer.svm import LinearSVM, gram_matrix
    >>> X = np.eye(4, 6)
    >>> gram = gram_matrix(X)
    >>> rows = [0, 1, 3]
    >>> LinearSVM().fit(X[rows], [0, 1, 1], gram=gram.of(rows)).coef_.shape
    (1, 6)
    """
    rows = Rows(X)
    rows.check_finite()
    return GramMatrix(rows, dtype)


def whole_gram(gram: Array | GramMatrix | None) -> Array | None:
    """An array of what a fit is given."""
    return np.asarray(gram) if isinstance(gram, GramMatrix) else gram
