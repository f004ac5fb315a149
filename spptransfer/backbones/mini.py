"""spp-mini, the embedded default: the SPP-net paper's ZF-5 made small enough to ship.

The filters are as large as ZF-5's, in smaller numbers, with batch normalisation in place of
the response normalisation. The total stride is 8 instead of 16, because the network is meant
for images whose smaller side is 64 to 128 pixels: at 96 pixels its map has 12 x 12 cells.
"""

from __future__ import annotations

import torch
from torch import nn

from spptransfer.backbones.base import Network, initialize, leading, pyramid_head
from spptransfer.backbones.catalogue import describe
from spptransfer.pyramid import SpatialPyramidPooling, count_bins

# Number of modules of `features`, or of `classifier`, up to and with a layer's activation.
_MAP_ENDS = {"conv1": 3, "conv2": 7, "conv3": 11, "conv4": 14, "conv5": 17, "spp": 17}
_VECTOR_ENDS = {"fc6": 2, "fc7": 5}
_DROPOUT = 0.1


def network(name: str, num_classes: int) -> Network:
    """Build spp-mini with random weights."""
    info = describe(name)
    return MiniNet(info.levels, info.layer("fc6").channels, num_classes)


class MiniNet(Network):
    """Five convolutions, a spatial pyramid and three fully connected layers.

    Parameters
    ----------
    levels : tuple of int
        The pyramid between conv5 and fc6.
    width : int
        Length of fc6 and of fc7.
    num_classes : int
        Number of class scores.
    """

    def __init__(self, levels: tuple[int, ...], width: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(3, 32, kernel_size=7, stride=2),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
            *_convolution(32, 64, kernel_size=5),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
            *_convolution(64, 128, kernel_size=3),
            *_convolution(128, 128, kernel_size=3),
            *_convolution(128, 64, kernel_size=3),
        )
        self.pyramid = SpatialPyramidPooling(levels)
        self.classifier = nn.Sequential(
            nn.Linear(64 * count_bins(levels), width),
            nn.ReLU(inplace=True),
            nn.Dropout(_DROPOUT),
            nn.Linear(width, width),
            nn.ReLU(inplace=True),
            nn.Dropout(_DROPOUT),
            nn.Linear(width, num_classes),
        )
        initialize(self)

    def trunk(self, layer: str) -> nn.Sequential:
        """Modules up to a map layer."""
        return leading(self.features, _MAP_ENDS[layer])

    def head(self, layer: str) -> nn.Sequential:
        """Modules from conv5 to a fully connected layer."""
        return pyramid_head(self.pyramid.levels, leading(self.classifier, _VECTOR_ENDS[layer]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores of N x 3 x H x W images."""
        return self.classifier(self.pyramid(self.features(images)))


def _convolution(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1
) -> list[nn.Module]:
    """Convolution that keeps the map's size up to its stride, its batch norm and ReLU."""
    padding = kernel_size // 2
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]
