"""From the scores of all windows of an image to its detections."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from spptransfer.detection.boxes import Boxes, areas, overlaps, suppress
from spptransfer.detection.detections import Detections
from spptransfer.detection.regression import decode_boxes
from spptransfer.detection.settings import DetectionSection

Floats = npt.NDArray[np.floating]

# Windows of a class that are looked at, by falling decision value.
_RANKED = 100
# Votes grow with the exponential of so many decision values, whose unit is the margin.
_SHARPNESS = 3.0


def select_detections(
    boxes: Boxes,
    scores: Floats,
    changes: Floats,
    size: tuple[int, int],
    settings: DetectionSection,
) -> Detections:
    """Select the detections of every class among the windows of an image.

    Windows are moved by the box regression. Then they vote: a window's score becomes the logarithm
    of the sum of the exponentials of the scores of all windows that overlap it, so that an object
    on which many windows agree wins over a single window's chance. After non-maximum suppression
    each detection is the mean of the windows that voted for it, weighted by the same exponentials.

    Parameters
    ----------
    boxes : ndarray of shape (n, 4)
        Windows.
    scores : ndarray of shape (n, n_models)
        Their decision values.
    changes : ndarray of shape (n, n_classes, 4)
        Their box regression, as `decode_boxes` takes it, for no class if there is none. Models of
        several times as many classes take those of their class, in turn.
    size : (int, int)
        Width and height of the image.
    settings : DetectionSection
        With ``vote_overlap``, ``nms`` and ``detections_per_class``.

    Returns
    -------
    Detections
        By falling score; `labels` are the models, `images` are 0.

    References
    ----------
    Boxes are averaged as by Gidaris and Komodakis, *Object detection via a multi-region and
    semantic segmentation-aware CNN model*, ICCV 2015.

    Examples
    --------
    >>> boxes = np.array([[0.0, 0, 10, 10], [0, 0, 12, 10], [0, 0, 11, 10], [40, 40, 50, 50]])
    >>> scores, changes = np.array([[0.5], [0.5], [0.4], [0.6]]), np.empty((4, 0, 4))
    >>> found = select_detections(boxes, scores, changes, (60, 60), DetectionSection())
    >>> found.boxes.round(1), found.scores.round(1)
    (array([[ 0.,  0., 11., 10.],
           [40., 40., 50., 50.]]), array([0.8, 0.6], dtype=float32))
    """
    found = []
    for model, column in enumerate(scores.T):
        ranked = np.argsort(-column, kind="stable")[:_RANKED]
        places: Boxes = boxes[ranked].astype(np.float64)
        if n_classes := changes.shape[1]:
            places = decode_boxes(places, changes[ranked, model % n_classes], size)
        inside = areas(places) > 0  # others left the image
        places, values = _suppressed(places[inside], column[ranked[inside]], settings)
        found.append((places, np.full(len(values), model, np.int32), values))
    places, labels, values = map(np.concatenate, zip(*found, strict=True))
    order = np.argsort(-values, kind="stable")
    return Detections(
        np.zeros(len(order), np.intp),
        np.clip(places[order], 0, np.tile(size, 2)).astype(np.float64),  # a mean is rounded
        labels[order],
        values[order].astype(np.float32),
    )


def _suppressed(boxes: Boxes, scores: Floats, settings: DetectionSection) -> tuple[Boxes, Floats]:
    """Thin out the windows of a class, given by falling score, by their votes if these count."""
    if settings.vote_overlap is None or not len(boxes):
        kept = suppress(boxes, scores, settings.nms)[: settings.detections_per_class]
        return boxes[kept], scores[kept]
    votes = np.exp(_SHARPNESS * (scores - scores[0]))  # the first is the largest
    shared = overlaps(boxes, boxes) >= settings.vote_overlap
    sums = shared @ votes
    kept = suppress(boxes, sums, settings.nms)[: settings.detections_per_class]
    places = (shared[kept] * votes) @ boxes / sums[kept, None]
    return places, np.log(sums[kept]) / _SHARPNESS + scores[0]
