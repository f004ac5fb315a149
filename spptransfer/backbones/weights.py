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
from spptransfer.backbones import hub, registry
from spptransfer.backbones.info import Backbone, BackboneInfo, WeightsSource
from spptransfer.errors import CacheError, ConfigError, WeightsError, suggestion

logger = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pth")
# Younger than this, a file can change once more without its time stamp showing it.
_SETTLED_NANOSECONDS = 2 * 10**9
_hashed: dict[str, str] = {}


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
    """Return the SHA-256 of a weights file, remembered by its path, size and modification time.

    By this process, and in a folder if it is there: making one is for who writes features to it.
    """
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
        sha256 = _hashed.get(state) or files.sha256_of(path)
    except OSError as error:
        raise WeightsError(f"weights '{path}' cannot be read: {error.strerror}") from error
    if time.time_ns() - status.st_mtime_ns > _SETTLED_NANOSECONDS:
        _hashed[state] = sha256
        if memory and memory.parent.is_dir():
            with contextlib.suppress(CacheError):  # only costs time
                files.write_text(memory, json.dumps(known | {state: sha256}, indent=1))
    return sha256


@dataclass(frozen=True)
class BackboneRef:
    """A backbone by its name and the name of its weights; small, and travels by pickle.

    Making one with weights checks nothing: whoever asks it for something is told what is wrong.

    Parameters
    ----------
    name : str
        One of `names`, or ``timm/NAME``.
    weights : str or path
        Name in the catalogue, such as ``"imagenet"``, or ``"pretrained"`` for timm's models; path
        of a ``.safetensors`` or ``.pth`` file; or ``"random"`` or ``"random:SEED"`` for weights
        drawn from a seed; by default the backbone's own official ones. For a registered backbone
        whatever the function that builds it takes.
    weights_dir : Path, optional
        Folder of official weights, by default the user's; see `default_dir`.
    hash_cache_dir : Path, optional
        Folder that remembers hashes of weights files; see `sha256_of`.
    """

    name: str
    weights: str = ""
    weights_dir: Path | None = None
    hash_cache_dir: Path | None = None

    def __post_init__(self) -> None:
        if isinstance(self.weights, os.PathLike):
            object.__setattr__(self, "weights", os.fspath(self.weights))
        if self.weights == "":
            object.__setattr__(self, "weights", _own_weights(self.name))
        if not isinstance(self.weights, str):
            raise ConfigError(
                f"weights: {self.weights!r} must be a name of the catalogue, random:SEED or a "
                "file's path"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        # A process that has not heard of a registered backbone learns of it with the reference.
        fields = (self.name, self.weights, self.weights_dir, self.hash_cache_dir)
        return _remade, (registry.builder(self.name), *fields)

    @property
    def info(self) -> BackboneInfo:
        """What is known of the backbone; a registered one is built for that."""
        return registry.describe(self.name, self.weights)

    @property
    def _source(self) -> WeightsSource | None:
        """The official file, if the weights are named in the catalogue."""
        return None if registry.builder(self.name) else self.info.weights.get(self.weights)

    def path(self) -> Path | None:
        """Return where the weights' file lies, or would once fetched; None where there is none."""
        if registry.builder(self.name):
            return Path(self.weights) if os.path.isfile(self.weights) else None
        source = self._source
        if source is not None and source.repository is not None:
            return hub.cached_file(source.repository, source.filename)
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
        if source is not None and source.repository is not None:
            return hub.fetch(source.repository, source.filename)
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

        It is the SHA-256 of the file's bytes, or of the tensors where weights are drawn from a
        seed, or what a registered backbone says; only for the last two torch is imported.
        """
        if registry.builder(self.name):
            return registry.built(self.name, self.weights)[1]
        seed, info = random_seed(self.weights), self.info
        if seed is not None:
            return _family(self.name).load_random(info, info.layers[-1:], seed).weights_sha256
        path, source = self.ensure_downloaded(), self._source
        sha256 = sha256_of(path, self.hash_cache_dir)
        expected = source.sha256 if source is not None else ""
        if source is not None and source.repository is not None:
            expected = hub.expected_sha256(path)
        if not sha256.startswith(expected):
            raise WeightsError(
                f"'{path}' is damaged or not the official file: its SHA-256 starts with "
                f"{sha256[: len(expected)]} instead of {expected}; delete it and run again"
            )
        return sha256

    def load(self, layers: Sequence[str]) -> Backbone:
        """Load the backbone for some of its layers; errors are those of `load`."""
        if registry.builder(self.name):
            backbone = registry.build(self.name, self.weights)
            for layer in layers:
                if backbone.info.layer(layer).name not in backbone.layers:
                    raise ConfigError(f"layer: '{layer}' was not built into '{self.name}'")
            return backbone
        info = self.info
        wanted = [info.layer(layer) for layer in layers]
        if not wanted:
            raise ConfigError(f"layer: at least one of {', '.join(at.name for at in info.layers)}")
        family, seed = _family(self.name), random_seed(self.weights)
        found: Backbone
        if seed is not None:
            found = family.load_random(info, wanted, seed)
            return found
        sha256, path = self.weights_sha256(), self.ensure_downloaded()
        if self._source is None and registry.is_timm(self.name):
            for note in family.notes_on_file(self.name, info):
                logger.warning("weights '%s': %s", path, note)
        found = family.load_file(info, wanted, path, sha256)
        return found


def _own_weights(name: str) -> str:
    """Return the name of the weights that a backbone comes with."""
    info = None if registry.builder(name) else registry.describe(name)
    for weights in info.weights if info else ():
        return weights
    raise ConfigError(
        f"weights: backbone '{name}' comes without any; say which: random:SEED, or the path of a "
        f"{' or '.join(SUFFIXES)} file"
    )


def _family(name: str) -> Any:
    """Return the module that loads backbones of a kind; it imports torch."""
    from importlib import import_module

    kind = "timm_models" if registry.is_timm(name) else "loading"
    return import_module(f"spptransfer.backbones.{kind}")


def _remade(build: registry.Builder | None, name: str, *fields: Any) -> BackboneRef:
    if build is not None and name not in registry.names():
        registry.register(name, build)
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
    """List the layers of a backbone that weights suffice for, in the order of computation."""
    info = reference.info
    if registry.builder(info.name) or random_seed(reference.weights) is not None:
        return tuple(layer.name for layer in info.layers)
    fitting: tuple[str, ...] = _family(info.name).layers_fitting(
        info, reference.ensure_downloaded()
    )
    return fitting


def map_side(backbone: Backbone | BackboneRef, layer: str, side: int) -> int:
    """Return the side, in cells, of the map that a square image of `side` pixels becomes.

    A network of this package, or of timm, is not loaded for that.

    >>> map_side(BackboneRef("alexnet", "imagenet"), "conv5", 224)
    13
    """
    import torch

    device, known = "cpu", backbone
    if isinstance(known, BackboneRef):
        if registry.builder(known.name):
            known = known.load([layer])
        else:
            device, known = "meta", _family(known.name).sketch(known.info, layer)
    with torch.inference_mode():
        images = torch.zeros(1, 3, side, side, device=device)
        return int(known.maps_of(images, [layer])[layer].shape[-1])
