from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from spptransfer.report.confusion import confusion, count_confusions, similarity_order
from spptransfer.report.run_folder import Predictions

# The first example pays for importing scipy, hence no deadlines.
matrices = st.integers(1, 9).flatmap(
    lambda n: arrays(np.int64, (n, n), elements=st.integers(0, 30))
)


def test_counts_agree_with_counting_one_by_one():
    rng = np.random.default_rng(1)
    splits = [
        Predictions(np.arange(50).astype(str), rng.normal(size=(50, 4)), rng.integers(0, 4, 50))
        for _ in range(3)
    ]
    expected = np.zeros((3, 4, 4), int)
    for number, split in enumerate(splits):
        for scores, target in zip(split.scores, split.targets, strict=True):
            expected[number, target, np.argmax(scores)] += 1
    np.testing.assert_array_equal(count_confusions(splits, 4), expected)


def test_no_split_at_all_counts_nothing():
    assert count_confusions([], 3).shape == (0, 3, 3)


@settings(deadline=None)
@given(matrices)
def test_the_order_is_a_permutation(counts):
    assert sorted(similarity_order(counts).tolist()) == list(range(len(counts)))


@settings(deadline=None)
@given(matrices)
def test_arranging_moves_cells_but_changes_none(counts):
    names = [f"c{index}" for index in range(len(counts))]
    arranged = confusion(counts, names, n_pairs=1000)
    for row, true in enumerate(arranged.labels):
        for column, predicted in enumerate(arranged.labels):
            assert arranged.counts[row, column] == counts[int(true[1:]), int(predicted[1:])]


@settings(deadline=None)
@given(matrices)
def test_pairs_are_all_confusions_largest_first_and_point_at_their_cell(counts):
    names = [f"c{index}" for index in range(len(counts))]
    arranged = confusion(counts, names, n_pairs=1000)
    off_diagonal = counts[~np.eye(len(counts), dtype=bool)]
    expected = sorted(off_diagonal[off_diagonal > 0].tolist(), reverse=True)
    assert [pair.count for pair in arranged.pairs] == expected
    for pair in arranged.pairs:
        assert arranged.counts[pair.row, pair.column] == pair.count
        assert (arranged.labels[pair.row], arranged.labels[pair.column]) == (
            pair.true,
            pair.predicted,
        )
        assert pair.total == counts[int(pair.true[1:])].sum()


def test_classes_that_are_confused_become_neighbours():
    counts = np.diag([10] * 8)
    counts[0, 7] = counts[7, 0] = 6
    counts[2, 5] = counts[5, 2] = 4
    place = np.argsort(similarity_order(counts))
    assert abs(place[0] - place[7]) == 1
    assert abs(place[2] - place[5]) == 1


def test_without_confusions_the_order_is_the_given_one():
    assert similarity_order(np.diag([3, 4, 5])).tolist() == [0, 1, 2]


def test_the_list_of_pairs_is_cut():
    assert len(confusion(np.ones((6, 6), int), list("abcdef"), n_pairs=7).pairs) == 7


def test_among_equal_counts_the_rarer_class_comes_first():
    counts = np.array([[90, 2, 0], [0, 8, 2], [0, 0, 5]])
    assert [pair.true for pair in confusion(counts, ["often", "rare", "never"]).pairs] == [
        "rare",
        "often",
    ]
