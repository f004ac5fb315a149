"""Networks by name, and backbones: a network cut at a layer, frozen, with its weights."""

from __future__ import annotations

import importlib
import logging
import os
from pathlib import Path

import torch
from torch import nn

from spptransfer.backbones import weights as weights_files
from spptransfer.backbones.base import Network, cut
from spptransfer.backbones.catalogue import describe
from spptransfer.backbones.checkpoints import digest, load_into, read_tensors
from spptransfer.backbones.folding import fold_batch_norms
from spptransfer.backbones.info import BackboneInfo
from spptransfer.errors import ConfigError
from spptransfer.pyramid import check_levels

logger = logging.getLogger(__name__)


class Backbone(nn.Module):
    """A frozen network up to a layer.

    Made by `load`. Batch norms are folded into the convolutions, no parameter wants a gradient,
    and nothing in it behaves differently in training.

    Parameters
    ----------
    info : BackboneInfo
        The network's entry in the catalogue.
    layer : str
        Layer it computes.
    weights_sha256 : str
        Identity of the weights.
    trunk : Sequential
        From the image to a map.
    head : Module or None
        From that map to a vector, with the pyramid it was trained on; None for map layers.
    """

    def __init__(
        self,
        info: BackboneInfo,
        layer: str,
        weights_sha256: str,
        trunk: nn.Sequential,
        head: nn.Sequential | None,
    ) -> None:
        super().__init__()
        self.info = info
        self.layer = layer
        self.weights_sha256 = weights_sha256
        self.trunk = trunk
        self.head = head
        self.eval().requires_grad_(False)

    def maps(self, images: torch.Tensor) -> torch.Tensor:
        """Feature maps that the layer is made of.

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

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the layer: maps, or vectors of shape (N, D) if there is a head."""
        maps = self.maps(images)
        return maps if self.head is None else self.head(maps)


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


def load(
    name: str,
    weights: str | os.PathLike[str],
    *,
    layer: str = "spp",
    weights_dir: Path | None = None,
    memo_dir: Path | None = None,
) -> Backbone:
    """Load a network's weights and cut it at a layer.

    Parameters
    ----------
    name : str
        One of `names`.
    weights : str or path
        Name in the catalogue, such as ``"imagenet"``; path of a ``.safetensors`` or ``.pth``
        file; or ``"random"`` or ``"random:SEED"`` for weights drawn from a seed.
    layer : str, default="spp"
        One of the backbone's layers.
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
    wanted = info.layer(layer)
    seed = weights_files.random_seed(weights)
    if seed is not None:
        built, sha256 = random_network(name, seed)
    else:
        sha256 = weights_files.identify(name, weights, weights_dir, memo_dir=memo_dir)
        path = weights_files.locate(name, weights, weights_dir)
        with torch.device("meta"):
            built = network(name, num_classes=info.num_classes)
        load_into(built, read_tensors(path), info, wanted, origin=str(path))
        logger.info("loaded '%s' up to layer '%s' from '%s'", name, layer, path)
    trunk, head = cut(built, wanted)
    fold_batch_norms(trunk)
    return Backbone(info, layer, sha256, trunk, head)
