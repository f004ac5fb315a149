"""Which images share a batch: those whose views have exactly one size, never padded."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from spptransfer import images
from spptransfer.errors import ImageError
from spptransfer.images import View

# An image is given as a file or as its samples.
Source = Path | npt.NDArray[np.uint8]


# A file of up to this many bytes is kept from the look at its header until it is decoded.
KEPT_BYTES = 1 << 18

# Images that one thread reads in a row.
CHUNK = 8

# Failures that say nothing about the image; such a row is tried again by the next run.
OUT_OF_MEMORY = "out of memory: the image does not fit even on its own"
CHANGED = "the file changed while it was being read"
PASSING = (OUT_OF_MEMORY, CHANGED)


@dataclass(frozen=True)
class Stamp:
    """What the file system says of a file; as long as that stays, so does its content."""

    size: int = 0
    modified: int = 0
    changed: int = 0

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Size in bytes, times of change of the content and of the file, in nanoseconds."""
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True)
class Probe:
    """What is known of an image before it is decoded.

    `view_sizes` holds height and width at every scale; it is None where `error` says why. `data`
    is the file's content where it is small enough to be kept, else empty.
    """

    stamp: Stamp
    digest: str = ""
    height: int = 0
    width: int = 0
    view_sizes: tuple[tuple[int, int], ...] | None = None
    error: str = ""
    data: bytes = field(default=b"", repr=False)


class Rendering(NamedTuple):
    """How an image becomes a view."""

    scale: int
    view: View


@dataclass(frozen=True)
class Loaded:
    """A decoded image: digest of its very bytes and its views, or why there are none."""

    digest: str = ""
    views: tuple[npt.NDArray[np.uint8], ...] = ()
    error: str = ""


def probe(source: Source, scales: Sequence[int], view: View) -> Probe:
    """Read the size of an image from its header; a broken image is no exception but a result."""
    return measure(look(source), scales, view)


def look(source: Source) -> Probe:
    """Read what an image's header says, whatever is to become of it."""
    stamp, digest, data = Stamp(), "", b""
    try:
        if isinstance(source, np.ndarray):
            height, width = images.from_array(source).size[::-1]
        else:
            # Before the content, so that a change in between is noticed by the next run.
            stamp = Stamp.of(source)
            data = images.read_bytes(source)
            digest = images.content_digest(data)
            height, width = images.upright_size(data)
    except ImageError as error:
        return Probe(stamp, digest, error=str(error))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return Probe(stamp, digest, error=f"cannot read the image: {reason}")
    return Probe(stamp, digest, height, width, data=data if len(data) <= KEPT_BYTES else b"")


def measure(seen: Probe, scales: Sequence[int], view: View) -> Probe:
    """Say how large the views of an image will be; one that gets too large is a result too."""
    if seen.error:
        return seen
    try:
        sizes = [images.view_size(seen.height, seen.width, scale, view) for scale in scales]
    except ImageError as error:
        return Probe(seen.stamp, seen.digest, error=str(error))
    return replace(seen, view_sizes=tuple(sizes))


def load(source: Source, digest: str, renderings: Sequence[Rendering], data: bytes = b"") -> Loaded:
    """Read an image once and render its views; a broken one is a result too.

    Parameters
    ----------
    source : Path or ndarray of uint8
        The image.
    digest : str
        SHA-256 that the file must still have.
    renderings : sequence of Rendering
        The views wanted.
    data : bytes, optional
        The file's content, of that SHA-256, if it was kept.

    Returns
    -------
    Loaded
    """
    try:
        if isinstance(source, np.ndarray):
            image = images.from_array(source)
            return Loaded(digest, tuple(images.render(image, *each) for each in renderings))
        if not data:
            data = images.read_bytes(source)
            if images.content_digest(data) != digest:
                return Loaded(digest, error=CHANGED)
        return Loaded(digest, images.views(data, renderings))
    except ImageError as error:
        return Loaded(digest, error=str(error))
    except MemoryError:
        return Loaded(digest, error=OUT_OF_MEMORY)


def group(
    keys: Sequence[Hashable | None], costs: Sequence[int], budget: int
) -> Iterator[list[int]]:
    """Cut positions into batches of equal keys, each within a budget.

    Parameters
    ----------
    keys : sequence of hashable or None
        Positions share a batch only if their keys are equal; those of None are left out.
    costs : sequence of int
        Cost of every position, equal for equal keys.
    budget : int
        A batch costs at most this, unless a single position already costs more.

    Yields
    ------
    list of int
        Positions, ascending; batches come in the order of their keys' first appearance.

    Examples
    --------
    >>> list(group(["a", "b", "a", None, "a"], [4, 9, 4, 0, 4], budget=8))
    [[0, 2], [4], [1]]
    """
    members: dict[Hashable, list[int]] = {}
    for position, key in enumerate(keys):
        if key is not None:
            members.setdefault(key, []).append(position)
    for positions in members.values():
        size = max(1, budget // max(1, costs[positions[0]]))
        for start in range(0, len(positions), size):
            yield positions[start : start + size]


@dataclass(frozen=True)
class Batch:
    """Images whose views at one rendering have one size, wanted by the same caches.

    Attributes
    ----------
    rendering : Rendering
        Scale and view.
    wanted : tuple of int
        Numbers of the caches.
    positions : tuple of int
        Positions of the images in their part, ascending.
    full : bool
        Whether one image more would have been too many.
    """

    rendering: Rendering
    wanted: tuple[int, ...]
    positions: tuple[int, ...]
    full: bool = False


class Gathering:
    """Views on their way into batches; the last one to come makes a batch complete.

    An image is decoded once for all batches that it belongs to, and each batch holds what it
    would hold if its rendering were the only one.

    Parameters
    ----------
    batches : sequence of Batch
        What is to be computed.

    Examples
    --------
    >>> small, large = Rendering(64, "full"), Rendering(96, "full")
    >>> batches = [Batch(small, (0,), (0, 1)), Batch(large, (0,), (0,)), Batch(large, (0,), (1,))]
    >>> gathering = Gathering(batches)
    >>> list(gathering.chunks())
    [(0, 1)]
    >>> gathering.renderings(1)
    [Rendering(scale=64, view='full'), Rendering(scale=96, view='full')]
    """

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches
        self._missing = [len(batch.positions) for batch in batches]
        self._views: list[dict[int, npt.NDArray[np.uint8]]] = [{} for _ in batches]
        self._of: dict[int, list[int]] = {}
        for number, batch in enumerate(batches):
            for position in batch.positions:
                self._of.setdefault(position, []).append(number)
        self._lock = threading.Lock()

    def chunks(self, limit: int = CHUNK) -> Iterator[tuple[int, ...]]:
        """Positions to load one after the other, such that few views wait for others.

        A large batch is loaded by several threads, each of which has at most `limit` images.
        """
        seen: set[int] = set()
        for batch in self._batches:
            new = tuple(position for position in batch.positions if position not in seen)
            seen.update(new)
            for start in range(0, len(new), limit):
                yield new[start : start + limit]

    def renderings(self, position: int) -> list[Rendering]:
        """Views that an image is wanted in, in the order in which `put` expects them."""
        return [self._batches[number].rendering for number in self._of[position]]

    def wanted(self, position: int) -> set[int]:
        """Numbers of the caches that an image is wanted for."""
        return {cache for number in self._of[position] for cache in self._batches[number].wanted}

    def put(
        self, position: int, views: Sequence[npt.NDArray[np.uint8]]
    ) -> list[tuple[Batch, Mapping[int, npt.NDArray[np.uint8]]]]:
        """Take an image's views, or none if it cannot be read.

        Returns
        -------
        list of (Batch, mapping from position to ndarray)
            Batches that this completes, with the views there are, by ascending position.
        """
        complete: list[tuple[Batch, Mapping[int, npt.NDArray[np.uint8]]]] = []
        with self._lock:
            for i, number in enumerate(self._of[position]):
                if views:
                    self._views[number][position] = views[i]
                self._missing[number] -= 1
                if not self._missing[number]:
                    gathered, self._views[number] = self._views[number], {}
                    complete.append((self._batches[number], dict(sorted(gathered.items()))))
        return complete
