"""A Gram matrix: the inner products of all pairs of rows, whole or one half of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from spptransfer.errors import ConfigError
from spptransfer.svm._products import product_with_transpose
from spptransfer.svm._rows import LEAST_ROWS, Rows, Tiles, column_slices, row_slices
from spptransfer.svm._subset import RowSubset, row_numbers
from spptransfer.svm._threads import for_each
from spptransfer.svm._types import Array

# Rows that need no copy are multiplied so many at a time with all that follow.
PANEL_ROWS = 192
# Others some columns at a time, and as many rows as fit: the more, the more work per number.
TILE_COLUMNS = 1600
TILE_BYTES = 5 * 2**20
# Of rows outside memory, how many bytes as they are stored are read at once.
BLOCK_BYTES = 12 * 2**20

Pair = tuple[slice, slice]


class GramMaker:
    """Computes inner products of pairs of slices of rows, each thread some.

    ``pairs`` are all that there are, ``(later, earlier)``, the most work first.
    """

    def __init__(self, rows: Rows, dtype: npt.DTypeLike, device: str = "cpu") -> None:
        self.rows, self.device = rows, device
        self.dtype = np.dtype(dtype)
        n_rows, n_columns = rows.shape
        to_convert = rows.source.dtype != self.dtype
        self._columns = column_slices(n_columns, TILE_COLUMNS if to_convert else n_columns)
        if not rows.is_outside and not to_convert:
            panels = row_slices(n_rows, PANEL_ROWS)
            self.pairs = [(slice(where.start, n_rows), where) for where in panels]
            return
        slices = row_slices(n_rows, self._block_rows())
        # Those on the diagonal are half the work: last, they even out what is left.
        self.pairs = [(later, earlier) for earlier, later in itertools.combinations(slices, 2)]
        self.pairs += [(where, where) for where in slices]

    def _block_rows(self) -> int:
        fitting = TILE_BYTES // (self.dtype.itemsize * max(1, self._columns[0].stop))
        if self.rows.is_outside:
            row_bytes = self.rows.source.dtype.itemsize * max(1, self.rows.shape[1])
            fitting = min(fitting, max(self.rows.block_bytes, BLOCK_BYTES) // row_bytes)
        return max(LEAST_ROWS, fitting)

    def make(self, place: Callable[[Pair], Array], complete: Callable[[Pair], None]) -> None:
        """Put inner products in their place, and say when each pair's are there.

        Rows in memory count as read once, those outside as often as they are.
        """
        before = self.rows.rows_read

        def fill(pair: Pair) -> None:
            self._multiply(pair, place(pair))
            complete(pair)

        for_each(fill, self.pairs)
        if not self.rows.is_outside:
            self.rows.rows_read = before + self.rows.shape[0] * (not self.rows.is_loaded)

    def _multiply(self, pair: Pair, out: Array) -> None:
        later, earlier = pair
        left = self.rows.stored(later)
        right = left if later == earlier else self.rows.stored(earlier)
        lefts, rights = Tiles(self.dtype), Tiles(self.dtype)
        for columns in self._columns:
            tile = lefts.of(left, columns)
            other = tile if right is left else rights.of(right, columns)
            if columns == self._columns[0]:
                product_with_transpose(tile, other, out, self.device)
            else:
                out += product_with_transpose(tile, other, device=self.device)


def dense_gram(rows: Rows, dtype: npt.DTypeLike, device: str = "cpu") -> Array:
    """The whole matrix, shape (n_rows, n_rows)."""
    gram = np.empty((rows.shape[0], rows.shape[0]), dtype)

    def complete(pair: Pair) -> None:
        left, right = pair
        if left.start == right.start:
            mirror(gram[right, right])
        below = slice(max(left.start, right.stop), left.stop)
        gram[right, below] = gram[below, right].T

    GramMaker(rows, dtype, device).make(lambda pair: gram[pair], complete)
    return gram


def mirror(square: Array) -> None:
    """Make a matrix symmetric to the last digit, by what lies below its diagonal."""
    square[...] = np.tril(square) + np.tril(square, -1).T


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

    def __init__(
        self, rows: Rows, dtype: npt.DTypeLike, numbers: npt.NDArray[np.intp] | None = None
    ) -> None:
        self.shape = rows.shape[0], rows.shape[0]
        self.dtype = np.dtype(dtype)
        self._numbers = numbers
        maker = GramMaker(rows, dtype)
        columns = sorted({(right.start, right.stop) for _, right in maker.pairs})
        # A panel has some columns, from the diagonal downwards.
        self._starts = np.array([start for start, _ in columns], dtype=np.intp)
        self._panels = [
            np.empty((len(self) - start, stop - start), self.dtype) for start, stop in columns
        ]
        maker.make(self._block, self._complete)

    def _panel(self, right: slice) -> Array:
        return self._panels[int(np.searchsorted(self._starts, right.start))]

    def _block(self, pair: Pair) -> Array:
        left, right = pair
        return self._panel(right)[left.start - right.start : left.stop - right.start]

    def _complete(self, pair: Pair) -> None:
        left, right = pair
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
            Numbers of rows of X, in any order.

        Returns
        -------
        ndarray, shape (n, n)
            ``X[rows] @ X[rows].T``.

        Raises
        ------
        ConfigError
            If a number is not that of a row, or of one that was left out.
        """
        numbers = self._places(rows)
        if (np.diff(numbers) >= 0).all():
            return self._ascending(numbers)
        places = np.argsort(np.argsort(numbers, kind="stable"), kind="stable")
        return self._ascending(np.sort(numbers))[np.ix_(places, places)]

    def _places(self, rows: npt.ArrayLike) -> npt.NDArray[np.intp]:
        """Where rows of X are among those that were not left out."""
        if self._numbers is None:
            return row_numbers(rows, len(self))
        last = int(self._numbers[-1]) if len(self) else -1
        numbers = row_numbers(rows, last + 1)
        places = np.searchsorted(self._numbers, numbers)
        for number in numbers[self._numbers[places] != numbers][:1]:
            raise ConfigError(f"row {number} was left out of this Gram matrix")
        return places

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


def gram_matrix(
    X: Any, dtype: npt.DTypeLike = np.float32, rows: npt.ArrayLike | None = None
) -> GramMatrix:
    """Inner products of all pairs of rows, to be shared by many fits.

    Parameters
    ----------
    X : ndarray or row source, shape (n_samples, n_features)
        Features, read in blocks of rows.
    dtype : data-type, default=float32
        Precision of the products. A float64 Gram matrix takes some four times as long, and fits
        that are given it certify their results without reading X again.
    rows : array-like of int, optional
        Numbers of the rows that will be asked for; others are left out. X is an ndarray then.

    Returns
    -------
    GramMatrix
        ``X @ X.T``. What a fit on some of the rows takes is ``gram.of(rows)``.

    Raises
    ------
    ConfigError
        If a row of X contains NaN or infinity, or a number is not that of a row.

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
    numbers = None
    if rows is not None:
        numbers = np.unique(row_numbers(rows, len(X)))
        X = RowSubset(X, numbers)
    source = Rows(X)
    source.check_finite()
    return GramMatrix(source, dtype, numbers)


def whole_gram(gram: Array | GramMatrix | None) -> Array | None:
    """An array of what a fit is given."""
    return np.asarray(gram) if isinstance(gram, GramMatrix) else gram
