"""Batches: what is shown, how it is cropped, flipped and coloured.

Everything random in a batch is drawn from (seed, epoch, step), so that neither the number of
threads nor a restart changes what the network sees.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from spptransfer.pretraining.config import ImagesSection
from spptransfer.pretraining.pixels import Image, Pixels

# A label that no loss counts; images whose files are damaged carry it.
IGNORED = -100

_ORDER, _STEP, _SIZE = 1, 2, 3
_ASPECTS = (3 / 4, 4 / 3)
_SAMPLED = 500
_SAMPLED_PIXELS = 150_000

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Batch:
    """Some images ready for the device.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, size, size, 3)
        Crops.
    labels : ndarray of int64, shape (n,)
        Class numbers, or `IGNORED`.
    positions : ndarray of int64, shape (n,)
        Where the images stand in their split.
    flipped : ndarray of bool, shape (n,)
        Which are mirrored.
    colours : ndarray of float32, shape (n, 3)
        What is added to every pixel of an image, in units of 1/255.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    flipped: npt.NDArray[np.bool_]
    colours: npt.NDArray[np.float32]


class TrainingBatches:
    """Augmented batches of a split, each of its images once in an epoch.

    Images that do not fill a last batch are left out of an epoch; another epoch leaves out
    others.

    Parameters
    ----------
    pixels : Pixels
        The split's images.
    section : ImagesSection
        How they are cropped, flipped and coloured.
    batch : int
        Images in a batch, over all processes.
    seed : int
        Seed of the run.
    rank, processes : int
        Number of this process and of all: each takes its share of every batch.
    """

    def __init__(
        self,
        pixels: Pixels,
        section: ImagesSection,
        batch: int,
        seed: int,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self._pixels = pixels
        self._section = section
        self.batch = min(batch, len(pixels))
        self._seed = seed
        self._share = slice(rank, None, processes)
        self._principal = principal_colours(pixels) if section.colour else None
        self._order: tuple[int, npt.NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return len(self._pixels) // self.batch

    def make(self, epoch: int, step: int) -> Batch:
        """Make the share of a batch that is due to this process."""
        positions = self._positions(epoch, step)
        generator = np.random.default_rng([self._seed, _STEP, epoch, step])
        # The whole batch's draws come first: they are the same for any number of processes.
        flipped = generator.random(len(positions)) < (0.5 if self._section.flip else 0)
        places = generator.random((len(positions), 4))
        normal = generator.standard_normal((len(positions), 3))
        share = self._share
        chosen = positions[share], flipped[share], places[share]
        images, labels = self._crop_all(*chosen)
        colours = np.zeros_like(normal)
        if self._principal is not None:
            colours = self._section.colour * normal @ self._principal
        return Batch(
            images, labels, positions[share], flipped[share], colours[share].astype(np.float32)
        )

    def _positions(self, epoch: int, step: int) -> npt.NDArray[np.int64]:
        known, order = self._order
        if known != epoch:
            generator = np.random.default_rng([self._seed, _ORDER, epoch])
            order = generator.permutation(len(self._pixels))
            self._order = (epoch, order)
        return order[step * self.batch : (step + 1) * self.batch]

    def _crop_all(
        self,
        positions: npt.NDArray[np.int64],
        flipped: npt.NDArray[np.bool_],
        places: npt.NDArray[np.float64],
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        size = self._section.size
        images = np.zeros((len(positions), size, size, 3), np.uint8)
        labels = self._pixels.split.labels[positions].copy()
        for row, (position, place) in enumerate(zip(positions, places, strict=True)):
            image = self._pixels.image(int(position))
            if image is None:
                labels[row] = IGNORED
                continue
            crop = self._crop(image, place)
            images[row] = crop[:, ::-1] if flipped[row] else crop
        return images, labels

    def _crop(self, image: Image, place: npt.NDArray[np.float64]) -> Image:
        size = self._section.size
        if self._section.crops == "resized":
            return resized_crop(image, size, self._section.area, place)
        if self._section.crops == "corners":
            top, left = ((0.5, 0.5), (0, 0), (0, 1), (1, 0), (1, 1))[int(5 * place[0])]
            return crop_at(image, size, top, left)
        height, width = image.shape[0] - size + 1, image.shape[1] - size + 1
        i, j = int(place[0] * height), int(place[1] * width)
        return image[i : i + size, j : j + size]


def crop_at(image: Image, size: int, top: float, left: float) -> Image:
    """Square of an image; 0 and 1 are its edges, 0.5 the middle.

    Examples
    --------
    >>> image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    >>> crop_at(image, 1, 1, 0)
    array([[[6, 7, 8]]], dtype=uint8)
    """
    i, j = int((image.shape[0] - size) * top), int((image.shape[1] - size) * left)
    return image[i : i + size, j : j + size]


def resized_crop(
    image: Image, size: int, area: float, place: npt.NDArray[np.float64]
) -> npt.NDArray[np.uint8]:
    """Rectangle of any area from a share of the image on, resized to a square.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        The image.
    size : int
        Side of the result.
    area : float
        Smallest share of the image.
    place : ndarray of shape (4,)
        Numbers in [0, 1) for the area, the aspect, top and left.

    Returns
    -------
    ndarray of uint8, shape (size, size, 3)
    """
    height, width = image.shape[:2]
    pixels = height * width * (area + (1 - area) * place[0])
    low, high = np.log(_ASPECTS)
    stretch = np.exp((low + (high - low) * place[1]) / 2)
    w = min(np.sqrt(pixels) * stretch, width)
    h = min(np.sqrt(pixels) / stretch, height)
    top, left = place[2] * (height - h), place[3] * (width - w)
    box = (left, top, left + w, top + h)
    return np.asarray(Pillow.fromarray(image).resize((size, size), Pillow.Resampling.BILINEAR, box))


class ValidationBatches:
    """Central crops of a split, in order.

    Parameters
    ----------
    pixels : Pixels
        The split's images.
    size : int
        Side of the crops.
    batch : int
        Images in a batch, over all processes.
    rank, processes : int
        Number of this process and of all.
    """

    def __init__(
        self, pixels: Pixels, size: int, batch: int, rank: int = 0, processes: int = 1
    ) -> None:
        self._pixels = pixels
        self._size = size
        self._batch = batch
        self._share = slice(rank, None, processes)

    @property
    def steps(self) -> int:
        """Batches in all; the last one may be short."""
        return -(-len(self._pixels) // self._batch)

    def make(self, step: int) -> Batch:
        """Make the share of a batch that is due to this process."""
        first = step * self._batch
        positions = np.arange(first, min(first + self._batch, len(self._pixels)))[self._share]
        images = np.zeros((len(positions), self._size, self._size, 3), np.uint8)
        labels = self._pixels.split.labels[positions].copy()
        for row, position in enumerate(positions):
            image = self._pixels.image(int(position))
            if image is None:
                labels[row] = IGNORED
            else:
                images[row] = crop_at(image, self._size, 0.5, 0.5)
        flipped = np.zeros(len(positions), dtype=bool)
        return Batch(images, labels, positions, flipped, np.zeros((len(positions), 3), np.float32))


def principal_colours(pixels: Pixels) -> npt.NDArray[np.float64]:
    """Principal axes of the colours of some images, one per row, as long as their deviation.

    A random multiple of each, added to a whole image, is the colour jitter of Krizhevsky et al.
    (NeurIPS 2012, section 4.1).

    Parameters
    ----------
    pixels : Pixels
        Images; at most 500 of them, evenly spread, are looked at.

    Returns
    -------
    ndarray of shape (3, 3)
        In units of 1/255.
    """
    chosen = np.linspace(0, len(pixels) - 1, min(_SAMPLED, len(pixels))).astype(int)
    images = (pixels.image(int(position)) for position in chosen)
    colours = [_some_colours(image) for image in images if image is not None]
    if not colours:
        return np.zeros((3, 3))
    variances, axes = np.linalg.eigh(np.cov(np.concatenate(colours).T.astype(np.float64)))
    # An axis has no direction of its own; fixing one makes the jitter the same on any machine.
    axes = axes * np.where(axes.sum(0) < 0, -1, 1)
    return np.sqrt(variances.clip(0))[:, None] * axes.T


def _some_colours(image: Image) -> npt.NDArray[np.uint8]:
    """Every seventh pixel, of very large images fewer; a copy, which does not keep the image."""
    colours = image.reshape(-1, 3)
    return colours[:: max(7, len(colours) // _SAMPLED_PIXELS)].copy()


def side_of_epoch(section: ImagesSection, seed: int, epoch: int, epochs: int) -> int:
    """Side of the network's input in an epoch.

    With two sizes whole epochs alternate, and the last one is at the larger size; a random size is
    drawn once for an epoch.

    Examples
    --------
    >>> section = ImagesSection(size=224, small=180, sizes="multi")
    >>> [side_of_epoch(section, 0, epoch, 4) for epoch in range(4)]
    [180, 224, 180, 224]
    """
    if section.sizes == "multi":
        return section.size if (epochs - epoch) % 2 else section.small
    if section.sizes == "random":
        generator = np.random.default_rng([seed, _SIZE, epoch])
        return int(generator.integers(section.small, section.size + 1))
    return section.size


def prefetched(make: Callable[[int], T], first: int, stop: int, workers: int) -> Iterator[T]:
    """Results for first ... stop - 1, in order, computed ahead by background threads.

    At most `workers` + 1 results wait at a time.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="batches") as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for step in range(first, stop):
                waiting.append(pool.submit(make, step))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
