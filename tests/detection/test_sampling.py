"""Windows are positives, negatives or nothing to a class, as a loop over objects says."""

from __future__ import annotations

import numpy as np
import pytest
from detection_cases import CLASSES, boxes
from hypothesis import given, settings
from hypothesis import strategies as st

from spptransfer.datasets.annotations import Objects
from spptransfer.detection.boxes import overlaps
from spptransfer.detection.sampling import best_objects, thin_out, window_targets


def array(drawn) -> np.ndarray:
    return np.array(drawn, np.float64).reshape(-1, 4)


@st.composite
def images(draw):
    """Windows of an image, some of them boxes of its objects, and these."""
    label = st.integers(0, len(CLASSES) - 1)
    found = draw(st.lists(st.tuples(boxes(), label, st.booleans()), max_size=5))
    objects = Objects.of(*map(list, zip(*found, strict=True))) if found else Objects.of()
    windows = [*draw(st.lists(boxes(), max_size=8)), *(box for box, *_ in found)]
    return array(draw(st.permutations(windows))), objects


def target(window, objects, label, most, least) -> int:
    """What a window is to a class, object by object."""
    rivals = [
        (float(overlaps(array([window]), array([box]))[0, 0]), hard)
        for box, of, hard in zip(*objects, strict=True)
        if of == label
    ]
    if any(shared >= least and not hard for shared, hard in rivals):
        return 1
    return -1 if all(shared <= most for shared, _ in rivals) else 0


@settings(deadline=None, max_examples=50)
@given(images(), st.sampled_from([0.0, 0.3, 0.5]), st.sampled_from([0.5, 0.7, 1.0]))
def test_targets_are_what_a_loop_over_objects_says(given, most, least):
    windows, objects = given
    found = window_targets(windows, objects, len(CLASSES), most, least)
    assert found.shape == (len(windows), len(CLASSES))
    for window, row in zip(windows, found, strict=True):
        expected = [target(window, objects, k, most, least) for k in range(len(CLASSES))]
        assert row.tolist() == expected


def test_by_default_only_the_box_of_an_object_is_a_positive():
    objects = Objects.of([[0.1, 0.2, 33.3, 47.7]], [0])
    windows = np.concatenate([objects.boxes, objects.boxes + 1e-3])
    assert window_targets(windows, objects, 1).tolist() == [[1], [0]]
    assert window_targets(windows, objects, 1, positive_overlap=0.9).tolist() == [[1], [1]]


def test_an_overlap_of_exactly_the_limit_is_a_negative_still():
    window, objects = array([[0, 0, 10, 3], [0, 0, 10, 3.1]]), Objects.of([[0, 0, 10, 10]], [0])
    assert window_targets(window, objects, 1, 0.3).tolist() == [[-1], [0]]


def test_a_difficult_object_leaves_windows_out_and_is_no_positive():
    objects = Objects.of([[0, 0, 10, 10]], [1], [True])
    near = array([[0, 0, 10, 10], [1, 0, 10, 10], [20, 0, 30, 10]])
    assert window_targets(near, objects, 2).tolist() == [[-1, 0], [-1, 0], [-1, -1]]


def test_an_object_is_a_negative_of_other_classes_unless_one_of_theirs_is_near():
    objects = Objects.of([[0, 0, 10, 10], [0, 0, 10, 9]], [0, 1])
    assert window_targets(objects.boxes, objects, 3).tolist() == [[1, 0, -1], [0, 1, -1]]


@settings(deadline=None, max_examples=50)
@given(images(), st.sampled_from([0.3, 0.5, 0.6, 1.0]))
def test_windows_belong_to_the_object_that_they_overlap_most(given, least):
    windows, objects = given
    rows, nearest = best_objects(windows, objects, least)
    shared = overlaps(windows, objects.boxes)[:, ~objects.difficult]
    best = shared.max(axis=1, initial=0)
    assert rows.tolist() == np.flatnonzero(best >= least).tolist()
    assert not objects.difficult[nearest].any()
    reached = overlaps(windows[rows], objects.boxes)[np.arange(len(rows)), nearest]
    np.testing.assert_array_equal(reached, best[rows])


@pytest.mark.parametrize("least", [0.0, 0.6])
def test_an_image_of_difficult_objects_alone_has_no_window_that_belongs_to_one(least):
    objects = Objects.of([[0, 0, 10, 10]], [0], [True])
    assert [len(each) for each in best_objects(objects.boxes, objects, least)] == [0, 0]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(boxes(), max_size=12),
    st.randoms(use_true_random=False),
    st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    st.integers(0, 6),
)
def test_thinning_takes_what_overlaps_none_that_is_taken(drawn, random, overlap, most):
    windows, order = array(drawn), random.sample(range(len(drawn)), len(drawn))
    expected: list[int] = []
    for index in order:
        near = [overlaps(windows[[index]], windows[[other]])[0, 0] > overlap for other in expected]
        if len(expected) < most and not any(near):
            expected.append(index)
    found = thin_out(windows, np.array(order, np.intp), overlap, most)
    assert found.dtype == np.intp
    assert found.tolist() == expected
