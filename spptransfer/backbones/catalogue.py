"""The networks of this package by name, as tables of parts.

Listing and describing the networks imports no torch: what is known of one follows from its parts,
of which `networks` makes modules. The tests hold the modules to what is said here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import NamedTuple

from spptransfer.backbones.info import BackboneInfo, LayerInfo, WeightsSource
from spptransfer.errors import ConfigError, suggestion

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Part(NamedTuple):
    """A part of a network, and the layer that it ends in, if any."""

    kind: str  # one of those of `networks`
    layer: str = ""
    channels: int = 0
    kernel: int = 3
    stride: int = 1
    padding: int | None = None  # of a convolution, by default what keeps the size
    depth: int = 1  # blocks, of which the first one strides
    expansion: int = 1  # of a block: its widest part over its narrowest


class Plan(NamedTuple):
    """What a network of this package is made of, and what its parts do not say."""

    parts: tuple[Part, ...]
    min_side: int
    weights: Mapping[str, WeightsSource] = {}
    levels: tuple[int, ...] = ()
    num_classes: int = 1000
    default_scales: tuple[int, ...] = (224,)
    from_paper: bool = False  # which takes bytes less 128 and starts from narrow weights


def _official(*names: str) -> dict[str, WeightsSource]:
    """Describe torchvision's files, whose names end in the first digits of their SHA-256."""
    folder = "https://download.pytorch.org/models"
    return {
        weights: WeightsSource(f"{name}.pth", name[-8:], "BSD-3-Clause", f"{folder}/{name}.pth")
        for weights, name in zip(("imagenet", "imagenet-v2"), names, strict=False)
    }


def _connected(first: int, length: int = 4096, *, drop_first: bool = False) -> tuple[Part, ...]:
    """Fully connected layers on a pyramid, numbered on from the convolutions; two of them drop."""
    pyramid, drop, classes = Part("pyramid"), Part("drop"), Part("classes", f"fc{first + 2}")
    layers = (Part("fc", f"fc{first}", length), drop, Part("fc", f"fc{first + 1}", length))
    return (pyramid, drop, *layers, classes) if drop_first else (pyramid, *layers, drop, classes)


def _alexnet(file: str) -> Plan:
    parts = (
        Part("conv", "conv1", 64, kernel=11, stride=4, padding=2),
        Part("pool", stride=2),
        Part("conv", "conv2", 192, kernel=5),
        Part("pool", stride=2),
        Part("conv", "conv3", 384),
        Part("conv", "conv4", 256),
        Part("conv", "conv5", 256),
        *_connected(6, drop_first=True),
    )
    return Plan(parts, 31, _official(file), levels=(6,))


def _vgg(depths: tuple[int, ...], file: str) -> Plan:
    """Five blocks of so many convolutions each."""
    parts: list[Part] = []
    kind = "conv-bias-bn" if "_bn-" in file else "conv"
    for block, depth in enumerate(depths, start=1):
        width = min(32 * 2**block, 512)
        parts += [Part("pool", kernel=2, stride=2)] if block > 1 else []
        parts += (Part(kind, f"conv{block}_{i}", width) for i in range(1, depth + 1))
    return Plan((*parts, *_connected(6)), 16, _official(file), levels=(7,))


def _resnet(expansion: int, depths: tuple[int, ...], *files: str) -> Plan:
    """Four stages of so many blocks each; an expansion above 1 makes them bottlenecks."""
    stages = (
        Part("residual", f"layer{i}", 32 * 2**i * expansion, 3, min(i, 2), None, depth, expansion)
        for i, depth in enumerate(depths, start=1)
    )
    stem = (Part("conv-bn", "conv1", 64, kernel=7, stride=2), Part("pool", stride=2, padding=1))
    return Plan((*stem, *stages, Part("average"), Part("classes", "fc")), 1, _official(*files))


def _squeezenet(width: int, kernel: int, pooled: tuple[int, ...], min_side: int, file: str) -> Plan:
    """Eight fire modules, some behind a pooling."""
    parts = [Part("conv", "conv1", width, kernel, stride=2, padding=0)]
    for fire in range(2, 10):
        parts += [Part("pool-up", stride=2)] if fire in pooled else []
        parts.append(Part("fire", f"fire{fire}", 128 * (fire // 2)))
    return Plan((*parts, Part("drop"), Part("map-classes")), min_side, _official(file))


def _mobilenet(*files: str) -> Plan:
    """Stages of inverted bottlenecks as in table 2 of arXiv 1801.04381."""
    rows = ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
    stages = (
        Part("inverted", f"stage{i}", channels, 3, stride, None, depth, 1 if i == 1 else 6)
        for i, (channels, depth, stride) in enumerate(rows, start=1)
    )
    stem, head = Part("conv6", "conv1", 32, stride=2), Part("conv6", "head", 1280, kernel=1)
    tail = (Part("average"), Part("light-drop"), Part("classes"))
    return Plan((stem, *stages, head, *tail), 1, _official(*files))


# The networks of the SPP-net paper (TPAMI 2015, table 1); what the table leaves out is settled so.
# ZF-5 is as in the authors' detection code: paddings 1, 0, 1, 1, 1, poolings that round up and
# normalisation within channels. Its second convolution then gives 26 x 26 at 224 pixels where the
# table prints 27 x 27; the padding that prints 27 would give 24 x 24, not 23 x 23, on conv5 at 392
# pixels. Convnet*-5 is padded to its printed sizes; its poolings round up. Overfeat is unpadded in
# conv1 and keeps the size elsewhere; its poolings round down, since no padding of conv1 gives
# 36 x 36 when they round up. Both normalise across channels with AlexNet's constants as its public
# code and Caffe read them (``1 + 1e-4 * mean of squares``), the code the authors built upon.
# The last pooling is the pyramid: (6, 3, 2, 1) with SPP, level 6 alone without. On the 13 x 13 and
# 18 x 18 maps of a 224-pixel input level 6 is the plain pooling of 3 x 3 windows.
_ZF5 = (
    Part("conv", "conv1", 96, kernel=7, stride=2, padding=1),
    Part("within"),
    Part("pool-up", stride=2),
    Part("conv", "conv2", 256, kernel=5, stride=2, padding=0),
    Part("within"),
    Part("pool-up", stride=2),
    Part("conv", "conv3", 384),
    Part("conv", "conv4", 384),
    Part("conv", "conv5", 256),
)
_CONVNET_STAR_5 = (
    Part("conv", "conv1", 96, kernel=11, stride=4, padding=2),
    Part("across"),
    Part("conv", "conv2", 256, kernel=5),
    Part("across"),
    Part("pool-up", stride=2),
    Part("conv", "conv3", 384),
    Part("pool-up", stride=2),
    Part("conv", "conv4", 384),
    Part("conv", "conv5", 256),
)
_OVERFEAT_5 = (
    Part("conv", "conv1", 96, kernel=7, stride=2, padding=0),
    Part("pool", stride=3),
    Part("across"),
    Part("conv", "conv2", 256, kernel=5),
    Part("pool", kernel=2, stride=2),
    Part("conv", "conv3", 512),
    Part("conv", "conv4", 512),
    Part("conv", "conv5", 512),
)
_OVERFEAT_7 = (*_OVERFEAT_5, Part("conv", "conv6", 512), Part("conv", "conv7", 512))
# Not in the table: ZF-5 for images of 64 pixels. The second pooling is left out, so that the total
# stride is 8 and a 64-pixel input keeps 8 x 8 cells, and every convolution is followed by a batch
# normalisation instead of the response normalisation.
_ZF5_64 = (
    Part("conv-bn", "conv1", 64, kernel=7, stride=2),
    Part("pool", stride=2, padding=1),
    Part("conv-bn", "conv2", 128, kernel=5, stride=2),
    Part("conv-bn", "conv3", 192),
    Part("conv-bn", "conv4", 256),
    Part("conv-bn", "conv5", 192),
)


def _paper(
    trunk: tuple[Part, ...],
    min_side: int,
    levels: tuple[int, ...] = (6, 3, 2, 1),
    length: int = 4096,
    num_classes: int = 1000,
    **weights: WeightsSource,
) -> Plan:
    parts = (*trunk, *_connected(int(trunk[-1].layer[-1]) + 1, length))
    scales = (96, 128) if trunk is _ZF5_64 else (224,)
    return Plan(parts, min_side, weights, levels, num_classes, scales, from_paper=True)


_EMBEDDED = WeightsSource(
    "spp_mini.safetensors",
    "d6011401d5f5f94e44cb220a2bfbf60d96fe937bfb82779c01157e99c1382f5c",
    "BSD-3-Clause",
    None,
)
_TORCHVISION: dict[str, Callable[[], Plan]] = {
    "alexnet": partial(_alexnet, "alexnet-owt-7be5be79"),
    "vgg11": partial(_vgg, (1, 1, 2, 2, 2), "vgg11-8a719046"),
    "vgg13": partial(_vgg, (2, 2, 2, 2, 2), "vgg13-19584684"),
    "vgg16": partial(_vgg, (2, 2, 3, 3, 3), "vgg16-397923af"),
    "vgg19": partial(_vgg, (2, 2, 4, 4, 4), "vgg19-dcbb9e9d"),
    "vgg11_bn": partial(_vgg, (1, 1, 2, 2, 2), "vgg11_bn-6002323d"),
    "vgg13_bn": partial(_vgg, (2, 2, 2, 2, 2), "vgg13_bn-abd245e5"),
    "vgg16_bn": partial(_vgg, (2, 2, 3, 3, 3), "vgg16_bn-6c64b313"),
    "vgg19_bn": partial(_vgg, (2, 2, 4, 4, 4), "vgg19_bn-c79401a0"),
    "resnet18": partial(_resnet, 1, (2, 2, 2, 2), "resnet18-f37072fd"),
    "resnet34": partial(_resnet, 1, (3, 4, 6, 3), "resnet34-b627a593"),
    "resnet50": partial(_resnet, 4, (3, 4, 6, 3), "resnet50-0676ba61", "resnet50-11ad3fa6"),
    "resnet101": partial(_resnet, 4, (3, 4, 23, 3), "resnet101-63fe2227", "resnet101-cd907fc2"),
    "resnet152": partial(_resnet, 4, (3, 8, 36, 3), "resnet152-394f9c45", "resnet152-f82ba261"),
    "squeezenet1_0": partial(_squeezenet, 96, 7, (2, 5, 9), 21, "squeezenet1_0-b66bff10"),
    "squeezenet1_1": partial(_squeezenet, 64, 3, (2, 4, 6), 17, "squeezenet1_1-b8a52dc0"),
    "mobilenet_v2": partial(_mobilenet, "mobilenet_v2-b0353104", "mobilenet_v2-7ebf99e0"),
}
_PAPER: dict[str, Callable[[], Plan]] = {
    "zf5": partial(_paper, _ZF5, 31),
    "zf5-no-spp": partial(_paper, _ZF5, 31, (6,)),
    "convnet-star-5": partial(_paper, _CONVNET_STAR_5, 19),
    "convnet-star-5-no-spp": partial(_paper, _CONVNET_STAR_5, 19, (6,)),
    "overfeat-5": partial(_paper, _OVERFEAT_5, 17),
    "overfeat-5-no-spp": partial(_paper, _OVERFEAT_5, 17, (6,)),
    "overfeat-7": partial(_paper, _OVERFEAT_7, 17),
    "overfeat-7-no-spp": partial(_paper, _OVERFEAT_7, 17, (6,)),
    "zf5-64": partial(_paper, _ZF5_64, 1, length=512),
    "zf5-64-no-spp": partial(_paper, _ZF5_64, 1, (6,), length=512),
    # ZF-5-64 with shorter fully connected layers, so that it can be shipped.
    "spp-mini": partial(_paper, _ZF5_64, 1, length=128, num_classes=200, embedded=_EMBEDDED),
    "spp-mini-no-spp": partial(_paper, _ZF5_64, 1, (6,), length=128),
}


NETWORKS = (*_TORCHVISION, *_PAPER)
PAPER = tuple(_PAPER)  # names of the networks that `spptransfer pretrain` trains


def plan_of(name: str) -> Plan:
    """Return the plan of a network of this package."""
    if name not in NETWORKS:
        raise ConfigError(f"unknown backbone '{name}': {suggestion(name, NETWORKS)}")
    return (_TORCHVISION | _PAPER)[name]()


@cache
def describe_network(name: str) -> BackboneInfo:
    """Describe a network of this package by its plan."""
    plan = plan_of(name)
    maps: list[LayerInfo] = []
    vectors: list[LayerInfo] = []
    stride = 1
    for part in plan.parts:
        stride *= part.stride
        if part.kind == "fc":
            vectors.append(LayerInfo(part.layer, "vector", part.channels, None))
        elif part.channels:
            maps.append(LayerInfo(part.layer, "map", part.channels, stride))
    maps.append(replace(maps[-1], name="spp"))
    mean, std = (IMAGENET_MEAN, IMAGENET_STD)
    if plan.from_paper:
        mean, std = (128 / 255,) * 3, (1 / 255,) * 3
    facts = (plan.min_side, plan.weights, plan.levels, plan.num_classes, plan.default_scales)
    return BackboneInfo(name, (*maps, *vectors), mean, std, *facts)
