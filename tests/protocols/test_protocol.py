from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from spptransfer import protocols
from spptransfer.datasets import Dataset
from spptransfer.errors import ConfigError, DatasetError

FOLDER = protocols.get("folder")


@pytest.fixture
def dataset() -> Dataset:
    ids = tuple(f"{name}/{k}.jpg" for name in ("cat", "dog") for k in range(10))
    targets = np.repeat([0, 1], 10).astype(np.int32)
    return Dataset("folder", Path("/i"), ids, ("cat", "dog"), targets)


def test_what_is_not_given_has_its_default():
    settings = FOLDER.settings({"name": "folder", "seed": 3})
    assert settings == {**FOLDER.defaults, "seed": 3}
    assert FOLDER.settings() == FOLDER.settings(None) == dict(FOLDER.defaults)


def test_none_is_a_value_where_it_is_the_default():
    assert FOLDER.settings({"train_per_class": None})["train_per_class"] is None
    assert (
        protocols.get("caltech101-30-rest").settings({"test_per_class": 9})["test_per_class"] == 9
    )
    with pytest.raises(ConfigError, match=r"protocol.test_per_class: .* valid integer, got None"):
        protocols.get("caltech101").settings({"test_per_class": None})


def test_settings_do_not_change_the_defaults():
    FOLDER.settings({"seed": 3})["folds"] = 99
    assert FOLDER.settings()["folds"] == 3
    assert FOLDER.settings()["seed"] == 0


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("caltech101", "test_fraction"),
        ("voc2007", "test_per_class"),
        ("folder", "include_background"),
    ],
)
def test_a_setting_of_another_protocol_is_unknown(name, key):
    with pytest.raises(ConfigError, match=f"unknown key 'protocol.{key}'; .*allowed: "):
        protocols.get(name).settings({key: 1})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seeds": 1}, "unknown key 'protocol.seeds'; did you mean 'seed'"),
        ({"seed": "0"}, "protocol.seed: .* valid integer, got '0'"),
        ({"seed": 1.0}, "protocol.seed: .* valid integer"),
        ({"seed": True}, "protocol.seed: .* valid integer, got True"),
        ({"seed": None}, "protocol.seed: .* valid integer, got None"),
        ({"seed": -1}, "protocol.seed: .* greater than or equal to 0"),
        ({"splits": 0}, "protocol.splits: .* greater than or equal to 1"),
        ({"train_per_class": 0}, "protocol.train_per_class: .* greater than or equal to 1"),
        (
            {"train_per_class": "30"},
            "protocol.train_per_class: must be a whole number .* or a list of rising ones",
        ),
        ({"folds": 1}, r"protocol.folds: must be 0 \(no choice of C\) or at least 2, got 1"),
        ({"folds": -1}, "protocol.folds: .* greater than or equal to 0"),
        ({"test_fraction": 1}, "protocol.test_fraction: .* less than 1"),
        ({"test_fraction": 0.0}, "protocol.test_fraction: .* greater than 0"),
        ({"test_fraction": True}, "protocol.test_fraction: .* valid number"),
        ({"test_fraction": float("nan")}, "protocol.test_fraction: .* finite number"),
        ({"test_fraction": "25%"}, "protocol.test_fraction: .* valid number"),
        ({"choose_C": "each"}, "protocol.choose_C: .* 'shared' or 'per class', got 'each'"),
        ({"split_file": 3}, "protocol.split_file: must be a string"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(given, message):
    with pytest.raises(ConfigError, match=message):
        FOLDER.settings(given)


def test_C_per_class_is_for_several_labels(dataset):
    with pytest.raises(ConfigError, match="choose_C='per class' is for several labels"):
        FOLDER.make_splits(dataset, FOLDER.settings({"choose_C": "per class"}))


def test_splits_can_be_written_out_and_used_again(dataset, tmp_path):
    drawn = FOLDER.make_splits(dataset, FOLDER.settings({"splits": 2, "seed": 4}))
    protocols.write_splits(tmp_path / "splits.json", drawn)
    again = FOLDER.settings({"split_file": str(tmp_path / "splits.json")})
    assert FOLDER.make_splits(dataset, again) == drawn


def test_lists_written_by_hand_get_the_folds_that_they_lack(dataset, tmp_path):
    path = tmp_path / "splits.json"
    train, test = list(dataset.ids[::2]), list(dataset.ids[1::2])
    path.write_text(json.dumps({"splits": [{"train": train, "test": test}]}))
    (split,) = FOLDER.make_splits(dataset, FOLDER.settings({"split_file": path}))
    assert sorted(id for fold in split.folds for id in fold) == sorted(train)
    assert len(split.folds) == 3
    (split,) = FOLDER.make_splits(dataset, FOLDER.settings({"split_file": path, "folds": 0}))
    assert split.folds == ()


def test_splits_of_another_dataset_are_refused(dataset, tmp_path):
    path = tmp_path / "splits.json"
    path.write_text('{"splits": [{"train": ["emu/1.jpg"], "test": ["cat/1.jpg"]}]}')
    with pytest.raises(DatasetError, match=r"no image with the id 'emu/1\.jpg'"):
        FOLDER.make_splits(dataset, FOLDER.settings({"split_file": path}))
