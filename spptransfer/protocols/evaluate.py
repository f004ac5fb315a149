"""Train and test on every split of a protocol, from cached features to named metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from spptransfer import metrics
from spptransfer.datasets import Dataset
from spptransfer.normalization import FITTED_STEPS, PyramidNormalizer
from spptransfer.protocols.splits import Split
from spptransfer.protocols.training import Classifier, Training, fit_classifier, gram_if_useful

if TYPE_CHECKING:
    from spptransfer.svm import GramMatrix, RowSubset

    Rows = npt.NDArray[np.floating] | RowSubset

logger = logging.getLogger(__name__)

ReadFeatures = Callable[[Sequence[str]], npt.NDArray[np.float32]]


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
    metrics: dict[str, float]
    per_class: dict[str, npt.NDArray[np.float64]]


@dataclass
class Evaluation:
    """All splits of a protocol, and the metrics over them."""

    results: list[SplitResult] = field(default_factory=list)

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
        rows = [result.per_class[metric] for result in self.results if metric in result.per_class]
        if not rows:
            return None
        table = np.array(rows)
        counts = (~np.isnan(table)).sum(axis=0)
        return np.where(counts, np.nansum(table, axis=0) / np.maximum(counts, 1), np.nan)


def evaluate(
    read_features: ReadFeatures,
    dataset: Dataset,
    splits: Sequence[Split],
    *,
    training: Training,
    normalize: Sequence[str] = ("l2",),
    block_sizes: Sequence[int] | None = None,
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
    progress : bool, default=False
        Show a bar over the splits.

    Returns
    -------
    Evaluation
    """
    used = set().union(*(set(split.train) | set(split.test) for split in splits))
    ids = [id for id in dataset.ids if id in used]
    row_of = {id: row for row, id in enumerate(ids)}

    def rows(ids: Sequence[str]) -> npt.NDArray[np.intp]:
        return np.array([row_of[id] for id in ids], dtype=np.intp)

    prepared = _Prepared(read_features(ids), normalize, block_sizes)
    prepared.share_gram(
        training,
        [rows(split.train) for split in splits],
        n_classes=len(dataset.classes),
        n_folds=max(len(split.folds) for split in splits) if len(training.C) > 1 else 0,
    )
    evaluation = Evaluation()
    for split in tqdm(splits, unit="split", disable=not progress or len(splits) == 1):
        taken = prepared.take(rows(split.train), rows(split.test))
        evaluation.results.append(_evaluate_split(split, taken, dataset, training))
        headline = next(iter(evaluation.results[-1].metrics.items()))
        logger.info("%s: %s %.4f", split.name, *headline)
    return evaluation


@dataclass
class _Taken:
    """Normalised rows of one split, their inner products if known, the normaliser of a model."""

    X_train: Rows
    X_test: npt.NDArray[np.floating]
    normalizer: PyramidNormalizer
    gram: npt.NDArray[np.floating] | None = None


class _Prepared:
    """Features with the steps that look at one row only already applied, and their Gram matrix.

    The Gram matrix serves every split, as long as no step learns from a split.
    """

    def __init__(
        self,
        X: npt.NDArray[np.float32],
        normalize: Sequence[str],
        block_sizes: Sequence[int] | None,
    ) -> None:
        self.X = X
        self._steps = list(normalize)
        self._block_sizes = block_sizes
        self._per_split = any(step in FITTED_STEPS for step in normalize)
        self._gram: GramMatrix | None = None
        if not self._per_split:
            self._in_place = PyramidNormalizer(self._steps, block_sizes=block_sizes, copy=False)
            self.X = self._in_place.fit(X).transform(X)

    def share_gram(
        self, training: Training, train: Sequence[npt.NDArray[np.intp]], **counts: int
    ) -> None:
        """Compute the Gram matrix of all splits' training rows, if that pays."""
        if not self._per_split:
            self._gram = gram_if_useful(self.X, training, train, **counts)

    def take(self, train: npt.NDArray[np.intp], test: npt.NDArray[np.intp]) -> _Taken:
        """What a split needs."""
        normalizer = PyramidNormalizer(self._steps, block_sizes=self._block_sizes)
        X_test = self.X[test]
        if self._gram is not None:  # training will hardly read its rows
            from spptransfer.svm import RowSubset

            normalizer.fit(self.X[train[:1]])  # whose steps learn nothing
            return _Taken(RowSubset(self.X, train), X_test, normalizer, self._gram.of(train))
        X_train = self.X[train]
        normalizer.fit(X_train)
        if self._per_split:
            X_train, X_test = normalizer.transform(X_train), normalizer.transform(X_test)
        return _Taken(X_train, X_test, normalizer)


def _evaluate_split(
    split: Split, taken: _Taken, dataset: Dataset, training: Training
) -> SplitResult:
    position = {id: i for i, id in enumerate(split.train)}
    folds = [np.array([position[id] for id in fold], dtype=np.intp) for fold in split.folds]
    classifier = fit_classifier(
        taken.X_train,
        dataset.targets_of(split.train),
        n_classes=len(dataset.classes),
        training=training,
        folds=folds,
        gram=taken.gram,
    )
    targets, scores = dataset.targets_of(split.test), classifier.decision_function(taken.X_test)
    values, per_class = measure(targets, scores)
    return SplitResult(split, classifier, taken.normalizer, targets, scores, values, per_class)


def measure(
    targets: npt.NDArray[np.integer], scores: npt.NDArray[np.floating]
) -> tuple[dict[str, float], dict[str, npt.NDArray[np.float64]]]:
    """All metrics of one test set by their full names.

    Parameters
    ----------
    targets : ndarray of int, shape (n,) or (n, n_classes)
        Class indices, or an indicator in {1, 0 = ignored, -1}.
    scores : ndarray of shape (n, n_classes)
        Decision values.

    Returns
    -------
    (dict of str to float, dict of str to ndarray of shape (n_classes,))
        Values, and values per class for the metrics that have them.

    Examples
    --------
    >>> values, _ = measure(np.array([0, 1]), np.array([[2.0, 1.0], [0.0, 3.0]]))
    >>> values["overall accuracy"]
    1.0
    """
    values: dict[str, float] = {}
    per_class: dict[str, npt.NDArray[np.float64]] = {}
    for name in metrics.metrics_of(multi_label=targets.ndim == 2):
        metric = metrics.METRICS[name]
        found = metric.compute(targets, scores)
        values[name] = found[0] if metric.per_class else found
        if metric.per_class:
            per_class[name] = found[1]
    return values, per_class
