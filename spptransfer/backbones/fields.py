"""Where in an image the cells of a map look: the centres of their receptive fields, measured."""

from __future__ import annotations

import bisect
import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from spptransfer.backbones.info import Backbone

# Widths of the input, in pixels, that are tried until no field is as wide.
_WIDTHS = (256, 512, 1024, 2048)

_measured: weakref.WeakKeyDictionary[Any, dict[str, Centres | None]] = weakref.WeakKeyDictionary()


class Centres(NamedTuple):
    """Pixels of the input from one cell's centre to the next, and of the first from the edge."""

    stride: int
    offset: float


# The cells of a map, along a row, that NaN in the columns of an input up to one, or from one on,
# reaches: of a layer, by the column.
_Reached = Callable[[str, int], npt.NDArray[np.bool_]]


def receptive_centres(backbone: Backbone, layers: Sequence[str]) -> dict[str, Centres]:
    """Measure the centres of receptive fields, by what NaN in some columns of an input reaches.

    Parameters
    ----------
    backbone : Backbone
        Such as `backbones.load` gives it. It is measured once, along rows: along columns it is
        taken to be the same.
    layers : sequence of str
        Map layers that it was loaded for.

    Returns
    -------
    dict of str to Centres
        By layer, but for those where cells have no centre of their own: where a cell sees all of
        the image, or where the padding depends on the image's size.

    Examples
    --------
    >>> from spptransfer import backbones
    >>> receptive_centres(backbones.load("alexnet", "random"), ["spp"])
    {'spp': Centres(stride=16, offset=15.5)}
    """
    known = _measured.setdefault(backbone, {})
    missing = tuple(layer for layer in layers if layer not in known)
    if missing and backbone.info.only_side is None:
        known.update(_measure(backbone, missing))
    found = {layer: known.get(layer) for layer in layers}
    return {layer: centres for layer, centres in found.items() if centres is not None}


def _measure(backbone: Backbone, layers: tuple[str, ...]) -> dict[str, Centres | None]:
    found: dict[str, Centres | None] = dict.fromkeys(layers)
    unit, left = backbone.info.grid, layers
    for width in _WIDTHS:
        width -= width % unit
        up_to, odd = (_reached(backbone, left, each, before=True) for each in (width, width + unit))
        onwards = _reached(backbone, left, width, before=False)
        strides = {layer: backbone.info.layer(layer).stride or 1 for layer in left}
        narrow = [layer for layer in left if _has_room(layer, strides[layer], width // 2, up_to)]
        for layer in narrow:
            found[layer] = _centres(layer, strides[layer], width // 2, up_to, onwards, odd)
        left = tuple(layer for layer in left if layer not in narrow)
        if not left:
            break
    return found


def _has_room(layer: str, stride: int, middle: int, up_to: _Reached) -> bool:
    """Tell whether fields in the middle lie within: the first column reaches half of one."""
    half = up_to(layer, 0)
    if 2 * half.sum() + 6 >= len(half):
        return False
    return not up_to(layer, middle + 3 * stride)[-1]


def _centres(
    layer: str, stride: int, middle: int, up_to: _Reached, onwards: _Reached, odd: _Reached
) -> Centres | None:
    """Find where fields in the middle begin and end, and how far the next is."""

    def last(column: int, reached: _Reached = up_to) -> int:
        return int(reached(layer, column).nonzero()[0].max(initial=-1))

    def first(column: int) -> int:
        return int(onwards(layer, column).nonzero()[0].min(initial=1 << 30))

    # The layer's stride is known by how many cells there are, which only nearly tells some.
    columns = range(middle, middle + 3 * stride + 1)
    to, back = last(middle) + 1, first(middle)
    if back < 1 or last(columns[-1]) <= to or to >= len(up_to(layer, middle)) - 2:
        return None
    begin, after = (columns[bisect.bisect_left(columns, to + k, key=last)] for k in (0, 1))
    end = columns[bisect.bisect_right(columns, back, key=first) - 1]
    stride = after - begin
    is_whole = (last(begin), last(after)) == (to, to + 1)
    if not is_whole or (first(end + 1), first(end + stride)) != (back + 1, back + 1):
        return None
    # With padding that depends on the size, an input that is wider by a little differs.
    if (last(begin - 1, odd), last(begin, odd)) != (to - 1, to):
        return None
    return Centres(stride, (begin - stride * to + end - stride * back + 1) / 2)


def _reached(backbone: Any, layers: tuple[str, ...], width: int, *, before: bool) -> _Reached:
    info, some = backbone.info, next(backbone.parameters(), torch.zeros(()))
    height = -(-info.min_side // info.grid) * info.grid

    @functools.cache
    @torch.inference_mode()
    def compute(column: int) -> dict[str, npt.NDArray[np.bool_]]:
        image = torch.zeros(1, 3, height, width, dtype=some.dtype, device=some.device)
        image[..., slice(column + 1) if before else slice(column, None)] = torch.nan
        # cuDNN may compute several cells together, so that NaN would reach too far.
        with torch.backends.cudnn.flags(enabled=False):
            maps = backbone.maps_of(image, layers)
        return {layer: maps[layer][0].isnan().any(0).any(0).cpu().numpy() for layer in layers}

    return lambda layer, column: compute(column)[layer]
