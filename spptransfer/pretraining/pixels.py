"""Decoded images: kept in memory where they fit, else decoded anew whenever they are shown."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from spptransfer.errors import DatasetError, ImageError
from spptransfer.images import decode, render
from spptransfer.pretraining.source import Source, Split

logger = logging.getLogger(__name__)

Image = npt.NDArray[np.uint8]
Progress = Callable[[Iterable[Image | None], int, str], Iterable[Image | None]]

# Beyond this, decoded images stay on the disk as files.
MEMORY_LIMIT = 6 * 2**30
# Photographs are about this much longer than wide.
_ASPECT = 1.4
# One that is longer than that would take the room of many, and is decoded anew all the same.
_LONGEST = 8


class Pixels:
    """Images of a split at one scale.

    Parameters
    ----------
    source : Source
        Where the files lie.
    split : Split
        Which files.
    scale : int
        Smaller side of every image in pixels.
    limit : int, default=6 GiB
        Bytes of decoded images that may be kept in memory.

    Attributes
    ----------
    fits : bool
        Whether the images are kept in memory.
    damaged : int
        How many of those in memory are no images.
    """

    def __init__(self, source: Source, split: Split, scale: int, limit: int = MEMORY_LIMIT) -> None:
        self.split = split
        self.scale = scale
        self._source = source
        self._kept: list[Image | None] | None = None
        self._too_long: set[int] = set()
        self._told: set[str] = set()
        self.damaged = 0
        self.fits = len(split) * 3 * scale**2 * _ASPECT <= limit

    def __len__(self) -> int:
        return len(self.split)

    def load(self, jobs: int, progress: Progress) -> None:
        """Decode all images once, if they fit.

        Raises
        ------
        DatasetError
            If not one of them can be decoded.
        """
        if not self.fits:
            return
        pool = ThreadPoolExecutor(jobs)
        try:
            decoded = pool.map(self._to_keep, range(len(self)))
            kept = list(progress(decoded, len(self), "decoding"))
        finally:
            # Who is interrupted does not wait for all that was asked for.
            pool.shutdown(cancel_futures=True)
        self.damaged = sum(image is None for image in kept) - len(self._too_long)
        if self.damaged == len(kept):
            raise DatasetError(f"'{self._source.root}': not one image can be decoded")
        self._kept = kept

    def image(self, position: int) -> Image | None:
        """One image, H x W x 3; None if its file is damaged."""
        if self._kept is None or position in self._too_long:
            return self._decoded(position)
        return self._kept[position]

    def at_scale(self, position: int, scale: int) -> Image | None:
        """One image decoded anew at another scale."""
        name = self.split.names[position]
        try:
            return render(decode(self._source.read(name)), scale)
        except ImageError as error:
            if name not in self._told:  # it is met again in every epoch
                self._told.add(name)
                logger.warning("'%s' is left out: %s", name, error)
            return None

    def _to_keep(self, position: int) -> Image | None:
        image = self._decoded(position)
        if image is not None and max(image.shape) > _LONGEST * self.scale:
            self._too_long.add(position)
            return None
        return image

    def _decoded(self, position: int) -> Image | None:
        return self.at_scale(position, self.scale)
