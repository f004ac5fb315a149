"""Pool windows of a map by a pyramid, as if each were cut out and pooled on its own.

A bin of a window is a rectangle of cells. Its maximum is that of four overlapping rectangles whose
sides are powers of two, one from each corner, and the maxima of all such rectangles come from
tables that are made once for a map: ``table[a, b][y, x]`` is the maximum of the ``2**a x 2**b``
cells from ``(y, x)`` on. Nothing is rounded, so that the result is equal to the bit.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch

from spptransfer.errors import ConfigError
from spptransfer.pyramid.bins import check_levels, count_bins, determining_levels, source_level

# Windows at a time: their bins stay in the processor's caches.
_CHUNK = 64

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
        for each window cut out, to the bit.

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
    wanted, cells = check_levels(levels), _check_windows(windows, map)
    tables = _Tables(map)
    pooled = torch.empty(
        (len(cells), map.shape[0] * count_bins(wanted)), dtype=map.dtype, device=map.device
    )
    for start in range(0, len(cells), _CHUNK):
        part = cells[start : start + _CHUNK]
        pooled[start : start + _CHUNK] = _pool_chunk(tables, part, wanted)
    return pooled


def _check_windows(windows: npt.ArrayLike, map: torch.Tensor) -> Cells:
    cells = np.asarray(windows, dtype=np.intp).reshape(-1, 4)
    inside = (cells[:, :2] >= 0).all() and (cells[:, 2:] <= np.array(map.shape[1:])).all()
    if map.dim() != 3 or not inside or (cells[:, :2] >= cells[:, 2:]).any():
        raise ConfigError(
            f"windows must hold cells, and lie within a map of {tuple(map.shape[1:])} of them"
        )
    return cells


def _pool_chunk(tables: _Tables, cells: Cells, levels: tuple[int, ...]) -> torch.Tensor:
    """Pool some windows; levels that follow from others are derived from those."""
    grids: dict[int, torch.Tensor] = {}
    for level in determining_levels(levels):
        grids[level] = tables.maxima(*_bins(cells, level)).unflatten(1, (level, level))
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
    flat = [grids[level].permute(0, 3, 1, 2).flatten(1) for level in levels]
    return torch.cat(flat, dim=1)


def _bins(cells: Cells, level: int) -> tuple[Cells, Cells, Cells, Cells]:
    """Return top, left, bottom and right of all bins of windows, by the floor/ceil rule."""
    steps = np.arange(level)
    bounds = []
    for axis in (0, 1):
        side = (cells[:, axis + 2] - cells[:, axis])[:, None]
        bounds.append(cells[:, axis : axis + 1] + steps * side // level)
        bounds.append(cells[:, axis : axis + 1] - (-(steps + 1) * side // level))
    top, bottom, left, right = bounds

    def grid(rows: Cells, columns: Cells, take: int) -> Cells:
        pair = np.broadcast_arrays(rows[:, :, None], columns[:, None, :])
        return pair[take].reshape(len(cells), -1)

    return grid(top, left, 0), grid(top, left, 1), grid(bottom, right, 0), grid(bottom, right, 1)


class _Tables:
    """Maxima of all rectangles of a map whose sides are powers of two, made when first needed."""

    def __init__(self, map: torch.Tensor) -> None:
        self._base = map.permute(1, 2, 0).contiguous()  # a look-up reads all channels of a cell
        self._made: dict[tuple[int, int], torch.Tensor] = {(0, 0): self._base}

    def _table(self, a: int, b: int) -> torch.Tensor:
        """Return the maxima of 2**a x 2**b cells from every cell on, within the map."""
        if (a, b) not in self._made:
            smaller = self._table(a - 1, b) if a else self._table(a, b - 1)
            axis, shift = (0, 1 << (a - 1)) if a else (1, 1 << (b - 1))
            length = smaller.shape[axis] - shift
            self._made[a, b] = torch.maximum(
                smaller.narrow(axis, 0, length), smaller.narrow(axis, shift, length)
            )
        return self._made[a, b]

    def maxima(self, top: Cells, left: Cells, bottom: Cells, right: Cells) -> torch.Tensor:
        """Return the maxima of rectangles, n x bins x C."""
        rows = np.frexp(bottom - top)[1] - 1  # whole logarithms
        columns = np.frexp(right - left)[1] - 1
        channels = self._base.shape[2]
        found = self._base.new_empty((*top.shape, channels))
        for a, b in {*zip(rows.ravel().tolist(), columns.ravel().tolist(), strict=True)}:
            table = self._table(a, b)
            chosen = np.nonzero((rows == a) & (columns == b))
            ends = (bottom[chosen] - (1 << a), right[chosen] - (1 << b))
            flat, width = table.reshape(-1, channels), table.shape[1]
            corners = [
                self._look_up(flat, y * width + x)
                for y in (top[chosen], ends[0])[: 1 + bool(a)]
                for x in (left[chosen], ends[1])[: 1 + bool(b)]
            ]
            largest = corners[0]
            for corner in corners[1:]:
                largest = torch.maximum(largest, corner)
            found[tuple(torch.from_numpy(index) for index in chosen)] = largest
        return found

    def _look_up(self, flat: torch.Tensor, places: Cells) -> torch.Tensor:
        return flat.index_select(0, torch.from_numpy(places).to(flat.device))


def centres(side: int, cells: int) -> tuple[float, float]:
    """Return stride and offset, in pixels, of cells that share a side of an image evenly.

    Examples
    --------
    >>> centres(224, 14)
    (16.0, 8.0)
    """
    return side / cells, side / cells / 2
