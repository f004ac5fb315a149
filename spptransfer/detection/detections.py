"""What a detector finds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Detections(NamedTuple):
    """Objects that a detector found in some images, in any order.

    Attributes
    ----------
    images : ndarray of int, shape (n,)
        Positions in the list of images that was searched.
    boxes : ndarray of float64, shape (n, 4)
        ``x0, y0, x1, y1`` in pixels of the upright image, edges of pixels being whole numbers.
    labels : ndarray of int32, shape (n,)
        Indices into the detector's classes.
    scores : ndarray of float32, shape (n,)
        Decision values of the class's linear SVM.
    """

    images: npt.NDArray[np.intp]
    boxes: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]

    def take(self, chosen: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> Detections:
        """Return some of the detections, by index or mask."""
        images, boxes, labels, scores = self
        return Detections(images[chosen], boxes[chosen], labels[chosen], scores[chosen])

    @classmethod
    def empty(cls) -> Detections:
        """Return no detections."""
        return cls(
            np.empty(0, np.intp),
            np.empty((0, 4)),
            np.empty(0, np.int32),
            np.empty(0, np.float32),
        )
