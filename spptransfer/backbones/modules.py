"""A user's own torch module as a backbone: layers by the names of its submodules."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from spptransfer.backbones.info import BackboneInfo, LayerInfo
from spptransfer.backbones.loading import digest
from spptransfer.errors import ConfigError

# The layer that is what the module itself returns.
OUTPUT = "output"
# Smallest sides that are tried, and by how much the second image is wider and higher: most
# strides divide that, so that the cells that come with it tell the stride.
_SIDES = (16, 32, 48, 64, 96, 128, 160, 192, 224, 256, 384)
_WIDER, _HIGHER = 480, 96
# Relative difference up to which two ways of computing give the same numbers.
_SAME = 1e-3

# Layers that are wanted and those found so far, of the call that this thread is in.
_Capture = tuple[frozenset[str], dict[str, Any]]
_capture: ContextVar[_Capture | None] = ContextVar("_capture", default=None)


class _Enough(BaseException):
    """Ends a forward pass behind the last layer wanted; no `except Exception` may stop it."""


class _Hook:
    """Keeps what a layer puts out, for the thread that asked for it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        wanted, found = _capture.get() or (frozenset(), {})
        if self.name not in wanted:
            return
        if len(found | {self.name: output}) == len(wanted):
            found[self.name] = output
            raise _Enough
        # Copied, since what comes next may work in place.
        found[self.name] = output.clone() if hasattr(output, "clone") else output


class ModuleBackbone(nn.Module):
    """A frozen copy of a user's module, with a hook on every layer; made by `from_module`."""

    def __init__(
        self, module: nn.Module, info: BackboneInfo, weights_sha256: str, channels_last: bool
    ) -> None:
        super().__init__()
        self.module = module
        self.info = info
        self.weights_sha256 = weights_sha256
        self.layers = tuple(layer.name for layer in info.layers)
        self.channels_last = channels_last

    def maps_of(self, images: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        """Compute some layers from N x 3 x H x W images; what lies beyond them is not computed."""
        images = images if self.channels_last else images.contiguous()
        return _captured(self.module, images, layers)

    def vectors_of(
        self, maps: Mapping[str, torch.Tensor], layers: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """Return vector layers as N x D; maps of one cell, whatever the image, are such layers."""
        return {layer: maps[layer].flatten(1) for layer in layers}


def from_module(
    module: nn.Module,
    layers: str | Sequence[str],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    name: str | None = None,
    version: str = "",
    min_side: int | None = None,
    grid: int = 1,
    stride: int | None = None,
    is_local: bool = False,
) -> ModuleBackbone:
    """Wrap a torch module as a backbone.

    The module is copied, and stays as it is. The copy is tried on noise once: that tells what
    kind of layer each is, its channels and its stride.

    Parameters
    ----------
    module : Module
        From N x 3 x H x W images to anything. Nothing in it may depend on the other images of a
        batch.
    layers : str or sequence of str
        Names of submodules, as ``module.named_modules()`` has them, or ``"output"`` for what
        the module returns. Each is called once in a forward pass and puts out a map
        (N x C x h x w) or a vector (N x D; N x D x 1 x 1 for images of all sizes).
    mean, std : sequence of three floats
        What an RGB image in [0, 1] is normalised with, channel by channel.
    name : str, optional
        Name of the backbone, by default the module's class.
    version : str, optional
        Of the code: modules that compute something else with equal weights need different names
        or versions, which are part of the backbone's identity.
    min_side : int, optional
        Smallest side of an input, by default the smallest that is found to work.
    grid : int, default=1
        What both sides of an input must be multiples of; images are resized to the nearest ones.
    stride : int, optional
        Pixels between the cells of the last map, by default as found on noise.
    is_local : bool, default=False
        Whether a cell of every map sees a bounded part of the image only: then long images may
        go through the network in overlapping strips, which takes less memory. Attention, global
        poolings and squeeze-and-excitation are not local.

    Returns
    -------
    ModuleBackbone
        On the CPU, in float32.

    Raises
    ------
    ConfigError
        If there is no such layer, it puts out something else or numbers that are not finite, or
        the module cannot be used in this way.

    Examples
    --------
    >>> from torch import nn
    >>> from spptransfer import backbones
    >>> module = nn.Sequential(
    ...     nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    ... )
    >>> backbone = backbones.from_module(module, ["1", "2"], mean=[0.5] * 3, std=[0.5] * 3)
    >>> [(layer.name, layer.kind, layer.channels, layer.stride) for layer in backbone.info.layers]
    [('1', 'map', 8, 4), ('2', 'vector', 8, None)]
    >>> backbone.maps_of(torch.zeros(1, 3, 64, 96), ["1"])["1"].shape
    torch.Size([1, 8, 16, 24])
    """
    if not isinstance(module, nn.Module):
        raise ConfigError(f"backbone: {type(module).__name__} is no torch.nn.Module")
    name = name or type(module).__name__
    wanted = [layers] if isinstance(layers, str) else list(dict.fromkeys(layers))
    info = BackboneInfo(
        name,
        (),
        _three("mean", mean),
        _three("std", std),
        min_side or 0,
        grid=grid,
        is_local=is_local,
    )
    if min(info.std) <= 0:
        raise ConfigError(f"std: {list(std)} must be larger than 0")
    copied = _copy(module, name)
    for layer in wanted:
        _submodule(copied, layer, name).register_forward_hook(_Hook(layer))
    tensors = {**dict(copied.named_parameters()), **dict(copied.named_buffers())}
    identity = digest(tensors, f"{name}\n{version}\n")
    with torch.inference_mode():
        info = _probe(copied, wanted, info)
        if stride is not None and info.stride != stride:
            raise ConfigError(f"stride: {stride} given for '{name}', {info.stride} found on noise")
        channels_last = _takes_channels_last(copied, info)
    return ModuleBackbone(copied, info, identity, channels_last)


def _three(key: str, values: Sequence[float]) -> tuple[float, float, float]:
    try:
        first, second, third = map(float, values[:])  # no generator, which is used up by a look
    except (TypeError, ValueError):
        raise ConfigError(f"{key}: {values!r} must be three numbers, one per channel") from None
    return first, second, third


def _copy(module: nn.Module, name: str) -> nn.Module:
    """Copy a module to the CPU in float32, evaluating and frozen."""
    try:
        copied = copy.deepcopy(module).cpu().float().eval().requires_grad_(False)
    except Exception as error:  # whatever the user's classes raise
        raise ConfigError(f"backbone '{name}' cannot be copied: {_first_line(error)}") from error
    copied.zero_grad()
    return copied


def _submodule(module: nn.Module, layer: str, name: str) -> nn.Module:
    known = {key: child for key, child in module.named_modules() if key}
    if layer in known:
        return known[layer]
    if layer == OUTPUT:
        return module
    nearest = difflib.get_close_matches(str(layer), [*known, OUTPUT], n=3, cutoff=0.0)
    raise ConfigError(
        f"unknown layer '{layer}' of backbone '{name}'; nearest of its {len(known):,} "
        f"submodules: {', '.join(nearest)}"
    )


def _captured(module: nn.Module, images: torch.Tensor, layers: Sequence[str]) -> dict[str, Any]:
    """Run a module up to the last of some layers and return what they put out."""
    found: dict[str, Any] = {}
    token = _capture.set((frozenset(layers), found))
    try:
        module(images)
    except _Enough:
        pass
    finally:
        _capture.reset(token)
    return {layer: found[layer] for layer in layers if layer in found}


def _probe(module: nn.Module, layers: list[str], info: BackboneInfo) -> BackboneInfo:
    """Find out, on noise, what the layers are and from which size on there are any."""
    step = info.grid
    failure: Exception | None = None
    for side in [info.min_side] if info.min_side else _SIDES:
        side = -(-side // step) * step
        images = noise(2, side, side, info)
        try:
            order, largest = _observed(module, images, layers)
            small = _captured(module, images, layers)
            break
        except Exception as error:  # whatever the user's classes raise
            failure = error
    else:
        raise ConfigError(
            f"backbone '{info.name}' does not take images of {side} x {side} pixels: "
            f"{_first_line(failure)}"
        ) from failure
    alone = _captured(module, images[:1], layers)
    for layer in layers:
        what = f"layer '{layer}' of backbone '{info.name}'"
        if order.count(layer) != 1:
            times = order.count(layer)
            raise ConfigError(f"{what} is called {times} times in a forward pass instead of once")
        _check_output(what, small[layer], alone[layer])
    height, width = (side + -(-more // step) * step for more in (_HIGHER, _WIDER))
    try:
        large = _captured(module, noise(1, height, width, info), layers)
    except Exception:  # it takes images of one size
        large = {}
    found = [
        _describe(layer, small[layer], large.get(layer), side, width - side, info.name)
        for layer in sorted(layers, key=order.index)
    ]
    return replace(
        info,
        layers=tuple(found),
        min_side=side,
        only_side=None if large else side,
        default_scales=(max(side, 224) if large else side,),
        map_numbers=largest,
    )


def noise(count: int, height: int, width: int, info: BackboneInfo) -> torch.Tensor:
    """Draw normalised images, always the same."""
    mean, std = torch.tensor([info.mean, info.std], dtype=torch.float32)[:, :, None, None]
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(count, 3, height, width, generator=generator) - mean) / std


def _observed(
    module: nn.Module, images: torch.Tensor, layers: list[str]
) -> tuple[list[str], float]:
    """Run the whole module: names in the order of calls, numbers of the largest map per pixel.

    What comes after the last layer may fail, such as a classifier that takes one size.
    """
    order: list[str] = []
    largest = 1

    def note(name: str, output: Any) -> None:
        nonlocal largest
        order.append(name)
        if isinstance(output, torch.Tensor):
            largest = max(largest, output.numel())

    handles = [
        child.register_forward_hook(lambda _, __, output, name=name or OUTPUT: note(name, output))
        for name, child in module.named_modules()
    ]
    try:
        module(images)
    except Exception:
        if not set(layers) <= set(order):
            raise
    finally:
        for handle in handles:
            handle.remove()
    return order, largest * images.shape[1] / images.numel()


def _check_output(what: str, output: Any, alone: Any) -> None:
    """Refuse what is no map and no vector, or something else for the first of two images alone."""
    if not isinstance(output, torch.Tensor):
        raise ConfigError(f"{what} puts out a {type(output).__name__} instead of a tensor")
    if output.dim() not in (2, 4) or output.shape[0] != 2 or not output.numel():
        shape = " x ".join(map(str, ("N", *output.shape[1:])))
        raise ConfigError(
            f"{what} puts out {shape} numbers; a map is N x C x h x w, a vector N x D"
        )
    if not output.is_floating_point() or not output.isfinite().all():
        raise ConfigError(f"{what} puts out numbers that are not finite, for a noisy image")
    if not are_same(alone, output[:1]):
        raise ConfigError(f"{what} depends on chance or on the other images of a batch")


def are_same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Tell whether two ways of computing give the same numbers, up to rounding."""
    allowed = _SAME * expected.norm().clamp(min=1e-6)
    return found.shape == expected.shape and bool((found - expected).norm() <= allowed)


def _describe(
    layer: str, small: torch.Tensor, large: torch.Tensor | None, side: int, wider: int, name: str
) -> LayerInfo:
    """Describe a layer by what it puts out for a square image and for one that is wider."""
    channels = small.shape[1]
    what = f"layer '{layer}' of backbone '{name}'"
    if large is not None and large.shape[1] != channels:
        raise ConfigError(f"{what} has a number of channels that depends on the image's size")
    if small.dim() == 2 or (large is not None and small.shape[2:] == large.shape[2:] == (1, 1)):
        return LayerInfo(layer, "vector", channels, None)
    more = side, small.shape[3]
    if large is not None:
        more = wider, large.shape[3] - small.shape[3]
    if more[1] <= 0:
        raise ConfigError(f"{what} is a map of as many cells whatever the image's size")
    return LayerInfo(layer, "map", channels, max(1, round(more[0] / more[1])))


def _takes_channels_last(module: nn.Module, info: BackboneInfo) -> bool:
    """Tell whether images and weights may lie channels-last: some modules call `view` on maps."""
    layers = [layer.name for layer in info.layers]
    images = noise(1, info.min_side, info.min_side, info)
    expected = _captured(module, images, layers)
    try:
        other = copy.deepcopy(module)
        for child in other.modules():
            if isinstance(child, nn.Conv2d):
                child.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        last = images.contiguous(memory_format=torch.channels_last)
        found = _captured(other, last, layers)
    except Exception:  # whatever the user's classes raise
        return False
    return all(are_same(found[layer], expected[layer]) for layer in layers)


def _first_line(error: BaseException | None) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
