"""Probabilities of decision values by Platt scaling, and how far they may be trusted."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]

CALIBRATION_ERROR = "expected calibration error"
# Equal bins of confidence (Guo et al., ICML 2017).
BINS = 15


def fit_sigmoid(values: Floats, positive: npt.NDArray[np.bool_]) -> tuple[float, float] | None:
    """Fit a sigmoid to decision values of images that a classifier was not trained on.

    Parameters
    ----------
    values : ndarray of shape (n,)
        Decision values.
    positive : ndarray of bool, shape (n,)
        What they should have said.

    Returns
    -------
    (float, float) or None
        Slope and offset: ``1 / (1 + exp(-(slope * value + offset)))`` is the probability. None
        where all images are of one kind, or larger values do not mean a higher probability.

    References
    ----------
    J. Platt, *Probabilistic outputs for support vector machines*, 1999; by scikit-learn.

    Examples
    --------
    >>> fit_sigmoid(np.array([-2.0, -1, 1, 2]), np.array([False, True, False, True])) is not None
    True
    >>> fit_sigmoid(np.array([-2.0, -1, 1, 2]), np.array([True, True, True, True])) is None
    True
    """
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.calibration import CalibratedClassifierCV

    class Known(ClassifierMixin, BaseEstimator):
        """A classifier whose samples are its decision values."""

        def fit(self, X: Floats, y: npt.NDArray[np.bool_]) -> Known:
            self.classes_ = np.array([False, True])
            return self

        def decision_function(self, X: Floats) -> Floats:
            return X[:, 0]

    if positive.all() or not positive.any():
        return None
    everything = np.arange(len(values))
    model = CalibratedClassifierCV(Known(), cv=[(everything, everything)], ensemble=True)
    model.fit(values[:, None].astype(np.float64), positive)
    # A sigmoid has two numbers, which two of its values tell: in the middle of either kind.
    where = np.array([values[~positive].mean(), values[positive].mean()], np.float64)
    if not where[0] < where[1]:
        return None
    negative, sure = model.predict_proba(where[:, None]).T
    low, high = np.log(sure) - np.log(negative)
    slope = float((high - low) / (where[1] - where[0]))
    return (slope, float(low - slope * where[0])) if 0 < slope < np.inf else None


def fit_sigmoids(values: Floats, targets: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
    """Fit a sigmoid for each class to out-of-fold decision values.

    Parameters
    ----------
    values : ndarray of shape (n_images, n_classes)
        Decision values of classifiers that an image did not train; NaN where there is none.
    targets : ndarray of int
        Shape (n_images,), class numbers; or (n_images, n_classes) in {1, 0 = ignored, -1}.

    Returns
    -------
    ndarray of float32, shape (n_classes, 2)
        Slope and offset. A class that has none of its own gets those of all classes together;
        NaN where these have none either.

    Examples
    --------
    >>> values = np.array([[2.0, -1], [1, -2], [-1, 1], [-2, 2]])
    >>> fit_sigmoids(values, np.array([0, 0, 1, 1])).shape
    (2, 2)
    """
    from spptransfer.svm._threads import own_threads

    if targets.ndim == 1:
        targets = np.where(targets[:, None] == np.arange(values.shape[1]), 1, -1)
    used = np.isfinite(values) & (targets != 0)
    columns = zip(values.T, targets.T, used.T, strict=True)
    with own_threads():  # several threads for so little work take ten times as long
        each = [fit_sigmoid(column[kept], target[kept] > 0) for column, target, kept in columns]
        if None in each:
            common = fit_sigmoid(values[used], targets[used] > 0) or (np.nan, np.nan)
            each = [common if found is None else found for found in each]
    return np.array(each, np.float32)


def probabilities(
    values: Floats, sigmoids: npt.NDArray[np.floating], *, multi_label: bool
) -> npt.NDArray[np.float32]:
    """Return the probabilities of decision values.

    Parameters
    ----------
    values : ndarray of shape (n_images, n_classes)
        Decision values.
    sigmoids : ndarray of shape (n_classes, 2)
        Slopes and offsets, from `fit_sigmoids`.
    multi_label : bool
        Whether an image can be of several classes; else its probabilities add up to 1, in the
        proportions of the classes' odds. (Those of the probabilities, which scikit-learn takes,
        are far less sure of 101 classes than their accuracy is: docs/protocols.md.)

    Returns
    -------
    ndarray of float32, shape (n_images, n_classes)

    Examples
    --------
    >>> probabilities(np.array([[0.0, 0.0]]), np.array([[1, 0], [2, 0]]), multi_label=False)
    array([[0.5, 0.5]], dtype=float32)
    """
    from scipy.special import expit, softmax

    log_odds = values.astype(np.float64) * sigmoids[:, 0] + sigmoids[:, 1]
    if multi_label:
        return np.asarray(expit(log_odds), np.float32)
    # Each class's decision value is evidence of its own, so that odds multiply; but two classes
    # share one hyperplane, whose evidence would count twice.
    shared = 2 if values.shape[-1] == 2 else 1
    return np.asarray(softmax(log_odds / shared, axis=-1), np.float32)


class Reliability(NamedTuple):
    """How often predictions of a confidence are right.

    Attributes
    ----------
    error : float
        Expected calibration error: the mean distance of confidence and share of right ones over
        the bins, weighted by their counts; NaN without predictions.
    counts : ndarray of int, shape (BINS,)
        Predictions in each of the equal bins of confidence from 0 to 1.
    confidence, right : ndarray of float64, shape (BINS,)
        Mean confidence of a bin, and the share of its predictions that are right; NaN where it
        is empty.
    """

    error: float
    counts: npt.NDArray[np.intp]
    confidence: npt.NDArray[np.float64]
    right: npt.NDArray[np.float64]


def reliability(confidence: Floats, right: npt.NDArray[np.bool_]) -> Reliability:
    """Compare confidences with how often they are right.

    Parameters
    ----------
    confidence : ndarray of shape (n,)
        From 0 to 1; those that are NaN are left out.
    right : ndarray of bool, shape (n,)
        Which of the predictions are right.

    References
    ----------
    C. Guo et al., *On calibration of modern neural networks*, ICML 2017.

    Examples
    --------
    >>> found = reliability(np.array([0.9, 0.9, 0.1]), np.array([True, False, False]))
    >>> round(found.error, 3), found.counts.sum()
    (0.3, np.int64(3))
    """
    known = ~np.isnan(confidence)
    confidence, right = confidence[known].astype(np.float64), right[known]
    bins = np.minimum((confidence * BINS).astype(np.intp), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    sums = [np.bincount(bins, each, BINS) for each in (confidence, right)]
    mean, share = (np.divide(s, counts, out=np.full(BINS, np.nan), where=counts > 0) for s in sums)
    error = float(np.abs(sums[0] - sums[1]).sum() / len(right)) if len(right) else float("nan")
    return Reliability(error, counts, mean, share)


def confidences(
    probability: Floats, scores: Floats, targets: npt.NDArray[np.integer]
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return confidences of a test set's predictions, and which of them are right.

    Of one label per image the prediction is the class of the largest decision value; of several
    each class is one, of which those ignored do not count.
    """
    if targets.ndim == 2:
        counted: Any = targets != 0
        return probability[counted], targets[counted] > 0
    best = scores.argmax(axis=1)
    return np.take_along_axis(probability, best[:, None], axis=1)[:, 0], best == targets
