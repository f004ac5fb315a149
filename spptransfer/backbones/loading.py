"""Networks by name, and the part of one that computes some layers, with weights from a file."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import nn

from spptransfer.backbones.base import ConvBackbone, Network, cut_at, fold_batch_norms
from spptransfer.backbones.catalogue import builder, describe
from spptransfer.backbones.checkpoints import digest, load_into, read_tensors, trained_levels
from spptransfer.backbones.info import BackboneInfo, LayerInfo
from spptransfer.errors import ConfigError, WeightsError
from spptransfer.pyramid import check_levels

logger = logging.getLogger(__name__)


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
    if builder(name):
        raise ConfigError(f"backbone '{name}' is a registered one, not a network of this package")
    info = describe(name)
    build = importlib.import_module(f"spptransfer.backbones.{info.family}").network
    if levels is None:
        return build(name, num_classes)
    if info.family != "paper" or len(info.levels) == 1:
        raise ConfigError(
            f"levels: the pyramid of '{name}' cannot be chosen, only that of SPP nets"
        )
    return build(name, num_classes, check_levels(levels))


def random_network(name: str, seed: int) -> tuple[Network, str]:
    """Build a network from a seed; return it with the SHA-256 of its tensors."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        built = network(name, num_classes=describe(name).num_classes)
    return built, digest(built.state_dict())


def hollow_trunk(name: str) -> nn.Sequential:
    """Build a network's trunk with zeros for weights: for what only its shape determines."""
    with torch.device("meta"):
        trunk = network(name).trunk("spp")
    trunk = trunk.to_empty(device="cpu").eval().requires_grad_(False)
    for tensor in (*trunk.parameters(), *trunk.buffers()):
        tensor.zero_()
    return trunk


@cache
def map_side(name: str, layer: str, side: int) -> int:
    """Return the side, in cells, of the map that a square image of `side` pixels becomes.

    Examples
    --------
    >>> map_side("alexnet", "conv5", 224)
    13
    """
    with torch.device("meta"):
        maps = network(name).eval().trunk(layer)(torch.empty(1, 3, side, side))
    return int(maps.shape[-1])


def _shaped_as(info: BackboneInfo, path: Path) -> Network:
    """Build a network as it was when the weights of a file were trained, without weights."""
    with torch.device("meta"):
        levels = trained_levels(path, info.name)
        levels = None if levels == info.levels else levels
        return network(info.name, num_classes=info.num_classes, levels=levels)


def layers_fitting(info: BackboneInfo, path: Path) -> tuple[str, ...]:
    """List the layers of a network that the weights of a file suffice for."""
    tensors = read_tensors(path)
    built = _shaped_as(info, path)
    fitting, misfit = [], WeightsError(f"weights '{path}' fit no layer of '{info.name}'")
    for layer in info.layers:
        try:
            load_into(built, tensors, info, layer, origin=str(path))
            fitting.append(layer.name)
        except WeightsError as error:
            misfit = error
    if not fitting:
        raise misfit
    return tuple(fitting)


def load_random(info: BackboneInfo, layers: Sequence[LayerInfo], seed: int) -> ConvBackbone:
    """Cut a network with weights drawn from a seed at some layers."""
    built, sha256 = random_network(info.name, seed)
    return _frozen(info, sha256, built, layers)


def load_file(
    info: BackboneInfo, layers: Sequence[LayerInfo], path: Path, sha256: str
) -> ConvBackbone:
    """Cut a network with the weights of a file at some layers."""
    tensors = read_tensors(path)
    built = _shaped_as(info, path)
    deepest = max(layers, key=info.layers.index)  # what it needs, all of them need together
    load_into(built, tensors, info, deepest, origin=str(path))
    logger.info("loaded '%s' up to layer '%s' from '%s'", info.name, deepest.name, path)
    return _frozen(info, sha256, built, layers)


def _frozen(
    info: BackboneInfo, sha256: str, built: Network, layers: Sequence[LayerInfo]
) -> ConvBackbone:
    part = cut_at(built, layers)
    fold_batch_norms(part.trunk)
    return ConvBackbone(info, sha256, part)
