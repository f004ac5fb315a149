"""A Gram matrix: the inner products of all pairs of rows, whole or one half of it."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from spptransfer.errors import ConfigError
from spptransfer.svm._rows import (
    LEAST_ROWS,
    Array,
    Rows,
    RowSubset,
    converted,
    even_slices,
    row_numbers,
    slices_of,
    writeable,
)
from spptransfer.svm._threads import for_each, limit_torch, own_threads

# Rows that need no copy are multiplied so many at a time with all that follow.
PANEL_ROWS = 192
# Others some columns at a time, and as many rows as fit: the more, the more work per number.
TILE_COLUMNS = 1600
TILE_BYTES = 5 * 2**20
# Of rows outside memory, how many bytes as they are stored are read at once.
BLOCK_BYTES = 12 * 2**20
# Operations after which importing torch, a second or two, has paid: as long as numpy took for them.
WORTH_IMPORTING = 5e11
# Rows of a Gram matrix copied at a time.
RUN = 64

Pair = tuple[slice, slice]

_operations = 0.0


def product_with_transpose(
    left: Array, right: Array, out: Array | None = None, device: str = "cpu"
) -> Array:
    """``left @ right.T``, by numpy unless all is float32 and torch is worth having.

    Torch multiplies float32 matrices faster on some processors, by code for the one at hand. It is
    used where it is loaded, and is loaded once there has been so much to multiply that it pays.
    """
    global _operations
    out = np.empty((len(left), len(right)), left.dtype) if out is None else out
    by_columns = out.strides[0] < out.strides[1]
    single = left.dtype == right.dtype == np.float32
    _operations += 2.0 * left.size * len(right) * single
    worth_torch = "torch" in sys.modules or _operations > WORTH_IMPORTING
    if device != "cpu":
        out[...] = (to_device(left, device) @ to_device(right, device).T).cpu().numpy()
    elif single and worth_torch:
        import torch

        with own_threads():
            limit_torch()
            if by_columns:  # they are few: it multiplies faster like this, and the copy is small
                out[...] = torch.mm(_tensor(left), _tensor(right).T).numpy()
            else:
                torch.mm(_tensor(left), _tensor(right).T, out=torch.from_numpy(out))
    elif by_columns:
        np.matmul(right, left.T, out=out.T)
    else:
        np.matmul(left, right.T, out=out)
    return out


def _tensor(matrix: Array) -> Any:
    import torch

    backwards = min(matrix.strides) < 0  # which torch does not know
    return torch.from_numpy(matrix.copy() if backwards else writeable(matrix))


def to_device(matrix: Array, device: str) -> Any:
    """A matrix where products with it are made: an array, or a tensor on another device."""
    return matrix if device == "cpu" else _tensor(matrix).to(device)


def product(matrix: Any, vectors: Array) -> Array:
    """``matrix @ vectors``, with every column contiguous."""
    if not isinstance(matrix, np.ndarray):
        return np.asfortranarray((matrix @ to_device(vectors, matrix.device)).cpu().numpy())
    across = np.ascontiguousarray(vectors.T)
    product = np.empty((len(across), len(matrix)), vectors.dtype)
    with own_threads() as n_threads:
        share = -(-len(matrix) // n_threads)

        def fill(start: int) -> None:
            rows = slice(start, start + share)
            product_with_transpose(matrix[rows], across, out=product[:, rows].T)

        for_each(fill, range(0, len(matrix), share))
    return product.T


def submatrix(matrix: Any, chosen: Array, vector: Array) -> tuple[Array, Array]:
    """A copy of the rows and columns chosen, and the rows' products with a vector."""
    if not isinstance(matrix, np.ndarray):
        rows, index = matrix[chosen], to_device(chosen, matrix.device)
        products = rows @ to_device(vector, matrix.device).to(matrix.dtype)
        return np.array(rows.index_select(1, index).cpu().numpy()), products.cpu().numpy()
    # Whole rows first, then columns of what is in cache: half the time of one fancy index.
    part = np.empty((len(chosen), len(chosen)), matrix.dtype)
    products = np.zeros(len(chosen), matrix.dtype)
    narrow = vector.astype(matrix.dtype) if vector.any() else None
    for start in range(0, len(chosen), RUN):
        rows = matrix[chosen[start : start + RUN]]
        rows.take(chosen, axis=1, out=part[start : start + RUN], mode="clip")
        if narrow is not None:
            products[start : start + RUN] = rows @ narrow
    return part, products


def _plan(rows: Rows, dtype: np.dtype[Any]) -> tuple[list[Pair], list[slice]]:
    """Pairs of slices of rows, ``(later, earlier)`` and the most work first; slices of columns."""
    n_rows, n_columns = rows.shape
    if not rows.is_outside and rows.source.dtype == dtype:
        panels = slices_of(n_rows, PANEL_ROWS)
        return [(slice(panel.start, n_rows), panel) for panel in panels], [slice(0, n_columns)]
    to_convert = rows.source.dtype != dtype
    columns = even_slices(n_columns, TILE_COLUMNS if to_convert else max(1, n_columns))
    fitting = TILE_BYTES // (dtype.itemsize * max(1, columns[0].stop))
    if rows.is_outside:
        row_bytes = rows.source.dtype.itemsize * max(1, n_columns)
        fitting = min(fitting, max(rows.block_bytes, BLOCK_BYTES) // row_bytes)
    slices = slices_of(n_rows, max(LEAST_ROWS, fitting))
    # Those on the diagonal are half the work: last, they even out what is left.
    pairs = [(later, earlier) for earlier, later in itertools.combinations(slices, 2)]
    return pairs + [(where, where) for where in slices], columns


def _multiply_pairs(
    rows: Rows,
    dtype: np.dtype[Any],
    place: Callable[[Pair], Array],
    complete: Callable[[Pair], None] | None = None,
    device: str = "cpu",
) -> None:
    """Put inner products in their place, each thread some pairs', and say when a pair's are there.

    Rows in memory count as read once, those outside as often as they are.
    """
    pairs, columns = _plan(rows, dtype)
    before = rows.rows_read

    def fill(pair: Pair) -> None:
        later, earlier = pair
        left = rows.stored(later)
        right = left if later == earlier else rows.stored(earlier)
        width, out = columns[0].stop, place(pair)
        lefts, rights = np.empty(len(left) * width, dtype), np.empty(len(right) * width, dtype)
        for part in columns:
            tile = converted(left[:, part], lefts)
            other = tile if right is left else converted(right[:, part], rights)
            if part == columns[0]:
                product_with_transpose(tile, other, out, device)
            else:
                out += product_with_transpose(tile, other, device=device)
        if later.start == earlier.start:
            mirror(out[: out.shape[1]])
        if complete is not None:
            complete(pair)

    for_each(fill, pairs)
    if not rows.is_outside:
        rows.rows_read = before + rows.shape[0] * (not rows.is_loaded)


def dense_gram(rows: Rows, dtype: npt.DTypeLike, device: str = "cpu") -> Array:
    """The whole matrix, shape (n_rows, n_rows)."""
    gram = np.empty((rows.shape[0], rows.shape[0]), dtype)

    def complete(pair: Pair) -> None:
        left, right = pair
        below = slice(max(left.start, right.stop), left.stop)
        gram[right, below] = gram[below, right].T

    _multiply_pairs(rows, np.dtype(dtype), gram.__getitem__, complete, device)
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
        # A panel has some columns, from the diagonal downwards.
        self._panels: dict[int, Array] = {}
        for _, right in _plan(rows, self.dtype)[0]:
            shape = self.shape[0] - right.start, right.stop - right.start
            self._panels.setdefault(right.start, np.empty(shape, self.dtype))

        def block(pair: Pair) -> Array:
            left, right = pair
            return self._panels[right.start][left.start - right.start : left.stop - right.start]

        _multiply_pairs(rows, self.dtype, block)

    def __len__(self) -> int:
        """The number of rows."""
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return sum(panel.nbytes for panel in self._panels.values())

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
        if self._numbers is None:
            numbers = row_numbers(rows, self.shape[0])
        else:
            given = row_numbers(rows, int(self._numbers[-1]) + 1 if self.shape[0] else 0)
            numbers = np.searchsorted(self._numbers, given)
            for number in given[self._numbers[numbers] != given][:1]:
                raise ConfigError(f"row {number} was left out of this Gram matrix")
        if (np.diff(numbers) >= 0).all():
            return self._ascending(numbers)
        places = np.argsort(np.argsort(numbers, kind="stable"), kind="stable")
        return self._ascending(np.sort(numbers))[np.ix_(places, places)]

    def _ascending(self, numbers: Array) -> Array:
        """Panel by panel, and mirrored."""
        gram = np.empty((len(numbers), len(numbers)), self.dtype)
        for start, panel in self._panels.items():
            first, stop = np.searchsorted(numbers, [start, start + panel.shape[1]])
            if first == stop:
                continue
            below = panel.take(numbers[first:] - start, axis=0)
            part = below.take(numbers[first:stop] - start, axis=1)
            gram[first:, first:stop] = part
            gram[first:stop, stop:] = part[stop - first :].T
        return gram

    def __getitem__(self, rows: Any) -> Array:
        """The inner products of some rows, for whatever takes rows apart into folds."""
        return self.of(rows[0] if isinstance(rows, tuple) else rows)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """The whole matrix."""
        if copy is False:
            raise ValueError("a GramMatrix keeps one half of the matrix: the whole is a copy")
        whole = self._ascending(np.arange(self.shape[0]))
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
