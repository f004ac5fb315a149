from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spptransfer import protocols
from spptransfer.datasets import Dataset, open_dataset
from spptransfer.datasets.caltech101 import BACKGROUND
from spptransfer.errors import ConfigError, DatasetError
from spptransfer.metrics import MULTI_LABEL_METRICS, SINGLE_LABEL_METRICS
from spptransfer.protocols.splits import images_per_class


def single_label(sizes: dict[str, int], **changes) -> Dataset:
    ids = tuple(f"{name}/{k:03d}.jpg" for name, size in sizes.items() for k in range(size))
    targets = np.repeat(np.arange(len(sizes)), list(sizes.values())).astype(np.int32)
    return Dataset("folder", Path("/i"), ids, tuple(sizes), targets, **changes)


def caltech101(smallest: int = 31) -> Dataset:
    names = [BACKGROUND, *(f"category {k:03d}" for k in range(101))]
    return single_label({name: smallest + 3 * (k % 20) for k, name in enumerate(names)})


def voc2007(splits: dict[str, int]) -> Dataset:
    """Images of three classes, so many per split; trainval is train and val together."""
    rng = np.random.default_rng(0)
    official, start = {}, 0
    for name, size in splits.items():
        official[name] = tuple(f"{k:06d}" for k in range(start, start + size))
        start += size
    if {"train", "val"} <= set(official):
        official["trainval"] = official["train"] + official["val"]
    ids = tuple(f"{k:06d}" for k in range(start))
    targets = rng.choice([-1, 0, 1], p=[0.6, 0.1, 0.3], size=(start, 3)).astype(np.int8)
    return Dataset("voc2007", Path("/v"), ids, ("a", "b", "c"), targets, official_splits=official)


def make(name: str, dataset: Dataset, **given):
    protocol = protocols.get(name)
    return protocol.make_splits(dataset, protocol.settings(given))


# ------------------------------------------------------------------------------------ caltech101


def test_caltech101_draws_30_and_at_most_50_of_102_categories_ten_times():
    dataset = caltech101()
    splits = make("caltech101", dataset)
    sizes = images_per_class(dataset, dataset.ids)
    assert [split.name for split in splits] == [f"split {k}" for k in range(1, 11)]
    for split in splits:
        assert (images_per_class(dataset, split.train) == 30).all()
        np.testing.assert_array_equal(
            images_per_class(dataset, split.test), np.minimum(sizes - 30, 50)
        )
        assert len(split.folds) == 3
    assert len({split.checksum for split in splits}) == 10


def test_caltech101_30_rest_tests_on_all_that_remains():
    dataset = caltech101()
    (split,) = make("caltech101-30-rest", dataset, splits=1)
    assert len(split.train) == 30 * 102
    assert len(split.train) + len(split.test) == len(dataset)


def test_the_background_category_can_be_left_out():
    dataset = caltech101()
    protocol = protocols.get("caltech101")
    settings = protocol.settings({"include_background": False, "splits": 1})
    restricted = protocol.restrict(dataset, settings)
    assert len(restricted.classes) == 101
    assert BACKGROUND not in restricted.classes
    (split,) = protocol.make_splits(dataset, settings)
    assert not any(id.startswith(BACKGROUND) for id in split.train + split.test)
    assert len(split.train) == 30 * 101


def test_with_or_without_background_an_images_rank_is_the_same():
    dataset = caltech101()
    (with_it,) = make("caltech101", dataset, splits=1)
    (without,) = make("caltech101", dataset, splits=1, include_background=False)
    assert set(without.train) < set(with_it.train)


def test_another_number_of_categories_is_refused():
    with pytest.raises(DatasetError, match=r"need 102 categories .* has 2"):
        make("caltech101", single_label({"cat": 90, "dog": 90}))
    with pytest.raises(DatasetError, match=r"need 102 .*include_background=true\).* has 101"):
        make("caltech101", caltech101().without_class(BACKGROUND))


def test_a_category_with_too_few_images_is_named():
    with pytest.raises(DatasetError, match=f"'{BACKGROUND}' has 30 images, .* at least 31"):
        make("caltech101", caltech101(smallest=30))


def test_the_real_caltech101_splits_are_the_same_on_every_machine(caltech101_root):
    dataset = open_dataset("caltech101", data_root=caltech101_root)
    splits = make("caltech101", dataset)
    assert [len(split.train) for split in splits] == [3060] * 10
    assert {len(split.test) for split in splits} == {2995}
    assert protocols.splits_checksum(splits).startswith("de541758bb16ba3f")


def test_drawn_splits_are_the_same_on_every_machine():
    dataset = single_label({"cat": 12, "dog": 9, "ü": 7})
    splits = make("folder", dataset, splits=3, seed=5)
    assert (
        protocols.splits_checksum(splits)
        == "e917214f80c925fff8bf6a530bb33b3ceee7060b5b3218a00da4a1009356dcd3"
    )


# --------------------------------------------------------------------------------------- voc2007


def test_voc2007_chooses_C_on_val_and_trains_on_trainval():
    dataset = voc2007({"train": 40, "val": 30, "test": 20})
    (split,) = make("voc2007", dataset)
    official = dataset.official_splits
    assert split.train == official["trainval"]
    assert split.test == official["test"]
    assert split.folds == (official["val"],)
    assert split.fit_ids(0) == official["train"]


def test_voc2007_without_test_images_says_what_there_is():
    dataset = voc2007({"train": 40, "val": 30})
    with pytest.raises(DatasetError, match=r"no split 'test'; set protocol\.test to .* train, val"):
        make("voc2007", dataset)


def test_voc2007_from_train_to_val_chooses_C_inside_train():
    dataset = voc2007({"train": 40, "val": 30})
    (split,) = make("voc2007", dataset, train="train", test="val")
    assert split.train == dataset.official_splits["train"]
    assert split.test == dataset.official_splits["val"]
    assert sorted(id for fold in split.folds for id in fold) == sorted(split.train)
    assert len(split.folds) == 3


def test_voc2007_never_chooses_C_on_test_images():
    dataset = voc2007({"train": 40, "val": 30})
    with pytest.raises(ConfigError, match="'val' must be a part of the training split 'train'"):
        make("voc2007", dataset, train="train", test="val", validation="val")
    with pytest.raises(DatasetError, match="in train and test"):
        make("voc2007", dataset, train="trainval", test="val")


def test_voc2007_needs_the_validation_split_that_it_promises():
    dataset = voc2007({"trainval": 40, "test": 30})
    with pytest.raises(DatasetError, match=r"no split 'val'; set protocol\.validation"):
        make("voc2007", dataset)
    (split,) = make("voc2007", dataset, folds=0)
    assert split.folds == ()


def test_voc2007_vissl_chooses_C_by_three_folds_and_weighs_positives_twice():
    protocol = protocols.get("voc2007-vissl")
    (split,) = make("voc2007-vissl", voc2007({"train": 40, "val": 30, "test": 20}))
    assert len(split.folds) == 3
    assert sorted(id for fold in split.folds for id in fold) == sorted(split.train)
    assert protocol.class_weight == {1: 2.0, -1: 1.0}
    assert protocol.difficult_in_training == "negative"
    assert protocol.headline(multi_label=True) == "mean average precision (area)"
    assert protocol.choose_C_by(multi_label=True) == "mean average precision (uninterpolated)"


def test_the_real_part_of_voc2007_can_be_split(voc2007_root):
    dataset = open_dataset("voc2007", data_root=voc2007_root)
    for name in ("voc2007", "voc2007-vissl"):
        (split,) = make(name, dataset, train="train", test="val")
        assert (len(split.train), len(split.test)) == (400, 400)


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


def table(splits: dict[str, int]) -> Dataset:
    """Two classes in turn; the first images belong to the first split, and so on."""
    ids = tuple(f"{k}.jpg" for k in range(sum(splits.values())))
    official, start = {}, 0
    for name, size in splits.items():
        official[name] = ids[start : start + size]
        start += size
    targets = (np.arange(len(ids)) % 2).astype(np.int32)
    return Dataset("csv", Path("/t"), ids, ("a", "b"), targets, official_splits=official)


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
    assert split.fit_ids(0) == dataset.official_splits["train"]
    assert split.folds == (dataset.official_splits[name],)
    (split,) = make("csv", dataset, folds=0)
    assert split.train == dataset.official_splits["train"]


def test_splits_of_a_table_under_other_names():
    dataset = table({"learn": 10, "tune": 4, "exam": 6})
    (split,) = make("csv", dataset, train="learn", validation="tune", test="exam")
    assert split.fit_ids(0) == dataset.official_splits["learn"]
    with pytest.raises(DatasetError, match="it has: learn, tune, exam"):
        make("csv", dataset)
    with pytest.raises(DatasetError, match=r"no split 'dev'; set protocol\.validation"):
        make("csv", dataset, train="learn", validation="dev", test="exam")


def test_testing_on_val_does_not_choose_C_on_it():
    (split,) = make("csv", table({"train": 10, "val": 6}), test="val")
    assert len(split.folds) == 3
    assert not set(split.test) & set(split.train)


def test_a_table_without_splits_is_split_like_a_folder():
    dataset = table({"": 40})
    unsplit = Dataset("csv", dataset.root, dataset.ids, dataset.classes, dataset.targets.copy())
    assert make("csv", unsplit)[0].checksum == make("folder", unsplit)[0].checksum


# ------------------------------------------------------------------------------------ all of them

every = pytest.mark.parametrize("name", list(protocols.PROTOCOLS))


@every
def test_a_protocol_says_what_it_does(name):
    protocol = protocols.get(name)
    settings = protocol.settings()
    text = protocol.description(settings)
    assert text.endswith(".")
    assert "C is chosen" in text
    assert "not chosen" in protocol.description({**settings, "folds": 0})
    assert "mine.json" in protocol.description({**settings, "split_file": "mine.json"})


@every
def test_the_headline_is_among_the_metrics_that_are_always_given(name):
    protocol = protocols.get(name)
    for multi_label, metrics in ((False, SINGLE_LABEL_METRICS), (True, MULTI_LABEL_METRICS)):
        assert protocol.metrics(multi_label) == metrics
        known = protocol.multi_label_headline if multi_label else protocol.single_label_headline
        if known is None:
            with pytest.raises(ConfigError, match=f"'{name}' is not for datasets of"):
                protocol.headline(multi_label)
        else:
            assert protocol.headline(multi_label) == known
            assert known in metrics
            assert protocol.choose_C_by(multi_label) in metrics


def test_the_headlines_are_those_of_the_literature():
    headlines = {
        "voc2007": "mean average precision (11-point)",
        "voc2007-vissl": "mean average precision (area)",
    }
    for name, headline in headlines.items():
        assert protocols.get(name).headline(multi_label=True) == headline
    assert protocols.get("caltech101").headline(multi_label=False) == "overall accuracy"
    rest = protocols.get("caltech101-30-rest")
    assert rest.headline(multi_label=False) == "mean per-class accuracy"


def test_a_protocol_for_other_labels_is_refused():
    with pytest.raises(ConfigError, match="'voc2007' is not for datasets of one label per image"):
        make("voc2007", single_label({"a": 9, "b": 9}))
    with pytest.raises(ConfigError, match="'caltech101' is not for datasets of several labels"):
        protocols.get("caltech101").headline(multi_label=True)


def test_an_unknown_protocol_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'caltech101'"):
        protocols.get("caltech-101")


def test_descriptions_follow_the_settings():
    folder = protocols.get("folder")
    assert "12.5% of each class" in folder.description(folder.settings({"test_fraction": 0.125}))
    assert "2 random splits (seed 7)" in folder.description(
        folder.settings({"splits": 2, "seed": 7})
    )
    voc = protocols.get("voc2007")
    assert "on 'val', then all of 'trainval'" in voc.description(voc.settings())
    assert "3-fold cross-validation on 'train'" in voc.description(
        voc.settings({"train": "train", "test": "val"})
    )
    shared = voc.description(voc.settings({"choose_C": "shared"}))
    assert "for all classes together" in shared


def test_the_description_of_a_table_says_which_way_it_went():
    protocol = protocols.get("csv")
    settings = protocol.settings()
    assert "chosen on 'val'" in protocol.description(
        settings, table({"train": 5, "val": 5, "test": 5})
    )
    assert "3-fold" in protocol.description(settings, table({"train": 5, "test": 5}))
    dataset = table({"": 5})
    unsplit = Dataset("csv", dataset.root, dataset.ids, dataset.classes, dataset.targets.copy())
    assert protocol.description(settings, unsplit).startswith("Images in a table: 25% of each")
