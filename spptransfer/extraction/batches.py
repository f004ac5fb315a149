"""Which images share a batch: those whose views have exactly one size, never padded."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from spptransfer import images
from spptransfer.errors import ImageError
from spptransfer.images import View

# An image is given as a file or as its samples.
Source = Path | npt.NDArray[np.uint8]


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

    `view_sizes` holds height and width at every scale; it is None where `error` says why.
    """

    stamp: Stamp
    digest: str = ""
    height: int = 0
    width: int = 0
    view_sizes: tuple[tuple[int, int], ...] | None = None
    error: str = ""


@dataclass(frozen=True)
class Loaded:
    """A decoded image: digest of its very bytes and its view at every scale, or why not."""

    digest: str = ""
    views: tuple[npt.NDArray[np.uint8], ...] = ()
    error: str = ""


def probe(source: Source, scales: Sequence[int], view: View) -> Probe:
    """Read the size of an image from its header; a broken image is no exception but a result."""
    stamp, digest = Stamp(), ""
    try:
        if isinstance(source, np.ndarray):
            height, width = images.from_array(source).size[::-1]
        else:
            # Before the content, so that a change in between is noticed by the next run.
            stamp = Stamp.of(source)
            data = images.read_bytes(source)
            digest = images.content_digest(data)
            height, width = images.upright_size(data)
        sizes = tuple(images.view_size(height, width, scale, view) for scale in scales)
    except ImageError as error:
        return Probe(stamp, digest, error=str(error))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return Probe(stamp, digest, error=f"cannot read the image: {reason}")
    return Probe(stamp, digest, height, width, sizes)


def load(source: Source, expected: Probe, scales: Sequence[int], view: View) -> Loaded:
    """Read an image and render it at every scale; a broken one is a result too."""
    digest = expected.digest
    try:
        image = _decode(source, digest)
        views = tuple(images.render(image, scale, view) for scale in scales)
    except ImageError as error:
        return Loaded(digest, error=str(error))
    except MemoryError:
        return Loaded(digest, error=OUT_OF_MEMORY)
    return Loaded(digest, views)


def _decode(source: Source, digest: str) -> Image.Image:
    if isinstance(source, np.ndarray):
        return images.from_array(source)
    data = images.read_bytes(source)
    if images.content_digest(data) != digest:
        raise ImageError(CHANGED)
    return images.decode(data)


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
