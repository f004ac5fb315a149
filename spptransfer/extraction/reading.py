"""Image files: what their headers say, and their views at the scales wanted."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from spptransfer import images
from spptransfer.errors import ImageError
from spptransfer.images import FilePart, Place, Rendering
from spptransfer.spec import FeatureSpec

# An image is given as a file or as its samples; a dataset's may also be a part of a file.
Source = Path | npt.NDArray[np.uint8]
AnySource = Source | FilePart
# A file of up to this many bytes is kept from the reading of its header until it is decoded.
KEPT_BYTES = 1 << 18
# Images that each process which reads has ready.
_AHEAD = 16

# Failures that say nothing about the image; such a row is tried again by the next run.
OUT_OF_MEMORY = "out of memory: the image does not fit even on its own"
CHANGED = "the file changed while it was being read"
PASSING = (OUT_OF_MEMORY, CHANGED)

Mask = npt.NDArray[np.bool_]
# Size in bytes and times of change in nanoseconds: while they stay, so does the content.
Stamp = tuple[int, int, int]


class Part(NamedTuple):
    """A run of images that is computed and written as one.

    `positions` says where they stand in their dataset, `lacking` which of them each cache lacks.
    """

    positions: npt.NDArray[np.intp]
    ids: Sequence[str]
    sources: Sequence[AnySource]
    lacking: tuple[Mask, ...]


Views = Mapping[Rendering, npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class ImageInfo:
    """What is known of an image before it is decoded, or why nothing is.

    `data` is the file's content where it is small enough to be kept, else empty; `views` are
    there already where another process has decoded them.
    """

    stamp: Stamp = (0, 0, 0)
    digest: str = ""
    height: int = 0
    width: int = 0
    error: str = ""
    data: bytes = field(default=b"", repr=False)
    views: Views = field(default_factory=dict, repr=False)


def renderings_of(specs: Iterable[FeatureSpec]) -> tuple[Rendering, ...]:
    """Return how some specs show an image, each way once."""
    found = [
        Rendering(scale, spec.view, spec.grid, spec.longest)
        for spec in specs
        for scale in spec.scales
    ]
    return tuple(dict.fromkeys(found))


def specs_with(rendering: Rendering, specs: Sequence[FeatureSpec]) -> list[int]:
    """Return the numbers of the specs that show an image in a way."""
    return [number for number, spec in enumerate(specs) if rendering in renderings_of([spec])]


def stamp_of(path: Place) -> Stamp:
    """Ask the file system for the stamp of a file; of a part of one, with the part's size."""
    if isinstance(path, FilePart):
        return path.size, *stamp_of(path.file)[1:]
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def read_header(source: AnySource) -> ImageInfo:
    """Read what an image's header says; a broken image is no exception but a result."""
    stamp, digest, data = (0, 0, 0), "", b""
    try:
        if isinstance(source, np.ndarray):
            height, width = images.from_array(source).size[::-1]
        else:
            with contextlib.suppress(OSError, ValueError):  # reading it says why
                # Before the content, so that a change in between is noticed by the next run.
                stamp = stamp_of(source)
            data = images.read_bytes(source)
            digest = images.content_digest(data)
            height, width = images.upright_size(data)
    except ImageError as error:
        return ImageInfo(stamp, digest, error=str(error))
    kept = data if len(data) <= KEPT_BYTES else b""
    return ImageInfo(stamp, digest, height, width, data=kept)


def view_sizes(
    info: ImageInfo, renderings: Sequence[Rendering]
) -> tuple[tuple[int, int], ...] | str:
    """Return the sizes of an image's views, or why there are none."""
    if info.error:
        return info.error
    try:
        return tuple([images.view_size(info.height, info.width, *each) for each in renderings])
    except ImageError as error:
        return str(error)


def decode_views(
    source: AnySource, info: ImageInfo, renderings: Sequence[Rendering]
) -> Views | str:
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


def read_in_processes(
    parts: Iterable[Part], renderings: Sequence[Rendering], processes: int
) -> Iterator[tuple[Part, list[ImageInfo]]]:
    """Read parts by processes, for a device that computes faster than threads read."""
    from torch.utils.data import DataLoader

    begun: deque[Part] = deque()

    def sources() -> Iterator[AnySource]:
        for part in parts:
            begun.append(part)
            yield from part.sources

    dataset: Any = _Images(renderings)
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=sources(),
        num_workers=processes,
        prefetch_factor=_AHEAD,
    )
    infos: list[ImageInfo] = []
    for info, tensors in loader:
        views = {key: tensor.numpy() for key, tensor in zip(renderings, tensors, strict=False)}
        infos.append(replace(info, views=views))
        if len(infos) == len(begun[0].sources):
            yield begun.popleft(), infos
            infos = []


class _Images:
    """Decode an image by its source, which is its index; tensors travel in shared memory."""

    def __init__(self, renderings: Sequence[Rendering]) -> None:
        self._renderings = renderings

    def __getitem__(self, source: AnySource) -> tuple[ImageInfo, list[Any]]:
        from torch import from_numpy

        info = read_header(source)
        if isinstance(view_sizes(info, self._renderings), str):
            return info, []
        views = decode_views(source, info, self._renderings)
        if isinstance(views, str):
            return replace(info, error=views, data=b""), []
        return replace(info, data=b""), list(map(from_numpy, views.values()))
