"""Precision-recall curves, thinned to what a small figure can show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spptransfer.metrics import Method, average_precision, precision_recall_curve
from spptransfer.report.run_folder import Predictions

POINTS = 100


@dataclass(frozen=True)
class ClassCurves:
    """One class's precision-recall curves.

    Attributes
    ----------
    name : str
        The class.
    curves : tuple of ndarray of shape (n_points, 2)
        Recall and precision of every split that has a positive image.
    chance : float
        Share of positives among the counted test images: the precision of a random ranking.
    """

    name: str
    curves: tuple[npt.NDArray[np.float64], ...]
    chance: float


def class_curves(splits: Iterable[Predictions], classes: Sequence[str]) -> list[ClassCurves]:
    """Draw every class's curve in every split.

    Parameters
    ----------
    splits : iterable of Predictions
        Multi-label predictions.
    classes : sequence of str
        Class names in the order of the score columns.

    Returns
    -------
    list of ClassCurves
        In the order of `classes`.
    """
    curves: list[list[npt.NDArray[np.float64]]] = [[] for _ in classes]
    positives, counted = np.zeros(len(classes)), np.zeros(len(classes))
    for split in splits:
        positives += (split.targets == 1).sum(axis=0)
        counted += (split.targets != 0).sum(axis=0)
        for index in np.flatnonzero((split.targets == 1).any(axis=0)):
            curves[index].append(_curve(split.targets[:, index], split.scores[:, index]))
    chance = positives / np.maximum(counted, 1)
    return [
        ClassCurves(name, tuple(curves[index]), float(chance[index]))
        for index, name in enumerate(classes)
    ]


def split_average_precisions(
    splits: Iterable[Predictions], n_classes: int, method: Method
) -> npt.NDArray[np.float64]:
    """Average precision of every class in every split.

    Parameters
    ----------
    splits : iterable of Predictions
        Multi-label predictions.
    n_classes : int
        Number of classes.
    method : {"11-point", "area", "uninterpolated"}
        Which average precision.

    Returns
    -------
    ndarray of float64, shape (n_splits, n_classes)
        NaN where a class has no positive image.
    """
    rows = [
        [
            average_precision(split.targets[:, index], split.scores[:, index], method)
            for index in range(n_classes)
        ]
        for split in splits
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, n_classes)


def envelope(curve: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Raise each precision to the largest one at that recall or beyond (VOC devkit, 2010 on).

    Parameters
    ----------
    curve : ndarray of shape (n_points, 2)
        Rising recall, and precision.

    Returns
    -------
    ndarray of shape (n_points, 2)
        The same recalls with falling precision.

    Examples
    --------
    >>> envelope(np.array([[0.0, 0.5], [0.5, 0.7], [1.0, 0.6]]))[:, 1]
    array([0.7, 0.7, 0.6])
    """
    highest = np.maximum.accumulate(curve[::-1, 1])[::-1]
    return np.column_stack([curve[:, 0], highest])


def _curve(
    y_true: npt.NDArray[np.integer], scores: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """Precision at each new recall, from recall 0, at most `POINTS` + 1 points."""
    precision, recall, _ = precision_recall_curve(y_true, scores)
    rises = np.flatnonzero(np.diff(recall, prepend=0) > 0)
    kept = rises[np.unique(np.linspace(0, len(rises) - 1, POINTS).round().astype(int))]
    points = np.column_stack([recall[kept], precision[kept]])
    return np.vstack([[0, points[0, 1]], points])
