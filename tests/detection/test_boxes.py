"""Overlaps and suppression equal what a loop over pixels and pairs finds."""

from __future__ import annotations

import numpy as np
from detection_cases import boxes
from hypothesis import given, settings
from hypothesis import strategies as st

from spptransfer.detection.boxes import areas, intersections, overlaps, paired_overlaps, suppress


def array(drawn) -> np.ndarray:
    return np.array(drawn, np.float64).reshape(-1, 4)


def pixels(box) -> set[tuple[int, int]]:
    """The pixels that a box of whole numbers covers."""
    x0, y0, x1, y1 = map(int, box)
    return {(x, y) for x in range(x0, x1) for y in range(y0, y1)}


@settings(deadline=None, max_examples=50)
@given(st.lists(boxes(), max_size=5), st.lists(boxes(), max_size=5))
def test_overlaps_are_those_of_counted_pixels(some, others):
    one, other = array(some), array(others)
    shared = [[len(pixels(a) & pixels(b)) for b in others] for a in some]
    union = [[len(pixels(a) | pixels(b)) for b in others] for a in some]
    shape = (len(some), len(others))
    expected = np.array(shared, float).reshape(shape)
    np.testing.assert_array_equal(intersections(one, other), expected)
    expected = expected / np.array(union, float).reshape(shape)
    np.testing.assert_allclose(overlaps(one, other), expected, rtol=1e-12)
    np.testing.assert_array_equal(areas(one), [len(pixels(a)) for a in some])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(boxes(), boxes()), min_size=1, max_size=5))
def test_paired_overlaps_are_the_diagonal_of_all(pairs):
    one, other = (array(list(side)) for side in zip(*pairs, strict=True))
    np.testing.assert_array_equal(paired_overlaps(one, other), np.diag(overlaps(one, other)))


def test_boxes_without_extent_overlap_nothing():
    empty = array([[3, 3, 3, 9], [5, 5, 2, 2]])
    assert areas(empty).tolist() == [0, 0]
    assert overlaps(empty, array([[0, 0, 9, 9], [3, 3, 3, 9]])).max() == 0


def suppressed_one_by_one(drawn, scores, threshold) -> list[int]:
    """Greedy suppression as it is defined."""
    kept: list[int] = []
    for index in sorted(range(len(drawn)), key=lambda index: (-scores[index], index)):
        rivals = overlaps(drawn[index : index + 1], drawn[kept])[0] if kept else []
        if all(shared <= threshold for shared in rivals):
            kept.append(index)
    return kept


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(boxes(), st.sampled_from([-1.0, 0.0, 0.5, 2.0])), max_size=12),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
def test_suppression_keeps_what_a_loop_over_pairs_keeps(found, threshold):
    drawn = array([box for box, _ in found])
    scores = np.array([score for _, score in found])
    kept = suppress(drawn, scores, threshold)
    assert kept.dtype == np.intp
    assert kept.tolist() == suppressed_one_by_one(drawn, scores, threshold)
    if len(kept):
        shared = overlaps(drawn[kept], drawn[kept])
        assert (shared[~np.eye(len(kept), dtype=bool)] <= threshold).all()


def test_suppression_of_many_boxes_is_that_of_few():
    random = np.random.default_rng(0)
    corners, scores = random.uniform(0, 100, (600, 2)), random.integers(0, 50, 600) / 10
    drawn = np.hstack([corners, corners + random.uniform(5, 40, (600, 2))])
    assert suppress(drawn, scores, 0.3).tolist() == suppressed_one_by_one(drawn, scores, 0.3)
