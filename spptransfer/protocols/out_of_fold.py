"""Decision values of images by classifiers that were not trained on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spptransfer.errors import ConfigError
from spptransfer.protocols.training import Classifier, Indices, Training, cheapest_gram

if TYPE_CHECKING:
    from spptransfer.svm import RowSubset

Floats = npt.NDArray[np.float32]


def out_of_fold(
    X: npt.NDArray[np.floating] | RowSubset,
    targets: npt.NDArray[np.integer],
    folds: Sequence[Indices],
    *,
    C: float | npt.NDArray[np.floating],
    training: Training,
    n_classes: int,
    gram: npt.NDArray[np.floating] | None = None,
) -> Floats:
    """Score every row by the classifiers trained without its fold.

    Parameters
    ----------
    X : ndarray or RowSubset, shape (n_rows, n_features)
        Normalised features.
    targets : ndarray of int
        Class numbers (n_rows,), or 1, 0 (ignored), -1 of shape (n_rows, n_classes).
    folds : sequence of ndarray of int
        Row numbers of each fold; each row in one at most.
    C : float or ndarray of shape (n_classes,)
        One for all classes, or one for each.
    training : Training
        Loss, class weights and what a difficult image is; its solver and its C are not used.
    n_classes : int
        Number of classes.
    gram : ndarray of shape (n_rows, n_rows), optional
        ``X @ X.T`` where it is known already. All folds share it.

    Returns
    -------
    ndarray of float32, shape (n_rows, n_classes)
        Decision values; NaN for rows in no fold and for classes without a row.

    Raises
    ------
    ConfigError
        If there are fewer than two folds.

    Examples
    --------
    >>> X = np.array([[2, 0], [0, 2], [1.5, 0], [0, 1.5]], dtype=np.float32)
    >>> folds, training = [np.array([0, 1]), np.array([2, 3])], Training()
    >>> values = out_of_fold(X, np.array([0, 1, 0, 1]), folds, C=1, training=training, n_classes=2)
    >>> values.argmax(axis=1)
    array([0, 1, 0, 1])
    """
    from spptransfer.svm import LinearSVM  # imports scikit-learn

    if len(folds) < 2:
        raise ConfigError(f"{len(folds)} folds leave none to train on; at least 2 are needed")
    if targets.ndim == 2 and training.difficult == "negative":
        targets = np.where(targets > 0, targets, -1).astype(targets.dtype)
    wanted = np.broadcast_to(np.asarray(C, dtype=float), n_classes)
    if gram is None:
        gram = shared_gram(X, folds, n_classes)
    values = np.full((len(targets), n_classes), np.nan, np.float32)
    for fold in filter(len, folds):
        is_trained_on = np.ones(len(targets))
        is_trained_on[fold] = 0  # such rows are left out, and nothing is copied
        held_out = np.asarray(X[fold])
        for value in np.unique(wanted):
            model = LinearSVM(value, loss=training.loss, class_weight=training.class_weight)
            model.fit(X, targets, sample_weight=is_trained_on, gram=gram)
            found = model.decision_function(held_out)
            if found.ndim == 1:  # two classes share one hyperplane
                found = np.stack([-found, found], axis=1)
            kept = wanted[model.classes_] == value
            values[np.ix_(fold, model.classes_[kept])] = found[:, kept]
    return values


def held_out_values(
    classifier: Classifier,
    X: npt.NDArray[np.floating] | RowSubset,
    targets: npt.NDArray[np.integer],
    folds: Sequence[Indices],
    **given: Any,
) -> Floats:
    """Return what the choice of a classifier's C left behind, or else `out_of_fold` at its C."""
    if classifier.held_out is not None:
        return classifier.held_out
    return out_of_fold(X, targets, folds, C=classifier.C, **given)


def deal_folds(targets: npt.NDArray[np.integer], count: int = 3) -> list[Indices]:
    """Deal rows into folds, each class evenly where a row has one label.

    Examples
    --------
    >>> targets = np.array([0, 0, 0, 1, 1, 1])
    >>> [sorted(targets[fold].tolist()) for fold in deal_folds(targets)]
    [[0, 1], [0, 1], [0, 1]]
    """
    order = np.random.default_rng(0).permutation(len(targets))
    if targets.ndim == 1:
        order = order[np.argsort(targets[order], kind="stable")]
    return [np.sort(order[start::count]) for start in range(min(count, len(order)))]


def shared_gram(
    X: npt.NDArray[np.floating] | RowSubset, folds: Sequence[Indices], n_problems: int
) -> npt.NDArray[np.floating] | None:
    """Return ``X @ X.T`` for the classifiers of all folds; None where it would not pay.

    `n_problems` counts the classifiers of each fold.
    """
    n_rows, n_features = len(X), X.shape[1]
    sizes = [n_rows - len(fold) for fold in folds]
    if n_rows > n_features:
        return None
    precision = cheapest_gram((n_rows, n_features), sizes, n_problems * len(folds))
    if precision is None:
        return None
    from spptransfer.svm import gram_matrix

    return np.asarray(gram_matrix(np.asarray(X[:]), precision))


def contradiction(values: Floats, targets: npt.NDArray[np.integer]) -> tuple[Floats, Indices]:
    """Measure by how much decision values contradict the labels.

    Parameters
    ----------
    values : ndarray of shape (n_rows, n_classes)
        As `out_of_fold` gives them.
    targets : ndarray of int
        As in `out_of_fold`.

    Returns
    -------
    margins : ndarray of float32, shape (n_rows,)
        How far the best other class is above the label; of several labels, how far a class is on
        the wrong side of zero. Negative where nothing is contradicted; -inf where nothing is known.
    classes : ndarray of int, shape (n_rows,)
        The class that it is about: the other one, or of several labels the one that is doubtful.

    Examples
    --------
    >>> values = np.array([[0.5, -0.75, -1], [-1, 0.25, -0.5]], dtype=np.float32)
    >>> contradiction(values, np.array([0, 2]))
    (array([-1.25,  0.75], dtype=float32), array([1, 1]))
    >>> contradiction(values, np.array([[1, -1, -1], [1, 1, 0]]))
    (array([-0.5,  1. ], dtype=float32), array([0, 0]))
    """
    rows = np.arange(len(values))
    if targets.ndim == 2:
        margins = np.where(targets == 0, -np.inf, -values * targets)
    else:
        margins = values - values[rows, targets][:, None]
        margins[rows, targets] = -np.inf
    margins = np.nan_to_num(margins.astype(np.float32), nan=-np.inf, neginf=-np.inf)
    classes = margins.argmax(axis=1)
    return margins[rows, classes], classes
