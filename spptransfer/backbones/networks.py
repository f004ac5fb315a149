"""The networks of this package as torch modules that can be cut after any of their layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from string import ascii_lowercase

import torch
from torch import nn

from spptransfer.backbones.catalogue import Part, plan_of
from spptransfer.errors import ConfigError
from spptransfer.pyramid import SpatialPyramidPooling, check_levels, count_bins


class Network(nn.Module):
    """A classification network of modules, one after the other, that can be cut after any layer.

    The names of the modules are their prefixes in weights files; `ends` has that of each layer's
    last one. What `trunk` and `head` return shares its modules with the network.
    """

    def __init__(self, modules: Mapping[str, nn.Module], ends: Mapping[str, str]) -> None:
        super().__init__()
        for name, module in modules.items():
            group, _, own = name.rpartition(".")
            if group and not hasattr(self, group):
                self.add_module(group, nn.Sequential())
            self.get_submodule(group).add_module(own, module)
        self._names = tuple(modules)
        self._ends = dict(ends)

    def steps(self, layer: str) -> tuple[str, ...]:
        """Names of the modules from the image to a layer, activation included."""
        return self._names[: self._names.index(self._ends[layer]) + 1]

    def trunk(self, layer: str) -> nn.Sequential:
        """Modules from the image to a map layer, or to the last map before a vector layer."""
        steps = self.steps(layer)[: len(self.steps("spp"))]
        return nn.Sequential(*map(self.get_submodule, steps))

    def head(self, layer: str) -> nn.Sequential:
        """Modules from the last map to a vector layer, without dropout, which is idle in use."""
        steps = map(self.get_submodule, self.steps(layer)[len(self.steps("spp")) :])
        return nn.Sequential(*(step for step in steps if not isinstance(step, nn.Dropout)))

    def classifier_modules(self) -> nn.Sequential:
        """Modules from the last map to the class scores."""
        return nn.Sequential(*map(self.get_submodule, self._names[len(self.steps("spp")) :]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores of N x 3 x H x W images."""
        for module in self.children():
            images = module(images)
        return images


def network(
    name: str, *, num_classes: int = 1000, levels: tuple[int, ...] | None = None
) -> Network:
    """Build a whole network, trainable, with random weights from torch's generator.

    Parameters
    ----------
    name : str
        One of `names`, but no registered one.
    num_classes : int, default=1000
        Length of the last layer.
    levels : tuple of int, optional
        Pyramid to train with, for the paper's networks with SPP only.

    Returns
    -------
    Network
        A module from N x 3 x H x W images to N x ``num_classes`` scores.

    Raises
    ------
    ConfigError
        If there is no such network, or its pyramid cannot be chosen.

    Examples
    --------
    >>> from spptransfer import backbones
    >>> with torch.device("meta"):
    ...     vgg = backbones.network("vgg16")
    >>> sum(parameter.numel() for parameter in vgg.parameters())
    138357544
    """
    plan = plan_of(name)
    if levels is not None and len(plan.levels) < 2:
        raise ConfigError(
            f"levels: the pyramid of '{name}' cannot be chosen, only that of SPP nets"
        )
    levels = plan.levels if levels is None else check_levels(levels)
    # Torchvision numbers modules in two groups; the paper's networks and ResNets count layers.
    grouped = not plan.from_paper and not name.startswith("resnet")
    modules: dict[str, nn.Module] = {}
    ends: dict[str, str] = {}
    channels, number, key = 3, "", ""
    for part in plan.parts:
        number = part.layer.lstrip(ascii_lowercase) if part.layer else number
        if part.kind in _TAIL:
            group, made = "classifier", _tail_modules(part, channels, levels, num_classes)
        else:
            group, made = "features", _trunk_modules(part, channels)
        for kind, module in made:
            key = f"{kind}{number}"
            if kind in _BETWEEN:
                key = kind
            elif grouped:
                key = f"{group}.{sum(other.startswith(group) for other in modules)}"
            modules[key] = module
        channels = part.channels or channels
        if part.kind == "pyramid":
            channels *= count_bins(levels)
        if part.layer:
            ends[part.layer] = key
        if part.layer and group == "features":
            ends["spp"] = key
    built = Network(modules, ends)
    _initialize(built, narrow=plan.from_paper and "norm1" in modules)
    return built


# Kinds of parts behind the last map, and modules without weights that are in no group.
_TAIL = ("pyramid", "average", "drop", "light-drop", "fc", "classes", "map-classes")
_BETWEEN = ("pyramid", "average", "flatten")


def _trunk_modules(part: Part, channels: int) -> list[tuple[str, nn.Module]]:
    """Make the modules of a part that gets so many channels, each with the word of its name."""
    match part.kind:
        case "pool" | "pool-up":
            up, padding = part.kind == "pool-up", part.padding or 0
            return [("pool", nn.MaxPool2d(part.kernel, part.stride, padding, ceil_mode=up))]
        case "within":
            return [("norm", ResponseNorm(within=True))]
        case "across":
            return [("norm", ResponseNorm(within=False))]
        case "fire":
            return [("fire", Fire(channels, part.channels))]
        case "residual":
            return [("layer", nn.Sequential(*_blocks(ResidualBlock, part, channels)))]
        case "conv6":
            return [("conv", _conv6(channels, part.channels, part.kernel, part.stride))]
        case "inverted":
            return [("block", block) for block in _blocks(InvertedBottleneck, part, channels)]
        case _:
            return _convolution(part, channels)


def _tail_modules(
    part: Part, channels: int, levels: tuple[int, ...], num_classes: int
) -> list[tuple[str, nn.Module]]:
    """Make the modules of a part behind the last map."""
    match part.kind:
        case "pyramid":
            return [("pyramid", SpatialPyramidPooling(levels))]
        case "average":
            return [("average", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten())]
        case "drop" | "light-drop":
            return [("drop", nn.Dropout(0.5 if part.kind == "drop" else 0.2))]
        case "fc":
            return [("fc", nn.Linear(channels, part.channels)), ("relu", nn.ReLU(inplace=True))]
        case "map-classes":
            conv = nn.Conv2d(channels, num_classes, kernel_size=1)
            pool: list[nn.Module] = [nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)]
            return [*(("scores", module) for module in (conv, *pool)), ("flatten", nn.Flatten())]
        case _:
            return [("fc", nn.Linear(channels, num_classes))]


def _convolution(part: Part, channels: int) -> list[tuple[str, nn.Module]]:
    padding = part.kernel // 2 if part.padding is None else part.padding
    biased = part.kind != "conv-bn"
    conv = nn.Conv2d(channels, part.channels, part.kernel, part.stride, padding, bias=biased)
    norm = [] if part.kind == "conv" else [("bn", nn.BatchNorm2d(part.channels))]
    return [("conv", conv), *norm, ("relu", nn.ReLU(inplace=True))]


def _blocks(
    block: Callable[[int, int, int, int], nn.Module], part: Part, channels: int
) -> list[nn.Module]:
    """Make blocks one after the other, of which the first one strides."""
    first = block(channels, part.channels, part.stride, part.expansion)
    others = (block(part.channels, part.channels, 1, part.expansion) for _ in range(1, part.depth))
    return [first, *others]


def _initialize(network: Network, *, narrow: bool) -> None:
    """Draw He's normal weights for convolutions, narrow ones for linear layers; biases are 0.

    As in the paper, all are `narrow` and biases are 1 but for conv1's and conv3's.
    """
    # On the meta device there is nothing to draw, and trying imports torch's compiler for a second.
    if next(network.parameters()).is_meta:
        return
    for name, module in network.named_modules():
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        if narrow or isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        else:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            one = narrow and name not in ("conv1", "conv3")
            nn.init.constant_(module.bias, 1.0 if one else 0.0)


class ResponseNorm(nn.Module):
    """Local response normalisation: ``x / (1 + alpha * mean(x ** 2)) ** 0.75``, as in Caffe.

    The mean is taken over 3 x 3 cells of a channel, zeros outside the map, or over 5 channels.
    """

    def __init__(self, *, within: bool) -> None:
        super().__init__()
        self.mean = nn.AvgPool2d(3, stride=1, padding=1) if within else None
        self.across = nn.LocalResponseNorm(size=5, alpha=1e-4, beta=0.75, k=1.0)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Normalise N x C x H x W maps."""
        # In float16 squares are infinite from 256 on; on a CPU torch has no bfloat16 for `across`.
        if maps.dtype is torch.float16 or (self.mean is None and maps.dtype is torch.bfloat16):
            return self.forward(maps.float()).to(maps.dtype)
        if self.mean is None:
            return self.across(maps)
        return maps * (1 + 5e-5 * self.mean(maps.square())).pow(-0.75)


class Fire(nn.Module):
    """A 1 x 1 convolution that squeezes, then 1 x 1 and 3 x 3 ones side by side (1602.07360)."""

    def __init__(self, channels: int, expanded: int) -> None:
        super().__init__()
        squeezed = expanded // 8
        self.squeeze = nn.Conv2d(channels, squeezed, kernel_size=1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded // 2, kernel_size=1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded // 2, kernel_size=3, padding=1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Put the two expansions one after the other."""
        squeezed = self.squeeze(maps).relu_()
        return torch.cat([self.expand1x1(squeezed), self.expand3x3(squeezed)], dim=1).relu_()


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, or one inside two 1 x 1 ones, and a shortcut (arXiv 1512.03385).

    Bottlenecks stride in their 3 x 3 convolution, which is what the official weights expect.
    """

    def __init__(self, channels: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.kernels = (3, 3) if expansion == 1 else (1, 3, 1)
        widths = (channels, *(len(self.kernels) - 1) * [out // expansion], out)
        striding = self.kernels.index(3)
        for i, kernel in enumerate(self.kernels):
            step = stride if i == striding else 1
            conv = nn.Conv2d(widths[i], widths[i + 1], kernel, step, kernel // 2, bias=False)
            self.add_module(f"conv{i + 1}", conv)
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(widths[i + 1]))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if channels != out or stride > 1:
            projection = nn.Conv2d(channels, out, kernel_size=1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(out))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Add the residual to the shortcut."""
        residual = maps
        for i in range(1, len(self.kernels) + 1):
            residual = self.relu(residual) if i > 1 else residual
            residual = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(residual))
        shortcut = maps if self.downsample is None else self.downsample(maps)
        return self.relu(residual.add_(shortcut))


def _conv6(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution that keeps the size, batch norm, ReLU6."""
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU6(inplace=True),
    )


class InvertedBottleneck(nn.Module):
    """Expand, filter depthwise, project; a shortcut where the shape is kept (arXiv 1801.04381)."""

    def __init__(self, channels: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = channels * expansion
        self.conv = nn.Sequential(
            *([_conv6(channels, width, kernel=1)] if expansion > 1 else []),
            _conv6(width, width, kernel=3, stride=stride, groups=width),
            nn.Conv2d(width, out, kernel_size=1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.has_shortcut = stride == 1 and channels == out

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Apply the bottleneck, which ends without an activation."""
        return maps + self.conv(maps) if self.has_shortcut else self.conv(maps)
