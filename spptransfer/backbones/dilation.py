"""Finer maps from the same weights: strides that are taken away, and dilation instead."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from spptransfer.backbones.info import Backbone
from spptransfer.errors import ConfigError

_STRIDED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


def dilate(backbone: Backbone, stride: int) -> Backbone:
    """Return a copy of a backbone whose maps have at most a stride, with the same weights.

    Convolutions that would coarsen the map beyond it no longer stride, and what follows them looks
    at cells that lie further apart: each cell of the maps before is a cell of the maps after.

    Parameters
    ----------
    backbone : Backbone
        A convolutional one, such as `backbones.load` gives it.
    stride : int
        The largest stride of its maps, in pixels; they get the power of two below it.

    Returns
    -------
    Backbone
        The backbone itself if no map of it has a larger stride.

    Raises
    ------
    ConfigError
        If its maps cannot be had at that stride.

    References
    ----------
    Yu and Koltun, "Multi-Scale Context Aggregation by Dilated Convolutions", ICLR 2016.

    Examples
    --------
    >>> from spptransfer import backbones
    >>> fine = dilate(backbones.load("squeezenet1_1", "random"), 8)
    >>> fine.maps_of(torch.zeros(1, 3, 128, 128), ["spp"])["spp"].shape
    torch.Size([1, 512, 13, 13])
    """
    info = backbone.info
    maps = [layer for layer in backbone.layers if info.layer(layer).kind == "map"]
    if all((info.layer(layer).stride or 1) <= stride for layer in maps):
        return backbone
    stride = 1 << stride.bit_length() - 1  # strides of networks are powers of two
    copied: Any = copy.deepcopy(backbone)
    coarse = _input_strides(copied, maps)
    for module, before in coarse.items():
        own = _pair(module.stride)[0]
        if before * own > stride:
            _make_finer(module, before, own, stride)
    layers = tuple(
        replace(layer, stride=min(layer.stride, stride)) if layer.stride else layer
        for layer in info.layers
    )
    copied.info = replace(info, layers=layers, map_numbers=None)
    _check(backbone, copied, maps, stride)
    finer: Backbone = copied
    return finer


def _make_finer(module: Any, before: int, own: int, stride: int) -> None:
    """Let a module keep the stride before it where it is reached, and dilate it by what it lacks.

    `before` is the stride of what the module got in the original network.
    """
    lacking = max(1, before // stride)
    kernel, padding = _pair(module.kernel_size), _pair(module.padding)
    module.stride = (max(1, stride // before),) * 2
    if lacking > 1 and max(kernel) > 1:
        if isinstance(module, nn.AvgPool2d):
            raise ConfigError("stride: average pooling cannot be dilated")
        module.dilation = (lacking, lacking)
        module.padding = (padding[0] * lacking, padding[1] * lacking)


@torch.no_grad()
def _input_strides(backbone: Any, maps: list[str]) -> dict[nn.Module, int]:
    """Return the stride of what each module that can stride gets, by a pass over a small image."""
    side = _side(backbone.info)
    found: dict[nn.Module, int] = {}

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        # Borders that are not padded make a map a little smaller than its stride says.
        ratio = side / max(1, inputs[0].shape[2])
        found[module] = 1 << round(torch.tensor(ratio).log2().item())

    hooks = [
        module.register_forward_pre_hook(note)
        for module in backbone.modules()
        if isinstance(module, _STRIDED)
    ]
    try:
        backbone.maps_of(torch.zeros(1, 3, side, side), maps)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@torch.no_grad()
def _check(backbone: Backbone, copied: Backbone, maps: list[str], stride: int) -> None:
    """Refuse a copy whose maps lack the cells of the original's."""
    side = _side(backbone.info)
    noise = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with_stride = backbone.maps_of(noise, maps)
    try:
        without = copied.maps_of(noise, maps)
    except RuntimeError as error:  # it counts on the size of its maps
        raise ConfigError(
            f"stride: {stride} is not to be had of '{backbone.info.name}'; its own is "
            f"{backbone.info.stride}"
        ) from error
    for layer in maps:
        step = max(1, (backbone.info.layer(layer).stride or 1) // stride)
        coarse, fine = with_stride[layer], without[layer]
        row = coarse.shape[2] // 2
        cell = coarse[0, :, row, row, None, None]
        # Where padding depends on the size, the cells are found a little further on.
        near = fine[0, :, row * step : (row + 1) * step, row * step : (row + 1) * step]
        off = (near - cell).abs().amax(0).min() if near.numel() else torch.tensor(torch.inf)
        if not off <= 1e-3 * cell.abs().max():
            raise ConfigError(
                f"stride: {stride} is not to be had of layer '{layer}' of '{backbone.info.name}'; "
                f"its own is {backbone.info.layer(layer).stride}"
            )


def _side(info: Any) -> int:
    """Return the side of an image of which every map has some cells."""
    return int(-(-max(256, 2 * info.min_side) // (32 * info.grid)) * 32 * info.grid)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
