"""AlexNet and VGG as in torchvision: one stack of convolutions, a pooling, fully connected layers.

AlexNet is the single-tower form of "One weird trick" (arXiv 1404.5997); VGG has 11, 13, 16 or 19
layers (arXiv 1409.1556), with and without batch norm.

The last max pooling is the pyramid's, which takes maps of any size: AlexNet's level 6 on the
13 x 13 map of a 224-pixel input cuts the same 3 x 3 windows at stride 2, VGG's level 7 on its
14 x 14 map the same 2 x 2 windows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from spptransfer.backbones.base import Network, initialize, leading, pyramid_head
from spptransfer.backbones.catalogue import VGG_DEPTHS, VGG_WIDTHS
from spptransfer.pyramid import SpatialPyramidPooling


def network(name: str, num_classes: int) -> Network:
    """Build AlexNet or a VGG with random weights."""
    if name == "alexnet":
        return _alexnet(num_classes)
    return _vgg(VGG_DEPTHS[name.removesuffix("_bn")], name.endswith("_bn"), num_classes)


class PlainNet(Network):
    """A stack of convolutions, a pyramid and a classifier, with torchvision's key names."""

    def __init__(
        self,
        features: nn.Sequential,
        level: int,
        classifier: nn.Sequential,
        map_ends: Mapping[str, int],
        vector_ends: Mapping[str, int],
    ) -> None:
        super().__init__()
        self.features = features
        self.pyramid = SpatialPyramidPooling([level])
        self.classifier = classifier
        self._map_ends = {**map_ends, "spp": len(features)}
        self._vector_ends = vector_ends
        initialize(self)

    def trunk(self, layer: str) -> nn.Sequential:
        """Modules up to a map layer."""
        return leading(self.features, self._map_ends[layer])

    def head(self, layer: str) -> nn.Sequential:
        """Modules from the last map to a fully connected layer."""
        end = self._vector_ends[layer]
        return pyramid_head(self.pyramid.levels, leading(self.classifier, end))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores of N x 3 x H x W images."""
        return self.classifier(self.pyramid(self.features(images)))


def _alexnet(num_classes: int) -> Network:
    features = nn.Sequential(
        nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(64, 192, kernel_size=5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(192, 384, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
    )
    classifier = nn.Sequential(
        nn.Dropout(),
        nn.Linear(256 * 6 * 6, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        nn.Linear(4096, num_classes),
    )
    map_ends = {"conv1": 2, "conv2": 5, "conv3": 8, "conv4": 10, "conv5": 12}
    return PlainNet(features, 6, classifier, map_ends, {"fc6": 3, "fc7": 6})


def _vgg(depths: tuple[int, ...], batch_norm: bool, num_classes: int) -> Network:
    modules: list[nn.Module] = []
    map_ends: dict[str, int] = {}
    channels = 3
    for block, (width, depth) in enumerate(zip(VGG_WIDTHS, depths, strict=True), start=1):
        if block > 1:
            modules.append(nn.MaxPool2d(kernel_size=2))
        for i in range(1, depth + 1):
            modules.append(nn.Conv2d(channels, width, kernel_size=3, padding=1))
            modules.extend([nn.BatchNorm2d(width)] if batch_norm else [])
            modules.append(nn.ReLU(inplace=True))
            map_ends[f"conv{block}_{i}"] = len(modules)
            channels = width
    classifier = nn.Sequential(
        nn.Linear(512 * 7 * 7, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(4096, num_classes),
    )
    vector_ends = {"fc6": 2, "fc7": 5}
    return PlainNet(nn.Sequential(*modules), 7, classifier, map_ends, vector_ends)
