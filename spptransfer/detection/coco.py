"""COCO's average precision of detections, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from spptransfer.datasets.annotations import Annotations, Objects
from spptransfer.detection.boxes import areas
from spptransfer.detection.detections import Detections
from spptransfer.errors import ConfigError

_DETECTIONS = 100  # of a class in an image, as COCO's rules have it


def coco_average_precision(
    detections: Detections, objects: Sequence[Objects], classes: Sequence[str]
) -> dict[str, float]:
    """Compute COCO's average precision, of objects of all sizes.

    It differs from the devkit's: precision is read at 101 recalls; a detection whose best object
    is taken may have another one; the 100 best detections of a class in an image take part. A
    difficult object is given as a crowd, since COCO's code ignores nothing else: any number of
    detections may match it, by the share of their own area that it covers.

    Parameters
    ----------
    detections, objects, classes
        See `evaluate_detections`.

    Returns
    -------
    dict of str to float
        ``"AP"``, the mean over the overlaps 0.5, 0.55, ..., 0.95; ``"AP50"`` and ``"AP75"``, at
        0.5 and 0.75. Means over the classes that have objects; NaN without any.

    Raises
    ------
    ConfigError
        If pycocotools is not installed.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ConfigError("COCO's metrics need: pip install 'spptransfer[coco]'") from error
    truth, found = COCO(), COCO()
    listed: dict[str, Any] = {
        "images": [{"id": number} for number in range(len(objects))],
        "categories": [{"id": label, "name": name} for label, name in enumerate(classes)],
    }
    truth.dataset = {**listed, "annotations": _truths(objects)}
    found.dataset = {**listed, "annotations": _founds(detections)}
    with contextlib.redirect_stdout(io.StringIO()):  # it tells its progress there
        truth.createIndex()
        found.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        settings = evaluation.params
        settings.areaRng, settings.areaRngLbl = [[0, np.inf]], ["all"]
        settings.maxDets = [_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, 0]  # overlaps x recalls x classes
    precision = precision[..., (precision > -1).all(axis=(0, 1))]
    at = settings.iouThrs.round(2).tolist()
    chosen = {"AP": precision, "AP50": precision[at.index(0.5)], "AP75": precision[at.index(0.75)]}
    return {name: float(some.mean()) if some.size else np.nan for name, some in chosen.items()}


def _truths(objects: Sequence[Objects]) -> list[dict[str, Any]]:
    annotations = objects if isinstance(objects, Annotations) else Annotations.of(objects)
    images = np.repeat(np.arange(len(annotations)), np.diff(annotations.starts))
    boxes, labels, difficult = annotations.objects
    rows = _rows(images, labels, boxes)
    return [{**row, "iscrowd": int(hard)} for row, hard in zip(rows, difficult, strict=True)]


def _founds(detections: Detections) -> list[dict[str, Any]]:
    rows = _rows(detections.images, detections.labels, detections.boxes)
    scores = detections.scores.tolist()
    return [{**row, "score": score} for row, score in zip(rows, scores, strict=True)]


def _rows(images: Any, labels: Any, boxes: Any) -> list[dict[str, Any]]:
    """Return boxes as COCO has them; their numbers begin at 1, for 0 means none to its code."""
    corners = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
    columns = zip(images.tolist(), labels.tolist(), corners, areas(boxes).tolist(), strict=True)
    return [
        {"id": number, "image_id": image, "category_id": label, "bbox": box, "area": area}
        for number, (image, label, box, area) in enumerate(columns, start=1)
    ]
