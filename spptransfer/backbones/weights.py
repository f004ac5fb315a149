"""Weights files: where they lie, how they get there, and which they are. Needs no torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from spptransfer.backbones.catalogue import describe
from spptransfer.backbones.info import WeightsSource
from spptransfer.errors import ConfigError, WeightsError, suggestion

logger = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pth")
_MEMO = "weights-sha256.json"
_CHUNK = 1 << 20
_SEED_DIGITS = 18  # torch knows numbers of 64 bits
_TIMEOUT_SECONDS = 30
# Younger than this, a file can change once more without its time stamp showing it.
_SETTLED_NANOSECONDS = 2 * 10**9


def default_dir() -> Path:
    """Folder of official weights: ``SPPTRANSFER_WEIGHTS``, else one in the user's cache.

    Returns
    -------
    Path
        Need not exist yet.
    """
    chosen = os.environ.get("SPPTRANSFER_WEIGHTS")
    if chosen:
        return Path(os.path.expanduser(chosen))
    import pooch

    return Path(pooch.os_cache("spptransfer")) / "weights"


def random_seed(weights: str | os.PathLike[str]) -> int | None:
    """Seed of ``"random"`` (0) or ``"random:SEED"``; None for weights that have a file.

    Raises
    ------
    ConfigError
        If the seed is not a whole number of at least 0, or larger than torch takes.

    Examples
    --------
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
    """Where a weights file lies, or would lie once fetched.

    Parameters
    ----------
    name : str
        A backbone's name.
    weights : str or path
        Name in the backbone's catalogue entry, or path of a local file.
    weights_dir : Path, optional
        Folder of official weights, by default `default_dir`.

    Returns
    -------
    Path

    Raises
    ------
    ConfigError
        If the weights are neither in the catalogue nor a path with a known suffix.

    Examples
    --------
    >>> path_of("alexnet", "imagenet", Path("weights")).as_posix()
    'weights/alexnet-owt-7be5be79.pth'
    """
    text = os.fspath(weights)
    sources = describe(name).weights
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


def locate(name: str, weights: str | os.PathLike[str], weights_dir: Path | None = None) -> Path:
    """Path of an existing weights file, fetched first if it is official and absent.

    Parameters
    ----------
    name, weights, weights_dir
        As in `path_of`.

    Returns
    -------
    Path

    Raises
    ------
    ConfigError
        If the weights have no file or are unknown.
    WeightsError
        If the file is absent and cannot be fetched. Says which file to put where.
    """
    if random_seed(weights) is not None:
        raise ConfigError(f"weights '{weights}' are drawn from a seed and have no file")
    path = path_of(name, weights, weights_dir)
    if os.path.isfile(path):  # however long its name is
        return path
    source = describe(name).weights.get(os.fspath(weights))
    if source is None:
        raise WeightsError(f"no weights file at '{path}'")
    if source.url is None:
        raise WeightsError(f"'{path}' is missing from the installed package; install it again")
    fetch(source, path)
    return path


def identify(
    name: str,
    weights: str | os.PathLike[str],
    weights_dir: Path | None = None,
    *,
    memo_dir: Path | None = None,
) -> str:
    """Identity of weights by their content.

    Parameters
    ----------
    name, weights, weights_dir
        As in `path_of`; ``"random"`` and ``"random:SEED"`` too.
    memo_dir : Path, optional
        As in `sha256_of`.

    Returns
    -------
    str
        SHA-256 in hexadecimal: of the file's bytes, or of the tensors where weights are drawn
        from a seed (which takes torch).

    Raises
    ------
    ConfigError, WeightsError
        As in `locate`; also if an official file is not what its publisher put out.
    """
    seed = random_seed(weights)
    if seed is not None:
        from spptransfer.backbones.loading import random_network

        return random_network(name, seed)[1]
    path = locate(name, weights, weights_dir)
    sha256 = sha256_of(path, memo_dir)
    source = describe(name).weights.get(os.fspath(weights))
    if source is not None and not sha256.startswith(source.sha256):
        raise WeightsError(
            f"'{path}' is damaged or not the official file: its SHA-256 starts with "
            f"{sha256[: len(source.sha256)]} instead of {source.sha256}; delete it and run again"
        )
    return sha256


def sha256_of(path: Path, memo_dir: Path | None = None) -> str:
    """SHA-256 of a file's bytes.

    Parameters
    ----------
    path : Path
        The file.
    memo_dir : Path, optional
        Folder in which a small JSON file remembers the hash for the file's path, size and
        modification time, so that an unchanged file need not be read again.

    Returns
    -------
    str
        In hexadecimal.

    Raises
    ------
    WeightsError
        If the file cannot be read.
    """
    try:
        status = path.stat()
        state = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
        known = _read_memo(memo_dir).get(state) if memo_dir else None
        if known:
            return known
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"weights '{path}' cannot be read: {error.strerror}") from error
    if memo_dir and time.time_ns() - status.st_mtime_ns > _SETTLED_NANOSECONDS:
        _write_memo(memo_dir, state, sha256)
    return sha256


def _read_memo(memo_dir: Path) -> dict[str, str]:
    """Hashes by the state of their file; none if there is no memo or it is damaged."""
    try:
        memo = json.loads((memo_dir / _MEMO).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return memo if isinstance(memo, dict) else {}


def _write_memo(memo_dir: Path, state: str, sha256: str) -> None:
    """Add a hash to the memo; a folder that cannot be written to only costs time."""
    try:
        memo_dir.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_read_memo(memo_dir) | {state: sha256}, indent=1)
        with _replacing(memo_dir / _MEMO) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        logger.debug("hash of '%s' not remembered: %s", state, error)


def fetch(source: WeightsSource, path: Path) -> None:
    """Download official weights; the file appears under its name only when whole and checked.

    Parameters
    ----------
    source : WeightsSource
        What to fetch. Its ``url`` is not None.
    path : Path
        Where to put it. Missing folders are made.

    Raises
    ------
    WeightsError
        If the server cannot be reached, sends something else, or the file cannot be written.
        Says what to put where by hand.
    """
    logger.info("fetching %s to '%s'", source.url, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(path) as part:
            sha256 = _download(source, part)
            if not sha256.startswith(source.sha256):
                raise WeightsError(
                    f"what came from {source.url} is damaged or another file: its SHA-256 starts "
                    f"with {sha256[: len(source.sha256)]} instead of {source.sha256}"
                )
    except (OSError, HTTPException) as error:
        reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise WeightsError(
            f"cannot fetch {source.filename} ({reason}); "
            f"put {source.url} at '{path}' or pass features.weights=PATH"
        ) from error


def _download(source: WeightsSource, part: Path) -> str:
    """Stream a URL into a file and hash it on the way."""
    if source.url is None:
        raise ValueError(f"{source.filename} has no address")
    sha256 = hashlib.sha256()
    with (
        urllib.request.urlopen(source.url, timeout=_TIMEOUT_SECONDS) as response,
        part.open("wb") as file,
        tqdm(
            desc=source.filename,
            total=int(response.headers.get("Content-Length", 0)) or None,
            unit="B",
            unit_scale=True,
            disable=None,
        ) as progress,
    ):
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            sha256.update(chunk)
            progress.update(len(chunk))
    return sha256.hexdigest()


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Temporary path beside the final one; renamed after success, removed after failure."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
