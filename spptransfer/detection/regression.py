"""Regression of boxes: a window is moved towards the object in it, from the same features.

Targets are those of R-CNN (Girshick et al., CVPR 2014, appendix C): the shift of the centre in
sides of the window, and the logarithm of the ratio of the sides.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import Ridge

Array = npt.NDArray[np.floating]

# A window becomes at most so many times as large: a far-off prediction must not overflow.
_LARGEST = np.log(16.0)


def encode_boxes(boxes: Array, objects: Array) -> Array:
    """Return what turns windows into the boxes of objects.

    Parameters
    ----------
    boxes, objects : ndarray of shape (n, 4)
        ``x0, y0, x1, y1``, a window and the object it is to become.

    Returns
    -------
    ndarray of shape (n, 4)
        Shift of the centre along x and y in sides of the window; logarithm of the ratio of widths
        and of heights.

    Examples
    --------
    >>> encode_boxes(np.array([[0.0, 0, 10, 10]]), np.array([[5.0, 0, 15, 10]]))
    array([[0.5, 0. , 0. , 0. ]])
    """
    centres, sides = _centres_and_sides(boxes)
    wanted, wanted_sides = _centres_and_sides(objects)
    return np.hstack([(wanted - centres) / sides, np.log(wanted_sides / sides)])


def decode_boxes(boxes: Array, changes: Array, size: tuple[float, float]) -> Array:
    """Apply what `encode_boxes` gives, and cut the result off at the image's borders.

    Parameters
    ----------
    boxes, changes : ndarray of shape (n, 4)
        Windows, and predictions for them.
    size : (float, float)
        Width and height of the image.

    Examples
    --------
    >>> decode_boxes(np.array([[0.0, 0, 10, 10]]), np.array([[0.5, 0, 0, 0]]), (12, 12))
    array([[ 5.,  0., 12., 10.]])
    """
    centres, sides = _centres_and_sides(boxes)
    moved = centres + changes[:, :2] * sides
    half = sides * np.exp(np.clip(changes[:, 2:], -_LARGEST, _LARGEST)) / 2
    corners = np.hstack([moved - half, moved + half])
    return np.clip(corners, 0, np.tile(np.asarray(size, corners.dtype), 2))


def _centres_and_sides(boxes: Array) -> tuple[Array, Array]:
    sides = boxes[:, 2:] - boxes[:, :2]
    return boxes[:, :2] + sides / 2, sides


def fit_regressors(
    features: Array, changes: Array, labels: npt.NDArray[np.integer], n_classes: int, alpha: float
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Fit a ridge regression from features to changes for each class.

    Parameters
    ----------
    features : ndarray of shape (n, n_features)
        Of windows that overlap an object well.
    changes : ndarray of shape (n, 4)
        From `encode_boxes`.
    labels : ndarray of int, shape (n,)
        Class of the object of each window.
    n_classes : int
        Number of classes.
    alpha : float
        Weight of the penalty.

    Returns
    -------
    coef : ndarray of float32, shape (n_classes, 4, n_features)
        Zero for a class without windows, whose boxes stay where they are.
    intercept : ndarray of float32, shape (n_classes, 4)
    """
    coef = np.zeros((n_classes, 4, features.shape[1]), np.float32)
    intercept = np.zeros((n_classes, 4), np.float32)
    for label in range(n_classes):
        chosen = np.flatnonzero(labels == label)
        if len(chosen):
            model = Ridge(alpha).fit(features[chosen].astype(np.float32), changes[chosen])
            coef[label], intercept[label] = model.coef_, model.intercept_
    return coef, intercept
