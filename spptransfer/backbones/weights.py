"""Weights files: where they lie, how they get there, and which they are. Needs no torch."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path

from spptransfer import files
from spptransfer.backbones.catalogue import builder, describe
from spptransfer.backbones.info import WeightsSource
from spptransfer.errors import CacheError, ConfigError, WeightsError, suggestion

logger = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pth")
_HASHES = "weights-sha256.json"
_SEED_DIGITS = 18  # torch knows numbers of 64 bits
# Younger than this, a file can change once more without its time stamp showing it.
_SETTLED_NANOSECONDS = 2 * 10**9


def default_dir() -> Path:
    """Return the folder of official weights: ``SPPTRANSFER_WEIGHTS``, else in the user's cache."""
    chosen = os.environ.get("SPPTRANSFER_WEIGHTS")
    if chosen:
        return Path(os.path.expanduser(chosen))
    import pooch

    return Path(pooch.os_cache("spptransfer")) / "weights"


def random_seed(weights: str | os.PathLike[str]) -> int | None:
    """Return the seed of ``"random"`` (0) or ``"random:SEED"``; None for weights with a file.

    >>> random_seed("random"), random_seed("random:7"), random_seed("imagenet")
    (0, 7, None)
    """
    kind, colon, seed = os.fspath(weights).partition(":")
    if kind != "random":
        return None
    if not colon:
        return 0
    if not (seed.isascii() and seed.isdecimal() and len(seed) <= _SEED_DIGITS):
        raise ConfigError(
            f"weights '{weights}': the seed must be a whole number of at least 0 and of at most "
            f"{_SEED_DIGITS} digits"
        )
    return int(seed)


def path_of(name: str, weights: str | os.PathLike[str], weights_dir: Path | None = None) -> Path:
    """Return where a weights file, of the catalogue or local, lies or would lie once fetched.

    >>> path_of("alexnet", "imagenet", Path("weights")).as_posix()
    'weights/alexnet-owt-7be5be79.pth'
    """
    text = os.fspath(weights)
    sources = {} if builder(name) else describe(name).weights
    if text in sources:
        if sources[text].url is None:
            return Path(__file__).parent / sources[text].filename
        return (weights_dir or default_dir()) / sources[text].filename
    if text.endswith(SUFFIXES):
        return Path(os.path.expanduser(text))
    raise ConfigError(
        f"unknown weights '{text}' of backbone '{name}': "
        f"{suggestion(text, [*sources, 'random'])}, or the path of a {' or '.join(SUFFIXES)} file"
    )


def ensure_downloaded(
    name: str, weights: str | os.PathLike[str], weights_dir: Path | None = None
) -> Path:
    """Return the path of a weights file, fetched first if it is official and absent."""
    if random_seed(weights) is not None:
        raise ConfigError(f"weights '{weights}' are drawn from a seed and have no file")
    path = path_of(name, weights, weights_dir)
    if _is_there(path):
        return path
    source = None if builder(name) else describe(name).weights.get(os.fspath(weights))
    if source is None:
        raise WeightsError(f"no weights file at '{path}'")
    if source.url is None:
        raise WeightsError(f"'{path}' is missing from the installed package; install it again")
    fetch(source, path)
    return path


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # some names no file can have
        return False


def fetch(source: WeightsSource, path: Path) -> None:
    """Download official weights; the file appears under its name only when whole and checked."""
    watched = sys.stderr is not None and sys.stderr.isatty()
    try:
        files.download([str(source.url)], source.sha256, path, progress=watched)
    except OSError as error:
        raise WeightsError(
            f"cannot fetch {source.filename}: {error}; "
            f"put {source.url} at '{path}' or pass features.weights=PATH"
        ) from error


def weights_sha256(
    name: str,
    weights: str | os.PathLike[str],
    weights_dir: Path | None = None,
    *,
    hash_cache_dir: Path | None = None,
) -> str:
    """Return the SHA-256 of a weights file; refuse an official one that is damaged."""
    path = ensure_downloaded(name, weights, weights_dir)
    sha256 = sha256_of(path, hash_cache_dir)
    source = None if builder(name) else describe(name).weights.get(os.fspath(weights))
    if source is not None and not sha256.startswith(source.sha256):
        raise WeightsError(
            f"'{path}' is damaged or not the official file: its SHA-256 starts with "
            f"{sha256[: len(source.sha256)]} instead of {source.sha256}; delete it and run again"
        )
    return sha256


def sha256_of(path: Path, hash_cache_dir: Path | None = None) -> str:
    """Return the SHA-256 of a weights file.

    A small file in `hash_cache_dir` remembers it for the file's path, size and modification time,
    so that an unchanged file need not be read again.
    """
    try:
        status = path.stat()
        state = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
        known = _read_hashes(hash_cache_dir).get(state) if hash_cache_dir else None
        if known:
            return known
        sha256 = files.sha256_of(path)
    except OSError as error:
        raise WeightsError(f"weights '{path}' cannot be read: {error.strerror}") from error
    if hash_cache_dir and time.time_ns() - status.st_mtime_ns > _SETTLED_NANOSECONDS:
        _remember(hash_cache_dir, state, sha256)
    return sha256


def _read_hashes(folder: Path) -> dict[str, str]:
    """Read the hashes by the state of their file; none where they are absent or damaged."""
    try:
        known = json.loads((folder / _HASHES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(folder: Path, state: str, sha256: str) -> None:
    """Add a hash to those known; a folder that cannot be written to only costs time."""
    try:
        files.make_folder(folder)
        known = _read_hashes(folder) | {state: sha256}
        files.write_text(folder / _HASHES, json.dumps(known, indent=1))
    except CacheError as error:
        logger.debug("hash of '%s' not remembered: %s", state, error)
