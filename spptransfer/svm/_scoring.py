"""Scores of held-out rows from decision values that are known already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import get_scorer

from spptransfer.svm._targets import Targets
from spptransfer.svm._types import Array


class KnownScores(ClassifierMixin, BaseEstimator):
    """A fitted classifier that has scored its rows already; X holds their numbers."""

    def __init__(self, targets: Targets, scores: Array) -> None:
        self.targets = targets
        self.scores = scores
        self.classes_ = targets.classes

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def decision_function(self, X: Array) -> Array:
        """Decision values of the rows numbered in X."""
        scores = self.scores[X[:, 0]]
        return scores[:, 0] if self.targets.kind == "binary" else scores

    def predict(self, X: Array) -> Array:
        """Labels of the rows numbered in X."""
        return self.targets.decode(self.scores[X[:, 0]])


class HeldOutScorer:
    """Scores decision values by any scikit-learn scorer, jointly or class by class.

    Class by class, every problem is scored as a binary one on its own held-out rows, without
    those that it ignores. That is how indicator matrices are always scored.
    """

    def __init__(
        self, scoring: str | Callable[..., float] | None, targets: Targets, *, per_class: bool
    ) -> None:
        self.separately = per_class or targets.kind == "multilabel"
        default = "average_precision" if self.separately else "accuracy"
        self.scorer = get_scorer(scoring or default)
        # Scikit-learn's own checks take longer than these scores, which it has no other way to.
        self.is_default = scoring in (None, default)
        self.targets = targets
        self.labels = targets.labels()

    def __call__(self, scores: Array, held_out: Array) -> Array:
        """One score, or one per problem; NaN where the held-out rows are all of one kind.

        ``held_out`` says how often a row counts.
        """
        if not self.separately:
            rows = np.repeat(np.arange(len(scores)), held_out[:, 0])
            if self.is_default:
                return np.array([np.mean(self.targets.decode(scores[rows]) == self.labels[rows])])
            known = KnownScores(self.targets, scores)
            return np.array([self.scorer(known, rows[:, None], self.labels[rows])])
        held_out = np.broadcast_to(held_out, scores.shape)
        return np.array(
            [self._score_one(scores[:, [k]], k, held_out[:, k]) for k in range(scores.shape[1])]
        )

    def _score_one(self, scores: Array, problem: int, held_out: Array) -> float:
        signs = self.targets.signs[:, problem]
        rows = np.repeat(np.arange(len(signs)), np.where(signs == 0, 0, held_out))
        truth = (signs > 0).astype(int)
        if len(np.unique(truth[rows])) < 2:
            return float("nan")
        if self.is_default:
            return average_precision(truth[rows], scores[rows, 0])
        binary = Targets("binary", np.array([0, 1]), signs[:, None])
        return float(self.scorer(KnownScores(binary, scores), rows[:, None], truth[rows]))


def average_precision(truth: Array, scores: Array) -> float:
    """`sklearn.metrics.average_precision_score` of one problem.

    Parameters
    ----------
    truth : ndarray of int, shape (n_rows,)
        1 for positives, of which there must be one, and 0.
    scores : ndarray, shape (n_rows,)
        Decision values; rows of the same value are found together.

    Returns
    -------
    float
        The precision's mean over the recall; NaN if there is one among the scores.

    Examples
    --------
    >>> average_precision(np.array([0, 1, 1]), np.array([0.2, 0.1, 0.3])).__round__(3)
    0.833
    """
    if np.isnan(scores).any():
        return float("nan")
    order = np.argsort(-scores)
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    found = np.cumsum(truth[order])[last]
    gained = np.diff(found / found[-1], prepend=0.0)
    # From the last to the first, as scikit-learn adds them: ties between values of C stay ties.
    return float(np.sum((gained * (found / (last + 1)))[::-1].copy()))


def nan_mean(values: Any, axis: int | tuple[int, ...]) -> Array:
    """Mean of the numbers there are, NaN without a warning where there are none."""
    values = np.asarray(values, dtype=float)
    counted = np.isfinite(values).sum(axis=axis)
    total = np.nansum(values, axis=axis)
    return np.divide(total, counted, out=np.full(np.shape(total), np.nan), where=counted > 0)
