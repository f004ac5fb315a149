"""Confusions, curves, examples and maps, against counting one by one."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from spptransfer.metrics import average_precision
from spptransfer.report.analysis import (
    EXAMPLES_PER_GROUP,
    attention_maps,
    class_curves,
    count_confusions,
    envelope,
    example_groups,
    limit_per_class,
    most_confused,
    overlap,
    similarity_order,
)
from spptransfer.report.run_folder import Predictions

CLASSES = ["a", "b", "c", "d", "e"]
matrices = st.integers(1, 9).flatmap(
    lambda n: arrays(np.int64, (n, n), elements=st.integers(0, 30))
)


def splits_of(seed: int, *, multi_label: bool, n_splits: int = 3, n_test: int = 80):
    rng = np.random.default_rng(seed)
    ids = np.array([f"{number:03d}" for number in range(200)])
    for _ in range(n_splits):
        if multi_label:
            targets = rng.choice([1, 0, -1], size=(n_test, 5))
        else:
            # One class has most of the images, so that the limit per class bites.
            targets = np.where(rng.random(n_test) < 0.7, 0, rng.integers(0, 5, n_test))
        scores = rng.normal(size=(n_test, 5)).astype(np.float32)
        yield Predictions(rng.permutation(ids)[:n_test], scores, scores, targets)


def predictions(scores, targets) -> Predictions:
    ids = np.array([f"{number}.jpg" for number in range(len(scores))])
    scores = np.asarray(scores, np.float32)
    return Predictions(ids, scores, scores, np.asarray(targets))


def test_counts_agree_with_counting_one_by_one():
    splits = list(splits_of(1, multi_label=False))
    expected = np.zeros((5, 5), int)
    for split in splits:
        for scores, target in zip(split.scores, split.targets, strict=True):
            expected[target, np.argmax(scores)] += 1
    np.testing.assert_array_equal(count_confusions(splits, 5), expected)


@settings(deadline=None)  # the first example pays for importing scipy
@given(matrices)
def test_the_order_is_a_permutation(counts):
    assert sorted(similarity_order(counts).tolist()) == list(range(len(counts)))


def test_classes_that_are_confused_become_neighbours_and_others_stay():
    counts = np.diag([10] * 8)
    assert similarity_order(counts).tolist() == list(range(8))
    counts[0, 7] = counts[7, 0] = 6
    counts[2, 5] = counts[5, 2] = 4
    place = np.argsort(similarity_order(counts))
    assert abs(place[0] - place[7]) == abs(place[2] - place[5]) == 1


@given(matrices, st.integers(0, 12))
def test_the_most_confused_pairs_are_the_largest_confusions(counts, n_pairs):
    pairs = most_confused(counts, n_pairs)
    off_diagonal = counts[~np.eye(len(counts), dtype=bool)]
    expected = sorted(off_diagonal[off_diagonal > 0].tolist(), reverse=True)[:n_pairs]
    assert [counts[pair] for pair in pairs] == expected
    assert len(set(pairs)) == len(pairs)
    assert all(row != column for row, column in pairs)


def test_among_equal_counts_the_rarer_class_comes_first():
    counts = np.array([[90, 2, 0], [0, 8, 2], [0, 0, 5]])
    assert most_confused(counts, 10) == [(1, 2), (0, 1)]


def test_a_hand_worked_curve():
    scores, targets = [[5], [4], [3], [2], [1]], [[-1], [1], [0], [1], [-1]]
    (item,) = class_curves([predictions(scores, targets)], ["cat"])
    np.testing.assert_allclose(item.curves[0], [[0, 0.5], [0.5, 0.5], [1, 2 / 3]])
    assert (item.name, item.chance) == ("cat", 0.5)


@given(st.integers(0, 2**32 - 1))
def test_the_area_under_the_envelope_is_the_area_average_precision(seed):
    (split,) = splits_of(seed, multi_label=True, n_splits=1, n_test=60)
    for index, item in enumerate(class_curves([split], CLASSES)):
        points = envelope(item.curves[0])
        area = np.sum(np.diff(points[:, 0]) * points[1:, 1])
        expected = average_precision(split.targets[:, index], split.scores[:, index], "area")
        assert area == pytest.approx(expected, abs=1e-6)


def test_a_class_without_positives_has_no_curve_and_no_chance():
    (item,) = class_curves([predictions([[1], [2]], [[-1], [0]])], ["unicorn"])
    assert (item.curves, item.chance) == ([], 0)


def test_long_curves_are_thinned_but_keep_their_ends():
    rng = np.random.default_rng(0)
    targets = rng.choice([1, -1], size=(5000, 1))
    (item,) = class_curves([predictions(rng.normal(size=(5000, 1)), targets)], ["cat"])
    assert len(item.curves[0]) <= 101
    assert item.curves[0][0, 0] == 0
    assert item.curves[0][-1] == pytest.approx([1, np.mean(targets == 1)], abs=0.01)


def greedy(candidates):
    """Take ids by rising key, none twice, no class more than the limit."""
    chosen, shown = [], Counter()
    for _, image_id, name in sorted(candidates):
        fits = shown[name] < limit_per_class(len(CLASSES)) and len(chosen) < EXAMPLES_PER_GROUP
        if image_id not in chosen and fits:
            chosen.append(image_id)
            shown[name] += 1
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_single_label_groups_agree_with_looking_at_every_image(seed):
    right, wrong = [], []
    for split in splits_of(seed, multi_label=False):
        for image_id, scores, target in zip(split.ids, split.scores, split.targets, strict=True):
            margin = float(scores[target]) - max(np.delete(scores.astype(float), target))
            (right if margin > 0 else wrong).append((margin, str(image_id), CLASSES[target]))
    groups = example_groups(list(splits_of(seed, multi_label=False)), CLASSES)
    assert [group.title for group in groups] == ["Hardest right", "Most confident wrong"]
    for group, candidates in zip(groups, (right, wrong), strict=True):
        assert [example.image_id for example in group.examples] == greedy(candidates)


@pytest.mark.parametrize("seed", range(5))
def test_multi_label_groups_agree_with_looking_at_every_pair(seed):
    hits, alarms, misses = [], [], []
    for split in splits_of(seed, multi_label=True):
        for row, image_id in enumerate(split.ids):
            for column, name in enumerate(CLASSES):
                score, target = float(split.scores[row, column]), split.targets[row, column]
                if target == 1:
                    (hits if score > 0 else misses).append((score, str(image_id), name))
                elif target == -1 and score > 0:
                    alarms.append((-score, str(image_id), name))
    groups = example_groups(list(splits_of(seed, multi_label=True)), CLASSES)
    for group, candidates in zip(groups, (hits, alarms, misses), strict=True):
        assert [example.image_id for example in group.examples] == greedy(candidates)


def test_an_example_tells_the_class_named_its_rival_and_both_scores():
    split = predictions([[1.0, 0.5, -1.0], [2.0, 0.25, 3.0]], [0, 1])
    right, wrong = example_groups([split], ["a", "b", "c"])
    assert right.examples == [("0.jpg", ["a"], "a", 1, "b", 0.5)]
    assert wrong.examples == [("1.jpg", ["b"], "c", 3, "b", 0.25)]


@pytest.mark.parametrize(
    ("scores", "targets"),
    [
        ([[9.0], [-9.0]], [[0], [0]]),  # difficult ones
        ([[-np.inf, -np.inf], [-np.inf, 1.0]], [0, 0]),  # missing scores
        ([[3.0], [2.0]], [0, 0]),  # a single class
    ],
)
def test_what_is_neither_right_nor_wrong_is_no_example(scores, targets):
    assert example_groups([predictions(scores, targets)], ["a", "b"][: len(scores[0])]) == []


def test_an_image_tested_in_several_splits_is_shown_once():
    split = predictions([[1.0, 0.0]], [1])
    (group,) = example_groups([split] * 4, ["a", "b"])
    assert [example.image_id for example in group.examples] == ["0.jpg"]


@given(st.integers(1, 1000))
def test_the_limit_per_class_leaves_enough_for_a_full_group(n_classes):
    assert limit_per_class(n_classes) * n_classes >= EXAMPLES_PER_GROUP


def test_the_overlap_agrees_with_sampling_the_side_finely():
    finest, level, samples = 6, 4, 12_000
    places = (np.arange(samples) + 0.5) / samples
    expected = np.zeros((finest, level))
    np.add.at(expected, ((places * finest).astype(int), (places * level).astype(int)), 1)
    np.testing.assert_allclose(overlap(finest, level), expected * level / samples, atol=1e-9)


@given(st.integers(1, 9), st.integers(1, 9))
def test_a_bin_gives_away_what_it_holds_and_even_bins_give_all_cells_the_same(finest, level):
    spread = overlap(finest, level)
    np.testing.assert_allclose(spread.sum(axis=0), 1)
    np.testing.assert_allclose(spread.sum(axis=1), level / finest)


def slow_maps(blocks, finest: int) -> np.ndarray:
    """Every weight by itself, spread over the cells of a grid that all levels divide."""
    fine = np.lcm.reduce([finest, *(level for level, _ in blocks)])
    total = np.zeros((len(blocks[0][1]), fine, fine))
    for level, weights in blocks:
        width = fine // level
        for (k, position), weight in np.ndenumerate(weights):
            i, j = divmod(position % level**2, level)
            cells = total[k, i * width : (i + 1) * width, j * width : (j + 1) * width]
            cells += max(weight, 0) ** 2 / width**2
    cell = fine // finest
    maps = total.reshape(len(total), finest, cell, finest, cell).sum(axis=(2, 4))
    return maps / maps.mean(axis=(1, 2), keepdims=True)


@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (4, 3, 2, 1), (5,), (2, 2, 1)])
def test_maps_agree_with_spreading_every_weight(levels):
    rng = np.random.default_rng(0)
    blocks = [(level, rng.normal(size=(3, 4 * level**2))) for level in levels]
    expected = slow_maps(blocks, max(levels))
    np.testing.assert_allclose(attention_maps(blocks, max(levels)), expected)
    # A layer without a grid has no place in the image.
    np.testing.assert_allclose(
        attention_maps([(None, blocks[0][1]), *blocks], max(levels)), expected
    )


def test_negative_weights_say_nothing():
    np.testing.assert_array_equal(attention_maps([(2, -np.ones((1, 4)))], 2), np.ones((1, 2, 2)))


def test_float16_weights_do_not_overflow():
    weights = np.full((1, 4), 60000, np.float16)
    assert np.isfinite(attention_maps([(2, weights)], 2)).all()
