from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spptransfer.detection.boxes import areas, overlaps, suppress
from spptransfer.detection.regression import decode_boxes
from spptransfer.detection.selection import select_detections
from spptransfer.detection.settings import DetectionSection

SIZE = (100, 80)


def drawn(seed: int, count: int, n_models: int = 2):
    random = np.random.default_rng(seed)
    low = random.integers(0, 60, (count, 2))
    boxes = np.hstack([low, low + random.integers(1, 40, (count, 2))]).astype(float)
    scores = random.normal(size=(count, n_models)).round(1).astype(np.float32)
    return boxes, scores, random.normal(0, 0.2, (count, n_models, 4)).astype(np.float32)


@settings(max_examples=60, deadline=None, derandomize=True)
@example(99999, 54, 0.3)
@given(st.integers(0, 10**6), st.integers(0, 60), st.sampled_from([0.3, 0.5, 1.0]))
def test_votes_are_those_of_a_loop_over_all_windows(seed, count, least):
    boxes, scores, changes = drawn(seed, count)
    section = DetectionSection(vote_overlap=least, nms=0.2)
    found = select_detections(boxes, scores, changes, SIZE, section)
    assert (np.diff(found.scores) <= 0).all()
    for label in range(2):
        moved = decode_boxes(boxes, changes[:, label], SIZE)
        order = np.argsort(-scores[:, label], kind="stable")
        order = order[areas(moved)[order] > 0]  # others left the image
        moved, values = moved[order], scores[order, label].astype(float)
        sums, means = [], []
        for box in moved:
            near = [k for k, other in enumerate(moved) if overlaps(box[None], other[None]) >= least]
            weights = [np.exp(3 * values[k]) for k in near]
            sums.append(np.log(sum(weights)) / 3)
            means.append(np.average(moved[near], axis=0, weights=weights))
        kept = suppress(moved, np.array(sums), 0.2)
        mine = found.labels == label
        np.testing.assert_allclose(found.scores[mine], np.array(sums)[kept], atol=1e-5)
        np.testing.assert_allclose(found.boxes[mine], np.reshape(means, (-1, 4))[kept], atol=1e-4)


def test_without_votes_windows_stay_as_they_are_moved():
    boxes, scores, changes = drawn(0, 40)
    section = DetectionSection(vote_overlap=None, nms=0.3, detections_per_class=5)
    found = select_detections(boxes, scores, changes, SIZE, section)
    for label in range(2):
        moved = decode_boxes(boxes, changes[:, label], SIZE)
        kept = suppress(moved, scores[:, label], 0.3)[:5]
        np.testing.assert_array_equal(found.boxes[found.labels == label], moved[kept])
        np.testing.assert_array_equal(found.scores[found.labels == label], scores[kept, label])


def test_windows_that_leave_the_image_are_no_detections():
    boxes, scores = np.array([[0.0, 0, 10, 10], [50, 50, 60, 60]]), np.ones((2, 1))
    changes = np.array([[[-9.0, 0, 0, 0]], [[0, 0, 0, 0]]])
    found = select_detections(boxes, scores, changes, SIZE, DetectionSection())
    np.testing.assert_allclose(found.boxes, [[50, 50, 60, 60]])


def test_many_windows_that_agree_win_over_one():
    boxes = np.array([[0.0, 0, 20, 20]] + [[40.0, 40, 60, 60 + k] for k in range(8)])
    scores = np.array([[1.0]] + [[0.8]] * 8)
    none = np.empty((9, 0, 4))
    first = select_detections(boxes, scores, none, SIZE, DetectionSection()).boxes[0]
    assert first == pytest.approx([40, 40, 60, 63.5])


def test_models_of_several_costs_share_the_regression_of_their_class():
    boxes, scores, changes = drawn(1, 30, n_models=2)
    twice = np.hstack([scores, scores])
    once = select_detections(boxes, scores, changes, SIZE, DetectionSection())
    found = select_detections(boxes, twice, changes, SIZE, DetectionSection())
    for label in range(4):
        mine, wanted = found.labels == label, once.labels == label % 2
        np.testing.assert_array_equal(found.boxes[mine], once.boxes[wanted])


def test_no_windows_give_no_detections():
    nothing = np.empty((0, 4)), np.empty((0, 3)), np.empty((0, 3, 4))
    assert len(select_detections(*nothing, SIZE, DetectionSection()).boxes) == 0
