from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from spptransfer.report.examples import PER_GROUP, example_groups, limit_per_class
from spptransfer.report.run_folder import Predictions


def greedy(candidates):
    """Take ids by rising key, none twice, no class more than the limit."""
    chosen, shown = [], Counter()
    for _, image_id, name in sorted(candidates):
        if (
            image_id not in chosen
            and shown[name] < limit_per_class(len(CLASSES))
            and len(chosen) < PER_GROUP
        ):
            chosen.append(image_id)
            shown[name] += 1
    return chosen


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
        yield Predictions(rng.permutation(ids)[:n_test], scores, targets)


CLASSES = ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("seed", range(5))
def test_single_label_groups_agree_with_looking_at_every_image(seed):
    right, wrong = [], []
    for split in splits_of(seed, multi_label=False):
        for image_id, scores, target in zip(split.ids, split.scores, split.targets, strict=True):
            margin = float(scores[target]) - max(
                float(score) for index, score in enumerate(scores) if index != target
            )
            side, key = (right, margin) if margin > 0 else (wrong, margin)
            side.append((key, str(image_id), CLASSES[target]))
    groups = example_groups(splits_of(seed, multi_label=False), CLASSES, multi_label=False)
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
    groups = example_groups(splits_of(seed, multi_label=True), CLASSES, multi_label=True)
    for group, candidates in zip(groups, (hits, alarms, misses), strict=True):
        assert [example.image_id for example in group.examples] == greedy(candidates)


def test_an_example_tells_the_class_named_its_rival_and_both_scores():
    split = Predictions(
        np.array(["right.jpg", "wrong.jpg"]),
        np.array([[1.0, 0.5, -1.0], [2.0, 0.25, 3.0]], np.float32),
        np.array([0, 1]),
    )
    right, wrong = example_groups([split], ["a", "b", "c"], multi_label=False)
    (example,) = right.examples
    assert (example.named, example.score, example.rival, example.rival_score) == ("a", 1, "b", 0.5)
    (example,) = wrong.examples
    assert (example.named, example.score, example.rival, example.rival_score) == ("c", 3, "b", 0.25)
    assert example.labels == ("b",)


def test_difficult_images_are_neither_alarms_nor_misses():
    scores = np.array([[9.0], [-9.0]], np.float32)
    split = Predictions(np.array(["x", "y"]), scores, np.array([[0], [0]]))
    assert example_groups([split], ["a"], multi_label=True) == []


def test_an_image_tested_in_several_splits_is_shown_once():
    scores, targets = np.array([[1.0, 0.0]], np.float32), np.array([1])
    splits = [Predictions(np.array(["same.jpg"]), scores, targets) for _ in range(4)]
    (group,) = example_groups(splits, ["a", "b"], multi_label=False)
    assert [example.image_id for example in group.examples] == ["same.jpg"]


def test_a_perfect_result_has_no_wrong_group():
    split = Predictions(np.array(["x"]), np.array([[1.0, 0.0]], np.float32), np.array([0]))
    groups = example_groups([split], ["a", "b"], multi_label=False)
    assert [group.title for group in groups] == ["Hardest right"]


def test_missing_scores_are_no_examples():
    scores = np.array([[np.nan, np.nan], [np.nan, 1.0]], np.float32)
    split = Predictions(np.array(["x", "y"]), scores, np.array([0, 0]))
    assert example_groups([split], ["a", "b"], multi_label=False) == []


@pytest.mark.parametrize("n_classes", [1, 2, 3, 11, 12, 1000])
def test_the_limit_per_class_leaves_enough_for_a_full_group(n_classes):
    assert limit_per_class(n_classes) * n_classes >= PER_GROUP
