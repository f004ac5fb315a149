"""MobileNetV2 at width 1.0 (arXiv 1801.04381), as in torchvision.

Layers: ``conv1`` is the strided stem; ``stage1`` ... ``stage7`` are the seven rows of
bottlenecks in the paper's table 2, whose outputs are linear by design (no ReLU follows a
bottleneck, so values may be negative); ``head``, also called ``spp``, is the 1280-channel
1 x 1 convolution after them. ``conv1`` and ``head`` end in ReLU6.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from spptransfer.backbones.base import Network, initialize, leading

# Expansion, output channels, number of bottlenecks and stride of the first one.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def network(name: str, num_classes: int) -> Network:
    """Build MobileNetV2 with random weights."""
    return MobileNetV2(num_classes)


def _conv(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution that keeps the size, batch norm, ReLU6."""
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """Expand, filter depthwise, project; with a shortcut where the shape is kept."""

    def __init__(self, channels: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = channels * expansion
        self.conv = nn.Sequential(
            *([_conv(channels, width, kernel=1)] if expansion > 1 else []),
            _conv(width, width, kernel=3, stride=stride, groups=width),
            nn.Conv2d(width, out, kernel_size=1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.has_shortcut = stride == 1 and channels == out

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Apply the bottleneck, which ends without an activation."""
        return maps + self.conv(maps) if self.has_shortcut else self.conv(maps)


class MobileNetV2(Network):
    """MobileNetV2 with torchvision's key names."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        modules: list[nn.Module] = [_conv(3, 32, kernel=3, stride=2)]
        self._map_ends = {"conv1": 1}
        channels = 32
        for stage, (expansion, out, depth, stride) in enumerate(_STAGES, start=1):
            for i in range(depth):
                first = i == 0
                modules.append(InvertedResidual(channels, out, stride if first else 1, expansion))
                channels = out
            self._map_ends[f"stage{stage}"] = len(modules)
        modules.append(_conv(channels, 1280, kernel=1))
        self._map_ends |= {"head": len(modules), "spp": len(modules)}
        self.features = nn.Sequential(*modules)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))
        initialize(self)

    def trunk(self, layer: str) -> nn.Sequential:
        """Modules up to a map layer."""
        return leading(self.features, self._map_ends[layer])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores of N x 3 x H x W images."""
        maps = self.features(images)
        return self.classifier(functional.adaptive_avg_pool2d(maps, 1).flatten(1))
