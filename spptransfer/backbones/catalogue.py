"""Every backbone by name: those of this package and those that a user registers.

Listing those of this package imports no torch. The numbers here are claims about the networks; the
tests build each network and hold it to them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from spptransfer.backbones.info import Backbone, BackboneInfo, LayerInfo, WeightsSource
from spptransfer.errors import ConfigError, suggestion

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Maps = Iterable[tuple[str, int, int]]


def _layers(maps: Maps, vectors: Iterable[str] = (), length: int = 4096) -> tuple[LayerInfo, ...]:
    """List layers from (name, channels, stride) of the maps and names of the vectors."""
    conv = [LayerInfo(name, "map", channels, stride) for name, channels, stride in maps]
    spp = LayerInfo("spp", "map", conv[-1].channels, conv[-1].stride)
    return (*conv, spp, *(LayerInfo(name, "vector", length, None) for name in vectors))


def _official(filename: str) -> WeightsSource:
    """Describe torchvision's file, whose name ends in the first digits of its SHA-256."""
    prefix = filename.removesuffix(".pth").rpartition("-")[2]
    url = f"https://download.pytorch.org/models/{filename}"
    return WeightsSource(filename, prefix, "BSD-3-Clause", url)


def _torchvision(
    name: str,
    family: str,
    layers: tuple[LayerInfo, ...],
    files: dict[str, str],
    min_side: int,
    levels: tuple[int, ...] = (),
) -> BackboneInfo:
    """Describe a network with torchvision's key names and preprocessing."""
    weights = {key: _official(filename) for key, filename in files.items()}
    return BackboneInfo(
        name, family, layers, weights, IMAGENET_MEAN, IMAGENET_STD, min_side, levels
    )


_ALEXNET = (
    _torchvision(
        "alexnet",
        "plain",
        _layers(
            [
                ("conv1", 64, 4),
                ("conv2", 192, 8),
                ("conv3", 384, 16),
                ("conv4", 256, 16),
                ("conv5", 256, 16),
            ],
            vectors=("fc6", "fc7"),
        ),
        {"imagenet": "alexnet-owt-7be5be79.pth"},
        min_side=31,
        levels=(6,),
    ),
)

VGG_WIDTHS = (64, 128, 256, 512, 512)
VGG_DEPTHS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


def _vgg(name: str, filename: str) -> BackboneInfo:
    """Describe a VGG by its number of convolutions in each of the five blocks."""
    depths = VGG_DEPTHS[name.removesuffix("_bn")]
    maps = [
        (f"conv{block}_{i}", width, 2 ** (block - 1))
        for block, (width, depth) in enumerate(zip(VGG_WIDTHS, depths, strict=True), start=1)
        for i in range(1, depth + 1)
    ]
    layers = _layers(maps, vectors=("fc6", "fc7"))
    return _torchvision(name, "plain", layers, {"imagenet": filename}, min_side=16, levels=(7,))


_VGG = (
    _vgg("vgg11", "vgg11-8a719046.pth"),
    _vgg("vgg13", "vgg13-19584684.pth"),
    _vgg("vgg16", "vgg16-397923af.pth"),
    _vgg("vgg19", "vgg19-dcbb9e9d.pth"),
    _vgg("vgg11_bn", "vgg11_bn-6002323d.pth"),
    _vgg("vgg13_bn", "vgg13_bn-abd245e5.pth"),
    _vgg("vgg16_bn", "vgg16_bn-6c64b313.pth"),
    _vgg("vgg19_bn", "vgg19_bn-c79401a0.pth"),
)


def _resnet(name: str, expansion: int, **files: str) -> BackboneInfo:
    """Describe a ResNet; its bottlenecks widen the stages by the expansion."""
    stages = [(f"layer{i + 1}", expansion * 64 * 2**i, 4 * 2**i) for i in range(4)]
    layers = _layers([("conv1", 64, 2), *stages])
    weights = {key.replace("_", "-"): filename for key, filename in files.items()}
    return _torchvision(name, "resnet", layers, weights, min_side=1)


_RESNET = (
    _resnet("resnet18", 1, imagenet="resnet18-f37072fd.pth"),
    _resnet("resnet34", 1, imagenet="resnet34-b627a593.pth"),
    _resnet(
        "resnet50",
        4,
        imagenet="resnet50-0676ba61.pth",
        imagenet_v2="resnet50-11ad3fa6.pth",
    ),
    _resnet(
        "resnet101",
        4,
        imagenet="resnet101-63fe2227.pth",
        imagenet_v2="resnet101-cd907fc2.pth",
    ),
    _resnet(
        "resnet152",
        4,
        imagenet="resnet152-394f9c45.pth",
        imagenet_v2="resnet152-f82ba261.pth",
    ),
)


def _squeezenet(
    name: str, stem_width: int, strides: tuple[int, ...], filename: str, min_side: int
) -> BackboneInfo:
    """Describe a SqueezeNet by the stem's width and the strides of fire2 ... fire9."""
    widths = (128, 128, 256, 256, 384, 384, 512, 512)
    fires = [
        (f"fire{i}", width, stride)
        for i, (width, stride) in enumerate(zip(widths, strides, strict=True), start=2)
    ]
    layers = _layers([("conv1", stem_width, 2), *fires])
    return _torchvision(name, "squeezenet", layers, {"imagenet": filename}, min_side)


_SQUEEZENET = (
    _squeezenet(
        "squeezenet1_0", 96, (4, 4, 4, 8, 8, 8, 8, 16), "squeezenet1_0-b66bff10.pth", min_side=21
    ),
    _squeezenet(
        "squeezenet1_1", 64, (4, 4, 8, 8, 16, 16, 16, 16), "squeezenet1_1-b8a52dc0.pth", min_side=17
    ),
)

_MOBILENET = (
    _torchvision(
        "mobilenet_v2",
        "mobilenet",
        _layers(
            [
                ("conv1", 32, 2),
                ("stage1", 16, 2),
                ("stage2", 24, 4),
                ("stage3", 32, 8),
                ("stage4", 64, 16),
                ("stage5", 96, 16),
                ("stage6", 160, 32),
                ("stage7", 320, 32),
                ("head", 1280, 32),
            ]
        ),
        {"imagenet": "mobilenet_v2-b0353104.pth", "imagenet-v2": "mobilenet_v2-7ebf99e0.pth"},
        min_side=1,
    ),
)


def _paper(
    name: str, maps: Maps, vectors: tuple[str, str], min_side: int, length: int = 4096
) -> list[BackboneInfo]:
    """Describe a network of the SPP-net paper (table 1), with its pyramid and without."""
    layers = _layers(maps, vectors, length)
    mean, std = (128 / 255,) * 3, (1 / 255,) * 3
    return [
        BackboneInfo(name + suffix, "paper", layers, {}, mean, std, min_side, levels)
        for suffix, levels in (("", (6, 3, 2, 1)), ("-no-spp", (6,)))
    ]


_OVERFEAT = [("conv1", 96, 2), ("conv2", 256, 6), *((f"conv{i}", 512, 12) for i in range(3, 8))]

_PAPER = (
    *_paper(
        "zf5",
        [
            ("conv1", 96, 2),
            ("conv2", 256, 8),
            ("conv3", 384, 16),
            ("conv4", 384, 16),
            ("conv5", 256, 16),
        ],
        vectors=("fc6", "fc7"),
        min_side=31,
    ),
    *_paper(
        "convnet-star-5",
        [
            ("conv1", 96, 4),
            ("conv2", 256, 4),
            ("conv3", 384, 8),
            ("conv4", 384, 16),
            ("conv5", 256, 16),
        ],
        vectors=("fc6", "fc7"),
        min_side=19,
    ),
    *_paper("overfeat-5", _OVERFEAT[:5], vectors=("fc6", "fc7"), min_side=17),
    *_paper("overfeat-7", _OVERFEAT, vectors=("fc8", "fc9"), min_side=17),
)


# ZF-5 for small images; its builder takes widths and lengths from here.
_ZF5_64 = [
    ("conv1", 64, 2),
    ("conv2", 128, 8),
    ("conv3", 192, 8),
    ("conv4", 256, 8),
    ("conv5", 192, 8),
]
_MINI, _MINI_NO_SPP = _paper("spp-mini", _ZF5_64, ("fc6", "fc7"), min_side=1, length=128)
_EMBEDDED = WeightsSource(
    "spp_mini.safetensors",
    "d6011401d5f5f94e44cb220a2bfbf60d96fe937bfb82779c01157e99c1382f5c",
    "BSD-3-Clause",
    None,
)
_SMALL_PAPER = (
    *_paper("zf5-64", _ZF5_64, ("fc6", "fc7"), min_side=1, length=512),
    # Short enough to be shipped: the same network with shorter fully connected layers.
    replace(_MINI, weights={"embedded": _EMBEDDED}, num_classes=200),
    _MINI_NO_SPP,
)

_CATALOGUE = {
    info.name: info
    for info in (*_ALEXNET, *_VGG, *_RESNET, *_SQUEEZENET, *_MOBILENET, *_PAPER, *_SMALL_PAPER)
}

Builder = Callable[[str | os.PathLike[str]], Backbone]
_builders: dict[str, Builder] = {}
# Of a registered backbone, by its name and weights and the state of the weights' file.
_built: dict[tuple[object, ...], tuple[BackboneInfo, str]] = {}


def register(name: str, build: Builder) -> None:
    """Register a backbone, so that its name works wherever one of this package does.

    That is in pipeline files, in `SPPFeatures` and in ``spptransfer backbones``. Commands know
    what was registered by the time they run, for example by a module of one's own that calls
    ``spptransfer.cli.main()``.

    Parameters
    ----------
    name : str
        A name that no backbone of this package has. A name registered before means the new one.
    build : callable
        ``build(weights)`` returns a `Backbone` for whatever the user gives for ``weights``, a
        word or a path; it is called again where the backbone is needed again. ``"random"`` is
        what it gets where only the layers are asked for.

    Raises
    ------
    ConfigError
        If the name is taken by this package, or is no name.

    Examples
    --------
    >>> import torch
    >>> from spptransfer import backbones
    >>> def build(weights):
    ...     torch.manual_seed(0)
    ...     module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=4), torch.nn.ReLU())
    ...     if weights != "random":
    ...         module.load_state_dict(torch.load(weights, weights_only=True))
    ...     return backbones.from_module(module, "1", mean=[0.5] * 3, std=[0.5] * 3)
    >>> backbones.register("my-net", build)
    >>> backbones.describe("my-net").layers
    (LayerInfo(name='1', kind='map', channels=8, stride=4),)
    >>> backbones.load("my-net", "random", layer="1").layers
    ('1',)
    """
    if not isinstance(name, str) or not name or name in _CATALOGUE:
        raise ConfigError(f"backbone: {name!r} cannot be registered; take a name of your own")
    if not callable(build):
        raise ConfigError(f"backbone: what builds '{name}' must be a function of the weights")
    _builders[name] = build
    for key in [key for key in _built if key[0] == name]:
        del _built[key]


def builder(name: str) -> Builder | None:
    """Return what builds a registered backbone; None for one of this package, or unknown."""
    return _builders.get(name)


def build(name: str, weights: str | os.PathLike[str]) -> Backbone:
    """Build a registered backbone, and remember what it is."""
    backbone = _builders[name](weights)
    missing = [part for part in _PARTS if not hasattr(backbone, part)]
    if missing:
        raise ConfigError(f"backbone '{name}': what was built has no {', '.join(missing)}")
    if backbone.info.name != name:  # the one under which it is asked for
        backbone.info = replace(backbone.info, name=name)
    _built[name, *_state(weights)] = backbone.info, backbone.weights_sha256
    return backbone


_PARTS = ("info", "weights_sha256", "layers", "maps_of", "vectors_of")


def built(name: str, weights: str | os.PathLike[str]) -> tuple[BackboneInfo, str]:
    """Return the description and the identity of a registered backbone, built if need be."""
    key = (name, *_state(weights))
    if key not in _built:
        build(name, weights)
    return _built[key]


def _state(weights: str | os.PathLike[str]) -> tuple[object, ...]:
    """Return what changes when weights do: of a file its size and time too."""
    try:
        status = Path(os.path.expanduser(os.fspath(weights))).stat()
    except (OSError, ValueError):
        return (os.fspath(weights),)
    return os.fspath(weights), os.getcwd(), status.st_size, status.st_mtime_ns


def names() -> tuple[str, ...]:
    """Names of all backbones, registered ones last.

    Returns
    -------
    tuple of str

    Examples
    --------
    >>> from spptransfer import backbones
    >>> [name for name in backbones.names() if name.startswith("squeezenet")]
    ['squeezenet1_0', 'squeezenet1_1']
    """
    return (*_CATALOGUE, *_builders)


def describe(name: str, weights: str | os.PathLike[str] | None = None) -> BackboneInfo:
    """Look a backbone up by its name.

    Parameters
    ----------
    name : str
        One of `names`.
    weights : str or path, optional
        Of a registered backbone, which is built to be described: which weights.

    Returns
    -------
    BackboneInfo

    Raises
    ------
    ConfigError
        If there is no such backbone.

    Examples
    --------
    >>> from spptransfer import backbones
    >>> backbones.describe("resnet50").layer("spp")
    LayerInfo(name='spp', kind='map', channels=2048, stride=32)
    >>> backbones.describe("alexnt")
    Traceback (most recent call last):
    ...
    spptransfer.errors.ConfigError: unknown backbone 'alexnt': did you mean 'alexnet'? allowed: ...
    """
    if isinstance(name, str) and name in _CATALOGUE:
        return _CATALOGUE[name]
    if isinstance(name, str) and name in _builders:
        return built(name, "random" if weights is None else weights)[0]
    raise ConfigError(f"unknown backbone '{name}': {suggestion(name, names())}")
