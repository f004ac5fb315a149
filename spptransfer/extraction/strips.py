"""A view of any length in bounded memory: it goes through the network strip by strip."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import torch

from spptransfer.backbones.catalogue import describe
from spptransfer.backbones.info import BackboneInfo
from spptransfer.backbones.loading import hollow_trunk

_PROBE_CELLS = 256

MapsOf = Callable[[torch.Tensor], Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class Strips:
    """How a long view is cut, such that its strips' maps side by side are the view's own.

    Strips start at multiples of the network's total stride and overlap by its receptive field,
    so that every kept cell sees what it would see in the whole view. Where they are cut depends
    on the network alone, not on the layers that are asked for: a layer's numbers are the same
    whichever others are computed with it.

    Parameters
    ----------
    info : BackboneInfo
        The network.
    pixels : int
        A strip has about this many.
    """

    info: BackboneInfo
    pixels: int

    @property
    def stride(self) -> int:
        """Pixels from one cell of the last map to the next: a multiple of every layer's."""
        return self.info.layer("spp").stride or 1

    @property
    def margin(self) -> int:
        """How many cells of the last map on each side of a pixel may see it."""
        return margin_of(self.info.name)

    def join(self, pixels: torch.Tensor, maps_of: MapsOf) -> dict[str, torch.Tensor]:
        """Maps of whole views, put together from those of their strips.

        Parameters
        ----------
        pixels : Tensor of shape (N, H, W, 3)
            Views of one size.
        maps_of : callable
            Gives the maps of such pixels by layer.

        Returns
        -------
        dict of str to Tensor of shape (N, C, h, w)
            By layer.
        """
        views = [self._join(list(self.cut(view[None], maps_of))) for view in pixels]
        upright = pixels.shape[2] >= pixels.shape[1]
        return {
            layer: torch.cat([view[layer] if upright else view[layer].mT for view in views])
            for layer in views[0]
        }

    def cut(self, pixels: torch.Tensor, maps_of: MapsOf) -> Iterator[dict[str, torch.Tensor]]:
        """Consecutive pieces of one view's maps, with its longer side along the columns."""
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
                share = stride // (self.info.layer(layer).stride or stride)
                start = (cell - first) * share
                along = maps if axis == 2 else maps.mT
                kept[layer] = along[..., start : None if last else start + core * share]
            yield kept
            if last:
                return

    @staticmethod
    def _join(pieces: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {layer: torch.cat([piece[layer] for piece in pieces], dim=3) for layer in pieces[0]}


@cache
def margin_of(name: str) -> int:
    """How many cells of a network's last map, on each side of a pixel, may see it.

    Measured on the network without its weights: a NaN in the image goes wherever it is seen.
    Every layer before the last map sees less of the image.

    Examples
    --------
    >>> margin_of("alexnet")
    8
    """
    info = describe(name)
    stride = info.layer("spp").stride or 1
    middle = _PROBE_CELLS // 2
    probe = torch.zeros(1, 3, max(info.min_side, stride), _PROBE_CELLS * stride)
    probe[..., middle * stride] = torch.nan
    with torch.inference_mode():
        maps = hollow_trunk(name)(probe.contiguous(memory_format=torch.channels_last))
    seen = maps.isnan().any(dim=1).any(dim=1)[0].nonzero().flatten()
    return int((seen - middle).abs().max()) + 2
