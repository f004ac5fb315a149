from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spptransfer.metrics import average_precision
from spptransfer.report.curves import POINTS, class_curves, envelope, split_average_precisions
from spptransfer.report.run_folder import Predictions


def predictions(scores, targets) -> Predictions:
    scores, targets = np.asarray(scores, np.float32), np.asarray(targets, np.int8)
    return Predictions(np.arange(len(scores)).astype(str), scores, targets)


def random_split(seed: int, n_test: int = 60, n_classes: int = 3) -> Predictions:
    rng = np.random.default_rng(seed)
    targets = rng.choice([1, 0, -1], size=(n_test, n_classes))
    return predictions(rng.normal(size=targets.shape) + targets, targets)


def test_a_perfect_ranking_has_precision_one_everywhere():
    (curves,) = class_curves([predictions([[3], [2], [1]], [[1], [1], [-1]])], ["cat"])
    np.testing.assert_allclose(curves.curves[0][:, 1], 1)
    assert curves.curves[0][0, 0] == 0
    assert curves.curves[0][-1, 0] == 1


def test_a_hand_worked_curve():
    scores, targets = [[5], [4], [3], [2], [1]], [[-1], [1], [0], [1], [-1]]
    (curves,) = class_curves([predictions(scores, targets)], ["cat"])
    np.testing.assert_allclose(curves.curves[0], [[0, 0.5], [0.5, 0.5], [1, 2 / 3]])
    assert curves.chance == 0.5


@given(st.integers(0, 2**32 - 1))
def test_the_area_under_the_envelope_is_the_area_average_precision(seed):
    split = random_split(seed)
    for index, item in enumerate(class_curves([split], ["a", "b", "c"])):
        points = envelope(item.curves[0])
        area = np.sum(np.diff(points[:, 0]) * points[1:, 1])
        expected = average_precision(split.targets[:, index], split.scores[:, index], "area")
        assert area == pytest.approx(expected, abs=1e-6)


def test_a_class_without_positives_has_no_curve_and_no_chance():
    (curves,) = class_curves([predictions([[1], [2]], [[-1], [0]])], ["unicorn"])
    assert curves.curves == ()
    assert curves.chance == 0


def test_long_curves_are_thinned_but_keep_their_ends():
    rng = np.random.default_rng(0)
    targets = rng.choice([1, -1], size=(5000, 1))
    (item,) = class_curves([predictions(rng.normal(size=(5000, 1)), targets)], ["cat"])
    assert len(item.curves[0]) <= POINTS + 1
    assert item.curves[0][0, 0] == 0
    assert item.curves[0][-1] == pytest.approx([1, np.mean(targets == 1)], abs=0.01)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_the_envelope_is_the_largest_precision_from_there_on(precisions):
    curve = np.column_stack([np.linspace(0, 1, len(precisions)), precisions])
    expected = [max(precisions[index:]) for index in range(len(precisions))]
    np.testing.assert_array_equal(envelope(curve)[:, 1], expected)


def test_average_precisions_of_the_splits_are_those_of_the_metric():
    splits = [random_split(seed) for seed in range(3)]
    found = split_average_precisions(splits, 3, "11-point")
    for row, split in zip(found, splits, strict=True):
        for index in range(3):
            expected = average_precision(
                split.targets[:, index], split.scores[:, index], "11-point"
            )
            assert row[index] == expected
