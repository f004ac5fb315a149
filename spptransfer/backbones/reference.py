"""A backbone and its weights by their names: what is known of them, and how they are loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spptransfer.backbones import catalogue, weights
from spptransfer.backbones.info import Backbone, BackboneInfo
from spptransfer.errors import ConfigError


@dataclass(frozen=True)
class BackboneRef:
    """A backbone by its name and the name of its weights; small, and travels by pickle.

    Making one checks nothing: whoever asks it for something is told what is wrong.

    Parameters
    ----------
    name : str
        One of `names`.
    weights : str or path
        Name in the catalogue, such as ``"imagenet"``; path of a ``.safetensors`` or ``.pth``
        file; or ``"random"`` or ``"random:SEED"`` for weights drawn from a seed. For a
        registered backbone whatever the function that builds it takes.
    weights_dir : Path, optional
        Folder of official weights, by default the user's; see `weights.default_dir`.
    hash_cache_dir : Path, optional
        Folder that remembers hashes of weights files; see `weights.sha256_of`.

    Examples
    --------
    >>> from spptransfer.backbones import BackboneRef
    >>> mini = BackboneRef("spp-mini", "embedded")
    >>> mini.info.stride, mini.weights_sha256()[:8]
    (8, 'd6011401')
    >>> mini.load(["conv3"]).layers
    ('conv3',)
    """

    name: str
    weights: str
    weights_dir: Path | None = None
    hash_cache_dir: Path | None = None

    def __post_init__(self) -> None:
        if isinstance(self.weights, os.PathLike):
            object.__setattr__(self, "weights", os.fspath(self.weights))
        if not isinstance(self.weights, str):
            raise ConfigError(
                f"weights: {self.weights!r} must be a name of the catalogue, random:SEED or a "
                "file's path"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        # A process that has not heard of a registered backbone learns of it with the reference.
        fields = (self.name, self.weights, self.weights_dir, self.hash_cache_dir)
        return _remade, (catalogue.builder(self.name), *fields)

    @property
    def info(self) -> BackboneInfo:
        """What is known of the backbone; a registered one is built for that."""
        return catalogue.describe(self.name, self.weights)

    def path(self) -> Path | None:
        """Return where the weights' file lies, or would once fetched; None where there is none."""
        if catalogue.builder(self.name):
            return Path(self.weights) if os.path.isfile(self.weights) else None
        if weights.random_seed(self.weights) is not None:
            return None
        return weights.path_of(self.name, self.weights, self.weights_dir)

    def weights_sha256(self) -> str:
        """Identify the weights by their content, and fetch them where they are absent.

        Torch is imported for random weights and registered backbones only.

        Returns
        -------
        str
            SHA-256 in hexadecimal: of the file's bytes, or of the tensors where weights are
            drawn from a seed; what a registered backbone says.

        Raises
        ------
        WeightsError
            If the weights are absent and cannot be fetched, or an official file is not what its
            publisher put out.
        """
        if catalogue.builder(self.name):
            return catalogue.built(self.name, self.weights)[1]
        seed = weights.random_seed(self.weights)
        if seed is not None:
            from spptransfer.backbones.loading import random_network

            return random_network(self.name, seed)[1]
        return weights.weights_sha256(
            self.name, self.weights, self.weights_dir, hash_cache_dir=self.hash_cache_dir
        )

    def load(self, layers: Sequence[str]) -> Backbone:
        """Load the backbone for some of its layers; errors are those of `load`."""
        if catalogue.builder(self.name):
            backbone = catalogue.build(self.name, self.weights)
            for layer in layers:
                if backbone.info.layer(layer).name not in backbone.layers:
                    raise ConfigError(f"layer: '{layer}' was not built into '{self.name}'")
            return backbone
        info = self.info
        wanted = [info.layer(layer) for layer in layers]
        if not wanted:
            raise ConfigError(f"layer: at least one of {', '.join(at.name for at in info.layers)}")
        from spptransfer.backbones import loading

        seed = weights.random_seed(self.weights)
        if seed is not None:
            return loading.load_random(info, wanted, seed)
        sha256 = self.weights_sha256()
        path = weights.ensure_downloaded(self.name, self.weights, self.weights_dir)
        return loading.load_file(info, wanted, path, sha256)


def _remade(build: catalogue.Builder | None, name: str, *fields: Any) -> BackboneRef:
    if build is not None and name not in catalogue.names():
        catalogue.register(name, build)
    return BackboneRef(name, *fields)


def load(
    name: str,
    weights: str | os.PathLike[str],
    *,
    layer: str | Sequence[str] = "spp",
    weights_dir: Path | None = None,
    hash_cache_dir: Path | None = None,
) -> Backbone:
    """Load a backbone with its weights, for a layer or for several.

    Parameters
    ----------
    name, weights, weights_dir, hash_cache_dir
        As in `BackboneRef`.
    layer : str or sequence of str, default="spp"
        One of the backbone's layers, or several of them.

    Returns
    -------
    Backbone
        On the CPU, in float32, evaluating. Networks of this package have their batch norms
        folded, and can be called: ``backbone(images)`` is the deepest layer.

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
    >>> backbone(torch.zeros(1, 3, 65, 97)).shape
    torch.Size([1, 256, 8, 12])
    """
    reference = BackboneRef(name, os.fspath(weights), weights_dir, hash_cache_dir)
    return reference.load([layer] if isinstance(layer, str) else layer)


def layers_within(reference: BackboneRef) -> tuple[str, ...]:
    """List the layers of a backbone that weights suffice for, in the order of computation.

    Examples
    --------
    >>> layers_within(BackboneRef("spp-mini", "embedded"))[-2:]
    ('fc6', 'fc7')
    """
    info = reference.info
    if catalogue.builder(info.name) or weights.random_seed(reference.weights) is not None:
        return tuple(layer.name for layer in info.layers)
    from spptransfer.backbones.loading import layers_fitting

    path = weights.ensure_downloaded(info.name, reference.weights, reference.weights_dir)
    return layers_fitting(info, path)


def map_side(backbone: Backbone | BackboneRef, layer: str, side: int) -> int:
    """Return the side, in cells, of the map that a square image of `side` pixels becomes.

    A network of this package is not loaded for that.

    >>> map_side(BackboneRef("alexnet", "imagenet"), "conv5", 224)
    13
    """
    import torch

    from spptransfer.backbones import loading

    if isinstance(backbone, BackboneRef):
        if not catalogue.builder(backbone.name):
            return loading.map_side(backbone.name, layer, side)
        backbone = backbone.load([layer])
    with torch.inference_mode():
        maps = backbone.maps_of(torch.zeros(1, 3, side, side), [layer])[layer]
    return int(maps.shape[-1])
