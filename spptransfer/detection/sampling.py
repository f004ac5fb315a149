"""Which windows of an image train a detector, and as what."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from spptransfer.datasets.annotations import Objects
from spptransfer.detection.boxes import Boxes, overlaps

Targets = npt.NDArray[np.int8]
Indices = npt.NDArray[np.intp]


def window_targets(
    boxes: Boxes,
    objects: Objects,
    n_classes: int,
    negative_overlap: float = 0.3,
    positive_overlap: float = 1.0,
) -> Targets:
    """Say what windows are to the problem of each class.

    Parameters
    ----------
    boxes : ndarray of shape (n, 4)
        Windows of an image.
    objects : Objects
        The objects in it.
    n_classes : int
        Number of classes.
    negative_overlap : float, default=0.3
        A window is a negative of a class if its intersection over union with every object of it,
        difficult ones included, is at most this.
    positive_overlap : float, default=1.0
        A window is a positive of a class if its intersection over union with an object of it that
        is not difficult is at least this; by default objects' own boxes are, as in the paper.

    Returns
    -------
    ndarray of int8, shape (n, n_classes)
        1 for a positive, -1 for a negative, and 0 for what is left out: too near to an object to
        be a negative.

    References
    ----------
    He et al., TPAMI 2015, section 4.1.

    Examples
    --------
    >>> boxes = np.array([[0.0, 0, 10, 10], [1, 0, 10, 10], [50, 50, 60, 60]])
    >>> window_targets(boxes, Objects.of([[0, 0, 10, 10]], [1]), n_classes=2)
    array([[-1,  1],
           [-1,  0],
           [-1, -1]], dtype=int8)
    """
    shared = overlaps(boxes, objects.boxes)
    targets = np.full((len(boxes), n_classes), -1, np.int8)
    rows, columns = np.nonzero(shared > negative_overlap)
    targets[rows, objects.labels[columns]] = 0
    rows, columns = np.nonzero((shared >= positive_overlap) & ~objects.difficult)
    targets[rows, objects.labels[columns]] = 1
    return targets


def best_objects(boxes: Boxes, objects: Objects, least: float) -> tuple[Indices, Indices]:
    """Return windows that overlap an object by at least so much, and the object of each.

    Objects that are difficult are left out.
    """
    shared = np.where(objects.difficult, -1, overlaps(boxes, objects.boxes))
    if not shared.shape[1]:
        return np.empty(0, np.intp), np.empty(0, np.intp)
    rows = np.flatnonzero(shared.max(axis=1) >= least)
    return rows, shared[rows].argmax(axis=1)


def thin_out(boxes: Boxes, order: Indices, overlap: float, most: int) -> Indices:
    """Take windows in an order, without those that overlap one taken by more than `overlap`.

    Stops at `most`.
    """
    taken: list[int] = []
    for index in order:
        if len(taken) == most:
            break
        if not taken or overlaps(boxes[index : index + 1], boxes[taken]).max() <= overlap:
            taken.append(int(index))
    return np.array(taken, np.intp)
