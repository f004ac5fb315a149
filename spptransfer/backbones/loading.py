"""Networks by name, and backbones: a network cut at a layer, frozen, with its weights."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from spptransfer.backbones import weights as weights_files
from spptransfer.backbones.base import Cut, Network, cut_at
from spptransfer.backbones.catalogue import describe
from spptransfer.backbones.checkpoints import digest, load_into, read_tensors, trained_levels
from spptransfer.backbones.folding import fold_batch_norms
from spptransfer.backbones.fusing import fuse
from spptransfer.backbones.info import BackboneInfo
from spptransfer.errors import ConfigError, WeightsError
from spptransfer.pyramid import check_levels

logger = logging.getLogger(__name__)


class Backbone(nn.Module):
    """A frozen network up to a layer, or to several.

    Made by `load`. Batch norms are folded into the convolutions, no parameter wants a gradient,
    and nothing in it behaves differently in training.

    Parameters
    ----------
    info : BackboneInfo
        The network's entry in the catalogue.
    weights_sha256 : str
        Identity of the weights.
    cut : Cut
        Trunk and head, and where in them each layer ends.

    Attributes
    ----------
    layers : tuple of str
        Layers it computes, in the order of computation.
    layer : str
        The deepest of them.
    trunk : Sequential
        From the image to a map.
    head : Sequential or None
        From that map to a vector, with the pyramid it was trained on; None if all layers are
        maps.
    """

    def __init__(self, info: BackboneInfo, weights_sha256: str, cut: Cut) -> None:
        super().__init__()
        self.info = info
        self.weights_sha256 = weights_sha256
        self.trunk = cut.trunk
        self.head = cut.head
        self._ends = dict(cut.ends)
        self.layers = tuple(sorted(self._ends, key=self._ends.__getitem__))
        self.layer = self.layers[-1]
        self.eval().requires_grad_(False)

    def maps(self, images: torch.Tensor) -> torch.Tensor:
        """Feature maps that the deepest layer is made of.

        Parameters
        ----------
        images : Tensor of shape (N, 3, H, W)
            RGB in [0, 1], normalised with ``info.mean`` and ``info.std``. H and W are at least
            ``info.min_side``.

        Returns
        -------
        Tensor of shape (N, C, h, w)
            The layer itself if it is a map, else the last map. Activation included.
        """
        return self.trunk(images)

    def maps_of(self, images: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        """Feature maps that several layers are made of, all from one pass.

        Parameters
        ----------
        images : Tensor of shape (N, 3, H, W)
            As in `maps`.
        layers : sequence of str
            Some of `layers`; what lies beyond the deepest one is not computed.

        Returns
        -------
        dict of str to Tensor of shape (N, C, h, w)
            By layer; for vector layers the last map.

        Examples
        --------
        >>> import torch
        >>> from spptransfer import backbones
        >>> backbone = backbones.load("squeezenet1_1", "random", layer=("fire4", "spp"))
        >>> maps = backbone.maps_of(torch.zeros(1, 3, 65, 97), ("fire4", "spp"))
        >>> {layer: tuple(map.shape[1:]) for layer, map in maps.items()}
        {'fire4': (256, 8, 12), 'spp': (512, 4, 6)}
        """
        return _run(self.trunk, images, {layer: self._ends[layer][0] for layer in layers})

    def vectors_of(self, maps: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        """Vector layers, all from one pass over the last map.

        Parameters
        ----------
        maps : Tensor of shape (N, C, h, w)
            What `maps_of` gives for a vector layer.
        layers : sequence of str
            Some of `layers`, none of them a map.

        Returns
        -------
        dict of str to Tensor of shape (N, D)
            By layer.
        """
        if self.head is None or not layers:
            return {}
        return _run(self.head, maps, {layer: self._ends[layer][1] for layer in layers})

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the deepest layer: maps, or vectors of shape (N, D) if there is a head."""
        maps = self.maps(images)
        return maps if self.head is None else self.head(maps)

    def fused(self) -> Backbone:
        """Make the same backbone of fused convolutions, where they work; it shares parameters."""
        cut = Cut(fuse(self.trunk), self.head, self._ends)
        return Backbone(self.info, self.weights_sha256, cut)


def _run(
    modules: nn.Sequential, values: torch.Tensor, ends: Mapping[str, int]
) -> dict[str, torch.Tensor]:
    """Apply modules one after the other and keep what is there after a number of them.

    Nothing kept is changed later on: a layer includes its activation, and no module that
    follows one works in place.
    """
    kept: dict[str, torch.Tensor] = {}
    for count, module in enumerate(islice(modules, max(ends.values())), start=1):
        values = module(values)
        kept |= {name: values for name, end in ends.items() if end == count}
    return {name: kept[name] for name in ends}


def network(
    name: str, *, num_classes: int = 1000, levels: tuple[int, ...] | None = None
) -> Network:
    """Build a whole network, trainable, with random weights from torch's generator.

    Parameters
    ----------
    name : str
        One of `names`.
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
    >>> import torch
    >>> from spptransfer import backbones
    >>> with torch.device("meta"):
    ...     vgg = backbones.network("vgg16")
    >>> sum(parameter.numel() for parameter in vgg.parameters())
    138357544
    """
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
    """Build a network from a seed, leaving torch's global generator as it was.

    Returns
    -------
    (Network, str)
        The network and the SHA-256 of its tensors.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        built = network(name, num_classes=describe(name).num_classes)
    return built, digest(built)


def hollow_trunk(name: str) -> nn.Sequential:
    """Build the trunk of a network with zeros for weights: for what only its shape determines.

    Parameters
    ----------
    name : str
        One of `names`.

    Returns
    -------
    Sequential
        From the image to the last map, evaluating, on the CPU.
    """
    with torch.device("meta"):
        trunk = network(name).trunk("spp")
    trunk = trunk.to_empty(device="cpu").eval().requires_grad_(False)
    for tensor in (*trunk.parameters(), *trunk.buffers()):
        tensor.zero_()
    return trunk


@cache
def map_side(name: str, layer: str, side: int) -> int:
    """Side of the map that a square image becomes.

    Parameters
    ----------
    name : str
        One of `names`.
    layer : str
        One of its map layers.
    side : int
        Side of the image in pixels, at least ``min_side``.

    Returns
    -------
    int
        In cells.

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


def layers_within(
    name: str, weights: str | os.PathLike[str], weights_dir: Path | None = None
) -> tuple[str, ...]:
    """Layers of a network that weights suffice for.

    Parameters
    ----------
    name, weights, weights_dir
        As in `load`.

    Returns
    -------
    tuple of str
        In the order of computation.

    Raises
    ------
    ConfigError
        If there is no such backbone or weights' name.
    WeightsError
        If the weights are absent and cannot be fetched, are damaged, or fit no layer.

    Examples
    --------
    >>> layers_within("spp-mini", "embedded")[-2:]
    ('fc6', 'fc7')
    """
    info = describe(name)
    if weights_files.random_seed(weights) is not None:
        return tuple(layer.name for layer in info.layers)
    path = weights_files.locate(name, weights, weights_dir)
    tensors = read_tensors(path)
    built = _shaped_as(info, path)
    fitting, misfit = [], WeightsError(f"weights '{path}' fit no layer of '{name}'")
    for layer in info.layers:
        try:
            load_into(built, tensors, info, layer, origin=str(path))
            fitting.append(layer.name)
        except WeightsError as error:
            misfit = error
    if not fitting:
        raise misfit
    return tuple(fitting)


def load(
    name: str,
    weights: str | os.PathLike[str],
    *,
    layer: str | Sequence[str] = "spp",
    weights_dir: Path | None = None,
    memo_dir: Path | None = None,
) -> Backbone:
    """Load a network's weights and cut it at a layer, or at several.

    Parameters
    ----------
    name : str
        One of `names`.
    weights : str or path
        Name in the catalogue, such as ``"imagenet"``; path of a ``.safetensors`` or ``.pth``
        file; or ``"random"`` or ``"random:SEED"`` for weights drawn from a seed.
    layer : str or sequence of str, default="spp"
        One of the backbone's layers, or several of them.
    weights_dir : Path, optional
        Folder of official weights, by default the user's; see `weights.default_dir`.
    memo_dir : Path, optional
        Folder that remembers hashes of weights files; see `weights.sha256_of`.

    Returns
    -------
    Backbone
        On the CPU, in float32, evaluating.

    Raises
    ------
    ConfigError
        If there is no such backbone, layer or weights' name.
    WeightsError
        If the weights are absent and cannot be fetched, are damaged, or do not fit.

    Examples
    --------
    >>> import torch
    >>> from spptransfer import backbones
    >>> backbone = backbones.load("squeezenet1_1", "random:7", layer="fire4")
    >>> backbone.maps(torch.zeros(1, 3, 65, 97)).shape
    torch.Size([1, 256, 8, 12])
    """
    info = describe(name)
    named = [layer] if isinstance(layer, str) else list(layer)
    wanted = [info.layer(name) for name in named]
    if not wanted:
        raise ConfigError(f"layer: at least one of {', '.join(at.name for at in info.layers)}")
    deepest = max(wanted, key=info.layers.index)  # what it needs, all of them need together
    seed = weights_files.random_seed(weights)
    if seed is not None:
        built, sha256 = random_network(name, seed)
    else:
        sha256 = weights_files.identify(name, weights, weights_dir, memo_dir=memo_dir)
        path = weights_files.locate(name, weights, weights_dir)
        tensors = read_tensors(path)
        built = _shaped_as(info, path)
        load_into(built, tensors, info, deepest, origin=str(path))
        logger.info("loaded '%s' up to layer '%s' from '%s'", name, deepest.name, path)
    part = cut_at(built, wanted)
    fold_batch_norms(part.trunk)
    return Backbone(info, sha256, part)
