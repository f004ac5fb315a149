"""How good detections are, by the rules of the PASCAL VOC devkit (``VOCevaldet.m``).

The detections of a class are looked at by falling score over all images; equal scores keep the
order in which they are given. Each belongs to that object of its class in its image, difficult
ones included, which it overlaps most, and to no other:

* the overlap (intersection over union) is below 0.5: the detection is false;
* the object is difficult: the detection is ignored;
* a detection of a higher score has the object: false, a duplicate;
* else it is true, and the object is found.

Difficult objects do not count. The devkit's sides of pixels 1 to n inclusive, ``xmax - xmin + 1``,
are the differences of our edges ``x1 - x0``, so that its overlaps are those of `boxes.overlaps`.
A class without objects that count has no average precision (NaN), and the mean leaves it out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from spptransfer.datasets.annotations import Annotations, Objects
from spptransfer.detection.boxes import paired_overlaps
from spptransfer.detection.detections import Detections
from spptransfer.errors import DatasetError
from spptransfer.metrics import (
    DETECTION_AVERAGE_PRECISION,
    Method,
    ranked_average_precision,
    thin_curve,
)

OVERLAP = 0.5
# Less than this with any object is background (Hoiem et al., 2012).
NEAR = 0.1
TRUE, IGNORED, FALSE = 1, 0, -1
FALSE_KINDS = ("wrong place", "similar class", "other class", "background")
# The sets of VOC's classes that Hoiem et al. (2012) call similar.
SIMILAR_CLASSES = (
    ("aeroplane", "bicycle", "boat", "bus", "car", "motorbike", "train"),
    ("bird", "cat", "cow", "dog", "horse", "person", "sheep"),
    ("chair", "diningtable", "sofa"),
    ("aeroplane", "bird"),
)
MEAN_RECALL = "mean recall (IoU 0.5)"
COCO_AVERAGE_PRECISION = {
    "AP": "COCO average precision (IoU 0.5 to 0.95)",
    "AP50": "COCO average precision (IoU 0.5)",
    "AP75": "COCO average precision (IoU 0.75)",
}

_Floats = npt.NDArray[np.float64]
_Indices = npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class DetectionEvaluation:
    """What became of each detection and each object, and what that makes of each class.

    Attributes
    ----------
    classes : tuple of str
        Names of the classes.
    detections : Detections
        What was evaluated.
    objects : Annotations
        What was to be found.
    outcomes : ndarray of int8, shape (n_detections,)
        1 = true, -1 = false, 0 = ignored.
    nearest : ndarray of int, shape (n_detections,)
        The object of its class that each detection overlaps most, by its position in
        ``objects.objects``; -1 where it overlaps none.
    overlaps : ndarray of float64, shape (n_detections,)
        Intersection over union with that object; 0 where there is none.
    ranking : ndarray of int
        Positions of the detections that are not ignored, by falling score.
    average_precision : mapping of str to ndarray of float64, shape (n_classes,)
        By ``"11-point"`` and ``"area"``; NaN for a class without objects that count.
    recall : ndarray of float64, shape (n_classes,)
        Share of the objects that are found; NaN as above.
    curves : list of ndarray of float64, shape (n_ranked, 2)
        For each class the recall and the precision down its ranking, ignored detections left out.
    """

    classes: tuple[str, ...]
    detections: Detections
    objects: Annotations
    outcomes: npt.NDArray[np.int8]
    nearest: _Indices
    overlaps: _Floats
    ranking: _Indices
    average_precision: Mapping[Method, _Floats]
    recall: _Floats
    curves: list[_Floats]

    @property
    def matched(self) -> _Indices:
        """The object that each detection overlaps by at least 0.5, or -1."""
        return np.where(self.overlaps >= OVERLAP, self.nearest, -1)

    @property
    def missed(self) -> _Indices:
        """The objects that count and that no detection found."""
        counts = ~self.objects.objects.difficult
        counts[self.nearest[self.outcomes == TRUE]] = False
        return np.flatnonzero(counts)

    @property
    def left_out(self) -> list[str]:
        """Names of the classes without objects that count."""
        return [self.classes[k] for k in np.flatnonzero(np.isnan(self.recall))]

    def mean(self, method: Method = "11-point") -> float:
        """Return the mean average precision over the classes with objects; NaN without any."""
        return _mean(self.average_precision[method])

    def object_images(self) -> _Indices:
        """Return the position of each object's image."""
        return np.repeat(np.arange(len(self.objects)), np.diff(self.objects.starts))


def _mean(values: _Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def evaluate_detections(
    detections: Detections, objects: Sequence[Objects], classes: Sequence[str]
) -> DetectionEvaluation:
    """Evaluate detections by the VOC devkit's rules.

    Parameters
    ----------
    detections : Detections
        Of all classes, in any order; boxes in pixels of the upright images.
    objects : sequence of Objects
        Of each image that was searched, at the position that the detections give.
    classes : sequence of str
        Names of the classes that labels are indices into.

    Returns
    -------
    DetectionEvaluation
        Average precision per class, curves, and the outcome of each detection.

    Raises
    ------
    DatasetError
        If detections or objects name an image or a class that does not exist.

    Examples
    --------
    >>> objects = [Objects.of([[0, 0, 10, 10]], [0]), Objects.of([[5, 5, 9, 9]], [0])]
    >>> boxes = np.array([[0.0, 0, 10, 9], [0, 0, 10, 10], [20, 20, 30, 30]])
    >>> images, labels = np.array([0, 0, 1]), np.zeros(3, np.int32)
    >>> found = Detections(images, boxes, labels, np.array([3, 2, 1], np.float32))
    >>> evaluation = evaluate_detections(found, objects, ["disc"])
    >>> evaluation.outcomes.tolist(), evaluation.mean("area")
    ([1, -1, -1], 0.5)
    """
    annotations = objects if isinstance(objects, Annotations) else Annotations.of(objects)
    truth, n_classes = annotations.objects, len(classes)
    _check(detections, annotations, n_classes)
    images = np.repeat(np.arange(len(annotations)), np.diff(annotations.starts))
    nearest, overlaps = _nearest(
        detections.boxes,
        detections.images * n_classes + detections.labels,
        truth.boxes,
        images * n_classes + truth.labels,
    )
    order = np.argsort(-detections.scores, kind="stable")
    outcomes = np.full(len(order), FALSE, np.int8)
    match = overlaps[order] >= OVERLAP
    hard = np.zeros(len(order), bool)
    hard[match] = truth.difficult[nearest[order[match]]]
    outcomes[order[hard]] = IGNORED
    candidates = order[match & ~hard]
    # Of equal numbers `unique` gives the first position.
    _, first = np.unique(nearest[candidates], return_index=True)
    outcomes[candidates[first]] = TRUE
    ranking = order[outcomes[order] != IGNORED]
    counts = np.bincount(truth.labels[~truth.difficult], minlength=n_classes)
    ranked = []  # whether each detection of a class is true, and the number of its objects
    for label, count in enumerate(counts.tolist()):
        ranked.append((outcomes[ranking[detections.labels[ranking] == label]] == TRUE, count))
    return DetectionEvaluation(
        classes=tuple(classes),
        detections=detections,
        objects=annotations,
        outcomes=outcomes,
        nearest=nearest,
        overlaps=overlaps,
        ranking=ranking,
        average_precision={
            method: np.array([ranked_average_precision(*one, method) for one in ranked])
            for method in DETECTION_AVERAGE_PRECISION
        },
        recall=np.array([right.sum() / n if n else np.nan for right, n in ranked]),
        curves=[_curve(*one) for one in ranked],
    )


def _check(detections: Detections, objects: Annotations, n_classes: int) -> None:
    for what, numbers, most in (
        ("image", detections.images, len(objects)),
        ("class", detections.labels, n_classes),
        ("class", objects.objects.labels, n_classes),
    ):
        wrong = numbers[(numbers < 0) | (numbers >= most)]
        if len(wrong):
            whose = "an object" if numbers is objects.objects.labels else "a detection"
            raise DatasetError(f"{whose} names {what} {wrong[0]}; allowed: 0 to {most - 1}")


def _curve(right: npt.NDArray[np.bool_], n_objects: int) -> _Floats:
    found = np.cumsum(right)
    recall = found / n_objects if n_objects else np.full(len(found), np.nan)
    return np.column_stack([recall, found / np.arange(1, 1 + len(found))])


def _pairs(groups: _Indices, object_groups: _Indices) -> Iterator[tuple[_Indices, _Indices]]:
    """Yield detections with an object of their group each, the first ones, then the second."""
    order = np.argsort(object_groups, kind="stable")
    sorted_groups = object_groups[order]
    starts = np.searchsorted(sorted_groups, groups)
    counts = np.searchsorted(sorted_groups, groups, side="right") - starts
    asking = np.flatnonzero(counts)
    for nth in range(int(counts.max(initial=0))):
        asking = asking[counts[asking] > nth]
        yield asking, order[starts[asking] + nth]


def _nearest(
    boxes: _Floats, groups: _Indices, objects: _Floats, object_groups: _Indices
) -> tuple[_Indices, _Floats]:
    """Find the object of its group that each box overlaps most; the first of equal ones."""
    nearest, most = np.full(len(boxes), -1, np.intp), np.zeros(len(boxes))
    for asking, chosen in _pairs(groups, object_groups):
        overlaps = paired_overlaps(boxes[asking], objects[chosen])
        better = overlaps > most[asking]
        nearest[asking[better]] = chosen[better]
        most[asking[better]] = overlaps[better]
    return nearest, most


class FalseDetections(NamedTuple):
    """What kind of false each detection is, and the object it was drawn to.

    Attributes
    ----------
    kinds : ndarray of int8, shape (n_detections,)
        Position in `FALSE_KINDS`, -1 for a detection that is not false.
    objects : ndarray of int, shape (n_detections,)
        Position in the evaluation's ``objects.objects``, -1 for the background.
    """

    kinds: npt.NDArray[np.int8]
    objects: _Indices


def false_kinds(
    evaluation: DetectionEvaluation, similar: Sequence[Sequence[str]] = SIMILAR_CLASSES
) -> FalseDetections:
    """Say what kind of false each false detection is, after Hoiem et al. (ECCV 2012).

    Parameters
    ----------
    evaluation : DetectionEvaluation
        Of the detections.
    similar : sequence of sequences of str
        Sets of names of classes that are similar to one another; VOC's by default.

    Returns
    -------
    FalseDetections
        The first kind that holds: ``"wrong place"``, the detection overlaps an object of its class
        by 0.1 or more (a duplicate does); ``"similar class"`` and ``"other class"``, one of such
        a class; ``"background"``.

    Examples
    --------
    >>> objects = [Objects.of([[0, 0, 9, 9]], [1])]
    >>> image, label = np.array([0]), np.array([0], np.int32)
    >>> found = Detections(image, np.array([[0.0, 0, 9, 9]]), label, np.ones(1, np.float32))
    >>> evaluation = evaluate_detections(found, objects, ["cat", "dog"])
    >>> FALSE_KINDS[false_kinds(evaluation).kinds[0]]
    'similar class'
    """
    kinds = np.where(evaluation.outcomes == FALSE, np.int8(3), np.int8(-1))
    kinds[(kinds == 3) & (evaluation.overlaps >= NEAR)] = 0
    objects = np.where(kinds == 0, evaluation.nearest, -1)
    alike = _alike(evaluation.classes, similar)
    detections, truth = evaluation.detections, evaluation.objects.objects
    left, most = np.flatnonzero(kinds == 3), np.zeros(len(kinds))
    for asking, chosen in _pairs(detections.images[left], evaluation.object_images()):
        asking = left[asking]
        overlaps = paired_overlaps(detections.boxes[asking], truth.boxes[chosen])
        kind = np.where(alike[detections.labels[asking], truth.labels[chosen]], 1, 2)
        closer = (kind == kinds[asking]) & (overlaps > most[asking])
        better = (overlaps >= NEAR) & ((kind < kinds[asking]) | closer)
        asking, chosen = asking[better], chosen[better]
        kinds[asking], objects[asking], most[asking] = kind[better], chosen, overlaps[better]
    return FalseDetections(kinds, objects)


def _alike(classes: Sequence[str], similar: Sequence[Sequence[str]]) -> npt.NDArray[np.bool_]:
    """Tell of each pair of classes whether they are in one of the sets."""
    member = np.array([[name in names for names in similar] for name in classes], np.int64)
    member = member.reshape(len(classes), len(similar))
    shared: npt.NDArray[np.bool_] = member @ member.T > 0
    return shared


def describe_evaluation(
    evaluation: DetectionEvaluation,
    *,
    coco: Mapping[str, float] | None = None,
    proposals: Mapping[str, Any] | None = None,
    similar: Sequence[Sequence[str]] = SIMILAR_CLASSES,
) -> dict[str, Any]:
    """Describe an evaluation for ``results.json``, in plain values as fractions of 1.

    Parameters
    ----------
    evaluation : DetectionEvaluation
        Of the test images.
    coco : mapping of str to float, optional
        What `coco_average_precision` returns.
    proposals : mapping, optional
        Of the windows that were scored: ``"method"``; ``"windows"``, the mean number per image;
        ``"recall"``, such as ``{"0.5": 0.93, "0.7": 0.74}``; ``"per_class"``, the recall at 0.5
        by class. Kept as given.
    similar : sequence of sequences of str
        See `false_kinds`.

    Returns
    -------
    dict
        ``"kind"``, ``"headline"`` and ``"metrics"`` as the results of every run have them, and
        ``"detection"``: counts of all and of each class; what the best detections of each class
        are, as many as it has objects; curves; the proposals.
    """
    metrics: dict[str, Any] = {}
    for method, name in DETECTION_AVERAGE_PRECISION.items():
        metrics[name] = _metric(evaluation, evaluation.average_precision[method])
    metrics[MEAN_RECALL] = _metric(evaluation, evaluation.recall)
    for short, name in COCO_AVERAGE_PRECISION.items():
        if coco is not None:
            value = coco[short]
            metrics[name] = {"value": value, "std": None, "per_split": [value], "per_class": None}
    name = DETECTION_AVERAGE_PRECISION["11-point"]
    return {
        "kind": "detection",
        "headline": {"metric": name, "value": metrics[name]["value"], "std": None},
        "metrics": metrics,
        "detection": {
            **_counts(evaluation, slice(None)),
            "images": len(evaluation.objects),
            "overlap": OVERLAP,
            "per_class": {
                name: _counts(evaluation, label) for label, name in enumerate(evaluation.classes)
            },
            "best": _best(evaluation, similar),
            "similar": list(map(list, similar)),
            "curves": {
                name: thin_curve(*evaluation.curves[label].T).round(6).tolist()
                for label, name in enumerate(evaluation.classes)
            },
            "proposals": None if proposals is None else dict(proposals),
        },
    }


def _metric(evaluation: DetectionEvaluation, values: _Floats) -> dict[str, Any]:
    mean, *each = [None if np.isnan(v) else float(v) for v in (_mean(values), *values)]
    return {
        "value": mean,
        "std": None,
        "per_split": [mean],
        "per_class": dict(zip(evaluation.classes, each, strict=True)),
        "left_out": evaluation.left_out,
    }


def _counts(evaluation: DetectionEvaluation, label: int | slice) -> dict[str, int]:
    """Count the objects and detections of a class, or of all."""
    truth, labels = evaluation.objects.objects, evaluation.detections.labels
    all_of = isinstance(label, slice)
    outcomes = evaluation.outcomes if all_of else evaluation.outcomes[labels == label]
    difficult = truth.difficult if all_of else truth.difficult[truth.labels == label]
    return {
        "objects": int((~difficult).sum()),
        "difficult": int(difficult.sum()),
        "detections": len(outcomes),
        "true": int((outcomes == TRUE).sum()),
        "false": int((outcomes == FALSE).sum()),
        "ignored": int((outcomes == IGNORED).sum()),
    }


def _best(evaluation: DetectionEvaluation, similar: Sequence[Sequence[str]]) -> dict[str, int]:
    """Count what the best detections of each class are, as many as it has objects that count."""
    kinds, ranking = false_kinds(evaluation, similar).kinds, evaluation.ranking
    truth = evaluation.objects
    labels, counted = evaluation.detections.labels[ranking], ~truth.objects.difficult
    found = dict.fromkeys(("true", *FALSE_KINDS), 0)
    for label in range(len(evaluation.classes)):
        count = int((truth.objects.labels[counted] == label).sum())
        best = kinds[ranking[labels == label][:count]]
        for code, kind in enumerate(found, start=-1):
            found[kind] += int((best == code).sum())
    return found
