"""A view of any length in bounded memory: it goes through the network strip by strip.

Strips start at multiples of the network's total stride and overlap by its receptive field, so that
every cell that is kept sees what it would see in the whole view. This holds for backbones that are
local; what an attention sees ends nowhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from spptransfer.backbones import Backbone

_PROBE_CELLS = 256

MapsOf = Callable[[torch.Tensor], Mapping[str, torch.Tensor]]


class Strips:
    """Cut long views such that the maps of the strips, side by side, are those of the view."""

    def __init__(self, backbone: Backbone, layers: Sequence[str], pixels: int) -> None:
        info = backbone.info
        self.stride = info.stride
        self.strides = {name: info.layer(name).stride or self.stride for name in layers}
        self.pixels = pixels
        self.margin = receptive_margin(backbone, layers)

    def join(self, pixels: torch.Tensor, maps_of: MapsOf) -> dict[str, torch.Tensor]:
        """Compute the maps of whole views from those of their strips."""
        views = [list(self.cut(view[None], maps_of)) for view in pixels]
        upright = pixels.shape[2] >= pixels.shape[1]
        joined = {}
        for layer in views[0][0]:
            maps = [torch.cat([piece[layer] for piece in pieces], dim=3) for pieces in views]
            joined[layer] = torch.cat([map if upright else map.mT for map in maps])
        return joined

    def cut(self, pixels: torch.Tensor, maps_of: MapsOf) -> Iterator[dict[str, torch.Tensor]]:
        """Compute consecutive pieces of one view's maps, its longer side along the columns."""
        _, height, width, _ = pixels.shape
        axis, length, side = (2, width, height) if width >= height else (1, height, width)
        stride, margin = self.stride, self.margin
        core = max(4 * margin, self.pixels // (side * stride))
        for cell in itertools.count(0, core):
            first = max(cell - margin, 0)
            stop = (cell + core + margin) * stride
            last = stop + margin * stride >= length
            piece = pixels.narrow(axis, first * stride, (length if last else stop) - first * stride)
            kept = {}
            for layer, maps in maps_of(piece).items():
                share = stride // self.strides[layer]
                start = (cell - first) * share
                along = maps if axis == 2 else maps.mT
                kept[layer] = along[..., start : None if last else start + core * share]
            yield kept
            if last:
                return


def receptive_margin(backbone: Backbone, layers: Sequence[str]) -> int:
    """Measure how many cells of the last map, on each side of a pixel, may see it.

    A NaN in an image goes wherever it is seen.

    Examples
    --------
    >>> from spptransfer import backbones
    >>> receptive_margin(backbones.load("alexnet", "random"), ["spp"])
    8
    """
    info = backbone.info
    middle = _PROBE_CELLS // 2
    probe = torch.zeros(1, 3, max(info.min_side, info.stride), _PROBE_CELLS * info.stride)
    probe[..., middle * info.stride] = torch.nan
    with torch.inference_mode():
        maps = backbone.maps_of(probe, layers)
    margin = 0
    for name, map in maps.items():
        share = info.stride // (info.layer(name).stride or info.stride)
        seen = map.isnan().any(dim=1).any(dim=1)[0].nonzero().flatten()
        margin = max(margin, -(-int((seen - middle * share).abs().max()) // share))
    return margin + 2
