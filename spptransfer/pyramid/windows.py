"""Pool windows of a map by a pyramid, as if each were cut out and pooled on its own.

A bin of a window is a rectangle of cells. Its maximum is that of four overlapping rectangles whose
sides are powers of two, one from each corner, and the maxima of all such rectangles come from
tables that are made once for a map: ``table[a, b][y, x]`` is the maximum of the ``2**a x 2**b``
cells from ``(y, x)`` on. Nothing is rounded, so that the result is equal to the bit.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from spptransfer.errors import ConfigError
from spptransfer.pyramid.bins import check_levels, count_bins, determining_levels, source_level

# Windows at a time: their bins stay in the processor's caches; a GPU wants more at once.
_CHUNK, _ON_A_GPU = 32, 512

Cells = npt.NDArray[np.intp]


def cells_of_boxes(
    boxes: npt.ArrayLike,
    cells: tuple[int, int],
    stride: tuple[float, float],
    offset: tuple[float, float],
) -> Cells:
    """Map boxes in an image to the cells of its map whose centres lie in them.

    Parameters
    ----------
    boxes : array-like of shape (n_boxes, 4)
        ``x0, y0, x1, y1`` in pixels, edges of pixels being whole numbers: ``0, 0, width, height``
        is the whole image. Parts outside the image are cut off.
    cells : (int, int)
        Rows and columns of the map.
    stride, offset : (float, float)
        Pixels from one cell's centre to the next, and those of the first from the edge, along
        rows and along columns of the map.

    Returns
    -------
    ndarray of int, shape (n_boxes, 4)
        First row, first column, and the row and the column after the last. A box that holds no
        centre gets the cell whose centre is nearest to its own.

    Raises
    ------
    ConfigError
        If the boxes have another shape, are not finite, or have no extent.

    Examples
    --------
    >>> cells_of_boxes([[0, 0, 64, 32], [17, 1, 20, 5]], (2, 4), (16, 16), (8, 8))
    array([[0, 0, 2, 4],
           [0, 1, 1, 2]])
    """
    given = np.asarray(boxes, dtype=np.float64)
    if given.ndim != 2 or given.shape[1] != 4 or not np.isfinite(given).all():
        raise ConfigError(f"boxes must be finite numbers of shape (n, 4), not {given.shape}")
    if (given[:, :2] >= given[:, 2:]).any():
        raise ConfigError("boxes must be x0, y0, x1, y1 with x0 < x1 and y0 < y1")
    found = np.empty(given.shape, np.intp)
    for axis in (0, 1):  # rows, then columns
        low, high = given[:, 1 - axis], given[:, 3 - axis]
        first = np.ceil((low - offset[axis]) / stride[axis])
        stop = np.floor((high - offset[axis]) / stride[axis]) + 1
        nearest = np.rint(((low + high) / 2 - offset[axis]) / stride[axis])
        none = np.minimum(stop, cells[axis]) <= np.maximum(first, 0)
        first, stop = np.where(none, nearest, first), np.where(none, nearest + 1, stop)
        found[:, axis] = np.clip(first, 0, cells[axis] - 1)
        found[:, axis + 2] = np.clip(stop, 1, cells[axis])
    return found


def pool_windows(
    map: torch.Tensor, windows: npt.ArrayLike, levels: Iterable[int] = (6, 3, 2, 1)
) -> torch.Tensor:
    """Max-pool windows of a map by a pyramid.

    Parameters
    ----------
    map : Tensor of shape (C, h, w)
        A map, of any device and type.
    windows : array-like of int, shape (n_windows, 4)
        First row, first column, and the row and the column after the last, within the map.
    levels : iterable of int, default=(6, 3, 2, 1)
        The pyramid.

    Returns
    -------
    Tensor of shape (n_windows, C * bins)
        Level by level in the order given, each channel-major: what `SpatialPyramidPooling` gives
        for each window cut out, to the bit. Gradients do not pass.

    Raises
    ------
    ConfigError
        If a window is empty or reaches beyond the map.

    References
    ----------
    He et al., TPAMI 2015, section 4.1.

    Examples
    --------
    >>> map = torch.arange(12.0).reshape(1, 3, 4)
    >>> pool_windows(map, [[0, 0, 3, 4], [1, 1, 2, 3]], levels=[2, 1])
    tensor([[ 5.,  7.,  9., 11., 11.],
            [ 5.,  6.,  5.,  6.,  6.]])
    """
    return _WindowPooling(map).pool(windows, levels)


class _WindowPooling:
    """A map, and the maxima of its rectangles whose sides are powers of two, when first needed."""

    def __init__(self, map: torch.Tensor) -> None:
        if map.dim() != 3:
            raise ConfigError(f"a map must have the shape (C, h, w), not {tuple(map.shape)}")
        # A look-up reads all channels of a cell.
        self._base = map.detach().permute(1, 2, 0).contiguous()
        self._tables = {(0, 0): self._base}

    def pool(self, windows: npt.ArrayLike, levels: Iterable[int]) -> torch.Tensor:
        wanted, base = check_levels(levels), self._base
        cells, repeats = self._distinct(windows)
        bins = {level: _bins(cells, level) for level in determining_levels(wanted)}
        kinds = np.concatenate([each.kind for each in bins.values()], axis=1)
        order = np.lexsort(kinds.T)
        # Which of the rows in that order each of the windows given is to have.
        sources = np.argsort(order)[repeats]
        targets = np.argsort(sources, kind="stable")
        sources = sources[targets]
        pooled = base.new_empty((len(repeats), base.shape[2] * count_bins(wanted)))
        for start, stop in _runs(kinds[order], _CHUNK if base.device.type == "cpu" else _ON_A_GPU):
            chunk = order[start:stop]
            rows = _pyramid({n: self._maxima(each.take(chunk)) for n, each in bins.items()}, wanted)
            first, last = np.searchsorted(sources, [start, stop])
            for begin in range(first, last, len(chunk)):
                part = slice(begin, min(begin + len(chunk), last))
                taken = rows
                if last - first > len(chunk):  # some are repeated
                    taken = rows.index_select(0, self._index(sources[part] - start))
                pooled.index_copy_(0, self._index(targets[part]), taken)
        return pooled

    def _distinct(self, windows: npt.ArrayLike) -> tuple[Cells, Cells]:
        """Check windows; return each once, and which of these every one is."""
        cells = np.asarray(windows, dtype=np.intp).reshape(-1, 4)
        sides = self._base.shape[:2]
        inside = (cells[:, :2] >= 0).all() and (cells[:, 2:] <= np.array(sides)).all()
        if not inside or (cells[:, :2] >= cells[:, 2:]).any():
            raise ConfigError(
                f"windows must hold cells, and lie within a map of {tuple(sides)} of them"
            )
        numbers = np.ravel_multi_index(tuple(cells.T), [side + 1 for side in (*sides, *sides)])
        _, first, repeats = np.unique(numbers, return_index=True, return_inverse=True)
        return cells[first], repeats

    def _maxima(self, bins: _Bins) -> torch.Tensor:
        """Return the maxima of the bins of windows of one kind, n x level x level x C."""
        a, more_rows, b, more_columns = bins.kind[0].tolist()
        table = self._table(a, b)
        flat, width = table.flatten(0, 1), table.shape[1]
        found: torch.Tensor | None = None
        for y in (bins.top, bins.bottom - (1 << a))[: 1 + more_rows]:
            for x in (bins.left, bins.right - (1 << b))[: 1 + more_columns]:
                places = (y * width)[:, :, None] + x[:, None, :]
                corner = flat.index_select(0, self._index(places.ravel()))
                found = corner if found is None else torch.maximum(found, corner, out=found)
        assert found is not None
        return found.unflatten(0, places.shape)

    def _table(self, a: int, b: int) -> torch.Tensor:
        """Return the maxima of 2**a x 2**b cells from every cell on, within the map."""
        if (a, b) not in self._tables:
            smaller = self._table(a - 1, b) if a else self._table(a, b - 1)
            axis, shift = (0, 1 << (a - 1)) if a else (1, 1 << (b - 1))
            length = smaller.shape[axis] - shift
            self._tables[a, b] = torch.maximum(
                smaller.narrow(axis, 0, length), smaller.narrow(axis, shift, length)
            )
        return self._tables[a, b]

    def _index(self, places: Cells) -> torch.Tensor:
        return torch.from_numpy(places).to(self._base.device)


class _Bins(NamedTuple):
    """Bounds of the bins of n windows at a level, by the floor/ceil rule, each n x level.

    `kind`, n x 4, says for rows and for columns which power of two is the largest in all of a
    window's bins, and whether some are longer; none is longer than twice that.
    """

    top: Cells
    bottom: Cells
    left: Cells
    right: Cells
    kind: Cells

    def take(self, chosen: Cells) -> _Bins:
        """Return those of some windows."""
        return _Bins._make(each[chosen] for each in self)


def _bins(cells: Cells, level: int) -> _Bins:
    steps, bounds, kinds = np.arange(level), [], []
    for axis in (0, 1):
        first, side = cells[:, axis, None], (cells[:, axis + 2] - cells[:, axis])[:, None]
        low, high = first + steps * side // level, first - (-(steps + 1) * side // level)
        lengths = high - low
        power = np.frexp(lengths.min(axis=1))[1] - 1  # a whole logarithm
        bounds += [low, high]
        kinds += [power, lengths.max(axis=1) > 1 << power]
    return _Bins._make([*bounds, np.stack(kinds, axis=1).astype(np.intp)])


def _runs(kinds: Cells, most: int) -> Iterator[tuple[int, int]]:
    """Yield start and stop of rows that are equal, at most so many."""
    changes = np.flatnonzero((kinds[1:] != kinds[:-1]).any(axis=1)) + 1
    for start, stop in itertools.pairwise([0, *changes.tolist(), len(kinds)]):
        for begin in range(start, stop, most):
            yield begin, min(begin + most, stop)


def _pyramid(grids: dict[int, torch.Tensor], levels: tuple[int, ...]) -> torch.Tensor:
    """Derive the other levels from those whose bins are there; return all side by side."""
    for level in sorted(set(levels) - set(grids), reverse=True):
        finer = source_level(level, list(grids))
        assert finer is not None
        step = finer // level
        # One pass per offset: a reduction over two short axes takes several times as long.
        offsets = [
            grids[finer][:, row::step, column::step]
            for row in range(step)
            for column in range(step)
        ]
        grids[level] = functools.reduce(torch.maximum, offsets)
    return torch.cat([grids[level].permute(0, 3, 1, 2).flatten(1) for level in levels], dim=1)


def centres(side: int, cells: int) -> tuple[float, float]:
    """Return stride and offset, in pixels, of cells that share a side of an image evenly.

    Examples
    --------
    >>> centres(224, 14)
    (16.0, 8.0)
    """
    return side / cells, side / cells / 2
