"""The networks of the SPP-net paper (TPAMI 2015, table 1), with and without SPP.

What the table leaves out is settled as follows.

ZF-5 is as in the authors' detection code: paddings 1, 0, 1, 1, 1, poolings that round up and
normalisation within channels. Its second convolution then gives 26 x 26 at 224 pixels where
the table prints 27 x 27; the padding that prints 27 would give 24 x 24, not 23 x 23, on conv5
at 392 pixels.

Convnet*-5 is padded to its printed sizes (2, 2, 1, 1, 1); its poolings round up. Overfeat is
unpadded in conv1 and keeps the size elsewhere; its poolings round down, since no padding of
conv1 gives 36 x 36 when they round up. Both normalise across five channels with AlexNet's
constants as its public code and Caffe read them (``1 + 1e-4 * mean of squares``, to the power
of 0.75), which is the code the authors built upon.

The last pooling is the pyramid: (6, 3, 2, 1) with SPP, level 6 alone without. On the 13 x 13 and
18 x 18 maps of a 224-pixel input level 6 is the plain pooling of 3 x 3 windows.

ZF-5-64 is not in the table: the same shape for images of 64 pixels. The second pooling is left out,
so that the total stride is 8 and a 64-pixel input keeps 8 x 8 cells, and every convolution is
followed by a batch normalisation instead of the response normalisation. Its widths are those of
its catalogue entry. spp-mini differs from it in the length of its fully connected layers alone.

Inputs are ``255 * x - 128`` for RGB in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from spptransfer.backbones.base import Network, has_numbers, initialize, leading, pyramid_head
from spptransfer.backbones.catalogue import describe
from spptransfer.backbones.info import BackboneInfo
from spptransfer.pyramid import SpatialPyramidPooling


def network(name: str, num_classes: int, levels: tuple[int, ...] | None = None) -> Network:
    """Build one of the paper's networks with random weights, and the pyramid of one's choice."""
    info = describe(name)
    modules = _CONVOLUTIONS[name.removesuffix("-no-spp")](info)
    length = info.layers[-1].channels
    return PaperNet(modules, levels or info.levels, num_classes, length)


class WithinChannelNorm(nn.Module):
    """Local response normalisation over a spatial window of each channel, as in Caffe.

    ``x / (1 + alpha * mean(x ** 2)) ** beta``, the mean taken over a ``size`` x ``size`` window
    in which cells outside the map count as zeros.
    """

    def __init__(self, size: int, alpha: float, beta: float) -> None:
        super().__init__()
        self.mean = nn.AvgPool2d(size, stride=1, padding=size // 2)
        self.alpha = alpha
        self.beta = beta

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Normalise N x C x H x W maps."""
        if _overflows(maps):
            return self.forward(maps.float()).to(maps.dtype)
        return maps * (1 + self.alpha * self.mean(maps.square())).pow(-self.beta)


class AcrossChannelsNorm(nn.Module):
    """Torch's local response normalisation over five channels, for all precisions."""

    def __init__(self, alpha: float, beta: float) -> None:
        super().__init__()
        self.norm = nn.LocalResponseNorm(size=5, alpha=alpha, beta=beta, k=1.0)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Normalise N x C x H x W maps."""
        # On a CPU torch has no bfloat16 for it.
        if _overflows(maps) or maps.dtype is torch.bfloat16:
            return self.norm(maps.float()).to(maps.dtype)
        return self.norm(maps)


def _overflows(maps: torch.Tensor) -> bool:
    """Whether squares of common numbers are infinite, from 256 on: zeros would come of them."""
    # Not `==`: whoever traces a network gives maps of no type.
    return maps.dtype is torch.float16


def _across_channels() -> nn.Module:
    return AcrossChannelsNorm(alpha=1e-4, beta=0.75)


def _within_channel() -> nn.Module:
    return WithinChannelNorm(size=3, alpha=5e-5, beta=0.75)


def _zf5(info: BackboneInfo) -> dict[str, nn.Module]:
    return {
        "conv1": nn.Conv2d(3, 96, 7, stride=2, padding=1),
        "relu1": nn.ReLU(inplace=True),
        "norm1": _within_channel(),
        "pool1": nn.MaxPool2d(3, 2, ceil_mode=True),
        "conv2": nn.Conv2d(96, 256, 5, stride=2),
        "relu2": nn.ReLU(inplace=True),
        "norm2": _within_channel(),
        "pool2": nn.MaxPool2d(3, 2, ceil_mode=True),
        **_three_by_three(3, (256, 384, 384, 256)),
    }


def _convnet_star_5(info: BackboneInfo) -> dict[str, nn.Module]:
    return {
        "conv1": nn.Conv2d(3, 96, 11, stride=4, padding=2),
        "relu1": nn.ReLU(inplace=True),
        "norm1": _across_channels(),
        "conv2": nn.Conv2d(96, 256, 5, padding=2),
        "relu2": nn.ReLU(inplace=True),
        "norm2": _across_channels(),
        "pool2": nn.MaxPool2d(3, 2, ceil_mode=True),
        **_three_by_three(3, (256, 384)),
        "pool3": nn.MaxPool2d(3, 2, ceil_mode=True),
        **_three_by_three(4, (384, 384, 256)),
    }


def _overfeat(last: int) -> dict[str, nn.Module]:
    return {
        "conv1": nn.Conv2d(3, 96, 7, stride=2),
        "relu1": nn.ReLU(inplace=True),
        "pool1": nn.MaxPool2d(3),
        "norm1": _across_channels(),
        "conv2": nn.Conv2d(96, 256, 5, padding=2),
        "relu2": nn.ReLU(inplace=True),
        "pool2": nn.MaxPool2d(2),
        **_three_by_three(3, (256, *(512 for _ in range(3, last + 1)))),
    }


def _zf5_64(info: BackboneInfo) -> dict[str, nn.Module]:
    widths = [layer.channels for layer in info.layers if layer.name.startswith("conv")]
    modules = _normalised(1, 3, widths[0], kernel=7, stride=2)
    modules["pool1"] = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
    modules |= _normalised(2, widths[0], widths[1], kernel=5, stride=2)
    for number in (3, 4, 5):
        modules |= _normalised(number, widths[number - 2], widths[number - 1], kernel=3, stride=1)
    return modules


def _normalised(
    number: int, in_channels: int, out_channels: int, kernel: int, stride: int
) -> dict[str, nn.Module]:
    """Convolution that keeps the map's size up to its stride, its batch norm and ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
    return {
        f"conv{number}": conv,
        f"bn{number}": nn.BatchNorm2d(out_channels),
        f"relu{number}": nn.ReLU(inplace=True),
    }


def _three_by_three(first: int, channels: tuple[int, ...]) -> dict[str, nn.Module]:
    """3 x 3 convolutions that keep the size, numbered from the first."""
    modules: dict[str, nn.Module] = {}
    for i in range(1, len(channels)):
        number = first + i - 1
        modules[f"conv{number}"] = nn.Conv2d(channels[i - 1], channels[i], 3, padding=1)
        modules[f"relu{number}"] = nn.ReLU(inplace=True)
    return modules


_CONVOLUTIONS: dict[str, Callable[[BackboneInfo], dict[str, nn.Module]]] = {
    "zf5": _zf5,
    "convnet-star-5": _convnet_star_5,
    "overfeat-5": lambda info: _overfeat(5),
    "overfeat-7": lambda info: _overfeat(7),
    "zf5-64": _zf5_64,
    "spp-mini": _zf5_64,
}


class PaperNet(Network):
    """A network of the paper: one flat sequence whose keys are the layers' names."""

    def __init__(
        self,
        convolutional: dict[str, nn.Module],
        levels: tuple[int, ...],
        num_classes: int,
        length: int = 4096,
    ) -> None:
        super().__init__()
        for name, module in convolutional.items():
            self.add_module(name, module)
        self._last_map = list(convolutional)[-1]
        channels = [m.out_channels for m in self.children() if isinstance(m, nn.Conv2d)]
        self.pyramid = SpatialPyramidPooling(levels)
        in_features = channels[-1] * self.pyramid.bins
        for number in (len(channels) + 1, len(channels) + 2):
            self.add_module(f"fc{number}", nn.Linear(in_features, length))
            self.add_module(f"relu{number}", nn.ReLU(inplace=True))
            self.add_module(f"drop{number}", nn.Dropout(0.5))
            in_features = length
        self.add_module(f"fc{len(channels) + 3}", nn.Linear(length, num_classes))
        self._initialize()

    def _initialize(self) -> None:
        """Draw narrow gaussian weights; biases start at 0 in conv1 and conv3, else at 1.

        With batch norms, convolutions are drawn by He's rule and biases start at 0.
        """
        if not has_numbers(self):
            return
        if any(isinstance(module, nn.BatchNorm2d) for module in self.children()):
            initialize(self)
            return
        for name, module in self.named_children():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.normal_(module.weight, std=0.01)
                nn.init.constant_(module.bias, 0.0 if name in ("conv1", "conv3") else 1.0)

    def _up_to(self, last: str) -> nn.Sequential:
        """Part of the sequence that ends with a module's name."""
        names = [name for name, _ in self.named_children()]
        return leading(self, names.index(last) + 1)

    def trunk(self, layer: str) -> nn.Sequential:
        """Modules up to the activation of a convolution."""
        last = self._last_map if layer == "spp" else layer.replace("conv", "relu")
        return self._up_to(last)

    def head(self, layer: str) -> nn.Sequential:
        """Modules from the pyramid to the activation of a fully connected layer."""
        modules = list(self._up_to(layer.replace("fc", "relu")))
        return pyramid_head(self.pyramid.levels, modules[modules.index(self.pyramid) + 1 :])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores of N x 3 x H x W images."""
        for module in self.children():
            images = module(images)
        return images
