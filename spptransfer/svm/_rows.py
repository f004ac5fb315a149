"""Row blocks of a data matrix that may be larger than memory, and products with it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from spptransfer.errors import ConfigError
from spptransfer.svm._threads import for_each, own_threads

Array: TypeAlias = npt.NDArray[Any]
Blocks: TypeAlias = Iterator[tuple[slice, slice, Array]]

# Two threads' blocks, and what is computed from them, stay in the processor's last cache.
BLOCK_BYTES = 4 * 2**20
# Sums over rows or columns need only some columns at a time: less to convert and to keep at once.
# Larger tiles are multiplied faster with many columns; with fewer they are not worth their memory.
TILE_BYTES = 2**21
TILE_COLUMNS = 3200
MANY_COLUMNS = 40
# A product with fewer rows at a time is slow.
LEAST_ROWS = 32


class Rows:
    """A matrix that is only ever read as ``source[start:stop]``.

    Products are accumulated in float64 whatever the source's precision: they are what the
    certificate rests on. ``rows_read`` counts the rows that were read from the source.
    """

    def __init__(self, source: Any, block_bytes: int | None = None) -> None:
        self.source = source
        self.shape: tuple[int, int] = tuple(source.shape)
        self.block_bytes = block_bytes or BLOCK_BYTES
        self.rows_read = 0
        self.is_loaded = False
        self.is_outside = not isinstance(source, np.ndarray) or isinstance(source, np.memmap)
        # Float64 for float64 data, float32 for everything smaller.
        self.working_dtype = np.dtype(np.float64 if source.dtype == np.float64 else np.float32)
        self.nbytes = np.dtype(source.dtype).itemsize * self.shape[0] * self.shape[1]
        self._lock = threading.Lock()
        self._mean_square: float | None = None

    @property
    def passes(self) -> int:
        """How often all rows were read, rounded up."""
        return -(-self.rows_read // self.shape[0])

    def load(self, budget: float) -> None:
        """Read the matrix into memory, in the working precision if that fits.

        What is read from there is not counted.
        """
        roomy = self.working_dtype.itemsize * self.shape[0] * self.shape[1] <= budget
        loaded = np.empty(self.shape, self.working_dtype if roomy else self.source.dtype)
        for where, block in self.blocks(loaded.dtype):
            loaded[where] = block
        self.source, self.is_loaded, self.is_outside = loaded, True, False

    def block_slices(self, dtype: npt.DTypeLike, n_bytes: float, n_columns: int) -> list[slice]:
        """Consecutive slices of which so many columns take about ``n_bytes`` in a precision."""
        length = int(n_bytes) // (np.dtype(dtype).itemsize * max(1, n_columns))
        return slices_of(self.shape[0], max(LEAST_ROWS, length))

    def stored(self, where: slice) -> Array:
        """Some rows as they are stored."""
        if not self.is_loaded:
            with self._lock:
                self.rows_read += where.stop - where.start
        return np.asarray(self.source[where])

    def blocks(self, dtype: npt.DTypeLike) -> Iterator[tuple[slice, Array]]:
        """All rows once, block by block; each is overwritten by the next."""
        slices = self.block_slices(dtype, self.block_bytes, self.shape[1])
        everything = slice(0, self.shape[1])
        for where, _, block in self._read(slices, [everything], dtype):
            yield where, block

    def shares(self, dtype: npt.DTypeLike, n_problems: int = 0) -> list[Blocks]:
        """All rows once, block by block; a share per thread.

        For products with some problems' columns, a block's columns come in a few parts. Which
        thread gets which does not depend on how fast they are, so that sums are always formed in
        the same order.
        """
        columns, n_bytes = [slice(0, self.shape[1])], float(self.block_bytes)
        if n_problems:
            columns = even_slices(self.shape[1], TILE_COLUMNS)
            n_bytes = min(n_bytes, TILE_BYTES * min(1.0, max(0.5, n_problems / MANY_COLUMNS)))
        slices = self.block_slices(dtype, n_bytes, columns[0].stop)
        with own_threads() as n_threads:
            return [
                self._read(slices[first::n_threads], columns, dtype) for first in range(n_threads)
            ]

    def _read(
        self, slices: Sequence[slice], columns: Sequence[slice], dtype: npt.DTypeLike
    ) -> Blocks:
        # For one tile after the other, the first of which are the largest: fresh memory would cost
        # as much as the conversion.
        length = slices[0].stop - slices[0].start if slices else 0
        memory = np.empty(length * columns[0].stop, dtype)
        for where in slices:
            stored = self.stored(where)
            for part in columns:
                yield where, part, converted(stored[:, part], memory)

    def chosen(self, numbers: Array) -> Iterator[Array]:
        """Some rows as they are stored, by ascending numbers, block by block."""
        for where in self.block_slices(self.source.dtype, self.block_bytes, self.shape[1]):
            first, stop = np.searchsorted(numbers, [where.start, where.stop])
            if first == stop:
                continue
            span = slice(int(numbers[first]), int(numbers[stop - 1]) + 1)
            yield self.stored(span)[numbers[first:stop] - span.start]

    def check_finite(self) -> None:
        """Refuse NaN and infinities, naming the first row that has one."""
        slices = self.block_slices(self.working_dtype, self.block_bytes, self.shape[1])
        bad, squares = np.full(len(slices), -1), np.zeros(len(slices))

        def check(number: int) -> None:
            stored = self.stored(slices[number])
            # Half precision is quicker to look at bit by bit. Otherwise a sum is finite only if its
            # terms are, save for an overflow that the second look clears; it needs no mask of the
            # block's size.
            if stored.dtype == np.float16:
                exponents = np.ascontiguousarray(stored).view(np.uint16) & 0x7C00
                finite = (exponents != 0x7C00).all(axis=1)
            elif np.isfinite(stored.sum(dtype=np.float64)):
                finite = np.ones(1, dtype=bool)
            else:
                finite = np.isfinite(stored).all(axis=1)
            if not finite.all():
                bad[number] = slices[number].start + finite.argmin()
                return
            block = converted(stored, np.empty(stored.size, self.working_dtype))
            squares[number] = np.einsum("ij,ij->", block, block, dtype=np.float64)

        for_each(check, range(len(slices)))
        if (bad >= 0).any():
            raise ConfigError(f"row {bad[bad >= 0][0]} of X contains NaN or infinity")
        self._mean_square = float(squares.sum()) / self.shape[0]
        if not np.isfinite(self._mean_square):
            raise ConfigError("X is so large that its squares overflow; scale the features")

    def mean_square(self) -> float:
        """The mean squared length of a row."""
        if self._mean_square is None:
            self.check_finite()
        assert self._mean_square is not None
        return self._mean_square

    def scores(self, coefficients: Array, dtype: npt.DTypeLike = np.float64) -> Array:
        """``X @ coefficients``, in float64 unless something else is asked for."""
        across = np.ascontiguousarray(coefficients.T, dtype=dtype)
        scores = np.zeros((len(across), self.shape[0]), dtype)

        def fill(share: Blocks) -> None:
            for where, columns, tile in share:
                scores[:, where] += across[:, columns] @ tile.T

        for_each(fill, self.shares(dtype, len(across)))
        return scores.T

    def combine(self, weights: Array, dtype: npt.DTypeLike = np.float64) -> Array:
        """``X.T @ weights``, in float64 or with only the blocks' sums in it."""
        across = np.ascontiguousarray(weights.T, dtype=dtype)

        def add(share: Blocks) -> Array:
            total = np.zeros((len(across), self.shape[1]))
            for where, columns, tile in share:
                total[:, columns] += across[:, where] @ tile
            return total

        return sum_of(for_each(add, self.shares(dtype, len(across)))).T

    def normal_product(
        self, vectors: Array, weights: Array | None, constant: Array
    ) -> tuple[Array, Array]:
        """``X.T @ (weights * image)`` with ``image = X @ vectors + constant``, in one pass.

        Both in the vectors' precision; the blocks' sums are added up in float64. Without weights
        it is a product with ``X.T @ X``, and of the image only the columns' sums are given.
        """
        across = np.ascontiguousarray(vectors.T)
        kept = (len(across), self.shape[0]) if weights is not None else (len(across), 0)
        image = np.empty(kept, dtype=vectors.dtype)

        def add(share: Blocks) -> tuple[Array, Array]:
            total, sums = np.zeros(across.shape), np.zeros(len(across))
            for where, _, block in share:
                part = across @ block.T
                part += constant[:, None]
                if weights is None:
                    sums += part.sum(axis=1)
                else:
                    image[:, where] = part
                    part *= weights[where].T
                total += part @ block
            return total, sums

        totals, sums = zip(*for_each(add, self.shares(vectors.dtype)), strict=True)
        return sum_of(totals).T, image.T if weights is not None else sum_of(sums)[None, :]


def slices_of(size: int, length: int) -> list[slice]:
    """Consecutive slices of one length; the last one may be shorter."""
    return [slice(at, min(at + length, size)) for at in range(0, size, length)]


def even_slices(size: int, most: int) -> list[slice]:
    """As few slices as have at most so many columns each, of nearly equal lengths; at least one."""
    return slices_of(size, -(-size // -(-size // most))) if size else [slice(0, 0)]


def converted(stored: Array, memory: Array) -> Array:
    """Numbers in the precision of the memory that takes them, or as they are if they have it."""
    if stored.dtype == memory.dtype:
        return stored
    out = memory[: stored.size].reshape(stored.shape)
    if stored.dtype == np.float16:
        # Several times as fast as numpy, which converts number by number.
        import torch

        torch.from_numpy(out).copy_(torch.from_numpy(writeable(stored)))
    else:
        out[...] = stored
    return out


def writeable(matrix: Array) -> Array:
    """The same memory, writeable by name: torch warns of memory that is not."""
    if matrix.flags.writeable:
        return matrix
    address, _ = matrix.__array_interface__["data"]
    described = {**matrix.__array_interface__, "data": (address, False)}
    return np.asarray(SimpleNamespace(__array_interface__=described, owner=matrix))


def sum_of(arrays: Sequence[Array]) -> Array:
    """The arrays' sum, in the first one's memory."""
    total = arrays[0]
    for array in arrays[1:]:
        total += array
    return total


class RowSubset:
    """Some rows of a matrix, copied block by block when they are read.

    What the estimators here can be trained on instead of ``X[rows]``. A fit that is given a float64
    Gram matrix reads its rows only once or twice, so that a copy of them all would be a waste.

    Parameters
    ----------
    X : ndarray, shape (n_samples, n_features)
        Features.
    rows : array-like of int, shape (n,)
        Numbers of rows.

    Attributes
    ----------
    shape : tuple of int
        ``(n, n_features)``.
    dtype : dtype
        That of ``X``.

    Raises
    ------
    ConfigError
        If a number is not that of a row.

    Examples
    --------
    >>> import numpy as np
    >>> from spptransfer.svm import LinearSVM, RowSubset, gram_matrix
    >>> X = np.eye(4, 6)
    >>> gram = gram_matrix(X, np.float64)
    >>> rows = [0, 1, 3]
    >>> LinearSVM().fit(RowSubset(X, rows), [0, 1, 1], gram=gram.of(rows)).coef_.shape
    (1, 6)
    """

    def __init__(self, X: Array, rows: npt.ArrayLike) -> None:
        self.X, self.rows = X, row_numbers(rows, len(X))
        self.shape, self.dtype = (len(self.rows), X.shape[1]), X.dtype

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.rows)

    def __getitem__(self, where: Any) -> Array:
        """A copy of ``X[rows][where]``."""
        return self.X[self.rows[where]]

    def __reduce__(self) -> tuple[Any, ...]:
        """Only these rows are sent elsewhere."""
        return RowSubset, (self.X[self.rows], np.arange(len(self)))


def row_numbers(rows: npt.ArrayLike, n_rows: int) -> npt.NDArray[np.intp]:
    """Numbers of rows as an array; refuse what is none."""
    numbers = np.asarray(rows)
    if numbers.ndim != 1 or not (np.issubdtype(numbers.dtype, np.integer) or not numbers.size):
        raise ConfigError(
            f"rows has shape {numbers.shape} and type {numbers.dtype}; allowed: the numbers of "
            "rows in one dimension"
        )
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < n_rows:
        raise ConfigError(
            f"rows go from {numbers.min()} to {numbers.max()}; allowed: 0 to {n_rows - 1}"
        )
    return numbers.astype(np.intp, copy=False)
