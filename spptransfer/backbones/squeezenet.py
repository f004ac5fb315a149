"""SqueezeNet 1.0 and 1.1 (arXiv 1602.07360), as in torchvision."""

from __future__ import annotations

import torch
from torch import nn

from spptransfer.backbones.base import Network, initialize, leading

# Fire modules between the max poolings, as (squeezed, expanded) channels.
_FIRES = (
    (16, 128),
    (16, 128),
    (32, 256),
    (32, 256),
    (48, 384),
    (48, 384),
    (64, 512),
    (64, 512),
)
# Fire modules that a max pooling precedes.
_POOLED = {"squeezenet1_0": (2, 5, 9), "squeezenet1_1": (2, 4, 6)}
_STEMS = {"squeezenet1_0": (96, 7), "squeezenet1_1": (64, 3)}


def network(name: str, num_classes: int) -> Network:
    """Build a SqueezeNet with random weights."""
    width, kernel = _STEMS[name]
    return SqueezeNet(width, kernel, _POOLED[name], num_classes)


class Fire(nn.Module):
    """A 1 x 1 convolution that squeezes, then 1 x 1 and 3 x 3 ones side by side."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, kernel_size=1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded // 2, kernel_size=1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded // 2, kernel_size=3, padding=1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Put the two expansions one after the other."""
        squeezed = self.squeeze(maps).relu_()
        return torch.cat([self.expand1x1(squeezed), self.expand3x3(squeezed)], dim=1).relu_()


class SqueezeNet(Network):
    """SqueezeNet with torchvision's key names."""

    def __init__(self, width: int, kernel: int, pooled: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        modules: list[nn.Module] = [nn.Conv2d(3, width, kernel, stride=2), nn.ReLU(inplace=True)]
        self._map_ends = {"conv1": len(modules)}
        channels = width
        for fire, (squeezed, expanded) in enumerate(_FIRES, start=2):
            if fire in pooled:
                modules.append(nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True))
            modules.append(Fire(channels, squeezed, expanded))
            self._map_ends[f"fire{fire}"] = len(modules)
            channels = expanded
        self._map_ends["spp"] = len(modules)
        self.features = nn.Sequential(*modules)
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Conv2d(channels, num_classes, kernel_size=1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
        )
        initialize(self)

    def trunk(self, layer: str) -> nn.Sequential:
        """Modules up to a map layer."""
        return leading(self.features, self._map_ends[layer])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores of N x 3 x H x W images."""
        return self.classifier(self.features(images)).flatten(1)
