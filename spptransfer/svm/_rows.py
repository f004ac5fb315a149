"""Row blocks of a data matrix that may be larger than memory, and products with it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from spptransfer.errors import ConfigError
from spptransfer.svm._threads import for_each, own_threads
from spptransfer.svm._types import Array

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
        self._lock = threading.Lock()
        self._loaded = False
        self._mean_square: float | None = None

    @property
    def passes(self) -> int:
        """How often all rows were read, rounded up."""
        return -(-self.rows_read // self.shape[0])

    @property
    def working_dtype(self) -> np.dtype[Any]:
        """Float64 for float64 data, float32 for everything smaller."""
        return np.dtype(np.float64 if self.source.dtype == np.float64 else np.float32)

    @property
    def nbytes(self) -> int:
        """What the matrix takes as it is stored."""
        return int(np.dtype(self.source.dtype).itemsize) * self.shape[0] * self.shape[1]

    @property
    def is_outside(self) -> bool:
        """Whether the matrix is not in memory."""
        return not isinstance(self.source, np.ndarray) or isinstance(self.source, np.memmap)

    @property
    def is_loaded(self) -> bool:
        """Whether the matrix was read into memory here."""
        return self._loaded

    def load(self, budget: float) -> None:
        """Read the matrix into memory, in the working precision if that fits.

        What is read from there is not counted.
        """
        itemsize = self.working_dtype.itemsize
        roomy = itemsize * self.shape[0] * self.shape[1] <= budget
        loaded = np.empty(self.shape, self.working_dtype if roomy else self.source.dtype)
        for where, block in self.blocks(loaded.dtype):
            loaded[where] = block
        self.source, self._loaded = loaded, True

    def block_slices(self, dtype: Any, block_bytes: int | None = None) -> list[slice]:
        """Consecutive slices whose rows take about ``block_bytes`` in a precision."""
        n_rows, n_columns = self.shape
        row_bytes = np.dtype(dtype).itemsize * max(1, n_columns)
        length = max(LEAST_ROWS, (block_bytes or self.block_bytes) // row_bytes)
        return row_slices(n_rows, length)

    def block(self, where: slice, dtype: Any, out: Array | None = None) -> Array:
        """Some rows in a precision, without a copy where they have it already."""
        return converted(self.stored(where), np.dtype(dtype), out)

    def stored(self, where: slice) -> Array:
        """Some rows as they are stored."""
        if not self._loaded:
            with self._lock:
                self.rows_read += where.stop - where.start
        return np.asarray(self.source[where])

    def blocks(self, dtype: Any) -> Iterator[tuple[slice, Array]]:
        """All rows once, block by block; each is overwritten by the next."""
        yield from self._read(self.block_slices(dtype), dtype)

    def _read(self, slices: list[slice], dtype: Any) -> Iterator[tuple[slice, Array]]:
        length = max((where.stop - where.start for where in slices), default=0)
        out = None
        if np.dtype(dtype) != self.source.dtype:
            out = np.empty((length, self.shape[1]), dtype)
        for where in slices:
            yield where, self.block(where, dtype, out)

    def shares(self, dtype: Any) -> list[Iterator[tuple[slice, Array]]]:
        """All rows once, as `blocks` divided among the threads.

        Which thread gets which does not depend on how fast they are, so that sums are always
        formed in the same order.
        """
        slices = self.block_slices(dtype)
        return [self._read(share, dtype) for share in _dealt(slices)]

    def tiles(self, dtype: Any, n_problems: int) -> list[Iterator[tuple[slice, slice, Array]]]:
        """All rows once, as `shares`, each block's columns in a few parts."""
        columns = column_slices(self.shape[1], TILE_COLUMNS)
        row_bytes = np.dtype(dtype).itemsize * max(1, columns[0].stop)
        tile_bytes = TILE_BYTES * min(1.0, max(0.5, n_problems / MANY_COLUMNS))
        length = max(LEAST_ROWS, int(min(tile_bytes, self.block_bytes)) // row_bytes)
        slices = row_slices(self.shape[0], length)
        return [self._read_tiles(share, columns, dtype) for share in _dealt(slices)]

    def _read_tiles(
        self, slices: list[slice], columns: list[slice], dtype: Any
    ) -> Iterator[tuple[slice, slice, Array]]:
        tiles = Tiles(dtype)
        for where in slices:
            stored = self.stored(where)
            for part in columns:
                yield where, part, tiles.of(stored, part)

    def chosen(self, numbers: Array) -> Iterator[Array]:
        """Some rows as they are stored, by ascending numbers, block by block."""
        for where in self.block_slices(self.source.dtype):
            first, stop = np.searchsorted(numbers, [where.start, where.stop])
            if first == stop:
                continue
            span = slice(int(numbers[first]), int(numbers[stop - 1]) + 1)
            yield self.stored(span)[numbers[first:stop] - span.start]

    def check_finite(self) -> None:
        """Refuse NaN and infinities, naming the first row that has one."""
        n_blocks = len(slices := self.block_slices(self.working_dtype))
        bad, squares = np.full(n_blocks, -1), np.zeros(n_blocks)

        def check(number: int) -> None:
            stored = self.stored(slices[number])
            wrong = _rows_not_finite(stored)
            if len(wrong):
                bad[number] = slices[number].start + wrong[0]
                return
            block = converted(stored, self.working_dtype)
            squares[number] = np.einsum("ij,ij->", block, block, dtype=np.float64)

        for_each(check, range(n_blocks))
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

    def scores(self, coefficients: Array, dtype: Any = np.float64) -> Array:
        """``X @ coefficients``, in float64 unless something else is asked for."""
        across = np.ascontiguousarray(coefficients.T, dtype=dtype)
        scores = np.zeros((len(across), self.shape[0]), dtype)

        def fill(share: Iterator[tuple[slice, slice, Array]]) -> None:
            for where, columns, tile in share:
                scores[:, where] += across[:, columns] @ tile.T

        for_each(fill, self.tiles(dtype, len(across)))
        return scores.T

    def combine(self, weights: Array, dtype: Any = np.float64) -> Array:
        """``X.T @ weights``, in float64 or with only the blocks' sums in it."""
        across = np.ascontiguousarray(weights.T, dtype=dtype)

        def add(share: Iterator[tuple[slice, slice, Array]]) -> Array:
            total = np.zeros((len(across), self.shape[1]))
            for where, columns, tile in share:
                total[:, columns] += across[:, where] @ tile
            return total

        return sum_of(for_each(add, self.tiles(dtype, len(across)))).T

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

        def add(share: Iterator[tuple[slice, Array]]) -> tuple[Array, Array]:
            total, sums = np.zeros(across.shape), np.zeros(len(across))
            for where, block in share:
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


class Tiles:
    """Columns of stored rows in a precision, each overwritten by the next where that is another."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = np.dtype(dtype)
        self._memory = np.empty(0, self.dtype)

    def of(self, stored: Array, columns: slice) -> Array:
        """Some columns of the rows."""
        tile = stored[:, columns]
        if tile.dtype == self.dtype:
            return tile
        if self._memory.size < tile.size:
            self._memory = np.empty(tile.size, self.dtype)
        return converted(tile, self.dtype, self._memory[: tile.size].reshape(tile.shape))


def row_slices(size: int, length: int) -> list[slice]:
    """Consecutive slices of one length; the last one may be shorter."""
    return [slice(at, min(at + length, size)) for at in range(0, size, length)]


def column_slices(size: int, most: int) -> list[slice]:
    """As few slices as have at most so many columns each, of nearly equal lengths; at least one."""
    if not size:
        return [slice(0, 0)]
    return row_slices(size, -(-size // -(-size // most)))


def _dealt(slices: list[slice]) -> list[list[slice]]:
    """One thread's share of them after the other's."""
    with own_threads() as n_threads:
        return [slices[first::n_threads] for first in range(n_threads)]


def converted(stored: Array, dtype: np.dtype[Any], out: Array | None = None) -> Array:
    """Finite numbers in a precision, without a copy where they have it already.

    ``out`` is memory that may be used, of at least as many rows: memory that is fresh every time
    costs as much as the conversion.
    """
    if stored.dtype == dtype:
        return stored
    out = np.empty(stored.shape, dtype) if out is None else out[: len(stored)]
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


def _rows_not_finite(stored: Array) -> Array:
    """Numbers of the rows that contain NaN or an infinity."""
    if stored.dtype == np.float16:
        exponents = np.ascontiguousarray(stored).view(np.uint16) & 0x7C00
        return np.flatnonzero((exponents == 0x7C00).any(axis=1))
    # A sum is finite only if its terms are, save for an overflow that the second look clears; it
    # needs no mask of the block's size.
    if np.isfinite(stored.sum(dtype=np.float64)):
        return np.empty(0, dtype=int)
    return np.flatnonzero(~np.isfinite(stored).all(axis=1))


def sum_of(arrays: Sequence[Array]) -> Array:
    """The arrays' sum, in the first one's memory."""
    total = arrays[0]
    for array in arrays[1:]:
        total += array
    return total
