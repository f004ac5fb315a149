"""AlexNet in the single-tower form of "One weird trick" (arXiv 1404.5997), as in torchvision.

The last max pooling is the pyramid's level 6, which on the 13 x 13 map of a 224-pixel input
cuts the same 3 x 3 windows at stride 2 and takes maps of any other size as well.
"""

from __future__ import annotations

import torch
from torch import nn

from spptransfer.backbones.base import Network, initialize, leading, pyramid_head
from spptransfer.pyramid import SpatialPyramidPooling

# Number of modules of `features`, or of `classifier`, up to and with a layer's activation.
_MAP_ENDS = {"conv1": 2, "conv2": 5, "conv3": 8, "conv4": 10, "conv5": 12, "spp": 12}
_VECTOR_ENDS = {"fc6": 3, "fc7": 6}


def network(name: str, num_classes: int) -> Network:
    """Build AlexNet with random weights."""
    return AlexNet(num_classes)


class AlexNet(Network):
    """AlexNet with torchvision's key names."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
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
        self.pyramid = SpatialPyramidPooling([6])
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
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
