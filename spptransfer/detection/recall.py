"""Recall of proposals: the share of the objects that a detector can find at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from spptransfer.datasets.annotations import Objects
from spptransfer.detection.boxes import Boxes, overlaps

COUNTS = (100, 300, 1000, 2000)
THRESHOLDS = (0.5, 0.7)


class Recall(NamedTuple):
    """The share of objects that some of an image's first windows overlap by a threshold.

    Attributes
    ----------
    counts : tuple of int
        Numbers of windows of an image, at most.
    thresholds : tuple of float
        Least intersections over union.
    found : ndarray of float64, shape (n_counts, n_thresholds)
        From 0 to 1; NaN without objects.
    objects : int
        Objects that are not difficult.
    windows : float
        Mean number of windows of an image, all that are there.
    images, empty : int
        Images looked at, and those without windows, which could not be read.
    """

    counts: tuple[int, ...]
    thresholds: tuple[float, ...]
    found: npt.NDArray[np.float64]
    objects: int
    windows: float
    images: int
    empty: int


def recall(
    proposals: Iterable[Boxes],
    objects: Iterable[Objects],
    counts: Sequence[int] = COUNTS,
    thresholds: Sequence[float] = THRESHOLDS,
) -> Recall:
    """Measure the recall of proposals by number of windows.

    Parameters
    ----------
    proposals : iterable of ndarray of shape (n, 4)
        Windows of each image, by falling priority; they are read once, image by image.
    objects : iterable of Objects
        Of the same images. Difficult ones do not count.
    counts : sequence of int, default=(100, 300, 1000, 2000)
        How many of an image's windows are looked at.
    thresholds : sequence of float, default=(0.5, 0.7)
        Intersections over union from which on an object counts as found.

    Returns
    -------
    Recall

    Examples
    --------
    >>> windows = np.array([[0.0, 0, 9, 9], [20, 20, 30, 30]])
    >>> there = Objects.of([[0, 0, 10, 10], [21, 21, 31, 31]], [0, 0])
    >>> recall([windows], [there], counts=[1, 2]).found
    array([[0.5, 0.5],
           [1. , 0.5]])
    """
    best: list[npt.NDArray[np.float64]] = []  # n_counts x n_objects of each image
    lengths = []
    for windows, there in zip(proposals, objects, strict=True):
        boxes = there.boxes[~there.difficult]
        lengths.append(len(windows))
        largest = np.zeros((len(counts), len(boxes)))
        if len(windows):
            so_far = np.maximum.accumulate(overlaps(np.asarray(windows, np.float64), boxes))
            largest = so_far[np.minimum(counts, len(windows)) - 1]
        best.append(largest)
    each = np.concatenate(best, axis=1) if best else np.zeros((len(counts), 0))
    found = [
        (each >= limit).mean(axis=1) if each.size else np.full(len(counts), np.nan)
        for limit in thresholds
    ]
    return Recall(
        tuple(counts),
        tuple(thresholds),
        np.stack(found, axis=1),
        each.shape[1],
        float(np.mean(lengths)) if lengths else 0.0,
        len(lengths),
        lengths.count(0),
    )
