"""Images are read, batched by their size and classified by a pool of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from spptransfer.errors import ImageError
from spptransfer.extraction.batches import OUT_OF_MEMORY, group
from spptransfer.extraction.compute import IMAGE_PIXELS, gpu_batch_pixels
from spptransfer.extraction.transfers import Lanes
from spptransfer.pretraining.evaluation_views import (
    Pixels,
    ViewAverager,
    render_scales,
    view_sizes,
)
from spptransfer.pretraining.views import Scheme
from spptransfer.processor import beginning, is_out_of_memory, may_be_unsupported
from spptransfer.runtimes import has_threads

# Decoded images held in memory at a time, and how many are read before that is looked at.
_CHUNK_BYTES = 1 << 28
_READ_AT_ONCE = 32
# A CPU gains nothing from larger batches, a GPU does.
_CPU_BATCH_PIXELS = 8 * IMAGE_PIXELS

# In place of an image's rank.
_NOT_FINITE, _NO_MEMORY = -1, -2
_REASONS = {_NOT_FINITE: "the class scores are not finite", _NO_MEMORY: OUT_OF_MEMORY}


class LabelledImages(Protocol):
    """What is evaluated on: images by position, each with the index of its class."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes, in the order of their indices."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, position: int) -> tuple[Pixels, int]:
        """Upright RGB image, uint8 of shape (H, W, 3), and index of its class.

        May raise `ImageError`.
        """


def rank_of_truth(
    probabilities: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.integer[Any]]
) -> npt.NDArray[np.int64]:
    """Rank of each image's own class, from 0 for the best.

    Parameters
    ----------
    probabilities : ndarray of shape (n_images, n_classes)
        Any scores; higher means more likely. Equal ones are ranked by class index.
    labels : ndarray of int, shape (n_images,)
        Class indices.

    Returns
    -------
    ndarray of int64, shape (n_images,)

    Examples
    --------
    >>> rank_of_truth(np.array([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2]]), np.array([2, 1]))
    array([2, 1])
    """
    own = np.take_along_axis(probabilities, labels[:, None], axis=1)
    first = np.arange(probabilities.shape[1]) < labels[:, None]
    ahead = (probabilities > own) | ((probabilities == own) & first)
    return ahead.sum(axis=1, dtype=np.int64)


@dataclass(frozen=True)
class _Image:
    position: int
    pixels: Pixels
    label: int

    @property
    def height(self) -> int:
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        return self.pixels.shape[1]


def _gpu_pixels(averager: ViewAverager) -> int:
    return gpu_batch_pixels(averager.device, averager.classifier.info, averager.dtype)


class Pool:
    """Threads that read images and classify batches of them.

    Parameters
    ----------
    averagers : sequence of ViewAverager
        The network; of several, the class probabilities are averaged.
    score_of : ndarray of int, shape (n_classes,)
        Which score belongs to each class of the images.
    jobs : int
        Number of threads.
    note : callable
        Is told of the images of every batch once they are classified.

    Notes
    -----
    On a CPU every thread computes its own batch with one thread of its own: parallelism belongs
    between images, not inside an operator.
    """

    def __init__(
        self,
        averagers: Sequence[ViewAverager],
        score_of: npt.NDArray[np.int64],
        jobs: int,
        note: Callable[[int], Any],
    ) -> None:
        self._note = note
        self._averagers = averagers
        self._score_of = score_of
        on_cpu = averagers[0].device.type == "cpu"
        self._batch_pixels = _CPU_BATCH_PIXELS if on_cpu else min(map(_gpu_pixels, averagers))
        begin = beginning(jobs, waiting=has_threads(averagers[0].runtime)) if on_cpu else None
        self._threads = ThreadPoolExecutor(jobs, "evaluate", begin)
        # A GPU takes one batch at a time, or two would share its memory.
        self._lanes = Lanes(jobs if on_cpu else 1)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def chunks(self, images: LabelledImages, failures: dict[int, str]) -> Iterator[list[_Image]]:
        """Read images in their order, as many at a time as may be held."""
        chunk: list[_Image] = []
        for start in range(0, len(images), _READ_AT_ONCE):
            positions = range(start, min(start + _READ_AT_ONCE, len(images)))
            chunk += self._read(images, positions, failures)
            if sum(image.pixels.nbytes for image in chunk) >= _CHUNK_BYTES:
                yield chunk
                chunk = []
        yield chunk

    def _read(
        self, images: LabelledImages, positions: range, failures: dict[int, str]
    ) -> list[_Image]:
        """Read images; those that cannot be are noted as failures."""

        def one(position: int) -> _Image | str:
            try:
                return _Image(position, *images[position])
            except ImageError as error:
                return str(error)

        found = dict(zip(positions, self._threads.map(one, positions), strict=True))
        failures.update({at: image for at, image in found.items() if isinstance(image, str)})
        return [image for image in found.values() if isinstance(image, _Image)]

    def ranks(
        self, chunk: Sequence[_Image], scheme: Scheme, failures: dict[int, str]
    ) -> npt.NDArray[np.int64]:
        """Classify images and rank their classes; those that cannot be are noted as failures."""
        batches = list(self._batches(chunk, scheme, failures))
        classified = self._threads.map(lambda batch: self._rank(batch, scheme), batches)
        ranks: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)]
        for batch, found in zip(batches, classified, strict=True):
            ranks.append(found[found >= 0])
            pairs = zip(batch, found.tolist(), strict=True)
            failures.update({i.position: _REASONS[rank] for i, rank in pairs if rank < 0})
            self._note(len(batch))
        return np.concatenate(ranks)

    def _batches(
        self, chunk: Sequence[_Image], scheme: Scheme, failures: dict[int, str]
    ) -> Iterator[list[_Image]]:
        """Images whose views have one size at every scale, within the budget of pixels."""
        keys: list[tuple[tuple[int, int], ...] | None] = []
        for image in chunk:
            try:
                keys.append(view_sizes(image.height, image.width, scheme))
            except ImageError as error:
                keys.append(None)
                failures[image.position] = str(error)
        costs = [max((tall * wide for tall, wide in key or ()), default=1) for key in keys]
        for members in group(keys, costs, self._batch_pixels):
            yield [chunk[member] for member in members]

    def _rank(
        self, batch: Sequence[_Image], scheme: Scheme, alone: bool = False
    ) -> npt.NDArray[np.int64]:
        """Rank of every image's class, or below 0 why there is none.

        A batch is halved where memory does not suffice, down to one image alone.
        """
        try:
            with self._lanes.all() if alone else self._lanes.one():
                mean = self._probabilities(batch, scheme)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or (alone and may_be_unsupported(error)):
                raise
        else:
            ranks = rank_of_truth(mean, self._score_of[[image.label for image in batch]])
            return np.where(np.isfinite(mean).all(axis=1), ranks, _NOT_FINITE)
        if alone:
            return np.array([_NO_MEMORY])
        if len(batch) == 1:
            return self._rank(batch, scheme, alone=True)
        middle = len(batch) // 2
        return np.concatenate(
            [self._rank(half, scheme) for half in (batch[:middle], batch[middle:])]
        )

    def _probabilities(self, batch: Sequence[_Image], scheme: Scheme) -> npt.NDArray[Any]:
        views = render_scales([image.pixels for image in batch], scheme)
        each = [averager.probabilities(views, scheme) for averager in self._averagers]
        return np.mean(each, axis=0)
