"""A backbone and its weights by their names: found, fetched, known by content, loaded.

Torch is imported only where something is loaded or drawn.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spptransfer import files
from spptransfer.backbones import catalogue
from spptransfer.backbones.info import Backbone, BackboneInfo, WeightsSource
from spptransfer.errors import CacheError, ConfigError, WeightsError, suggestion

logger = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pth")
# Younger than this, a file can change once more without its time stamp showing it.
_SETTLED_NANOSECONDS = 2 * 10**9


def default_dir() -> Path:
    """Return the folder of official weights: ``SPPTRANSFER_WEIGHTS``, else in the user's cache."""
    if chosen := os.environ.get("SPPTRANSFER_WEIGHTS"):
        return files.expand_path(chosen)
    import pooch

    return Path(pooch.os_cache("spptransfer")) / "weights"


def random_seed(weights: str) -> int | None:
    """Return the seed of ``"random"`` (0) or ``"random:SEED"``; None for weights with a file."""
    if weights != "random" and not weights.startswith("random:"):
        return None
    seed = re.fullmatch(r"random(?::([0-9]{1,18}))?", weights)  # torch knows numbers of 64 bits
    if seed is None:
        raise ConfigError(
            f"weights '{weights}': the seed must be a whole number of at least 0 and of at most "
            "18 digits"
        )
    return int(seed[1] or 0)


def sha256_of(path: Path, hash_cache_dir: Path | None = None) -> str:
    """Return the SHA-256 of a weights file, remembered by its path, size and modification time."""
    memory = hash_cache_dir and hash_cache_dir / "weights-sha256.json"
    known: dict[str, str] = {}
    try:
        status = path.stat()
        state = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
        if memory:
            with contextlib.suppress(OSError, ValueError, TypeError):  # absent or damaged
                known = dict(json.loads(memory.read_text(encoding="utf-8")))
        if state in known:
            return known[state]
        sha256 = files.sha256_of(path)
    except OSError as error:
        raise WeightsError(f"weights '{path}' cannot be read: {error.strerror}") from error
    if memory and time.time_ns() - status.st_mtime_ns > _SETTLED_NANOSECONDS:
        try:
            files.make_folder(memory.parent)
            files.write_text(memory, json.dumps(known | {state: sha256}, indent=1))
        except CacheError as error:  # only costs time
            logger.debug("hash of '%s' not remembered: %s", state, error)
    return sha256


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
        Folder of official weights, by default the user's; see `default_dir`.
    hash_cache_dir : Path, optional
        Folder that remembers hashes of weights files; see `sha256_of`.
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

    @property
    def _source(self) -> WeightsSource | None:
        """The official file, if the weights are named in the catalogue."""
        return None if catalogue.builder(self.name) else self.info.weights.get(self.weights)

    def path(self) -> Path | None:
        """Return where the weights' file lies, or would once fetched; None where there is none."""
        if catalogue.builder(self.name):
            return Path(self.weights) if os.path.isfile(self.weights) else None
        source = self._source
        if source is not None:
            shipped = source.url is None
            folder = Path(__file__).parent if shipped else self.weights_dir or default_dir()
            return folder / source.filename
        if random_seed(self.weights) is not None:
            return None
        if self.weights.endswith(SUFFIXES):
            return files.expand_path(self.weights)
        raise ConfigError(
            f"unknown weights '{self.weights}' of backbone '{self.name}': "
            f"{suggestion(self.weights, [*self.info.weights, 'random'])}, or the path of a "
            f"{' or '.join(SUFFIXES)} file"
        )

    def ensure_downloaded(self) -> Path:
        """Return the path of the weights' file, fetched first if it is official and absent."""
        path = self.path()
        if path is None:
            raise ConfigError(f"weights '{self.weights}' of '{self.name}' have no file")
        if os.path.exists(path):
            return path
        source = self._source
        if source is None or source.url is None:
            advice = "; install the package again" if source else ""
            raise WeightsError(f"no weights file at '{path}'{advice}")
        watched = sys.stderr is not None and sys.stderr.isatty()
        try:
            files.download([source.url], source.sha256, path, progress=watched)
        except OSError as error:
            raise WeightsError(
                f"cannot fetch {source.filename}: {error}; "
                f"put {source.url} at '{path}' or pass features.weights=PATH"
            ) from error
        return path

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
        seed = random_seed(self.weights)
        if seed is not None:
            from spptransfer.backbones.loading import random_network

            return random_network(self.name, seed)[1]
        path, source = self.ensure_downloaded(), self._source
        sha256 = sha256_of(path, self.hash_cache_dir)
        if source is not None and not sha256.startswith(source.sha256):
            raise WeightsError(
                f"'{path}' is damaged or not the official file: its SHA-256 starts with "
                f"{sha256[: len(source.sha256)]} instead of {source.sha256}; delete it and run "
                "again"
            )
        return sha256

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

        seed = random_seed(self.weights)
        if seed is not None:
            network, sha256 = loading.random_network(self.name, seed)
            return loading.cut_at(network, info, wanted, sha256)
        sha256 = self.weights_sha256()
        return loading.load_file(info, wanted, self.ensure_downloaded(), sha256)


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
    if catalogue.builder(info.name) or random_seed(reference.weights) is not None:
        return tuple(layer.name for layer in info.layers)
    from spptransfer.backbones.loading import layers_fitting

    return layers_fitting(info, reference.ensure_downloaded())


def map_side(backbone: Backbone | BackboneRef, layer: str, side: int) -> int:
    """Return the side, in cells, of the map that a square image of `side` pixels becomes.

    A network of this package is not loaded for that.

    >>> map_side(BackboneRef("alexnet", "imagenet"), "conv5", 224)
    13
    """
    import torch

    from spptransfer.backbones.networks import network

    with torch.inference_mode():
        if isinstance(backbone, BackboneRef) and not catalogue.builder(backbone.name):
            with torch.device("meta"):
                trunk = network(backbone.name).eval().trunk(layer)
                return int(trunk(torch.empty(1, 3, side, side)).shape[-1])
        if isinstance(backbone, BackboneRef):
            backbone = backbone.load([layer])
        maps = backbone.maps_of(torch.zeros(1, 3, side, side), [layer])[layer]
    return int(maps.shape[-1])
