"""Splits of several training sizes on the same test images, and what is trained on them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from protocol_cases import make, single_label, table, voc2007
from sklearn.svm import LinearSVC

from spptransfer import protocols
from spptransfer.datasets import Dataset
from spptransfer.errors import ConfigError, DatasetError
from spptransfer.protocols import Split, read_splits, write_splits
from spptransfer.protocols.evaluate import evaluate
from spptransfer.protocols.splits import images_per_class
from spptransfer.protocols.training import Training

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=4, unique=True).map(sorted)
VOC = {"train": "train", "test": "test", "folds": 0}


def by_size(splits, sizes) -> np.ndarray:
    """Splits as (size, repeat)."""
    return np.array(splits, dtype=object).reshape(len(sizes), -1)


@given(SIZES, st.integers(1, 3))
def test_images_of_a_size_are_among_those_of_the_next_and_test_images_are_the_same(sizes, repeats):
    dataset = single_label({"cat": 15, "dog": 20, "emu": 13})
    given = {"train_per_class": sizes, "splits": repeats, "folds": 0}
    splits = by_size(make("folder", dataset, **given), sizes)
    ordinary = make("folder", dataset, **given | {"train_per_class": sizes[-1]})
    for column, largest in zip(splits.T, ordinary, strict=True):
        for size, split in zip(sizes, column, strict=True):
            assert (images_per_class(dataset, split.train) == size).all()
            assert split.test == largest.test
        trained = [set(split.train) for split in column]
        assert all(small < large for small, large in pairwise(trained))
        assert column[-1].checksum == largest.checksum


def test_folds_are_dealt_of_the_images_of_each_size():
    splits = make("folder", single_label({"cat": 9, "dog": 9}), train_per_class=[2, 6], folds=2)
    for split in splits:
        assert set().union(*split.folds) == set(split.train)


def test_a_table_with_its_own_splits_draws_from_its_training_images():
    dataset = table({"train": 20, "test": 8})
    splits = make("csv", dataset, train_per_class=[1, 4], splits=3, folds=0)
    assert len(splits) == 6
    assert {split.test for split in splits} == {tuple(dataset.official_splits["test"])}
    assert set().union(*(split.train for split in splits)) <= set(dataset.official_splits["train"])
    assert len({split.train for split in splits}) == 6


@given(SIZES.map(lambda sizes: sizes[:2]), st.integers(1, 2))
def test_with_several_labels_each_class_draws_k_positives_and_k_for_each_other_class(sizes, count):
    dataset = voc2007({"train": 120, "test": 30})
    splits = make("voc2007", dataset, **VOC, train_per_class=sizes, splits=count)
    for size, row in zip(sizes, by_size(splits, sizes), strict=True):
        for split in row:
            targets = split.train_targets(dataset)
            assert ((targets == 1).sum(axis=0) == size).all()
            assert ((targets == -1).sum(axis=0) == 2 * size).all()
            kept = targets != 0
            np.testing.assert_array_equal(targets[kept], dataset.targets_of(split.train)[kept])
            assert kept.any(axis=1).all()
            assert len(set(split.class_train)) == 3  # each for itself
    for column in by_size(splits, sizes).T:
        for small, large in pairwise(column):
            for few, many in zip(small.class_train, large.class_train, strict=True):
                assert set(few) < set(many)


def test_where_difficult_images_are_negatives_they_are_drawn_as_such():
    dataset = voc2007({"train": 120, "test": 30})
    (split,) = make("voc2007-vissl", dataset, **VOC, train_per_class=[12])
    targets = split.train_targets(dataset, largest_negative=0)
    drawn = np.stack([np.isin(split.train, ids) for ids in split.class_train], axis=1)
    assert ((targets == -1).sum(axis=0) == 24).all()
    assert (dataset.targets_of(split.train)[drawn] == 0).any()


def test_a_class_is_trained_on_its_own_images_alone():
    dataset = voc2007({"train": 120, "test": 30})
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(len(dataset), 40)) + dataset.targets @ rng.normal(size=(3, 40)) / 2
    features = dict(zip(dataset.ids, rows.astype(np.float32), strict=True))
    splits = make("voc2007", dataset, **VOC, train_per_class=[5], splits=2)

    def read(ids):
        return np.stack([features[id] for id in ids])

    for result in evaluate(read, dataset, splits, training=Training(), normalize=()).results:
        for k, ids in enumerate(result.split.class_train):
            svc = LinearSVC(C=1.0, tol=1e-8).fit(read(ids), dataset.targets_of(ids)[:, k])
            np.testing.assert_allclose(
                result.scores[:, k], svc.decision_function(read(result.split.test)), atol=2e-3
            )


def test_lists_of_classes_are_written_read_back_and_belong_to_the_checksum(tmp_path):
    split = Split("s", ("a", "b", "c"), ("d",), class_train=(("a", "b"), ("b", "c")))
    write_splits(tmp_path / "splits.json", [split])
    assert read_splits(tmp_path / "splits.json") == [split]
    assert replace(split, class_train=()).checksum != split.checksum
    with pytest.raises(DatasetError, match="class_train must hold train images alone"):
        replace(split, class_train=(("d",),))


PHOTOS = single_label({"cat": 9, "dog": 9})
LABELS = Dataset(
    "csv", Path("/t"), PHOTOS.ids, ("a", "b"), np.where(np.eye(2)[PHOTOS.targets] > 0, 1, -1)
)


@pytest.mark.parametrize(
    ("name", "dataset", "given", "message"),
    [
        ("folder", PHOTOS, {"train_per_class": [2, 2]}, "a list of rising ones"),
        ("folder", PHOTOS, {"train_per_class": []}, "a list of rising ones"),
        ("folder", PHOTOS, {"train_per_class": [1, 2]}, "begin at 2, or set protocol.folds=0"),
        ("folder", PHOTOS, {"train_per_class": [2], "split_file": "s"}, "protocol.split_file"),
        ("folder", PHOTOS, {"train_per_class": [2, 9]}, "class 'cat' has 9 images"),
        ("csv", LABELS, {"train_per_class": [3]}, "protocol.choose_C='per class'"),
        ("csv", LABELS, {"train_per_class": [2], "choose_C": "per class"}, "begin at 3"),
        ("csv", LABELS, {"train_per_class": [9], "folds": 0}, "'a' has . positive images, but"),
        ("csv", LABELS, {"train_per_class": 3}, "or a list such as"),
        ("detection", LABELS, {"train_per_class": [3]}, "does not go with a detector"),
        ("voc2007", voc2007({"train": 20, "test": 9}), {"splits": 2}, "for a learning curve here"),
    ],
)
def test_sizes_that_cannot_be_drawn_are_refused_in_one_line(name, dataset, given, message):
    with pytest.raises((ConfigError, DatasetError), match=message):
        make(name, dataset, **given)


def test_the_description_tells_sizes_repeats_and_the_rule():
    protocol = protocols.get("voc2007")
    text = protocol.description(protocol.settings({"train_per_class": [1, 8], "splits": 5}))
    assert "sizes 1, 8, each drawn 5 times; the headline is that of 8." in text
    assert "VISSL's low-shot rule" in text
    text = protocols.get("folder").description(
        protocols.get("folder").settings({"train_per_class": [1, 8]}), PHOTOS
    )
    assert "8 training images of each class" in text
    assert "VISSL" not in text
