"""Top-1 and top-5 errors of trained networks on labelled images, averaged over views."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from spptransfer.system import count_processors
from spptransfer.errors import ConfigError, DatasetError, suggestion
from spptransfer.pretraining.evaluation_network import Classifier, load_classifier
from spptransfer.pretraining.evaluation_pool import LabelledImages, Pool, rank_of_truth
from spptransfer.pretraining.evaluation_views import ViewAverager, check_scheme
from spptransfer.pretraining.views import Scheme, make_scheme
from spptransfer.runtimes import describe_runtime

__all__ = [
    "Classifier",
    "Evaluation",
    "LabelledImages",
    "SchemeErrors",
    "ViewAverager",
    "evaluate",
    "load_classifier",
    "make_scheme",
    "rank_of_truth",
]

PRECISIONS = ("float32", "bfloat16")


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
    def top1_error(self) -> float:
        """Share of images whose class was not the best; NaN without images."""
        return self.top1_wrong / self.images if self.images else float("nan")

    @property
    def top5_error(self) -> float:
        """Share of images whose class was not among the best five; NaN without images."""
        return self.top5_wrong / self.images if self.images else float("nan")

    @property
    def top1_accuracy(self) -> float:
        """What the top-1 error leaves."""
        return 1.0 - self.top1_error

    @property
    def top5_accuracy(self) -> float:
        """What the top-5 error leaves."""
        return 1.0 - self.top5_error


@dataclass(frozen=True)
class Evaluation:
    """Errors under every scheme, and the images that could not be evaluated.

    Parameters
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


def evaluate(
    classifiers: Sequence[Classifier],
    images: LabelledImages,
    schemes: Sequence[Scheme],
    *,
    device: str = "cpu",
    precision: str = "float32",
    runtime: str = "torch",
    jobs: int | None = None,
    note: Callable[[int], Any] = lambda images: None,
) -> Evaluation:
    """Measure top-1 and top-5 errors under every scheme.

    Parameters
    ----------
    classifiers : sequence of Classifier
        The network; of several, the class probabilities are averaged. They are moved to the
        device and to the precision.
    images : LabelledImages
        What to classify. Its classes are matched by name with those that the weights know; where
        they know none, by position.
    schemes : sequence of Scheme
        Made by `make_scheme`.
    device : str, default="cpu"
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    precision : {"float32", "bfloat16"}
        Arithmetic of the networks; probabilities are averaged in float32.
    runtime : {"torch", "openvino", "onnxruntime"}, default="torch"
        Who computes the maps; the others than torch on the CPU only.
    jobs : int, optional
        Parallel threads, by default one per processor. Each takes its own batch of images whose
        views have exactly the same size.
    note : callable, optional
        Is told of the images of every batch, under every scheme, once they are done.

    Returns
    -------
    Evaluation

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
    >>> evaluate([mini], noise, [make_scheme("full", size=64)]).errors[0].images
    4
    """
    score_of = _scores_of_classes(classifiers, images)
    jobs = jobs or count_processors()
    _check(classifiers, schemes, precision)
    asked: dict[str, Any] = {"precision": precision, "runtime": runtime, "threads": jobs}
    averagers = [ViewAverager(classifier, device, **asked) for classifier in classifiers]
    totals = [SchemeErrors(scheme) for scheme in schemes]
    failures: dict[int, str] = {}
    with Pool(averagers, score_of, jobs, note) as pool:
        for chunk in pool.chunks(images, failures):
            totals = [_added(errors, pool, chunk, failures) for errors in totals]
    if not all(errors.images for errors in totals):
        raise DatasetError(f"not one image could be evaluated: {next(iter(failures.values()))}")
    computed_by = (describe_runtime(averagers[0].runtime),)
    return Evaluation(tuple(totals), dict(sorted(failures.items())), computed_by)


def _scores_of_classes(
    classifiers: Sequence[Classifier], images: LabelledImages
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


def _check(classifiers: Sequence[Classifier], schemes: Sequence[Scheme], precision: str) -> None:
    if precision not in PRECISIONS:
        known = suggestion(precision, PRECISIONS)
        raise ConfigError(f"precision: '{precision}' is unknown; {known}")
    for classifier in classifiers:
        for scheme in schemes:
            check_scheme(scheme, classifier)


def _added(
    errors: SchemeErrors, pool: Pool, chunk: Sequence[Any], failures: dict[int, str]
) -> SchemeErrors:
    """Errors so far and those among some more images."""
    start = time.perf_counter()
    ranks = pool.ranks(chunk, errors.scheme, failures)
    return SchemeErrors(
        errors.scheme,
        errors.images + len(ranks),
        errors.top1_wrong + int((ranks >= 1).sum()),
        errors.top5_wrong + int((ranks >= 5).sum()),
        errors.seconds + time.perf_counter() - start,
    )
