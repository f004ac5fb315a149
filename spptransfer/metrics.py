"""Average precision as the PASCAL VOC devkits define it, and accuracies.

Three numbers go by the name of average precision, and on a ranking near 0.78 they differ by two
or three points, so each is always called by its full name:

``"11-point"``
    VOC 2007: the mean over the recalls t = 0, 0.1, ..., 1 of the largest precision at a recall
    of at least t.
``"area"``
    VOC 2010 and later: the area under the precision made monotone, each precision being
    replaced by the largest one at no smaller recall.
``"uninterpolated"``
    The sum over the positives of the precision at each; scikit-learn's
    ``average_precision_score``.

What the devkit does at the edges is kept (``VOCevalcls.m`` of VOC 2007):

* a target of 0 (only *difficult* objects) is neither right nor wrong: the image takes no part.
  Where no target is -1, there are no such images and 0 means absent, as `LinearSVM` reads it;
* images of equal score keep the order in which they are given (the devkit's sort is stable),
  for the 11-point and area numbers. The uninterpolated one takes tied images together, as
  scikit-learn does, so that it does not depend on their order;
* an image without a score, given as NaN, ranks after all others, as does minus infinity.

One thing differs: a class without positives has no average precision (NaN), where the devkit's
loop ends at 0; means leave such a class out. The recalls t are exact tenths, as the VOC papers
write them. MATLAB's ``0:0.1:1`` holds a 0.3 that is one rounding error too large, so that a recall
of exactly 3/10 (6 of 20 positives, 27 of 90) does not reach it: ``"11-point-matlab"`` has that too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from spptransfer.errors import ConfigError, suggestion

Method = Literal["11-point", "area", "uninterpolated", "11-point-matlab"]
METHODS: tuple[Method, ...] = get_args(Method)

MEAN_AVERAGE_PRECISION: dict[Method, str] = {
    "11-point": "mean average precision (11-point)",
    "area": "mean average precision (area)",
    "uninterpolated": "mean average precision (uninterpolated)",
}
# Of a detector: a detection is right that overlaps an object by half.
DETECTION_AVERAGE_PRECISION: dict[Method, str] = {
    "11-point": "mean average precision (11-point, IoU 0.5)",
    "area": "mean average precision (area, IoU 0.5)",
}
OVERALL_ACCURACY = "overall accuracy"
MEAN_PER_CLASS_ACCURACY = "mean per-class accuracy"

_Floats = npt.NDArray[np.float64]
_Counts = npt.NDArray[np.intp]
_Bools = npt.NDArray[np.bool_]


class PrecisionRecallCurve(NamedTuple):
    """Precision and recall among the images scored at least as high as each threshold."""

    precision: _Floats
    recall: _Floats
    thresholds: _Floats


class _Ranking(NamedTuple):
    """Images of each class by falling score; every array has the shape (n_images, n_classes)."""

    positive: _Bools
    true_positives: _Counts
    precision: _Floats  # 0 above the first image that takes part
    scores: _Floats


def average_precision(
    y_true: npt.ArrayLike, scores: npt.ArrayLike, method: Method = "11-point"
) -> float:
    """Average precision of one class.

    Parameters
    ----------
    y_true : array-like of int, shape (n_images,)
        1 = the class is present, -1 = absent, 0 = ignored. Without any -1, 0 = absent.
    scores : array-like of float, shape (n_images,)
        Higher means more likely; NaN means that the image was not scored.
    method : {"11-point", "area", "uninterpolated", "11-point-matlab"}, default="11-point"
        Which of the definitions (see the module's head).

    Returns
    -------
    float
        Between 0 and 1; NaN if no target is 1.

    Raises
    ------
    ConfigError
        If there is no such method.
    ValueError
        If the shapes differ or a target is not 1, 0 or -1.

    Examples
    --------
    >>> average_precision([1, -1, 1, 0], [0.9, 0.8, 0.7, 0.6], "uninterpolated")
    0.8333333333333333
    >>> average_precision([1, -1, 1, 0], [0.9, 0.8, 0.7, 0.6], "11-point")
    0.8484848484848484
    """
    targets, values = _as_columns(y_true, scores)
    return mean_average_precision(targets, values, method)[0]


def mean_average_precision(
    Y: npt.ArrayLike, S: npt.ArrayLike, method: Method = "11-point"
) -> tuple[float, _Floats]:
    """Average precision of each class, and its mean.

    Parameters
    ----------
    Y : array-like of int, shape (n_images, n_classes)
        1 = the class is present, -1 = absent, 0 = ignored. Without any -1, 0 = absent.
    S : array-like of float, shape (n_images, n_classes)
        Higher means more likely; NaN means that the image was not scored.
    method : {"11-point", "area", "uninterpolated", "11-point-matlab"}, default="11-point"
        Which of the definitions (see the module's head).

    Returns
    -------
    mean : float
        Over the classes that have a positive; NaN if none has.
    per_class : ndarray of float64, shape (n_classes,)
        NaN for a class without positives.

    Raises
    ------
    ConfigError
        If there is no such method.
    ValueError
        If the shapes differ or a target is not 1, 0 or -1.

    Examples
    --------
    >>> mean_average_precision([[1, -1], [-1, -1]], [[0.9, 0.1], [0.2, 0.3]], "area")
    (1.0, array([ 1., nan]))
    """
    if method not in METHODS:
        raise ConfigError(f"unknown method '{method}'; {suggestion(method, METHODS)}")
    ranking = _rank(*_checked(Y, S))
    n_positives = ranking.positive.sum(axis=0)
    measure = _MEASURES[method]
    scorable = n_positives > 0
    per_class = np.where(scorable, measure(ranking, np.maximum(n_positives, 1)), np.nan)
    mean = float(per_class[scorable].mean()) if scorable.any() else float("nan")
    return mean, per_class


def ranked_average_precision(
    right: npt.ArrayLike, n_positives: int, method: Method = "11-point"
) -> float:
    """Average precision of a ranking that need not hold all positives, as one of detections.

    Parameters
    ----------
    right : array-like of bool, shape (n_ranked,)
        Whether each is a positive, by falling score; the ignored ones left out.
    n_positives : int
        The number of all positives, ranked or not.
    method : {"11-point", "area", "uninterpolated", "11-point-matlab"}, default="11-point"
        Which of the definitions (see the module's head).

    Returns
    -------
    float
        Between 0 and 1; NaN if there are no positives.

    Examples
    --------
    >>> ranked_average_precision([True, False], 2, "area")
    0.5
    """
    if n_positives < 1:
        return float("nan")
    positive = np.asarray(right, bool).reshape(-1, 1)
    true_positives = np.cumsum(positive, axis=0)
    precision = true_positives / np.arange(1, 1 + len(positive))[:, None]
    falling = -np.arange(float(len(positive)))[:, None]
    ranking = _Ranking(positive, true_positives, precision, falling)
    return float(_MEASURES[method](ranking, np.array([n_positives]))[0])


def precision_recall_curve(y_true: npt.ArrayLike, scores: npt.ArrayLike) -> PrecisionRecallCurve:
    """Precision and recall of one class down its ranking, for drawing.

    Parameters
    ----------
    y_true : array-like of int, shape (n_images,)
        1 = the class is present, -1 = absent, 0 = ignored. Without any -1, 0 = absent.
    scores : array-like of float, shape (n_images,)
        Higher means more likely; NaN means that the image was not scored.

    Returns
    -------
    PrecisionRecallCurve
        Arrays with one point per image that is not ignored, by falling score; recalls are NaN
        if no target is 1, thresholds are minus infinity for images without a score.

    Raises
    ------
    ValueError
        If the shapes differ or a target is not 1, 0 or -1.

    Examples
    --------
    >>> curve = precision_recall_curve([1, -1, 1, 0], [0.9, 0.8, 0.7, 0.6])
    >>> curve.recall.tolist(), curve.thresholds.tolist()
    ([0.5, 0.5, 1.0], [0.9, 0.8, 0.7])
    """
    targets, values = _checked(*_as_columns(y_true, scores))
    taking_part = targets[:, 0] != 0
    ranking = _rank(targets[taking_part], values[taking_part])
    n_positives = ranking.positive.sum()
    recall = ranking.true_positives / (n_positives if n_positives else np.nan)
    return PrecisionRecallCurve(ranking.precision[:, 0], recall[:, 0], ranking.scores[:, 0])


def thin_curve(recall: _Floats, precision: _Floats, most: int = 100) -> _Floats:
    """Keep the precisions at new recalls, at most so many and one, from recall 0 on.

    Examples
    --------
    >>> thin_curve(np.array([0.5, 0.5, 1.0]), np.array([1.0, 0.5, 0.6]))
    array([[0. , 1. ],
           [0.5, 1. ],
           [1. , 0.6]])
    """
    rises = np.flatnonzero(np.diff(recall, prepend=0) > 0)
    if not len(rises):
        return np.zeros((1, 2))
    kept = rises[np.unique(np.linspace(0, len(rises) - 1, most).round().astype(int))]
    points = np.column_stack([recall[kept], precision[kept]])
    return np.vstack([[0, points[0, 1]], points])


def overall_accuracy(y_true: npt.ArrayLike, y_pred: npt.ArrayLike) -> float:
    """Share of images whose class is predicted.

    Parameters
    ----------
    y_true, y_pred : array-like of int, shape (n_images,)
        Class indices.

    Returns
    -------
    float
        Between 0 and 1; NaN without images.

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> overall_accuracy([0, 0, 0, 1], [0, 0, 0, 0])
    0.75
    """
    n_classes = 1 + max(np.max(y_true, initial=0), np.max(y_pred, initial=0))
    confusion = confusion_matrix(y_true, y_pred, int(n_classes))
    return float(confusion.trace() / confusion.sum()) if confusion.any() else float("nan")


def per_class_accuracy(y_true: npt.ArrayLike, y_pred: npt.ArrayLike, n_classes: int) -> _Floats:
    """Share of each class's images that are predicted as that class.

    Parameters
    ----------
    y_true, y_pred : array-like of int, shape (n_images,)
        Class indices below `n_classes`.
    n_classes : int
        Number of classes.

    Returns
    -------
    ndarray of float64, shape (n_classes,)
        NaN for a class that `y_true` does not hold.

    Raises
    ------
    ValueError
        If the shapes differ or an index is out of range.

    Examples
    --------
    >>> per_class_accuracy([0, 0, 0, 1], [0, 0, 1, 1], 3)
    array([0.66666667, 1.        ,        nan])
    """
    confusion = confusion_matrix(y_true, y_pred, n_classes)
    images = confusion.sum(axis=1)
    return np.where(images > 0, confusion.diagonal() / np.maximum(images, 1), np.nan)


def mean_per_class_accuracy(y_true: npt.ArrayLike, y_pred: npt.ArrayLike, n_classes: int) -> float:
    """Mean of the classes' accuracies, each class counting the same.

    Parameters
    ----------
    y_true, y_pred : array-like of int, shape (n_images,)
        Class indices below `n_classes`.
    n_classes : int
        Number of classes.

    Returns
    -------
    float
        Over the classes that `y_true` holds; NaN without images.

    Raises
    ------
    ValueError
        If the shapes differ or an index is out of range.

    Examples
    --------
    >>> mean_per_class_accuracy([0, 0, 0, 1], [0, 0, 0, 0], 2)
    0.5
    """
    accuracies = per_class_accuracy(y_true, y_pred, n_classes)
    present = accuracies[~np.isnan(accuracies)]
    return float(present.mean()) if present.size else float("nan")


def confusion_matrix(
    y_true: npt.ArrayLike, y_pred: npt.ArrayLike, n_classes: int
) -> npt.NDArray[np.int64]:
    """Count the images of each class that are predicted as each class.

    Parameters
    ----------
    y_true, y_pred : array-like of int, shape (n_images,)
        Class indices below `n_classes`.
    n_classes : int
        Number of classes.

    Returns
    -------
    ndarray of int64, shape (n_classes, n_classes)
        Rows are true classes, columns predicted ones.

    Raises
    ------
    ValueError
        If the shapes differ or an index is out of range.

    Examples
    --------
    >>> confusion_matrix([0, 0, 1], [0, 1, 1], 2)
    array([[1, 1],
           [0, 1]])
    """
    truth, predicted = np.asarray(y_true), np.asarray(y_pred)
    if truth.ndim != 1 or truth.shape != predicted.shape:
        raise ValueError(f"y_true {truth.shape} and y_pred {predicted.shape} differ in shape")
    for indices in (truth, predicted):
        whole = indices.size == 0 or np.issubdtype(indices.dtype, np.integer)
        if not whole or not ((indices >= 0) & (indices < n_classes)).all():
            raise ValueError(f"class indices must be whole numbers from 0 to {n_classes - 1}")
    cells = truth.astype(np.int64) * n_classes + predicted.astype(np.int64)
    return np.bincount(cells, minlength=n_classes * n_classes).reshape(n_classes, n_classes)


class Metric(NamedTuple):
    """How a test set is measured.

    Attributes
    ----------
    compute : callable
        From targets and decision values of shape (n, n_classes) to a number, better if larger.
        Targets are class indices of shape (n,), or an indicator of shape (n, n_classes) as
        `mean_average_precision` takes it.
    kind : {"single-label", "multi-label"}
        Of which targets.
    per_class : bool, default=False
        Whether `compute` gives the values of the classes too, as a second value of shape
        (n_classes,).

    Examples
    --------
    One metric more is one entry more, which every result then has:

    >>> def in_first_two(targets, scores):
    ...     best = np.argsort(-scores, axis=1)[:, :2]
    ...     return float((best == targets[:, None]).any(axis=1).mean())
    >>> METRICS["top-2 accuracy"] = Metric(in_first_two, "single-label")
    >>> METRICS.pop("top-2 accuracy").value(np.array([2]), np.array([[3.0, 1.0, 2.0]]))
    1.0
    """

    compute: Callable[[npt.NDArray[Any], npt.NDArray[Any]], Any]
    kind: Literal["single-label", "multi-label"]
    per_class: bool = False

    def value(self, targets: npt.NDArray[Any], scores: npt.NDArray[Any]) -> float:
        """Compute the one number."""
        found = self.compute(targets, scores)
        return float(found[0] if self.per_class else found)


def _accuracy(targets: npt.NDArray[Any], scores: npt.NDArray[Any]) -> float:
    return overall_accuracy(targets, scores.argmax(axis=1))


def _accuracies(targets: npt.NDArray[Any], scores: npt.NDArray[Any]) -> tuple[float, _Floats]:
    predicted, n_classes = scores.argmax(axis=1), scores.shape[1]
    return (
        mean_per_class_accuracy(targets, predicted, n_classes),
        per_class_accuracy(targets, predicted, n_classes),
    )


# Every metric by its full name; results hold all of the kind that their labels have.
METRICS: dict[str, Metric] = {
    OVERALL_ACCURACY: Metric(_accuracy, "single-label"),
    MEAN_PER_CLASS_ACCURACY: Metric(_accuracies, "single-label", per_class=True),
    **{
        name: Metric(partial(mean_average_precision, method=method), "multi-label", per_class=True)
        for method, name in MEAN_AVERAGE_PRECISION.items()
    },
}


def metrics_of(multi_label: bool) -> tuple[str, ...]:
    """Return the full names of the metrics for one label per image, or for several.

    Examples
    --------
    >>> metrics_of(multi_label=False)
    ('overall accuracy', 'mean per-class accuracy')
    """
    kind = "multi-label" if multi_label else "single-label"
    return tuple(name for name, metric in METRICS.items() if metric.kind == kind)


def metric_named(name: str) -> Metric:
    """Look a metric up by its full name."""
    if name not in METRICS:
        raise ConfigError(f"unknown metric '{name}'; {suggestion(name, METRICS)}")
    return METRICS[name]


def _as_columns(y_true: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Any, Any]:
    targets, values = np.asarray(y_true), np.asarray(scores)
    if targets.ndim != 1:
        raise ValueError(f"y_true must have the shape (n_images,), not {targets.shape}")
    return targets[:, None], values[..., None]


def _checked(Y: npt.ArrayLike, S: npt.ArrayLike) -> tuple[npt.NDArray[np.int8], _Floats]:
    """Targets in {1, 0 = ignored, -1} and scores, both of shape (n_images, n_classes)."""
    targets, scores = np.asarray(Y), np.asarray(S, dtype=np.float64)
    if targets.ndim != 2 or targets.shape != scores.shape:
        raise ValueError(f"targets {targets.shape} and scores {scores.shape} differ in shape")
    if not np.isin(targets, (-1, 0, 1)).all():
        raise ValueError("targets must be 1 (present), -1 (absent) or 0 (ignored)")
    if not (targets == -1).any():
        targets = np.where(targets == 1, 1, -1)
    return targets.astype(np.int8), scores


def _rank(targets: npt.NDArray[np.int8], scores: _Floats) -> _Ranking:
    """Sort each class's images as the devkit does, ignored ones included.

    An ignored image repeats the counts of the one before it, so that it adds no point to the
    curve that was not there already.
    """
    scores = np.where(np.isnan(scores), -np.inf, scores)
    order = np.argsort(-scores, axis=0, kind="stable")
    targets = np.take_along_axis(targets, order, axis=0)
    true_positives = np.cumsum(targets == 1, axis=0)
    precision = true_positives / np.maximum(np.cumsum(targets != 0, axis=0), 1)
    scores = np.take_along_axis(scores, order, axis=0)
    return _Ranking(targets == 1, true_positives, precision, scores)


def _eleven_point(ranking: _Ranking, n_positives: _Counts, matlab: bool = False) -> _Floats:
    """Mean over eleven recalls of the best precision from there on."""
    total = np.zeros(len(n_positives))
    for tenths in range(11):
        # In whole numbers: recall >= tenths / 10 without rounding.
        found = 10 * ranking.true_positives
        needed = tenths * n_positives
        reached = found > needed if matlab and tenths == 3 else found >= needed
        total += np.max(ranking.precision, axis=0, where=reached, initial=0.0)
    return total / 11


def _area(ranking: _Ranking, n_positives: _Counts) -> _Floats:
    """Area under the monotone envelope of the precision-recall curve."""
    envelope = np.maximum.accumulate(ranking.precision[::-1], axis=0)[::-1]
    return np.sum(envelope, axis=0, where=ranking.positive) / n_positives


def _uninterpolated(ranking: _Ranking, n_positives: _Counts) -> _Floats:
    """Mean over the positives of the precision at the end of their group of equal scores."""
    n_images = len(ranking.scores)
    ends = np.ones(ranking.scores.shape, dtype=bool)
    ends[:-1] = ranking.scores[:-1] != ranking.scores[1:]
    positions = np.where(ends, np.arange(n_images)[:, None], n_images)
    group_end = np.minimum.accumulate(positions[::-1], axis=0)[::-1]
    precision = np.take_along_axis(ranking.precision, group_end, axis=0)
    return np.sum(precision, axis=0, where=ranking.positive) / n_positives


_MEASURES: dict[str, Callable[[_Ranking, _Counts], _Floats]] = {
    "11-point": _eleven_point,
    "area": _area,
    "uninterpolated": _uninterpolated,
    "11-point-matlab": partial(_eleven_point, matlab=True),
}
