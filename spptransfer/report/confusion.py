"""Which classes are taken for which: counts, an order that shows groups, the worst pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spptransfer.metrics import confusion_matrix
from spptransfer.report.run_folder import Predictions


@dataclass(frozen=True)
class ConfusedPair:
    """A class that was taken for another.

    Attributes
    ----------
    true, predicted : str
        Class names.
    count : int
        Test images of `true` that were called `predicted`, over all splits.
    total : int
        Test images of `true`, over all splits.
    row, column : int
        The pair's cell in the drawn matrix.
    """

    true: str
    predicted: str
    count: int
    total: int
    row: int
    column: int


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix in the order in which it is drawn.

    Attributes
    ----------
    labels : tuple of str
        Class names.
    counts : ndarray of int, shape (n_classes, n_classes)
        Rows are true classes, columns predicted ones, summed over the splits.
    pairs : tuple of ConfusedPair
        The most confused pairs, worst first.
    """

    labels: tuple[str, ...]
    counts: npt.NDArray[np.int64]
    pairs: tuple[ConfusedPair, ...]


def count_confusions(splits: Iterable[Predictions], n_classes: int) -> npt.NDArray[np.int64]:
    """Count true against predicted classes, split by split.

    Parameters
    ----------
    splits : iterable of Predictions
        Single-label predictions; the class with the largest score is the predicted one.
    n_classes : int
        Number of classes.

    Returns
    -------
    ndarray of int, shape (n_splits, n_classes, n_classes)
        Rows are true classes, columns predicted ones.
    """
    counts = [confusion_matrix(split.targets, split.predicted, n_classes) for split in splits]
    return np.array(counts, dtype=np.int64).reshape(-1, n_classes, n_classes)


def confusion(
    counts: npt.NDArray[np.int64], classes: Sequence[str], *, n_pairs: int = 20
) -> Confusion:
    """Arrange a confusion matrix so that classes confused with one another are neighbours.

    Parameters
    ----------
    counts : ndarray of int, shape (n_classes, n_classes)
        Rows are true classes, columns predicted ones.
    classes : sequence of str
        Class names in the order of `counts`.
    n_pairs : int, default=20
        How many of the most confused pairs to list.

    Returns
    -------
    Confusion
        The matrix in drawing order.

    Examples
    --------
    >>> counts = np.array([[9, 0, 1], [0, 10, 0], [4, 0, 6]])
    >>> arranged = confusion(counts, ["crab", "piano", "crayfish"])
    >>> [(pair.true, pair.predicted, pair.count) for pair in arranged.pairs]
    [('crayfish', 'crab', 4), ('crab', 'crayfish', 1)]
    """
    order = similarity_order(counts)
    arranged = counts[np.ix_(order, order)]
    labels = tuple(classes[index] for index in order)
    return Confusion(labels, arranged, _worst_pairs(arranged, labels, n_pairs))


def similarity_order(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """Order classes by hierarchical clustering of how often they are confused.

    Average linkage with optimal leaf ordering (Bar-Joseph et al., 2001) on the mean of both
    directions' confusion rates.

    Parameters
    ----------
    counts : ndarray of int, shape (n_classes, n_classes)
        Rows are true classes, columns predicted ones.

    Returns
    -------
    ndarray of int, shape (n_classes,)
        A permutation of the classes.
    """
    n_classes = len(counts)
    rates = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    similarity = (rates + rates.T) / 2
    np.fill_diagonal(similarity, 0)
    if n_classes < 3 or not similarity.any():
        return np.arange(n_classes)
    from scipy.cluster.hierarchy import leaves_list, linkage

    distances = 1 - similarity[np.triu_indices(n_classes, 1)]
    return leaves_list(linkage(distances, method="average", optimal_ordering=True)).astype(np.intp)


def _worst_pairs(
    counts: npt.NDArray[np.int64], labels: Sequence[str], n_pairs: int
) -> tuple[ConfusedPair, ...]:
    """List the largest cells off the diagonal; among equal counts the rarer class comes first."""
    totals = counts.sum(axis=1)
    rows, columns = np.nonzero(counts * ~np.eye(len(counts), dtype=bool))
    worst = np.lexsort((columns, rows, totals[rows], -counts[rows, columns]))[:n_pairs]
    return tuple(
        ConfusedPair(
            true=labels[row],
            predicted=labels[column],
            count=int(counts[row, column]),
            total=int(totals[row]),
            row=int(row),
            column=int(column),
        )
        for row, column in zip(rows[worst], columns[worst], strict=True)
    )
