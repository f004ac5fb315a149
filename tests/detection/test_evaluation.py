"""Evaluation of detections against a slow reading of the devkit's rules, and against COCO's."""

from __future__ import annotations

import json
import math
import sys
from fractions import Fraction

import numpy as np
import pytest
from detection_cases import CLASSES, detections, scenes
from hypothesis import given, settings

from spptransfer.datasets.annotations import Annotations, Objects
from spptransfer.detection.coco import coco_average_precision
from spptransfer.detection.detections import Detections
from spptransfer.detection.evaluation import (
    FALSE_KINDS,
    describe_evaluation,
    evaluate_detections,
    false_kinds,
)
from spptransfer.errors import ConfigError, DatasetError

DISC = ("disc",)


def overlap(one, other) -> Fraction:
    """Of boxes in the devkit's pixels, 1 to n inclusive, in exact numbers."""
    width = min(one[2], other[2]) - max(one[0], other[0]) + 1
    height = min(one[3], other[3]) - max(one[1], other[1]) + 1
    if width <= 0 or height <= 0:
        return Fraction(0)
    area = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (one, other)]
    return Fraction(width * height, sum(area) - width * height)


def devkit_pixels(box) -> list[int]:
    x0, y0, x1, y1 = map(int, box)
    return [x0 + 1, y0 + 1, x1, y1]


def devkit(found, objects, label):
    """The outcomes of a class's detections by falling score, and the number of its objects."""
    order = [i for i in range(len(found.scores)) if found.labels[i] == label]
    order.sort(key=lambda i: -found.scores[i])
    taken, outcomes = set(), {}
    for i in order:
        image, best, which = int(found.images[i]), Fraction(0), None
        for j, (box, kind) in enumerate(
            zip(objects[image].boxes, objects[image].labels, strict=True)
        ):
            shared = overlap(devkit_pixels(found.boxes[i]), devkit_pixels(box))
            if kind == label and shared > best:
                best, which = shared, j
        if best < Fraction(1, 2):
            outcomes[i] = -1
        elif objects[image].difficult[which]:
            outcomes[i] = 0
        else:
            outcomes[i] = -1 if (image, which) in taken else 1
            taken.add((image, which))
    count = sum(int(((o.labels == label) & ~o.difficult).sum()) for o in objects)
    return outcomes, count


def precision_recall(outcomes, count):
    true = false = 0
    points = []
    for outcome in outcomes.values():
        true, false = true + (outcome == 1), false + (outcome == -1)
        if outcome:
            points.append((Fraction(true, count), Fraction(true, true + false)))
    return points


def interpolated(points, recalls) -> float:
    best = [max((p for r, p in points if r >= t), default=Fraction(0)) for t in recalls]
    return float(sum(best) / len(best))


def area(points) -> float:
    """The devkit's xVOCap."""
    recall = [Fraction(0), *(r for r, _ in points), Fraction(1)]
    precision = [Fraction(0), *(p for _, p in points), Fraction(0)]
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return float(sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall))))


@settings(max_examples=150, deadline=None)
@given(scenes())
def test_outcomes_and_average_precisions_are_the_devkits(scene):
    found, objects = scene
    evaluation = evaluate_detections(found, objects, CLASSES)
    for label in range(len(CLASSES)):
        outcomes, count = devkit(found, objects, label)
        assert {i: int(evaluation.outcomes[i]) for i in outcomes} == outcomes
        measured = {kind: ap[label] for kind, ap in evaluation.average_precision.items()}
        if not count:
            assert all(map(math.isnan, measured.values()))
            assert CLASSES[label] in evaluation.left_out
            continue
        points = precision_recall(outcomes, count)
        tenths = [Fraction(t, 10) for t in range(11)]
        assert measured == pytest.approx(
            {"11-point": interpolated(points, tenths), "area": area(points)}
        )
        assert evaluation.curves[label].ravel() == pytest.approx(
            [float(x) for p in points for x in p]
        )
        assert evaluation.recall[label] == sum(o == 1 for o in outcomes.values()) / count


@settings(max_examples=100, deadline=None)
@given(scenes())
def test_every_object_that_counts_is_found_once_or_missed(scene):
    found, objects = scene
    evaluation = evaluate_detections(found, objects, CLASSES)
    right = evaluation.matched[evaluation.outcomes == 1]
    counting = np.flatnonzero(~evaluation.objects.objects.difficult)
    assert sorted([*right, *evaluation.missed]) == counting.tolist()
    kinds, objects = false_kinds(evaluation)
    assert ((objects >= 0) == ((kinds >= 0) & (kinds < 3))).all()
    assert ((kinds >= 0) == (evaluation.outcomes == -1)).all()


def test_the_mean_leaves_out_classes_without_objects():
    objects = [Objects.of([[0, 0, 9, 9], [20, 0, 29, 9]], [0, 2], [False, True])]
    evaluation = evaluate_detections(detections([(0, [0, 0, 9, 9], 0, 1)]), objects, CLASSES)
    assert evaluation.mean() == evaluation.mean("area") == 1
    assert evaluation.left_out == ["dog", "car"]
    assert math.isnan(evaluate_detections(Detections.empty(), [], CLASSES).mean())


def test_a_recall_of_exactly_three_tenths_reaches_it():
    objects = [Objects.of([[20 * k, 0, 20 * k + 9, 9] for k in range(10)], [0] * 10)]
    found = [(0, [20 * k, 0, 20 * k + 9, 9], 0, 9 - k) for k in range(3)]
    evaluation = evaluate_detections(detections(found), objects, DISC)
    assert evaluation.mean("11-point") == pytest.approx(4 / 11)


@pytest.mark.parametrize(
    ("image", "label", "said"),
    [
        (2, 0, "a detection names image 2; allowed: 0 to 0"),
        (0, 5, "names class 5; allowed: 0 to 2"),
    ],
)
def test_what_does_not_exist_is_refused(image, label, said):
    with pytest.raises(DatasetError, match=said):
        evaluate_detections(detections([(image, [0, 0, 1, 1], label, 0)]), [Objects.of()], CLASSES)


def test_false_detections_have_their_kind():
    objects = [Objects.of([[0, 0, 10, 10], [100, 0, 110, 10], [200, 0, 210, 10]], [0, 1, 2])]
    expected = {
        "wrong place": [[0, 0, 10, 3], [0, 0, 10, 9]],  # the second is a duplicate
        "similar class": [[100, 0, 110, 10]],
        "other class": [[200, 0, 210, 10]],
        "background": [[50, 0, 60, 10], [0, 9, 1, 10]],
    }
    found = [(0, [0, 0, 10, 10], 0, 9)]
    found += [(0, box, 0, 1) for each in expected.values() for box in each]
    evaluation = evaluate_detections(detections(found), Annotations.of(objects), CLASSES)
    names = [FALSE_KINDS[kind] for kind in false_kinds(evaluation).kinds[1:]]
    assert names == [name for name, each in expected.items() for _ in each]
    regrouped = false_kinds(evaluation, [("cat", "car")]).kinds
    assert [FALSE_KINDS[kind] for kind in regrouped[3:5]] == ["other class", "similar class"]


@settings(max_examples=60, deadline=None)
@given(scenes())
def test_a_description_is_plain_json_and_counts_everything(scene):
    found, objects = scene
    described = describe_evaluation(evaluate_detections(found, objects, CLASSES))
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    counts = described["detection"]
    assert counts["true"] + counts["false"] + counts["ignored"] == len(found.scores)
    for key in ("objects", "difficult", "detections", "true", "false", "ignored"):
        assert counts[key] == sum(each[key] for each in counts["per_class"].values())
    assert sum(counts["best"].values()) <= counts["objects"]
    assert all(1 <= len(curve) <= 101 for curve in counts["curves"].values())


def spread_out(seed: int):
    """Objects that no box overlaps two of, none difficult, and scores all different."""
    rng = np.random.default_rng(seed)
    found, objects = [], []
    for image in range(12):
        cells = rng.permutation(25)[: rng.integers(0, 9)]
        corners = np.stack([cells % 5, cells // 5], axis=1) * 100.0
        objects.append(Objects.of(np.c_[corners, corners + 40], rng.integers(0, 3, len(cells))))
        for box, label in zip(objects[-1].boxes, objects[-1].labels, strict=True):
            for _ in range(rng.integers(0, 3)):
                moved = box + rng.integers(-9, 10, 4)
                found.append((image, moved, label if rng.random() < 0.8 else 0, 0))
    scores = rng.permutation(len(found))
    return detections(
        [(*one[:3], score) for one, score in zip(found, scores, strict=True)]
    ), objects


@pytest.mark.parametrize("seed", range(5))
def test_cocos_code_agrees_where_the_rules_do(seed, capfd):
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    found, objects = spread_out(seed)
    measured = coco_average_precision(found, objects, CLASSES)
    evaluation = evaluate_detections(found, objects, CLASSES)
    recalls = np.linspace(0, 1, 101)
    ours = []
    for curve in evaluation.curves:
        reached = curve[:, 0] >= recalls[:, None]
        ours.append(np.where(reached, curve[:, 1], 0).max(axis=1).mean())
    assert measured["AP50"] == pytest.approx(np.mean(ours), abs=1e-9)
    assert 0 < measured["AP"] < measured["AP50"]
    assert capfd.readouterr() == ("", "")


def test_cocos_code_ignores_difficult_objects_and_takes_nothing_for_nothing():
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    objects = [Objects.of([[0, 0, 9, 9], [20, 0, 29, 9]], [0, 0], [False, True]), Objects.of()]
    found = detections([(0, [20, 0, 29, 9], 0, 2), (0, [0, 0, 9, 9], 0, 1)])
    assert coco_average_precision(found, objects, CLASSES)["AP"] == pytest.approx(1)
    assert coco_average_precision(Detections.empty(), objects, CLASSES)["AP"] == 0
    assert math.isnan(coco_average_precision(Detections.empty(), [Objects.of()], CLASSES)["AP"])


def test_without_pycocotools_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(ConfigError, match=r"pip install 'spptransfer\[coco\]'"):
        coco_average_precision(Detections.empty(), [], CLASSES)
