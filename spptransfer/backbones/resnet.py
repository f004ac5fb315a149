"""ResNet with 18, 34, 50, 101 or 152 layers (arXiv 1512.03385), as in torchvision.

Bottlenecks stride in their 3 x 3 convolution, which is what the official weights expect. A
stage's layer is what its last block puts out after the ReLU.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from spptransfer.backbones.base import Network, initialize, leading

_BLOCKS_PER_STAGE = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
_LAST_CHILDREN = {"conv1": "relu", "spp": "layer4"}


def network(name: str, num_classes: int) -> Network:
    """Build a ResNet with random weights."""
    block = Basic if name in ("resnet18", "resnet34") else Bottleneck
    return ResNet(block, _BLOCKS_PER_STAGE[name], num_classes)


def _shortcut(channels: int, out: int, stride: int) -> nn.Sequential | None:
    """Projection where a block changes the shape of the map, else None."""
    if channels == out and stride == 1:
        return None
    projection = nn.Conv2d(channels, out, kernel_size=1, stride=stride, bias=False)
    return nn.Sequential(projection, nn.BatchNorm2d(out))


class Basic(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Add the residual to the shortcut."""
        shortcut = maps if self.downsample is None else self.downsample(maps)
        residual = self.relu(self.bn1(self.conv1(maps)))
        residual = self.bn2(self.conv2(residual))
        return self.relu(residual.add_(shortcut))


class Bottleneck(nn.Module):
    """A 3 x 3 convolution between two 1 x 1 ones, and a shortcut."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(channels, out, stride)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Add the residual to the shortcut."""
        shortcut = maps if self.downsample is None else self.downsample(maps)
        residual = self.relu(self.bn1(self.conv1(maps)))
        residual = self.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        return self.relu(residual.add_(shortcut))


class ResNet(Network):
    """ResNet with torchvision's key names."""

    def __init__(
        self, block: type[Basic | Bottleneck], depths: tuple[int, ...], num_classes: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        channels = 64
        for stage, depth in enumerate(depths):
            width = 64 * 2**stage
            blocks = nn.Sequential()
            for i in range(depth):
                blocks.append(block(channels, width, stride=2 if stage > 0 and i == 0 else 1))
                channels = width * block.expansion
            self.add_module(f"layer{stage + 1}", blocks)
        self.fc = nn.Linear(channels, num_classes)
        initialize(self)

    def trunk(self, layer: str) -> nn.Sequential:
        """Modules up to a map layer."""
        children = [name for name, _ in self.named_children()]
        return leading(self, children.index(_LAST_CHILDREN.get(layer, layer)) + 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores of N x 3 x H x W images."""
        maps = self.trunk("spp")(images)
        return self.fc(functional.adaptive_avg_pool2d(maps, 1).flatten(1))
