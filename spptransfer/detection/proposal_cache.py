"""Compute the proposals of many images side by side, and keep them in a folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from spptransfer import images
from spptransfer.detection.proposals import File
from spptransfer.detection.proposer import Proposer, Windows
from spptransfer.errors import ConfigError, DatasetError, ImageError
from spptransfer.files import atomic_write, make_folder, remove_leftovers
from spptransfer.system import count_processors

Image = str | os.PathLike[str] | npt.NDArray[np.uint8]

# Images that each thread is ahead of whoever takes their windows.
_AHEAD = 2


@dataclass(frozen=True)
class ProposalCache:
    """Proposals by an image's content and a method's key, one small file for each.

    A file appears whole or not at all, so that it does not matter who else writes, or is killed;
    one that is damaged counts as absent.

    Parameters
    ----------
    folder : Path
        Made when something is first put there.
    """

    folder: Path

    def get(self, key: str, digest: str) -> Windows | None:
        """Return the proposals by a method's key in the image with a digest, if they are there."""
        with contextlib.suppress(OSError, ValueError, EOFError):
            found = np.load(self._path(key, digest), allow_pickle=False)
            if found.dtype == np.float32 and found.ndim == 2 and found.shape[1] == 4:
                return found
        return None

    def put(self, key: str, digest: str, windows: Windows) -> None:
        """Keep the proposals of an image.

        Raises
        ------
        CacheError
            If they cannot be written.
        """
        path = self._path(key, digest)
        make_folder(path.parent)
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.save(file, windows)

    def _path(self, key: str, digest: str) -> Path:
        method = f"{key.split()[0]}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
        return self.folder / method / digest[:2] / f"{digest}.npy"


def windows_of(
    sources: Sequence[Image],
    proposer: Proposer,
    cache: ProposalCache | None = None,
    *,
    ids: Sequence[str] | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> Iterator[Windows]:
    """Propose windows in images, in their order.

    Parameters
    ----------
    sources : sequence of path-like or ndarray of uint8
        Files, or arrays of shape (H, W), (H, W, 3) or (H, W, 4).
    proposer : Proposer
        Such as `open_proposer` gives it, but none that needs maps.
    cache : ProposalCache, optional
        What looks at the pixels is taken from there where it is, and put there where it is not.
    ids : sequence of str, optional
        Of the images, for a method that looks windows up; by default the paths as text,
        and the positions of arrays.
    workers : int, optional
        Threads, by default one per processor that we may use.
    progress : bool, default=False
        Whether to show a bar.

    Yields
    ------
    ndarray of float32, shape (n, 4)
        ``x0, y0, x1, y1`` in pixels of the upright image; none if it cannot be read.

    Raises
    ------
    DatasetError
        If the file of a `File` says nothing of an image.
    ConfigError
        If the method needs maps.
    CacheError
        If proposals cannot be written.

    Examples
    --------
    >>> from spptransfer.detection.methods import open_proposer
    >>> list(windows_of(["absent.jpg"], open_proposer("grid")))
    [array([], shape=(0, 4), dtype=float32)]
    """
    if ids is None:
        ids = [str(at if isinstance(one, np.ndarray) else one) for at, one in enumerate(sources)]
    _check(proposer, ids)
    used = cache if proposer.needs_pixels else None
    if used:
        remove_leftovers(used.folder, "**/*")
    threads = workers or count_processors()
    pending: deque[Future[_Found]] = deque()
    bar = tqdm(total=len(sources), desc="proposals", unit="image", disable=not progress)
    pool = ThreadPoolExecutor(threads, "proposals")
    try:
        for source, id in zip(sources, ids, strict=True):
            pending.append(pool.submit(_propose, source, id, proposer, used))
            if len(pending) >= _AHEAD * threads:
                yield _take(pending, proposer, used)
                bar.update()
        while pending:
            yield _take(pending, proposer, used)
            bar.update()
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()


class _Found(NamedTuple):
    windows: Windows
    digest: str = ""  # of an image whose windows are still to be kept


def _check(proposer: Proposer, ids: Sequence[str]) -> None:
    if proposer.needs_maps:
        raise ConfigError(f"proposals: {proposer.name} needs the images' maps")
    if isinstance(proposer, File) and (lacking := proposer.lacking(ids)):
        first = ", ".join(map(repr, lacking[:3]))
        raise DatasetError(
            f"proposals: '{proposer.path}' says nothing of {len(lacking):,} of {len(ids):,} "
            f"images: {first}{', ...' if len(lacking) > 3 else ''}"
        )


def _propose(source: Image, id: str, proposer: Proposer, cache: ProposalCache | None) -> _Found:
    try:
        data = source if isinstance(source, np.ndarray) else images.read_bytes(source)
        if not proposer.needs_pixels:
            return _Found(proposer.propose(np.broadcast_to(np.uint8(0), _shape(data)), id=id))
        digest = _digest(data) if cache else ""
        kept = cache.get(proposer.key, digest) if cache else None
        if kept is not None:
            return _Found(kept)
        image = images.from_array(data) if isinstance(data, np.ndarray) else images.decode(data)
        return _Found(proposer.propose(np.asarray(image), id=id), digest)
    except ImageError:
        return _Found(np.empty((0, 4), np.float32))


def _shape(data: bytes | npt.NDArray[np.uint8]) -> tuple[int, int, int]:
    if isinstance(data, np.ndarray):
        width, height = images.from_array(data).size
    else:
        height, width = images.upright_size(data)
    return height, width, 3


def _digest(data: bytes | npt.NDArray[np.uint8]) -> str:
    if isinstance(data, np.ndarray):
        return images.array_digest(data)
    return images.content_digest(data)


def _take(
    pending: deque[Future[_Found]], proposer: Proposer, cache: ProposalCache | None
) -> Windows:
    """Return what was first begun; only the thread that takes also writes."""
    found = pending.popleft().result()
    if cache and found.digest:
        cache.put(proposer.key, found.digest, found.windows)
    return found.windows
