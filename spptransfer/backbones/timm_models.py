"""Models of timm as backbones: named maps and vectors, of images of any size where they can.

What is known of a model is found on torch's meta device, which has shapes and no numbers: which
layers there are, their strides, and which sides of an image it takes.
"""

from __future__ import annotations

import copy
import difflib
import functools
import importlib.util
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spptransfer.backbones.info import TIMM, BackboneInfo, LayerInfo, WeightsSource
from spptransfer.backbones.loading import digest, fold_batch_norms, read_tensors
from spptransfer.backbones.modules import are_same, noise
from spptransfer.errors import ConfigError, WeightsError, suggestion

# How names of weights on the hub end: of files that are read safely, and of those beside them.
_SAFE, _UNSAFE = "model.safetensors", "pytorch_model.bin"
# What makes a model take images of any size, for those that know the word.
_ARGUMENTS: tuple[dict[str, Any], ...] = (
    {"dynamic_img_size": True},
    {"strict_img_size": False},
    {},
)
# What sides may have to be multiples of: patches, windows of attention, total strides.
_GRIDS = (1, 2, 4, 7, 8, 14, 16, 28, 32, 64)
# About the sides of the image that is tried, odd multiples of a grid; how much wider the second
# is, which all grids and strides divide.
_HEIGHT, _WIDTH, _WIDER = 97, 131, 448
_SMALLEST = 32
# So that a library that was declared by us stays declared.
_declared: list[Any] = []


@functools.cache
def import_timm() -> Any:
    """Import timm."""
    if None in map(importlib.util.find_spec, ("timm", "torchvision")):
        raise ConfigError(
            "backbone: the models of timm need timm, which is missing: "
            "pip install 'spptransfer[timm]'"
        )
    try:
        _declare_operators()
        return importlib.import_module("timm")
    except Exception as error:  # whatever a broken installation raises
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"backbone: timm cannot be imported ({reason}): install builds of torchvision and "
            f"torch {torch.__version__} that fit each other"
        ) from error


def _declare_operators() -> None:
    """Declare torchvision's operators where its build does not fit torch.

    It describes two of them to torch on import, whether its library could be loaded or not; no
    classifier uses them.
    """
    spec = importlib.util.find_spec("torchvision")
    folder = Path(spec.origin).parent if spec and spec.origin else Path()
    try:
        for library in sorted(folder.glob("_C.*")) if not _declared else ():
            torch.ops.load_library(library)
    except OSError:
        declared = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(declared)


def names(pattern: str = TIMM + "*") -> list[str]:
    """List the models with their tags whose names fit a pattern such as ``timm/*dinov2*``."""
    found = import_timm().list_models(pattern.removeprefix(TIMM), include_tags=True)
    return [TIMM + name for name in found]


def _config(name: str) -> Any:
    """Return timm's configuration of a model, that of its default tag where none is named."""
    timm, model = import_timm(), name.removeprefix(TIMM)
    architecture, _, tag = model.partition(".")
    if not timm.is_model(architecture):
        known = timm.list_models()
        raise ConfigError(f"unknown backbone '{name}': {_nearest(architecture, known, 5)}")
    tags = timm.list_models(architecture, include_tags=True)
    if tag and model not in tags:
        raise ConfigError(f"unknown backbone '{name}': {suggestion(model, tags)}")
    return timm.get_pretrained_cfg(model)


def _nearest(name: str, known: Sequence[str], count: int) -> str:
    close = difflib.get_close_matches(name, known, count, cutoff=0.5)
    about = f"nearest of timm's {len(known):,} models: {', '.join(close)}" if close else ""
    return about or "`spptransfer backbones 'timm/*PART*'` lists those whose names have a part"


# ---- what a model computes ----


class TimmBackbone(nn.Module):
    """A frozen model of timm; a `Backbone`.

    Its layers are ``spp``, what `forward_features` gives as a map; ``stage1`` and so on, or
    ``block1`` where they have one stride, what `forward_intermediates` gives, with the final
    norm where the model applies it there; ``cls``, the class token after the norm; ``pool``, the
    model's own pooled embedding.
    """

    def __init__(
        self, model: nn.Module, info: BackboneInfo, layers: Sequence[str], weights_sha256: str
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.info = info
        self.weights_sha256 = weights_sha256
        self.layers = tuple(layers)
        self.channels_last = False
        self.is_convolutional = not any("attn" in name for name, _ in model.named_modules())
        self.eval().requires_grad_(False)

    def maps_of(self, images: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        """Compute some layers from N x 3 x H x W images in one pass."""
        found = {}
        numbered = {at: int(at[5:]) - 1 for at in layers if _is_numbered(at)}
        indices = sorted(numbered.values())
        how = {"indices": indices, "norm": True, "output_fmt": "NCHW"}
        last = None
        if len(numbered) == len(layers):
            maps = self.model.forward_intermediates(
                images, **how, stop_early=True, intermediates_only=True
            )
        elif numbered:
            last, maps = self.model.forward_intermediates(images, **how)
        else:
            last, maps = self.model.forward_features(images), []
        for layer in layers:
            if layer in numbered:
                found[layer] = maps[indices.index(numbered[layer])]
            else:
                found[layer] = self._final(layer, last, images)
        return found

    def _final(self, layer: str, last: Any, images: torch.Tensor) -> torch.Tensor:
        """Make a layer of what `forward_features` gave."""
        model = self.model
        if layer == "pool":
            pooled: torch.Tensor = model.forward_head(last, pre_logits=True)
            return pooled.flatten(1)
        if layer == "cls":
            token: torch.Tensor = last[:, 0]
            return token
        maps: torch.Tensor = last
        if last.dim() == 3:  # tokens: those of the class and registers come before the patches
            rows = math.ceil(images.shape[2] / model.feature_info[-1]["reduction"])
            patches = last[:, getattr(model, "num_prefix_tokens", 0) :]
            maps = patches.transpose(1, 2).unflatten(2, (rows, -1))
        elif getattr(model, "output_fmt", "NCHW") == "NHWC":
            maps = last.permute(0, 3, 1, 2)
        return maps

    def vectors_of(
        self, maps: Mapping[str, torch.Tensor], layers: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """Return vector layers as `maps_of` gave them."""
        return {layer: maps[layer] for layer in layers}


def _is_numbered(layer: str) -> bool:
    return layer.startswith(("stage", "block"))


# ---- what is known of a model ----


@functools.cache
def describe(name: str) -> BackboneInfo:
    """Describe a model by its name, that of its default tag where none is named."""
    config = _config(name)
    tag = [config.tag] if config.tag else []
    return _sketch(TIMM + ".".join([config.architecture, *tag])).info


def sketch(info: BackboneInfo, layer: str) -> TimmBackbone:
    """Build a model that has shapes and no numbers."""
    return _sketch(info.name)


@functools.cache
def _sketch(name: str) -> TimmBackbone:
    """Build a model that has shapes and no numbers, and find out which images it takes."""
    config = _config(name)
    with torch.device("meta"):
        model = _create(name)
    native = int(config.input_size[-1])
    facts = (tuple(config.mean), tuple(config.std), native, _weights(config))
    info = BackboneInfo(
        name, (), *facts, num_classes=config.num_classes, default_scales=(native,), is_local=False
    )
    backbone = TimmBackbone(model, info, (), "")
    for grid in _GRIDS:
        height, width = (grid * (side // grid | 1) for side in (_HEIGHT, _WIDTH))
        layers = _layers(backbone, (height, width), (height, width + _WIDER))
        if layers and _every_pixel_has_a_cell(backbone, layers, height, width):
            backbone.info = replace(info, layers=layers, grid=grid)
            smallest = next(
                side
                for side in itertools.count(_nearest_multiple(_SMALLEST, grid), grid)
                if _shapes(backbone, [layer.name for layer in layers], side, side)
            )
            scales = (native, _nearest_multiple(1.25 * native, grid if grid > 1 else 32))
            backbone.info = replace(backbone.info, min_side=smallest, default_scales=scales)
            return backbone
    layers = _layers(backbone, (native, native), None)
    if not layers:
        raise ConfigError(f"backbone '{name}' gives no map and no vector for any image tried")
    backbone.info = replace(info, layers=layers, only_side=native)
    return backbone


def _nearest_multiple(length: float, grid: int) -> int:
    return max(1, round(length / grid)) * grid


def _shapes(
    backbone: TimmBackbone, layers: Sequence[str], height: int, width: int
) -> dict[str, torch.Size]:
    """Return the shapes of some layers; nothing where a size is not taken."""
    images = torch.empty(1, 3, height, width, device="meta")
    try:
        with torch.inference_mode():
            found = backbone.maps_of(images, layers)
    except Exception:  # whatever the models say to sizes, and to layers, that they do not have
        return {}
    return {layer: values.shape for layer, values in found.items()}


def _all_shapes(
    backbone: TimmBackbone, layers: Sequence[str], size: tuple[int, int]
) -> dict[str, torch.Size]:
    """Return the shapes of those of some layers that there are, all at once where that works."""
    together = _shapes(backbone, layers, *size)
    if together or not _shapes(backbone, layers[-1:], *size):
        return together
    return {key: at for layer in layers for key, at in _shapes(backbone, [layer], *size).items()}


def _layers(
    backbone: TimmBackbone, size: tuple[int, int], wider: tuple[int, int] | None
) -> tuple[LayerInfo, ...]:
    """Find the layers that are maps or vectors at one size of an image, and at a wider one."""
    found, model = [], backbone.model
    stages = [f"stage{i}" for i in range(1, 1 + len(model.feature_info))]
    tokens = ["cls"] if getattr(model, "cls_token", None) is not None else []
    names = [*stages, "spp", *tokens, "pool"]
    small = _all_shapes(backbone, names, size)
    large = _all_shapes(backbone, names, wider) if wider and small else small
    for name in names:
        shape, other = small.get(name, ()), large.get(name, ())
        if len(shape) == len(other) == 2:
            found.append(LayerInfo(name, "vector", shape[1], None))
        elif len(shape) == len(other) == 4:
            cells = other[3] - shape[3] if wider else shape[3]
            pixels = wider[1] - size[1] if wider else size[1]
            if cells:
                found.append(LayerInfo(name, "map", shape[1], round(pixels / cells)))
    if len({layer.stride for layer in found if layer.name in stages}) == 1:
        found = [replace(at, name=at.name.replace("stage", "block")) for at in found]
    return tuple(found)


def _every_pixel_has_a_cell(
    backbone: TimmBackbone, layers: Sequence[LayerInfo], height: int, width: int
) -> bool:
    """Tell whether no map rounds its size down, which leaves pixels at two sides unseen."""
    strides = {layer.name: layer.stride for layer in layers if layer.stride}
    shapes = _shapes(backbone, list(strides), height, width)
    return all(
        shapes[name][2] * stride >= height and shapes[name][3] * stride >= width
        for name, stride in strides.items()
    )


def _weights(config: Any) -> dict[str, WeightsSource]:
    """Describe the file of a tag on the hub; only what can be read safely."""
    if not config.hf_hub_id:
        return {}
    file, licence = config.hf_hub_filename or _SAFE, config.license or "unknown"
    return {
        "pretrained": WeightsSource(
            file.replace(_UNSAFE, _SAFE), "", licence, None, repository=config.hf_hub_id
        )
    }


# ---- a model with its weights ----


def load_random(info: BackboneInfo, layers: Sequence[LayerInfo], seed: int) -> TimmBackbone:
    """Build a model with weights from a seed."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        model = _create(info.name)
    return _settled(model, info, layers, digest(model.state_dict()))


def load_file(
    info: BackboneInfo, layers: Sequence[LayerInfo], path: Path, sha256: str
) -> TimmBackbone:
    """Build a model with the weights of a file in timm's keys, all of which must fit."""
    config, tensors = _config(info.name), read_tensors(path)
    names = config.classifier or ()
    for classifier in [names] if isinstance(names, str) else names:
        for part in ("weight", "bias"):
            tensors.pop(f"{classifier}.{part}", None)
    given = {"state_dict": tensors, "num_classes": 0, "classifier": None}
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            model = _create(info.name, pretrained=True, pretrained_cfg_overlay=given)
    except Exception as error:  # what timm and torch say to keys and shapes that do not fit
        reason = " ".join(str(error).split())
        raise WeightsError(f"weights '{path}' do not fit '{info.name}': {reason[:300]}") from error
    return _settled(model, info, layers, sha256)


def layers_fitting(info: BackboneInfo, path: Path) -> tuple[str, ...]:
    """List the layers that the weights of a file suffice for: all, or it does not fit."""
    load_file(info, info.layers[-1:], path, "")
    return tuple(layer.name for layer in info.layers)


def notes_on_file(name: str, info: BackboneInfo) -> list[str]:
    """Say what a file of the user's cannot: what it is taken for."""
    architecture = info.name.removeprefix(TIMM).partition(".")[0]
    twin = architecture.removeprefix("tf_")
    twin = f"tf_{architecture}" if twin == architecture else twin
    notes = []
    if name != info.name:
        notes.append(
            f"'{name}' is taken for '{info.name}': mean {list(info.mean)}, std {list(info.std)}"
        )
    if import_timm().is_model(twin):
        notes.append(
            f"a file of timm/{twin} fits timm/{architecture} as well, and gives other features: "
            "make sure of the name"
        )
    return notes


def _create(name: str, **options: Any) -> nn.Module:
    """Build a model that takes images of any size, if it can be told to, without a classifier."""
    for arguments in _ARGUMENTS:
        try:
            model: nn.Module = import_timm().create_model(
                name.removeprefix(TIMM), num_classes=0, **options, **arguments
            )
            return model
        except TypeError:
            if not arguments:
                raise
    raise AssertionError


def _passes(names: Sequence[str]) -> list[list[str]]:
    """Divide layers into those that timm computes by one function each, if there are both."""
    numbered = [name for name in names if _is_numbered(name)]
    others = [name for name in names if name not in numbered]
    return [numbered, others] if numbered and others else []


def _settled(
    model: nn.Module, info: BackboneInfo, layers: Sequence[LayerInfo], sha256: str
) -> TimmBackbone:
    """Fold batch norms and take maps channels-last where that computes the same on noise.

    A model is refused whose `forward_intermediates` ends elsewhere than its `forward_features`.
    """
    names = [layer.name for layer in layers]
    plain = TimmBackbone(model, info, names, sha256)
    side = info.only_side or max(info.min_side, _nearest_multiple(64, info.grid))
    more = 0 if info.only_side else info.grid
    images = noise(1, side, side + more, info), noise(2, side + 2 * more, side, info)
    with torch.inference_mode():
        expected = [plain.maps_of(each, names) for each in images]
        if not all(values.isfinite().all() for one in expected for values in one.values()):
            raise WeightsError(f"weights of '{info.name}' give numbers that are not finite")
        for part in _passes(names):
            apart = plain.maps_of(images[0], part)
            for name in part:
                if not are_same(apart[name], expected[0][name]):
                    raise ConfigError(
                        f"layer: '{name}' of '{info.name}' becomes something else beside "
                        f"{', '.join(other for other in names if other not in part)}; take it alone"
                    )
        folded = copy.deepcopy(plain)
        fold_batch_norms(folded.model)
        folded.channels_last = all(layer.kind == "map" for layer in layers)
        for module in folded.modules() if folded.channels_last else ():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for each, right in zip(images, expected, strict=True):
            last = each.contiguous(memory_format=torch.channels_last)
            try:
                found = folded.maps_of(last if folded.channels_last else each, names)
            except Exception:  # whatever a model says to a batch norm that is gone
                return plain
            if not all(are_same(found[name], right[name]) for name in names):
                return plain
    return folded
