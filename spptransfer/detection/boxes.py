"""Arithmetic of boxes: overlap, suppression, and regression towards an object.

A box is ``x0, y0, x1, y1`` in pixels of the upright image, edges of pixels being whole numbers:
``0, 0, width, height`` is all of it. Rules that count pixels otherwise (those of the VOC devkit)
convert at their own border.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Boxes = npt.NDArray[np.floating]

_BLOCK = 256


def areas(boxes: Boxes) -> npt.NDArray[np.floating]:
    """Return the areas of boxes of shape (n, 4), 0 where one has no extent."""
    sides = np.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    product: npt.NDArray[np.floating] = sides[..., 0] * sides[..., 1]
    return product


def intersections(boxes: Boxes, others: Boxes) -> npt.NDArray[np.floating]:
    """Return the areas that boxes of shape (n, 4) and (m, 4) share, n x m."""
    return _shared(boxes[:, None], others[None])


def _shared(boxes: Boxes, others: Boxes) -> npt.NDArray[np.floating]:
    across, down = (
        np.minimum(boxes[..., axis + 2], others[..., axis + 2])
        - np.maximum(boxes[..., axis], others[..., axis])
        for axis in (0, 1)
    )
    product: npt.NDArray[np.floating] = np.maximum(across, 0) * np.maximum(down, 0)
    return product


def overlaps(boxes: Boxes, others: Boxes) -> npt.NDArray[np.floating]:
    """Return the intersection over union of boxes.

    Parameters
    ----------
    boxes, others : ndarray of shape (n, 4) and (m, 4)
        ``x0, y0, x1, y1``.

    Returns
    -------
    ndarray of shape (n, m)
        From 0 to 1.

    Examples
    --------
    >>> overlaps(np.array([[0.0, 0, 2, 2]]), np.array([[0.0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6]]))
    array([[1.        , 0.33333333, 0.        ]])
    """
    return paired_overlaps(boxes[:, None], others[None])


def paired_overlaps(boxes: Boxes, others: Boxes) -> npt.NDArray[np.floating]:
    """Return the intersection over union of each box with its partner.

    Examples
    --------
    >>> paired_overlaps(np.array([[0.0, 0, 2, 2], [1, 1, 2, 2]]), np.array([0.0, 0, 2, 2]))
    array([1.  , 0.25])
    """
    shared = _shared(boxes, others)
    union = areas(boxes) + areas(others) - shared
    return shared / np.maximum(union, np.finfo(np.float64).tiny)


def suppress(
    boxes: Boxes, scores: npt.NDArray[np.floating], threshold: float = 0.3
) -> npt.NDArray[np.intp]:
    """Suppress boxes that overlap a better one: greedy non-maximum suppression.

    Parameters
    ----------
    boxes : ndarray of shape (n, 4)
        ``x0, y0, x1, y1``.
    scores : ndarray of shape (n,)
        The better, the larger; of equal ones the earlier is the better.
    threshold : float, default=0.3
        A box goes if its intersection over union with one that stays is larger.

    Returns
    -------
    ndarray of int
        Indices of those that stay, by falling score.

    Examples
    --------
    >>> boxes = np.array([[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10]])
    >>> suppress(boxes, np.array([0.5, 0.9, 0.7]))
    array([1, 2])
    """
    order = np.argsort(-scores, kind="stable")
    ranked, stays, kept = boxes[order], np.ones(len(order), bool), []
    for start in range(0, len(order), _BLOCK):
        # Many rows at once, since one after the other they cost a call each.
        shadows = overlaps(ranked[start : start + _BLOCK], ranked) > threshold
        for index, shadow in enumerate(shadows, start):
            if stays[index]:
                kept.append(order[index])
                stays[shadow] = False
    return np.array(kept, dtype=np.intp)
