"""Top-1 and top-5 errors of trained networks on labelled images, averaged over views."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from spptransfer.errors import ConfigError, DatasetError, ImageError, one_of
from spptransfer.extraction.extractor import group
from spptransfer.extraction.reading import OUT_OF_MEMORY
from spptransfer.pretraining.evaluation_network import NetworkClassifier, load_classifier
from spptransfer.pretraining.evaluation_views import (
    ViewAverager,
    check_scheme,
    render_scales,
    scheme_sizes,
)
from spptransfer.pretraining.source import RGBImage
from spptransfer.pretraining.views import Scheme, make_scheme
from spptransfer.runtimes import ComputeOptions
from spptransfer.runtimes.devices import is_out_of_memory, limit_threads, may_be_unsupported

__all__ = [
    "LabelledImages",
    "MeasuredErrors",
    "NetworkClassifier",
    "SchemeErrors",
    "ViewAverager",
    "load_classifier",
    "make_scheme",
    "measure_errors",
    "rank_of_truth",
]

PRECISIONS = ("float32", "bfloat16")
_NOT_FINITE = "the class scores are not finite"

# Decoded images held in memory at a time, and how many are read before that is looked at.
_CHUNK_BYTES = 1 << 28
_READ_AT_ONCE = 32


class LabelledImages(Protocol):
    """What is evaluated on: images by position, each with the index of its class."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes, in the order of their indices."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, position: int) -> tuple[RGBImage, int]:
        """Upright RGB image, uint8 of shape (H, W, 3), and index of its class.

        May raise `ImageError`.
        """


@dataclass(frozen=True)
class SchemeErrors:
    """How often a network was wrong under a scheme.

    Parameters
    ----------
    scheme : Scheme
        The views that were averaged over.
    images : int
        Images that count.
    top1_wrong, top5_wrong : int
        Images whose class was not the best, or not among the best five.
    seconds : float
        Wall-clock time of resizing and classifying, without reading and decoding.

    Attributes
    ----------
    top1_error, top5_error, top1_accuracy, top5_accuracy : float
        Shares of the images; NaN without images.

    Examples
    --------
    >>> errors = SchemeErrors(make_scheme("full"), images=200, top1_wrong=70, top5_wrong=30)
    >>> errors.top1_error, errors.top5_error, errors.top1_accuracy
    (0.35, 0.15, 0.65)
    """

    scheme: Scheme
    images: int = 0
    top1_wrong: int = 0
    top5_wrong: int = 0
    seconds: float = 0.0

    @property
    def top1_error(self) -> float:  # noqa: D102
        return self.top1_wrong / self.images if self.images else float("nan")

    @property
    def top5_error(self) -> float:  # noqa: D102
        return self.top5_wrong / self.images if self.images else float("nan")

    @property
    def top1_accuracy(self) -> float:  # noqa: D102
        return 1.0 - self.top1_error

    @property
    def top5_accuracy(self) -> float:  # noqa: D102
        return 1.0 - self.top5_error


@dataclass(frozen=True)
class MeasuredErrors:
    """Errors under every scheme, and the images that could not be evaluated.

    Attributes
    ----------
    errors : tuple of SchemeErrors
        In the order of the schemes asked for.
    failures : dict of int to str
        Reason by position; such an image counts in no scheme that it failed in.
    computed_by : tuple of str
        Name and version of what computed the maps, as a feature cache records it.
    """

    errors: tuple[SchemeErrors, ...]
    failures: dict[int, str] = field(default_factory=dict)
    computed_by: tuple[str, ...] = ()


def measure_errors(
    classifiers: Sequence[NetworkClassifier],
    images: LabelledImages,
    schemes: Sequence[Scheme],
    *,
    options: ComputeOptions = ComputeOptions(),
    precision: str = "float32",
    note: Callable[[int], Any] = lambda images: None,
) -> MeasuredErrors:
    """Measure top-1 and top-5 errors under every scheme.

    Parameters
    ----------
    classifiers : sequence of NetworkClassifier
        The network; of several, the class probabilities are averaged.
    images : LabelledImages
        What to classify. Its classes are matched by name with those that the weights know; where
        they know none, by position.
    schemes : sequence of Scheme
        Made by `make_scheme`.
    options : ComputeOptions, optional
        Device, runtime and threads. On a CPU every thread takes its own batch of images whose
        views have exactly the same size: parallelism belongs between images.
    precision : {"float32", "bfloat16"}
        Arithmetic of the networks; probabilities are averaged in float32.
    note : callable, optional
        Is told of the images of every batch, under every scheme, once they are done.

    Returns
    -------
    MeasuredErrors

    Raises
    ------
    ConfigError
        If the networks score other classes than the images have, or than each other; if a view
        is too small for them; if there is no such device, precision or runtime; or if the
        runtime cannot compute the maps.
    DatasetError
        If there are no images, or not one can be evaluated.

    Examples
    --------
    >>> mini = load_classifier("spp-mini", "embedded")
    >>> class Noise(list):
    ...     classes = mini.about.classes
    >>> rng = np.random.default_rng(0)
    >>> noise = Noise((rng.integers(0, 256, (80, 96, 3), np.uint8), 5) for _ in range(4))
    >>> measure_errors([mini], noise, [make_scheme("full", size=64)]).errors[0].images
    4
    """
    score_of = _scores_of_classes(classifiers, images)
    one_of("precision", precision, PRECISIONS)
    for classifier in classifiers:
        for scheme in schemes:
            check_scheme(scheme, classifier)
    averagers = [ViewAverager(each, precision=precision, options=options) for each in classifiers]
    runtime = averagers[0].runtime
    totals = [SchemeErrors(scheme) for scheme in schemes]
    with contextlib.ExitStack() as stack:
        for averager in averagers:
            stack.enter_context(averager.runtime)
        threads = ThreadPoolExecutor(runtime.workers, "evaluate", limit_threads)
        stack.callback(threads.shutdown, cancel_futures=True)
        evaluator = _Evaluator(averagers, score_of, threads, note)
        for chunk in evaluator.chunks(images):
            totals = [evaluator.add(errors, chunk) for errors in totals]
    failures = dict(sorted(evaluator.failures.items()))
    if not all(errors.images for errors in totals):
        raise DatasetError(f"not one image could be evaluated: {next(iter(failures.values()))}")
    return MeasuredErrors(tuple(totals), failures, (runtime.description,))


def _scores_of_classes(
    classifiers: Sequence[NetworkClassifier], images: LabelledImages
) -> npt.NDArray[np.int64]:
    """Which score belongs to each class of the images: by name where the weights know names."""
    if not len(images):
        raise DatasetError("there are no images to evaluate on")
    if not classifiers:
        raise ConfigError("weights: at least one network is needed")
    if len({(network.num_classes, network.about.classes) for network in classifiers}) > 1:
        raise ConfigError("weights: networks for different classes cannot be averaged")
    known, count = classifiers[0].about.classes, classifiers[0].num_classes
    if known is None:
        if count != len(images.classes):
            raise ConfigError(
                f"weights: a network for {count:,} classes cannot be evaluated on images of "
                f"{len(images.classes):,} classes"
            )
        return np.arange(count)
    strange = [name for name in images.classes if name not in known]
    if strange:
        raise ConfigError(f"weights: the network has no class '{strange[0]}' as the images have")
    return np.array([known.index(name) for name in images.classes])


class _Image(NamedTuple):
    position: int
    pixels: RGBImage
    label: int


class _Evaluator:
    """Read images and rank their classes, batch by batch, in threads; note failures."""

    def __init__(
        self,
        averagers: Sequence[ViewAverager],
        score_of: npt.NDArray[np.int64],
        threads: ThreadPoolExecutor,
        note: Callable[[int], Any],
    ) -> None:
        self.failures: dict[int, str] = {}
        self._averagers, self._score_of = averagers, score_of
        self._threads, self._note = threads, note
        self._batch_pixels = min(averager.runtime.batch_pixels for averager in averagers)
        self._computing = threading.BoundedSemaphore(averagers[0].runtime.computers)

    def chunks(self, images: LabelledImages) -> Iterator[list[_Image]]:
        """Read images in their order, as many at a time as may be held."""

        def read(position: int) -> _Image | None:
            try:
                return _Image(position, *images[position])
            except ImageError as error:
                self.failures[position] = str(error)
                return None

        chunk: list[_Image] = []
        for start in range(0, len(images), _READ_AT_ONCE):
            positions = range(start, min(start + _READ_AT_ONCE, len(images)))
            chunk += [image for image in self._threads.map(read, positions) if image]
            if sum(image.pixels.nbytes for image in chunk) >= _CHUNK_BYTES:
                yield chunk
                chunk = []
        yield chunk

    def add(self, errors: SchemeErrors, chunk: Sequence[_Image]) -> SchemeErrors:
        """Add the errors among some more images."""
        start = time.perf_counter()
        ranks = np.array(list(self._ranks(chunk, errors.scheme).values()), np.int64)
        return SchemeErrors(
            errors.scheme,
            errors.images + len(ranks),
            errors.top1_wrong + int((ranks >= 1).sum()),
            errors.top5_wrong + int((ranks >= 5).sum()),
            errors.seconds + time.perf_counter() - start,
        )

    def _ranks(self, chunk: Sequence[_Image], scheme: Scheme) -> dict[int, int]:
        """Rank the classes of images by position; those that cannot be classified are left out."""
        ranks: dict[int, int] = {}
        batches = list(self._batches(chunk, scheme))
        found = self._threads.map(lambda batch: self._rank_if_it_fits(batch, scheme), batches)
        too_large = []
        for batch, of_batch in zip(batches, found, strict=True):
            if of_batch is None:
                too_large.append(batch)
            ranks |= of_batch or {}
            self._note(len(batch))
        for batch in too_large:  # once more, now that nothing else is computed
            ranks |= self._rank_in_halves(batch, scheme)
        return ranks

    def _batches(self, chunk: Sequence[_Image], scheme: Scheme) -> Iterator[list[_Image]]:
        """Gather images whose views have one size at every scale, within a number of pixels."""
        sizes: list[tuple[tuple[int, int], ...] | None] = []
        for image in chunk:
            try:
                height, width, _ = image.pixels.shape
                sizes.append(scheme_sizes(height, width, scheme))
            except ImageError as error:
                self.failures[image.position] = str(error)
                sizes.append(None)
        costs = [max(tall * wide for tall, wide in size) if size else 0 for size in sizes]
        for members in group(sizes, costs, self._batch_pixels):
            yield [chunk[i] for i in members]

    def _rank_if_it_fits(self, batch: Sequence[_Image], scheme: Scheme) -> dict[int, int] | None:
        try:
            with self._computing:
                return self._rank(batch, scheme)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _rank_in_halves(self, batch: Sequence[_Image], scheme: Scheme) -> dict[int, int]:
        """Rank a batch that does not fit in memory, in halves down to single images."""
        try:
            return self._rank(batch, scheme)
        except (RuntimeError, MemoryError) as error:
            alone = len(batch) == 1
            if not is_out_of_memory(error) or (alone and may_be_unsupported(error)):
                raise
        if alone:
            self.failures[batch[0].position] = OUT_OF_MEMORY
            return {}
        middle = len(batch) // 2
        first, second = batch[:middle], batch[middle:]
        return self._rank_in_halves(first, scheme) | self._rank_in_halves(second, scheme)

    def _rank(self, batch: Sequence[_Image], scheme: Scheme) -> dict[int, int]:
        views = render_scales([image.pixels for image in batch], scheme)
        mean = np.mean([each.probabilities(views, scheme) for each in self._averagers], axis=0)
        ranks = rank_of_truth(mean, self._score_of[[image.label for image in batch]])
        known = np.isfinite(mean).all(axis=1)
        positions = np.array([image.position for image in batch])
        self.failures |= dict.fromkeys(positions[~known].tolist(), _NOT_FINITE)
        return dict(zip(positions[known].tolist(), ranks[known].tolist(), strict=True))


def rank_of_truth(
    probabilities: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.integer[Any]]
) -> npt.NDArray[np.int64]:
    """Rank each image's own class, from 0 for the best.

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
