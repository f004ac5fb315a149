"""A trained classification network in three parts: maps, a row per region of them, class scores."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from spptransfer import backbones
from spptransfer.backbones import Backbone, BackboneInfo, BackboneRef, ConvBackbone
from spptransfer.backbones.loading import fold_batch_norms, load_into, read_tensors
from spptransfer.backbones.networks import Network
from spptransfer.errors import ConfigError, WeightsError
from spptransfer.pyramid import SpatialPyramidPooling, check_levels


@dataclass(frozen=True)
class About:
    """What a weights file of `spptransfer pretrain` says of its training; None where it does not.

    Parameters
    ----------
    network : str, optional
        Name of the network.
    classes : tuple of str, optional
        Names of the classes in the order of the scores.
    levels : tuple of int, optional
        The pyramid, where it is not the catalogue's.
    resize, size : int, optional
        Smaller side of the image and side of the crop, in pixels.
    """

    network: str | None = None
    classes: tuple[str, ...] | None = None
    levels: tuple[int, ...] | None = None
    resize: int | None = None
    size: int | None = None


def read_about(path: Path) -> About:
    """Read what a weights file says of its training; only ``.safetensors`` files can say anything.

    A `WeightsError` if the file cannot be read, or its description is damaged.

    Examples
    --------
    >>> read_about(BackboneRef("spp-mini", "embedded").path()).classes[0]
    'n01443537'
    """
    if path.suffix != ".safetensors":
        return About()
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("spptransfer", "{}")
        return _parse_about(json.loads(text))
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"weights '{path}' cannot be read: {error}") from error
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise WeightsError(f"what weights '{path}' say of themselves is damaged") from error


def _parse_about(values: dict[str, Any]) -> About:
    pipeline = values.get("pipeline", {})
    levels = pipeline.get("network", {}).get("levels")
    images = pipeline.get("images", {})
    sides = {key: int(images[key]) for key in ("resize", "size") if key in images}
    classes = values.get("classes")
    return About(
        network=values.get("network"),
        classes=None if classes is None else tuple(map(str, classes)),
        levels=None if levels is None else check_levels(levels),
        **sides,
    )


class NetworkClassifier(nn.Module):
    """A frozen network that classifies regions of feature maps as it classifies images.

    Parameters
    ----------
    network : Network
        Trained, with all its layers. It is not changed.
    info : BackboneInfo
        Its entry in the catalogue.
    about : About, optional
        What its weights say of themselves.

    Attributes
    ----------
    trunk : Sequential
        From N x 3 x H x W images, normalised with ``info.mean`` and ``info.std``, to maps.
    pool : Module
        From maps, or regions of maps, of any size to rows of one length: the pyramid.
    score : Module
        From rows to class scores: the fully connected layers. Networks without a pyramid end in
        a mean over the map; with them `pool` is all of the rest and `score` passes it on.

    Examples
    --------
    >>> import torch
    >>> from spptransfer import backbones
    >>> info = backbones.describe("spp-mini")
    >>> classifier = NetworkClassifier(backbones.network("spp-mini", num_classes=5), info)
    >>> maps = classifier.trunk(torch.zeros(1, 3, 96, 128))
    >>> maps.shape
    torch.Size([1, 192, 12, 16])
    >>> rows = classifier.pool(maps[:, :, 2:10, 4:12])
    >>> rows.shape, classifier.score(rows).shape
    (torch.Size([1, 9600]), torch.Size([1, 5]))
    """

    def __init__(self, network: Network, info: BackboneInfo, about: About | None = None) -> None:
        super().__init__()
        network = copy.deepcopy(network)
        self.info, self.about = info, about or About()
        self.trunk, rest = network.trunk("spp"), network.classifier_modules()
        self.pool: nn.Module = rest
        self.score: nn.Module = nn.Identity()
        if isinstance(rest[0], SpatialPyramidPooling):
            self.pool, self.score = rest[0], rest[1:]
        fold_batch_norms(self.trunk)
        self.eval().requires_grad_(False)

    @property
    def num_classes(self) -> int:
        """Number of class scores."""
        last = [module for module in self.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
        return int(last[-1].weight.shape[0])

    @property
    def stride(self) -> int:
        """Pixels of the image between neighbouring cells of the map."""
        return self.info.layer("spp").stride or 1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores of N x 3 x H x W images, as the network itself gives them."""
        return self.score(self.pool(self.trunk(images)))

    def backbone(self) -> Backbone:
        """Return the trunk as runtimes take it."""
        return ConvBackbone(self.info, "", self.trunk, {"spp": len(self.trunk)})

    def cells(self, side: int) -> int:
        """Count the cells of the map along the side of a square image, given in pixels."""
        return backbones.map_side(BackboneRef(self.info.name, "random"), "spp", side)


def load_classifier(
    name: str,
    weights: str | os.PathLike[str],
    *,
    levels: tuple[int, ...] | None = None,
    weights_dir: Path | None = None,
) -> NetworkClassifier:
    """Load a network with all its layers, for as many classes as its weights score.

    Parameters
    ----------
    name : str
        One of `spptransfer.backbones.names`.
    weights : str or path
        A ``.safetensors`` or ``.pth`` file, or a name in the catalogue, such as ``"imagenet"``.
    levels : tuple of int, optional
        The pyramid that it was trained with, by default what the file says, else the catalogue's.
    weights_dir : Path, optional
        Folder of official weights, by default the user's; see `weights.default_dir`.

    Returns
    -------
    NetworkClassifier
        On the CPU, in float32.

    Raises
    ------
    ConfigError
        If there is no such network or weights' name, or its pyramid cannot be chosen or is told
        by the file to be another.
    WeightsError
        If the file is missing, damaged, of another network, or does not hold all of this one.

    Examples
    --------
    >>> load_classifier("spp-mini", "embedded").num_classes
    200
    """
    info = backbones.describe(name)
    reference = BackboneRef(name, os.fspath(weights), weights_dir)
    path = reference.ensure_downloaded()
    if os.fspath(weights) in info.weights:
        reference.weights_sha256()  # refuses an official file that is damaged
    tensors, about = read_tensors(path), read_about(path)
    if about.network not in (None, name):
        raise WeightsError(f"weights '{path}' are those of '{about.network}', not of '{name}'")
    trained = about.levels or (info.levels if about.network else None)
    if levels and trained and levels != trained:
        # In another order they fit and mean other bins.
        raise ConfigError(f"levels: weights '{path}' were trained with {list(trained)}")
    levels = levels or about.levels
    with torch.device("meta"):
        last = list(backbones.network(name, levels=levels).state_dict())[-1]
        if last not in tensors or tensors[last].dim() != 1:
            raise WeightsError(f"weights '{path}' do not hold the classes of '{name}': no {last}")
        network = backbones.network(name, num_classes=len(tensors[last]), levels=levels)
    load_into(network, tensors, info, None, origin=str(path))
    if about.classes is not None and len(about.classes) != len(tensors[last]):
        raise WeightsError(f"weights '{path}' name {len(about.classes):,} classes, not all")
    return NetworkClassifier(network, info, about)
