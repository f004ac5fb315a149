"""VGG with 11, 13, 16 or 19 layers (arXiv 1409.1556), with and without batch norm.

As in AlexNet's file, the last max pooling is the pyramid's: level 7 on the 14 x 14 map of a
224-pixel input cuts the same 2 x 2 windows.
"""

from __future__ import annotations

import torch
from torch import nn

from spptransfer.backbones.base import Network, initialize, leading, pyramid_head
from spptransfer.backbones.catalogue import VGG_DEPTHS, VGG_WIDTHS
from spptransfer.pyramid import SpatialPyramidPooling

_VECTOR_ENDS = {"fc6": 2, "fc7": 5}


def network(name: str, num_classes: int) -> Network:
    """Build a VGG with random weights."""
    depths = VGG_DEPTHS[name.removesuffix("_bn")]
    return VGG(depths, name.endswith("_bn"), num_classes)


class VGG(Network):
    """VGG with torchvision's key names."""

    def __init__(self, depths: tuple[int, ...], batch_norm: bool, num_classes: int) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        self._map_ends: dict[str, int] = {}
        channels = 3
        for block, (width, depth) in enumerate(zip(VGG_WIDTHS, depths, strict=True), start=1):
            if block > 1:
                modules.append(nn.MaxPool2d(kernel_size=2))
            for i in range(1, depth + 1):
                modules.append(nn.Conv2d(channels, width, kernel_size=3, padding=1))
                modules.extend([nn.BatchNorm2d(width)] if batch_norm else [])
                modules.append(nn.ReLU(inplace=True))
                self._map_ends[f"conv{block}_{i}"] = len(modules)
                channels = width
        self._map_ends["spp"] = len(modules)
        self.features = nn.Sequential(*modules)
        self.pyramid = SpatialPyramidPooling([7])
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, num_classes),
        )
        initialize(self)

    def trunk(self, layer: str) -> nn.Sequential:
        """Modules up to a map layer."""
        return leading(self.features, self._map_ends[layer])

    def head(self, layer: str) -> nn.Sequential:
        """Modules from the last map to a fully connected layer."""
        return pyramid_head(self.pyramid.levels, leading(self.classifier, _VECTOR_ENDS[layer]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores of N x 3 x H x W images."""
        return self.classifier(self.pyramid(self.features(images)))
