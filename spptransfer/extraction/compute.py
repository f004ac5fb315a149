"""A batch of equally large views becomes features: the only code that runs a backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from spptransfer.backbones import Backbone, BackboneRef
from spptransfer.errors import ConfigError
from spptransfer.extraction.specs import check_alike, layers_of
from spptransfer.extraction.strips import Strips
from spptransfer.pyramid import SpatialPyramidPooling
from spptransfer.runtimes import ComputeOptions, open_runtime
from spptransfer.spec import FeatureSpec

# Beyond this many pixels a view goes through a local network strip by strip.
STRIP_PIXELS = 1 << 21

# By determining level; under None for a vector layer.
Vectors = dict[int | None, npt.NDArray[Any]]
_Tensors = dict[int | None, torch.Tensor]


class FeatureComputer:
    """Run a backbone and its pooling on batches of views of one size.

    Use it as a context manager. Any number of threads may compute at once.
    """

    def __init__(
        self,
        specs: Sequence[FeatureSpec],
        backbone: Backbone | BackboneRef,
        options: ComputeOptions,
        *,
        strip_pixels: int = STRIP_PIXELS,
    ) -> None:
        check_alike(specs)
        self.specs = tuple(specs)
        layers = layers_of(specs)
        loaded = backbone.load(layers) if isinstance(backbone, BackboneRef) else backbone
        for spec in specs:
            _check_fit(spec, loaded)
        self.runtime = open_runtime(loaded, layers, precision=specs[0].precision, options=options)
        self._strip_pixels = strip_pixels

    def __enter__(self) -> FeatureComputer:
        self.runtime.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.runtime.__exit__(*error)

    def compute(self, views: npt.NDArray[np.uint8], wanted: Sequence[int] = (0,)) -> list[Vectors]:
        """Compute the features of a batch for several specs from one pass."""
        specs = [self.specs[number] for number in wanted]
        with self.runtime.session():
            pixels = self.runtime.upload(views)
            found = self._features(pixels, specs)
            if specs[0].flip:
                mirrored = self._features(pixels.flip(2), specs)
                found = [
                    {key: (one[key] + other[key]) / 2 for key in one}
                    for one, other in zip(found, mirrored, strict=True)
                ]
            if self.runtime.device != "cpu":  # half the bytes to bring home, if half are kept
                found = [
                    {key: value.to(getattr(torch, spec.storage)) for key, value in one.items()}
                    for one, spec in zip(found, specs, strict=True)
                ]
            return self.runtime.download(found)

    def _features(self, pixels: torch.Tensor, specs: Sequence[FeatureSpec]) -> list[_Tensors]:
        maps = self._maps(pixels, layers_of(specs))
        flat = layers_of([spec for spec in specs if not spec.levels])
        vectors = self.runtime.vectors(maps, flat) if flat else {}
        pooled: dict[tuple[str, str, int], torch.Tensor] = {}
        for spec in specs:
            for level in spec.levels:
                key = (spec.layer, spec.pooling, level)
                if key not in pooled:
                    pool = SpatialPyramidPooling([level], spec.pooling)
                    pooled[key] = pool(maps[spec.layer]).float()
        return [
            {level: pooled[spec.layer, spec.pooling, level] for level in spec.levels}
            or {None: vectors[spec.layer].float()}
            for spec in specs
        ]

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
    """Refuse a spec whose layer or scales the backbone does not compute."""
    if spec.layer not in backbone.layers:
        raise ConfigError(
            f"layer '{spec.layer}' is not one that this backbone was loaded for: "
            f"{', '.join(backbone.layers)}"
        )
    step = backbone.info.multiple_of
    if step > 1 and (spec.view == "full" or any(scale % step for scale in spec.scales)):
        raise ConfigError(
            f"{spec.backbone} takes images whose sides are multiples of {step}: "
            "view center_crop or warp, at such scales"
        )
    smallest = backbone.info.min_side
    if spec.scales[0] < smallest:
        raise ConfigError(
            f"scales: {spec.scales[0]} is too small for {spec.backbone}; "
            f"its smaller side must be at least {smallest}"
        )
