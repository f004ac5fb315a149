"""A batch of equally large views becomes features: the only code that runs a backbone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from spptransfer.backbones import Backbone, BackboneRef
from spptransfer.errors import ConfigError
from spptransfer.pyramid import SpatialPyramidPooling
from spptransfer.runtimes import ComputeOptions
from spptransfer.runtimes.runtime import open_runtime
from spptransfer.spec import FeatureSpec, layers_of
from spptransfer.specify import check_sides

# Beyond this many pixels a view goes through a local network strip by strip.
STRIP_PIXELS = 1 << 21
_PROBE_CELLS = 256

MapsOf = Callable[[torch.Tensor], Mapping[str, torch.Tensor]]
# By layer and determining level, which is None for a vector.
Vectors = dict[tuple[str, int | None], npt.NDArray[Any]]
_Tensors = dict[tuple[str, int | None], torch.Tensor]


class FeatureComputer:
    """Run a backbone and its pooling on batches of views of one size.

    Any number of threads may compute at once, inside its `runtime`.
    """

    def __init__(
        self,
        specs: Sequence[FeatureSpec],
        backbone: Backbone | BackboneRef,
        options: ComputeOptions,
        *,
        strip_pixels: int = STRIP_PIXELS,
    ) -> None:
        self.specs, layers = tuple(specs), layers_of(specs)
        loaded = backbone.load(layers) if isinstance(backbone, BackboneRef) else backbone
        for spec in specs:
            _check_fit(spec, loaded)
        self.runtime = open_runtime(loaded, layers, precision=specs[0].precision, options=options)
        self._strip_pixels = strip_pixels

    def compute(self, views: npt.NDArray[np.uint8], wanted: Sequence[int] = (0,)) -> list[Vectors]:
        """Compute the features of a batch for several specs from one pass."""
        specs = [self.specs[number] for number in wanted]
        with self.runtime.session():
            pixels = self.runtime.upload(views)
            found = self._features(pixels, specs)
            if specs[0].flip:
                mirrored = self._features(pixels.flip(2), specs)
                for one, other in zip(found, mirrored, strict=True):
                    one.update({key: (one[key] + other[key]) / 2 for key in one})
            if self.runtime.device != "cpu":  # half the bytes to bring home, if half are kept
                for one, spec in zip(found, specs, strict=True):
                    dtype = getattr(torch, spec.storage)
                    one.update({key: value.to(dtype) for key, value in one.items()})
            return self.runtime.download(found)

    def _features(self, pixels: torch.Tensor, specs: Sequence[FeatureSpec]) -> list[_Tensors]:
        """Compute vectors and pooled maps; what two specs have in common, once."""
        maps = self._maps(pixels, layers_of(specs))
        flat = tuple(dict.fromkeys([layer for spec in specs for layer in spec.vectors]))
        vectors = self.runtime.vectors(maps, flat) if flat else {}
        pooled: dict[tuple[str, str, int], torch.Tensor] = {}
        found: list[_Tensors] = []
        for spec in specs:
            features: _Tensors = {(layer, None): vectors[layer].float() for layer in spec.vectors}
            maps_of_spec = [layer for layer in spec.layers if layer not in spec.vectors]
            for layer, level in itertools.product(maps_of_spec, spec.levels):
                key = (layer, spec.pooling, level)
                if key not in pooled:
                    pool = SpatialPyramidPooling([level], spec.pooling)
                    pooled[key] = pool(maps[layer]).float()
                features[layer, level] = pooled[key]
            found.append(features)
        return found

    def _maps(self, pixels: torch.Tensor, layers: Sequence[str]) -> Mapping[str, torch.Tensor]:
        """Compute what the layers are made of in one pass, of the whole view or in strips."""
        _, height, width, _ = pixels.shape
        if height * width <= self._strip_pixels or not self.runtime.backbone.info.is_local:
            return self.runtime.maps(pixels, layers)
        return self._strips.join(pixels, lambda piece: self.runtime.maps(piece, layers))

    @cached_property
    def _strips(self) -> Strips:
        return Strips(self.runtime.backbone, layers_of(self.specs), self._strip_pixels)


def _check_fit(spec: FeatureSpec, backbone: Backbone) -> None:
    """Refuse a spec whose views the backbone does not take."""
    info = backbone.info
    check_sides(info, spec.scales, spec.view)
    if (spec.grid, spec.longest) != (info.grid, info.longest):
        raise ConfigError(
            f"{info.name} takes images whose sides are multiples of {info.grid}, the longer one at "
            f"most {info.longest} times the scale, not {spec.grid} and {spec.longest}"
        )


class Strips:
    """Cut long views such that the maps of the strips, side by side, are those of the view.

    Strips start at multiples of the network's total stride and overlap by its receptive field, so
    that every cell that is kept sees what it would see in the whole view, in bounded memory. This
    holds for backbones that are local; what an attention sees ends nowhere.
    """

    def __init__(self, backbone: Backbone, layers: Sequence[str], pixels: int) -> None:
        self.stride = backbone.info.stride
        # Cells of each layer in one of the network's last map.
        self._shares = {
            name: self.stride // (backbone.info.layer(name).stride or self.stride)
            for name in layers
        }
        self._pixels = pixels
        self.margin = self._measure_margin(backbone)

    def _measure_margin(self, backbone: Backbone) -> int:
        """Measure how many cells of the last map, on each side of a pixel, may see it.

        A NaN in an image goes wherever it is seen.
        """
        middle, side = _PROBE_CELLS // 2, max(backbone.info.min_side, self.stride)
        probe = torch.zeros(1, 3, side, _PROBE_CELLS * self.stride)
        probe[..., middle * self.stride] = torch.nan
        with torch.inference_mode():
            maps = backbone.maps_of(probe, list(self._shares))
        margin = 0
        for name, map in maps.items():
            seen = map.isnan().any(dim=1).any(dim=1)[0].nonzero().flatten()
            furthest = int((seen - middle * self._shares[name]).abs().max())
            margin = max(margin, -(-furthest // self._shares[name]))
        return margin + 2

    def join(self, pixels: torch.Tensor, maps_of: MapsOf) -> dict[str, torch.Tensor]:
        """Compute the maps of whole views from those of their strips."""
        upright = pixels.shape[2] >= pixels.shape[1]
        joined: dict[str, list[torch.Tensor]] = {name: [] for name in self._shares}
        for view in pixels:
            pieces = list(self.cut(view[None], maps_of))
            for name in pieces[0]:
                along = torch.cat([piece[name] for piece in pieces], dim=3)
                joined[name].append(along if upright else along.mT)
        return {name: torch.cat(maps) for name, maps in joined.items() if maps}

    def cut(self, pixels: torch.Tensor, maps_of: MapsOf) -> Iterator[dict[str, torch.Tensor]]:
        """Compute consecutive pieces of one view's maps, its longer side along the columns."""
        _, height, width, _ = pixels.shape
        axis, length, side = (2, width, height) if width >= height else (1, height, width)
        stride, margin = self.stride, self.margin
        core = max(4 * margin, self._pixels // (side * stride))
        for cell in itertools.count(0, core):
            first = max(cell - margin, 0)
            stop = (cell + core + margin) * stride
            last = stop + margin * stride >= length
            piece = pixels.narrow(axis, first * stride, (length if last else stop) - first * stride)
            kept = {}
            for name, maps in maps_of(piece).items():
                start, cells = (cell - first) * self._shares[name], core * self._shares[name]
                along = maps if axis == 2 else maps.mT
                kept[name] = along[..., start : None if last else start + cells]
            yield kept
            if last:
                return
