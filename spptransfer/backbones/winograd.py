"""Convolutions with a quarter of the multiplications, by Winograd's minimal filtering.

m x m results of an r x r filter take (m + r - 1)**2 multiplications per pair of channels instead
of (m * r)**2: a map is cut into overlapping tiles of m + r - 1; tile and filter become the values
of polynomials at so many points, which are multiplied, and the products become results. All
multiplications for a pair of points, over channels and tiles, are one matrix product. oneDNN
computes those of all pairs as one convolution of 1 x 1 with a group for each of them.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import torch
from torch.nn import functional

from spptransfer.backbones.arranged import ArrangedWeights

logger = logging.getLogger(__name__)

# Results per side of a tile.
TILE = 4
# Points besides 0 and infinity, in pairs of both signs. Small ones, whose powers are exact and
# near to each other, lose the fewest digits. The first one is 1, see `_points_of_bias`.
_POINTS = {3: (1, -1, 2, -2), 5: (1, -1, 2, -2, Fraction(1, 2), Fraction(-1, 2))}
# Tiles at a time: enough for a matrix product, few enough to stay in the caches meanwhile.
_FEWEST_TILES, _MOST_TILES, _CHANNELS_AT_ONCE = 128, 256, 1 << 15
# Below this many tiles oneDNN wants another order of weights. Maps with less than half of it are
# filtered in such blocks only, others never, so that one order of each filter is enough.
_FEW = 64
# Nanoseconds of one processor: for two operations of a plain convolution and of a product of
# points; for a number of the filter, which is read for every few images; for a number of a tile
# at the points, before or after the product. They only have to weigh one way against the other,
# and all machines use the same, so that all choose alike.
_PLAIN, _PRODUCT, _FILTER, _MOVED = 0.0077, 0.0083, 0.08, 0.87
_WORTHWHILE = 1.05
_SMALL_PROBE, _LARGE_PROBE = 2 * TILE + 4, 8 * TILE + 4
_TOLERANCE = 1e-4

# Fresh weights are large, so that only one thread may hold some.
_MAKING = threading.Lock()

_Rows = Sequence[Sequence[Fraction]]


@dataclass(frozen=True)
class Transforms:
    """Minimal filtering in one dimension: outputs @ ((filters @ g) * (inputs @ d)).

    Attributes
    ----------
    inputs : Tensor of float64, shape (n, n)
        For n neighbours d on a map; n = `TILE` + r - 1.
    filters : Tensor of float64, shape (n, r)
        For a filter g.
    outputs : Tensor of float64, shape (TILE, n)
        For the products.
    """

    inputs: torch.Tensor
    filters: torch.Tensor
    outputs: torch.Tensor


@cache
def transforms(side: int) -> Transforms:
    """Make the matrices for filters of a side, exactly, by the construction of Toom and Cook.

    Parameters
    ----------
    side : {3, 5}
        Of the filter, r.

    References
    ----------
    Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016.

    Examples
    --------
    >>> transforms(3).inputs[0].tolist()
    [4.0, 0.0, -5.0, 0.0, 1.0, 0.0]
    """
    points = [Fraction(0), *map(Fraction, _POINTS[side])]
    others = {a: _with_roots([b for b in points if b != a]) for a in points}
    # At infinity a polynomial's value is its leading coefficient.
    at_infinity = [Fraction(0)] * (side - 1) + [Fraction(1)]
    return Transforms(
        inputs=_matrix([*([*others[a], Fraction(0)] for a in points), _with_roots(points)]),
        filters=_matrix(
            [*([a**k / _value(others[a], a) for k in range(side)] for a in points), at_infinity]
        ),
        outputs=_matrix([[*(a**k for a in points), Fraction(k == TILE - 1)] for k in range(TILE)]),
    )


def _with_roots(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients, the lowest first, of the product of all (x - root)."""
    found = [Fraction(1)]
    for root in roots:
        pairs = zip([Fraction(0), *found], [*found, Fraction(0)], strict=True)
        found = [low - root * high for low, high in pairs]
    return found


def _value(coefficients: Sequence[Fraction], x: Fraction) -> Fraction:
    return sum((value * x**k for k, value in enumerate(coefficients)), Fraction(0))


def _matrix(rows: _Rows) -> torch.Tensor:
    return torch.tensor([list(map(float, row)) for row in rows], dtype=torch.float64)


class MinimalFiltering:
    """A convolution of stride 1 in float32, on a CPU, with what follows it.

    Parameters
    ----------
    weight : Tensor of shape (K, C, r, r)
        The filter; r is 3 or 5.
    bias : Tensor of shape (K,) or None
        What is added.
    padding : sequence of int
        Rows and columns of zeros on each side.
    low, high : float, default=-inf, inf
        Results are brought to this interval; NaN stays.

    Notes
    -----
    The filter at the points takes 4 times the memory of one of 3 x 3, 2.6 times that of one of
    5 x 5. An image's results do not depend on the others in its batch.

    Examples
    --------
    >>> maps, weight = torch.ones(1, 2, 6, 7), torch.ones(3, 2, 3, 3)
    >>> found = MinimalFiltering(weight, None, [1, 1])(maps)
    >>> found.shape, found[0, 0, 0].round().tolist()
    (torch.Size([1, 3, 6, 7]), [8.0, 12.0, 12.0, 12.0, 12.0, 12.0, 8.0])
    """

    @staticmethod
    def suits(weight: torch.Tensor, padding: Sequence[int]) -> bool:
        """Whether there is such a way for a filter, here."""
        side = weight.shape[2]
        return (
            weight.shape[3] == side
            and side in _POINTS
            and max(padding) < side
            and weight.dtype == torch.float32
            and torch.backends.mkl.is_available()  # other libraries take small products one by one
        )

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        padding: Sequence[int],
        low: float = -math.inf,
        high: float = math.inf,
    ) -> None:
        self._weight, self._bias = weight.detach(), bias
        self._filters, self._channels, self._side, _ = weight.shape
        self._padding = tuple(padding)
        self._low, self._high = low, high
        self._size = TILE + self._side - 1
        self._to_points = transforms(self._side).inputs.float()
        self._to_results = transforms(self._side).outputs.float()
        self._offsets = self._points_of_bias()
        self._arranged = [ArrangedWeights(groups=self._size**2, alike=1) for _ in range(2)]
        self._known: dict[int, torch.Tensor] = {}
        self._agrees: bool | None = None
        self._trying = threading.Lock()

    def pays(self, height: int, width: int) -> bool:
        """Whether this is the faster way for maps of a size, and works.

        The sizes of one image decide, the same on all machines and in all batches, so that an
        image's results do not depend on what else is computed.
        """
        rows, columns = self._result_size(height, width)
        tiles = -(-rows // TILE) * -(-columns // TILE)
        points, pairs = self._size**2, self._filters * self._channels
        plain = _PLAIN * rows * columns * self._side**2 * pairs
        moved = _MOVED * points * (self._channels + self._filters)
        minimal = tiles * (_PRODUCT * points * pairs + moved) + _FILTER * points * pairs
        return plain > _WORTHWHILE * minimal and self._works(tiles)

    def _works(self, tiles: int) -> bool:
        """Whether results are those of torch's convolution, tried on noise once."""
        with self._trying:
            if self._agrees is None:
                # With as many tiles as want the order of weights that will be needed.
                self._agrees = self._try(_SMALL_PROBE if 2 * tiles < _FEW else _LARGE_PROBE)
            return self._agrees

    def _try(self, side: int) -> bool:
        drawn = torch.Generator().manual_seed(0)
        noise = torch.rand(1, side, side, self._channels, generator=drawn).permute(0, 3, 1, 2)
        try:
            return self._agree(noise)
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            logger.info("minimal filtering fails here: %s", str(error).splitlines()[:1])
            return False

    @torch.inference_mode()
    def _agree(self, maps: torch.Tensor) -> bool:
        """Whether both ways come to the same results in a corner of some maps."""
        corner = maps[..., :_SMALL_PROBE, :_SMALL_PROBE]
        expected = functional.conv2d(corner, self._weight, self._bias, padding=self._padding)
        expected = expected[..., :TILE, :TILE].clamp(self._low, self._high)
        distance = torch.linalg.vector_norm(self(maps)[..., :TILE, :TILE] - expected)
        return bool(distance <= _TOLERANCE * torch.linalg.vector_norm(expected))

    @torch.inference_mode()
    def __call__(self, maps: torch.Tensor, shortcut: torch.Tensor | None = None) -> torch.Tensor:
        """Filter N x C x H x W maps, and add a shortcut before they are brought to an interval."""
        count, _, height, width = maps.shape
        rows, columns = self._result_size(height, width)
        results = torch.empty(count, rows, columns, self._filters)
        maps = maps.permute(0, 2, 3, 1)
        addend = None if shortcut is None else shortcut.permute(0, 2, 3, 1)
        down, across = -(-rows // TILE), -(-columns // TILE)
        few = 2 * down * across < _FEW
        for images, tiles in self._blocks(count, down, across, few):
            squares = self._squares(maps[images], tiles, across, few)
            here = slice(TILE * tiles.start, TILE * tiles.stop)
            self._put(
                squares,
                results[images, here],
                None if addend is None else addend[images, here],
            )
        return results.permute(0, 3, 1, 2)

    def _result_size(self, height: int, width: int) -> tuple[int, int]:
        grown = (2 * pad - self._side + 1 for pad in self._padding)
        return height + next(grown), width + next(grown)

    def _blocks(
        self, count: int, down: int, across: int, few: bool
    ) -> Iterator[tuple[slice, slice]]:
        """Images and rows of tiles to work on together: several images, or a part of one."""
        at_once = _CHANNELS_AT_ONCE // (self._channels + self._filters)
        at_once = max(_FEWEST_TILES, min(at_once, _MOST_TILES))
        if few:
            at_once = _FEW - 1
        images = max(1, at_once // (down * across))
        rows = -(-down // min(down, -(-down * across // at_once)))
        for image in range(0, count, images):
            for row in range(0, down, rows):
                yield slice(image, min(image + images, count)), slice(row, min(row + rows, down))

    def _squares(self, maps: torch.Tensor, rows: slice, across: int, few: bool) -> torch.Tensor:
        """Results of some rows of tiles, N x rows x across x `TILE` x `TILE` x K."""
        down, size = rows.stop - rows.start, self._size
        tiles = len(maps) * down * across
        points = self._points(self._framed(maps, rows, across), down, across, few)
        products = self._products(points)[:tiles]
        to_results = self._to_results
        upright = products.view(tiles, size, size * self._filters)
        half = torch.bmm(to_results.expand(tiles, TILE, size), upright)
        lying = half.view(tiles * TILE, size, self._filters)
        squares = torch.bmm(to_results.expand(tiles * TILE, TILE, size), lying)
        return squares.view(len(maps), down, across, TILE, TILE, self._filters)

    def _framed(self, maps: torch.Tensor, rows: slice, across: int) -> torch.Tensor:
        """What some rows of tiles see, with zeros around; as wide as `across` + 1 steps."""
        count, height, width, channels = maps.shape
        tall, wide = TILE * (rows.stop - rows.start - 1) + self._size, TILE * (across + 1)
        framed = torch.zeros(count, tall, wide, channels)
        top, left = TILE * rows.start - self._padding[0], -self._padding[1]
        first, last = max(top, 0), min(top + tall, height)
        seen = min(width, wide + left)
        framed[:, first - top : last - top, -left : seen - left] = maps[:, first:last, :seen]
        return framed

    def _points(self, framed: torch.Tensor, down: int, across: int, few: bool) -> torch.Tensor:
        """Tiles at the points, (N * down * across) x (points * points * C), or some more rows."""
        count, tall, _, channels = framed.shape
        size, to_points = self._size, self._to_points
        # Columns first. One tile more per row makes equal steps from the first to the last; it
        # runs into the next row, and nobody looks at it.
        steps = count * tall * (across + 1)
        lying = torch.empty(steps, size, channels)
        windows = framed.as_strided((steps - 1, size, channels), (TILE * channels, channels, 1))
        torch.bmm(to_points.expand(steps - 1, size, size), windows, out=lying[:-1])
        lines = lying.view(count, tall, across + 1, size * channels)
        # A block at the edge gets as many as want the order of weights that the others want.
        tiles = count * down * across
        room = torch.empty(tiles if few else max(tiles, _FEW), size * size * channels)
        room[tiles:] = 0
        points = room[:tiles].view(count, down, across, size, size * channels)
        to_points = to_points.expand(across, size, size)
        for image in range(count):
            for row in range(down):
                seen = lines[image, TILE * row : TILE * row + size, :across]
                torch.bmm(to_points, seen.transpose(0, 1), out=points[image, row])
        return room

    def _products(self, points: torch.Tensor) -> torch.Tensor:
        """Tiles x (points * points * K) from tiles x (points * points * C)."""
        tiles = len(points)
        # Tiles are the rows of an image one pixel wide.
        column = points.view(1, tiles, 1, -1).permute(0, 3, 1, 2)
        arranged = self._arranged[tiles < _FEW]

        def filtered(weight: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
                column, weight, self._offsets, *arranged.geometry, "none", [], ""
            )
            return found

        if tiles in self._known:
            found = filtered(self._known[tiles])
        else:
            with _MAKING:
                self._known[tiles], found = arranged.first_use(
                    column.shape, self._points_of_filter, filtered
                )
        return found.permute(0, 2, 3, 1).reshape(tiles, -1)

    def _put(
        self, squares: torch.Tensor, results: torch.Tensor, addend: torch.Tensor | None
    ) -> None:
        """Bring squares to where they belong; those at the edges are cut."""
        for down, rows, inner_rows in _pieces(results.shape[1]):
            for across, columns, inner_columns in _pieces(results.shape[2]):
                found = squares[:, down, across, inner_rows, inner_columns].transpose(2, 3)
                place = _in_squares(results[:, rows, columns], found.shape)
                if addend is not None:
                    there = _in_squares(addend[:, rows, columns], found.shape)
                    found = torch.add(found, there, out=place)
                torch.clamp(found, self._low, self._high, out=place)

    def _points_of_filter(self) -> torch.Tensor:
        """The filter at the points, as the weights of a convolution of 1 x 1 in groups."""
        once, size = transforms(self._side).filters, self._size
        both = torch.kron(once, once)
        found = torch.empty(size**2, self._filters, self._channels)
        for number, of_filter in enumerate(self._weight):
            found[:, number] = both @ of_filter.double().flatten(1).T
        return found.view(size**2 * self._filters, self._channels, 1, 1)

    def _points_of_bias(self) -> torch.Tensor | None:
        """What to add to products so that all results get the bias: at (1, 1) all powers are 1."""
        if self._bias is None:
            return None
        found = torch.zeros(self._size, self._size, self._filters)
        found[1, 1] = self._bias.detach()
        return found.flatten()


def _pieces(length: int) -> Iterator[tuple[slice, slice, slice]]:
    """Whole tiles along a side, then the one that is cut: tiles, pixels, pixels within a tile."""
    whole, rest = divmod(length, TILE)
    if whole:
        yield slice(whole), slice(TILE * whole), slice(TILE)
    if rest:
        yield slice(whole, whole + 1), slice(TILE * whole, length), slice(rest)


def _in_squares(maps: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A view of N x h x w x K maps as N x down x rows x across x columns x K."""
    _, down, rows, across, columns, _ = shape
    return maps.unflatten(2, (across, columns)).unflatten(1, (down, rows))
