"""Train linear classifiers on every split, and measure them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from spptransfer import metrics
from spptransfer.calibration import fit_sigmoids, probabilities
from spptransfer.datasets import Dataset
from spptransfer.protocols.out_of_fold import deal_folds, held_out_values
from spptransfer.protocols.splits import Split
from spptransfer.protocols.training import (
    Classifier,
    Indices,
    Training,
    cheapest_gram,
    fit_classifier,
)
from spptransfer.text import counted, listed

if TYPE_CHECKING:
    from spptransfer.normalization import PyramidNormalizer
    from spptransfer.svm import GramMatrix, RowSubset

logger = logging.getLogger(__name__)

ReadFeatures = Callable[[Sequence[str]], npt.NDArray[np.float32]]

# A class with fewer test images than this has a number that one image moves a lot.
FEW = 5


@dataclass
class SplitResult:
    """One split: what was trained, the test images' scores, the metrics.

    `per_class` holds an array over the classes for the metrics that have one.
    """

    split: Split
    classifier: Classifier
    normalizer: PyramidNormalizer
    targets: npt.NDArray[np.integer]
    scores: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]
    metrics: dict[str, float]
    per_class: dict[str, npt.NDArray[np.float64]]

    def images_per_class(self, n_classes: int) -> Indices:
        """Count the test images of each class."""
        if self.targets.ndim == 2:
            return (self.targets == 1).sum(axis=0)
        return np.bincount(self.targets, minlength=n_classes)


@dataclass
class Evaluation:
    """All splits of a protocol, and the metrics over them.

    `for_use` is what was trained on all labelled images, where that was asked for.
    """

    results: list[SplitResult] = field(default_factory=list)
    for_use: SplitResult | None = None

    def mean(self, metric: str) -> float:
        """Mean of a metric over the splits."""
        return float(np.mean(self.values(metric)))

    def std(self, metric: str) -> float | None:
        """Standard deviation over the splits (n - 1 in the denominator); None for one split."""
        values = self.values(metric)
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    def values(self, metric: str) -> list[float]:
        """Value of a metric on every split."""
        return [result.metrics[metric] for result in self.results]

    def class_means(self, metric: str) -> npt.NDArray[np.float64] | None:
        """Mean over the splits of a metric for every class, None if it has no such values."""
        if metric not in self.results[0].per_class:
            return None
        table = np.array([result.per_class[metric] for result in self.results])
        counts = (~np.isnan(table)).sum(axis=0)
        return np.where(counts, np.nansum(table, axis=0) / np.maximum(counts, 1), np.nan)

    def left_out(self, metric: str) -> Indices:
        """Classes that a split has no value of, since none of its test images shows them."""
        found = [r.per_class[metric] for r in self.results if metric in r.per_class]
        return np.flatnonzero(np.isnan(found).any(axis=0)) if found else np.empty(0, np.intp)

    def cautions(self, metric: str, classes: Sequence[str]) -> list[str]:
        """Say how far a metric may be off where classes have few test images or none."""
        said, missing, n_classes = [], self.left_out(metric), len(classes)
        if len(missing):
            said.append(
                f"the {metric} is over {n_classes - len(missing)} of {n_classes} classes: "
                f"no test image shows {listed([classes[k] for k in missing])}"
            )
        images = np.min([r.images_per_class(n_classes) for r in self.results], axis=0)
        few = {name: int(n) for name, n in zip(classes, images, strict=True) if n < FEW}
        if few and images.any():
            smallest = images[images > 0].min()
            whole = smallest * (n_classes - len(missing))
            if metric == metrics.OVERALL_ACCURACY:
                whole = min(len(r.targets) for r in self.results)
            said.append(
                f"{len(few)} of {n_classes} classes have fewer than {FEW} test images, "
                f"{counted(few)}: one image more or less moves such a class's number by up to "
                f"about {100 / smallest:.0f} points, and the {metric} by up to about "
                f"{100 / whole:.1f}"
            )
        return said


def evaluate(
    read_features: ReadFeatures,
    dataset: Dataset,
    splits: Sequence[Split],
    *,
    training: Training,
    normalize: Sequence[str] = ("l2",),
    block_sizes: Sequence[int] | None = None,
    for_use: Split | None = None,
    uncalibrated: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Train on the training part of every split and measure on its test part.

    Parameters
    ----------
    read_features : callable
        Gives the feature matrix of a list of ids, row by row.
    dataset : Dataset
        Classes and labels by id.
    splits : sequence of Split
        Training and test ids, with the folds in which C is chosen.
    training : Training
        Loss, values of C, class weights, solver.
    normalize : sequence of str
        Steps of `PyramidNormalizer`; what they learn, they learn from the training part.
    block_sizes : sequence of int, optional
        Widths of the pyramid's blocks.
    for_use : Split, optional
        What to train a model for use on (`all_images`), after the splits.
    uncalibrated : int, default=0
        Of so many splits, the first, nobody asks for probabilities.
    progress : bool, default=False
        Show a bar over the splits.

    Returns
    -------
    Evaluation
    """
    from spptransfer.normalization import FITTED_STEPS, PyramidNormalizer
    from spptransfer.svm import RowSubset

    def rows(ids: Sequence[str]) -> Indices:
        return np.searchsorted(used, dataset.positions(ids))

    everything = [*splits, for_use] if for_use else list(splits)
    used = np.unique(np.concatenate([dataset.positions(s.train + s.test) for s in everything]))
    X = read_features([dataset.ids[int(position)] for position in used])
    learns = not set(FITTED_STEPS).isdisjoint(normalize)
    gram = None
    if not learns:  # all steps look at one row only
        X = PyramidNormalizer(normalize, block_sizes=block_sizes, copy=False).fit_transform(X)
        gram = _shared_gram(X, training, everything, [rows(s.train) for s in everything], dataset)
    evaluation = Evaluation()
    largest_negative = 0 if training.difficult == "negative" else -1
    training = replace(training, difficult="ignore")  # what is none is -1 in the targets below
    silent = not progress or len(everything) == 1
    for number, split in enumerate(tqdm(everything, unit="split", disable=silent)):
        train, test = rows(split.train), rows(split.test)
        X_train, X_test = X[train[: None if gram is None else 1]], X[test]
        normalizer = PyramidNormalizer(normalize, block_sizes=block_sizes).fit(X_train)
        if learns:
            X_train = normalizer.transform(X_train)
            X_test = normalizer.transform(X_test) if len(test) else X_test
        classifier = _train(
            X_train if gram is None else RowSubset(X, train),  # that training will hardly read
            split.train_targets(dataset, largest_negative),
            n_classes=len(dataset.classes),
            training=training,
            folds=split.class_folds
            or [np.flatnonzero(np.isin(train, rows(f))) for f in split.folds],
            gram=None if gram is None else gram.of(train),
            calibrated=number >= uncalibrated,
        )
        targets, scores = dataset.targets_of(split.test), classifier.decision_function(X_test)
        found = probabilities(scores, classifier.sigmoids, multi_label=dataset.multi_label)
        measured = measure(targets, scores) if split.test else ({}, {})
        result = SplitResult(split, classifier, normalizer, targets, scores, found, *measured)
        if split is for_use:
            evaluation.for_use = result
        else:
            evaluation.results.append(result)
            logger.info("%s: %s %.4f", split.name, *next(iter(result.metrics.items())))
    return evaluation


def _train(
    X: npt.NDArray[np.floating] | RowSubset,
    targets: npt.NDArray[np.integer],
    *,
    n_classes: int,
    training: Training,
    folds: Sequence[Indices] | int,
    gram: npt.NDArray[np.floating] | None,
    calibrated: bool,
) -> Classifier:
    """Train a classifier, and fit its sigmoids to scores of images that others did not train on."""
    given: dict[str, Any] = {"n_classes": n_classes, "training": training, "gram": gram}
    classifier = fit_classifier(X, targets, folds=folds, **given)
    if calibrated and len(targets) > 1:
        apart = deal_folds(targets) if isinstance(folds, int) or not folds else folds
        classifier.sigmoids = fit_sigmoids(
            held_out_values(classifier, X, targets, apart, **given), targets
        )
    classifier.held_out = None
    return classifier


def _shared_gram(
    X: npt.NDArray[np.floating],
    training: Training,
    splits: Sequence[Split],
    train: Sequence[Indices],
    dataset: Dataset,
) -> GramMatrix | None:
    """Gram matrix of all training rows, for every split to reuse; None where it would not pay."""
    used, n_choices = np.unique(np.concatenate(train)), 1
    if training.solver != "spptransfer" or len(used) > X.shape[1]:
        return None
    if len(training.C) > 1:
        n_choices = (1 + max(split.n_folds for split in splits)) * len(training.C)
    shape, sizes = (len(used), X.shape[1]), [len(rows) for rows in train]
    precision = cheapest_gram(shape, sizes, len(dataset.classes) * n_choices)
    if precision is None:
        return None
    from spptransfer.svm import gram_matrix

    return gram_matrix(X, precision, rows=used)


def measure(
    targets: npt.NDArray[np.integer], scores: npt.NDArray[np.floating]
) -> tuple[dict[str, float], dict[str, npt.NDArray[np.float64]]]:
    """All metrics of one test set by their full names, and their values per class if any."""
    values: dict[str, float] = {}
    per_class: dict[str, npt.NDArray[np.float64]] = {}
    for name in metrics.metrics_of(multi_label=targets.ndim == 2):
        metric = metrics.METRICS[name]
        values[name] = found = metric.compute(targets, scores)
        if metric.per_class:
            values[name], per_class[name] = found
    return values, per_class
