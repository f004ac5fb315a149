from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from protocol_cases import beside, make, single_label, table, voc2007

from spptransfer import protocols
from spptransfer.datasets import Dataset, open_dataset
from spptransfer.datasets.folder import BACKGROUND
from spptransfer.errors import ConfigError, DatasetError
from spptransfer.metrics import DETECTION_AVERAGE_PRECISION, metrics_of
from spptransfer.protocols.splits import images_per_class


def caltech101(smallest: int = 31) -> Dataset:
    names = [BACKGROUND, *(f"category {k:03d}" for k in range(101))]
    return single_label({name: smallest + 3 * (k % 20) for k, name in enumerate(names)})


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
    assert beside(split, 0) == official["train"]


def test_voc2007_without_test_images_says_what_there_is():
    dataset = voc2007({"train": 40, "val": 30})
    with pytest.raises(DatasetError, match=r"no split 'test'; set protocol\.test to .* train, val"):
        make("voc2007", dataset)


def test_voc2007_from_train_to_val_chooses_C_inside_train():
    dataset = voc2007({"train": 40, "val": 30})
    (split,) = make("voc2007", dataset, train="train", test="val")
    assert split.train == dataset.official_splits["train"]
    assert split.test == dataset.official_splits["val"]
    assert (split.folds, split.class_folds) == ((), 3)
    (split,) = make("voc2007", dataset, train="train", test="val", choose_C="shared")
    assert sorted(id for fold in split.folds for id in fold) == sorted(split.train)


def test_a_class_that_no_validation_image_shows_cannot_have_a_C_of_its_own():
    dataset = voc2007({"train": 40, "val": 30, "test": 20})
    targets = dataset.targets.copy()
    targets[40:70, 1] = -1
    without = replace(dataset, targets=targets)
    with pytest.raises(DatasetError, match=r"no validation image shows class 'b'.*choose_C=shared"):
        make("voc2007", without)
    assert make("voc2007", without, choose_C="shared")


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
    assert (split.folds, split.class_folds) == ((), 3)
    assert protocol.class_weight == {1: 2.0, -1: 1.0}
    assert protocol.difficult_in_training == "negative"
    assert protocol.headline(multi_label=True) == "mean average precision (area)"
    assert protocol.choose_C_by(multi_label=True) == "mean average precision (uninterpolated)"


def test_the_real_part_of_voc2007_can_be_split(voc2007_root):
    dataset = open_dataset("voc2007", data_root=voc2007_root)
    for name in ("voc2007", "voc2007-vissl"):
        (split,) = make(name, dataset, train="train", test="val")
        assert (len(split.train), len(split.test)) == (400, 400)


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
    if protocol.detects:
        assert protocol.headline(multi_label=True) in DETECTION_AVERAGE_PRECISION.values()
        return
    for multi_label, metrics in (
        (False, metrics_of(multi_label=False)),
        (True, metrics_of(multi_label=True)),
    ):
        known = protocol.multi_label_headline if multi_label else protocol.single_label_headline
        if known is None:
            with pytest.raises(ConfigError, match=f"'{name}' is not for datasets of"):
                protocol.headline(multi_label)
        else:
            assert protocol.headline(multi_label) == known
            assert known in metrics
            assert protocol.choose_C_by(multi_label) in metrics


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
