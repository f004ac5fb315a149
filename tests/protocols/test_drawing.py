from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from protocol_cases import beside, make, single_label, table, voc2007

from spptransfer import protocols
from spptransfer.datasets import Dataset
from spptransfer.errors import ConfigError, DatasetError
from spptransfer.protocols.splits import images_per_class

# ---------------------------------------------------------------------------------------- folder


def test_a_quarter_of_each_class_is_tested_on_by_default():
    dataset = single_label({"cat": 40, "dog": 20})
    (split,) = make("folder", dataset)
    assert images_per_class(dataset, split.test).tolist() == [10, 5]
    assert images_per_class(dataset, split.train).tolist() == [30, 15]


@pytest.mark.parametrize(
    ("given", "train", "test"),
    [
        ({"test_fraction": 0.5}, [5, 10], [5, 10]),
        ({"test_fraction": 0.01}, [9, 19], [1, 1]),
        ({"test_fraction": 0.99}, [2, 2], [8, 18]),
        ({"train_per_class": 4}, [4, 4], [6, 16]),
        ({"train_per_class": 4, "test_per_class": 8}, [4, 4], [6, 8]),
        ({"test_per_class": 3}, [7, 17], [3, 3]),
        ({"train_per_class": 1, "folds": 0}, [1, 1], [9, 19]),
    ],
)
def test_sizes_per_class_can_be_set(given, train, test):
    dataset = single_label({"cat": 10, "dog": 20})
    (split,) = make("folder", dataset, **given)
    assert images_per_class(dataset, split.train).tolist() == train
    assert images_per_class(dataset, split.test).tolist() == test


@pytest.mark.parametrize(
    ("given", "available", "needed"),
    [
        ({}, 2, 3),
        ({"folds": 0}, 1, 2),
        ({"train_per_class": 5}, 5, 6),
        ({"train_per_class": 5, "test_per_class": 50}, 5, 6),
        ({"test_per_class": 5}, 6, 7),
        ({"test_per_class": 5, "folds": 0}, 5, 6),
    ],
)
def test_a_class_with_fewer_images_than_needed_is_named(given, available, needed):
    make("folder", single_label({"cat": 90, "dog": needed}), **given)
    with pytest.raises(
        DatasetError, match=f"class 'dog' has {available} images?, .* at least {needed} of each"
    ):
        make("folder", single_label({"cat": 90, "dog": available}), **given)


def test_a_single_class_is_refused():
    with pytest.raises(DatasetError, match=r"one class only \('cat'\).* needs at least two"):
        make("folder", single_label({"cat": 90}))


def test_images_without_labels_are_refused():
    dataset = Dataset("folder", Path("/i"), ("1.jpg",), (), np.array([-1], dtype=np.int32))
    with pytest.raises(DatasetError, match="features can be extracted, but protocol 'folder'"):
        make("folder", dataset)


def test_lists_keep_the_order_of_the_dataset():
    dataset = single_label({"cat": 12, "dog": 9})
    for split in make("folder", dataset, splits=2):
        assert list(split.train) == [id for id in dataset.ids if id in set(split.train)]
        assert list(split.test) == [id for id in dataset.ids if id in set(split.test)]


def test_more_images_leave_the_first_ones_where_they_were():
    (small,) = make("folder", single_label({"cat": 10, "dog": 10}), train_per_class=5)
    (large,) = make("folder", single_label({"cat": 10, "dog": 10, "emu": 9}), train_per_class=5)
    assert set(small.train) < set(large.train)
    assert set(small.test) < set(large.test)


def test_fraction_and_numbers_exclude_each_other():
    with pytest.raises(ConfigError, match="test_fraction excludes"):
        make("folder", single_label({"a": 9, "b": 9}), test_fraction=0.2, train_per_class=3)


def test_several_labels_are_split_by_fraction():
    dataset = voc2007({"all": 200})
    (split,) = make("folder", dataset, test_fraction=0.2)
    assert len(split.train) + len(split.test) == 200
    shares = images_per_class(dataset, split.test) / images_per_class(dataset, dataset.ids)
    assert (abs(shares - 0.2) < 0.1).all()
    with pytest.raises(ConfigError, match="for one label per image"):
        make("folder", dataset, train_per_class=3)


# ------------------------------------------------------------------------------------------- csv


def test_the_splits_of_a_table_are_respected():
    dataset = table({"train": 10, "test": 6})
    (split,) = make("csv", dataset)
    assert split.train == dataset.official_splits["train"]
    assert split.test == dataset.official_splits["test"]
    assert len(split.folds) == 3


@pytest.mark.parametrize("name", ["val", "validation", "valid"])
def test_validation_images_of_a_table_choose_C_and_are_then_trained_on(name):
    dataset = table({"train": 10, name: 4, "test": 6})
    (split,) = make("csv", dataset)
    assert beside(split, 0) == dataset.official_splits["train"]
    assert split.folds == (dataset.official_splits[name],)
    (split,) = make("csv", dataset, folds=0)
    assert split.train == dataset.official_splits["train"]


def test_folders_that_are_the_splits_are_used_as_those_of_a_table_are():
    of_table = table({"train": 10, "val": 4, "test": 6})
    dataset = replace(of_table, name="folder")
    assert make("folder", dataset) == make("csv", dataset)
    assert make("folder", of_table) != make("csv", of_table)
    protocol = protocols.get("folder")
    described = protocol.describe(protocol.settings({}), dataset)
    assert described.startswith("Images in class folders with their own splits: trained on 'train'")


def test_splits_of_a_table_under_other_names():
    dataset = table({"learn": 10, "tune": 4, "exam": 6})
    (split,) = make("csv", dataset, train="learn", validation="tune", test="exam")
    assert beside(split, 0) == dataset.official_splits["learn"]
    with pytest.raises(DatasetError, match="it has: learn, tune, exam"):
        make("csv", dataset)
    with pytest.raises(DatasetError, match=r"no split 'dev'; set protocol\.validation"):
        make("csv", dataset, train="learn", validation="dev", test="exam")


def test_rows_of_a_table_in_no_split_that_is_used_are_told_once(caplog):
    dataset = table({"train": 10, "test": 4, "tset": 3, "tets": 1})
    unsplit = replace(dataset, ids=(*dataset.ids, "x"), targets=np.append(dataset.targets, 0))
    for _ in range(2):
        make("csv", unsplit)
    where = f"dataset 'csv' at {dataset.root.absolute()}"
    told = "in no split that is used (train, test): 'tset' (3), 'tets' (1), no split given (1)"
    assert caplog.messages == [f"{where}: 5 rows are {told}"]
    caplog.clear()
    make("csv", dataset, test="tset", validation="test")
    told = "1 row is in no split that is used (train, tset, test): 'tets' (1)"
    assert caplog.messages == [f"{where}: {told}"]


def test_validation_rows_that_choose_nothing_are_told(caplog):
    make("csv", table({"train": 10, "val": 4, "test": 6}))
    assert not caplog.messages
    make("csv", table({"train": 10, "val": 4, "test": 6}), folds=0)
    assert "4 rows are in no split that is used (train, test): 'val' (4)" in caplog.text


def test_a_table_whose_rows_are_all_used_or_all_without_a_split_tells_nothing(caplog):
    make("csv", table({"train": 10, "test": 6}))
    make("csv", replace(table({"": 40}), official_splits={}))
    make("csv", voc2007({"train": 40, "val": 40, "test": 40}), train="trainval", folds=0)
    assert not caplog.messages


def test_testing_on_val_does_not_choose_C_on_it():
    (split,) = make("csv", table({"train": 10, "val": 6}), test="val")
    assert len(split.folds) == 3
    assert not set(split.test) & set(split.train)


def test_a_table_without_splits_is_split_like_a_folder():
    dataset = table({"": 40})
    unsplit = Dataset("csv", dataset.root, dataset.ids, dataset.classes, dataset.targets.copy())
    assert make("csv", unsplit)[0].checksum == make("folder", unsplit)[0].checksum
