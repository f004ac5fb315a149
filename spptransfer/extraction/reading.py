"""Image files: what their headers say, and their views at the scales wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
# A file of up to this many bytes is kept from the reading of its header until it is decoded.
KEPT_BYTES = 1 << 18

# Failures that say nothing about the image; such a row is tried again by the next run.
OUT_OF_MEMORY = "out of memory: the image does not fit even on its own"
CHANGED = "the file changed while it was being read"
PASSING = (OUT_OF_MEMORY, CHANGED)


class Rendering(NamedTuple):
    """Scale and view at which an image is shown to a network."""

    scale: int
    view: View


Views = Mapping[Rendering, npt.NDArray[np.uint8]]


class Stamp(NamedTuple):
    """Size in bytes and times of change in nanoseconds: while they stay, so does the content."""

    size: int = 0
    modified: int = 0
    changed: int = 0


@dataclass(frozen=True)
class ImageInfo:
    """What is known of an image before it is decoded, or why nothing is.

    `data` is the file's content where it is small enough to be kept, else empty; `views` are
    there already where another process has decoded them.
    """

    stamp: Stamp = field(default_factory=Stamp)
    digest: str = ""
    height: int = 0
    width: int = 0
    error: str = ""
    data: bytes = field(default=b"", repr=False)
    views: Views = field(default_factory=dict, repr=False)


def stamp_of(path: Path) -> Stamp:
    """Ask the file system for the stamp of a file."""
    status = path.stat()
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def read_header(source: Source) -> ImageInfo:
    """Read what an image's header says; a broken image is no exception but a result."""
    stamp, digest, data = Stamp(), "", b""
    try:
        if isinstance(source, np.ndarray):
            height, width = images.from_array(source).size[::-1]
        else:
            # Before the content, so that a change in between is noticed by the next run.
            stamp = stamp_of(source)
            data = images.read_bytes(source)
            digest = images.content_digest(data)
            height, width = images.upright_size(data)
    except ImageError as error:
        return ImageInfo(stamp, digest, error=str(error))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return ImageInfo(stamp, digest, error=f"cannot read the image: {reason}")
    kept = data if len(data) <= KEPT_BYTES else b""
    return ImageInfo(stamp, digest, height, width, data=kept)


def view_sizes(
    info: ImageInfo, renderings: Sequence[Rendering]
) -> tuple[tuple[int, int], ...] | str:
    """Return the sizes of an image's views, or why there are none."""
    if info.error:
        return info.error
    try:
        return tuple(images.view_size(info.height, info.width, *each) for each in renderings)
    except ImageError as error:
        return str(error)


def decode_views(source: Source, info: ImageInfo, renderings: Sequence[Rendering]) -> Views | str:
    """Decode an image once and render its views, or say why there are none."""
    try:
        if isinstance(source, np.ndarray):
            image = images.from_array(source)
            return {each: images.render(image, *each) for each in renderings}
        data = info.data
        if not data:
            data = images.read_bytes(source)
            if images.content_digest(data) != info.digest:
                return CHANGED
        return dict(zip(renderings, images.views(data, renderings), strict=True))
    except ImageError as error:
        return str(error)
    except (MemoryError, RuntimeError) as error:  # torch's resize says so by a RuntimeError
        from spptransfer.runtimes.devices import is_out_of_memory  # imports torch

        if not is_out_of_memory(error):
            raise
        return OUT_OF_MEMORY


def read_image(source: Source, renderings: Sequence[Rendering]) -> ImageInfo:
    """Read and decode an image at once."""
    info = read_header(source)
    if isinstance(view_sizes(info, renderings), str):
        return info
    views = decode_views(source, info, renderings)
    if isinstance(views, str):
        return replace(info, error=views, data=b"")
    return replace(info, views=views, data=b"")
