from __future__ import annotations

import subprocess
import sys

import pytest

from spptransfer import datasets
from spptransfer.errors import ConfigError, DatasetError


def make_folder(root):
    for id in ("cat/1.jpg", "dog/1.jpg"):
        (root / id).parent.mkdir(parents=True, exist_ok=True)
        (root / id).touch()
    return root


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="unknown dataset 'voc07'; did you mean 'voc2007'"):
        datasets.open_dataset("voc07")


@pytest.mark.parametrize("name", ["caltech101", "voc2007"])
def test_a_missing_dataset_says_where_it_looked_and_how_to_get_it(tmp_path, name):
    with pytest.raises(DatasetError) as caught:
        datasets.open_dataset(name, data_root=tmp_path)
    message = str(caught.value)
    assert f"looked in {tmp_path}, {tmp_path / name}; to get it:" in message
    assert f"spptransfer datasets --fetch {name}" in message
    assert "\n" not in message


def test_a_missing_root_says_every_place_that_was_tried(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError) as caught:
        datasets.open_dataset("folder", "photos", data_root="elsewhere")
    assert f"{tmp_path / 'photos'}, {tmp_path / 'elsewhere' / 'photos'}" in str(caught.value)


def test_a_relative_root_is_also_looked_for_below_the_data_root(tmp_path):
    make_folder(tmp_path / "photos")
    assert len(datasets.open_dataset("folder", "photos", data_root=tmp_path)) == 2
    assert len(datasets.open_dataset("folder", tmp_path / "photos")) == 2


def test_the_data_root_is_data_in_the_current_folder_by_default(tmp_path, monkeypatch):
    make_folder(tmp_path / "data" / "101_ObjectCategories")
    monkeypatch.chdir(tmp_path)
    assert len(datasets.open_dataset("caltech101")) == 2


@pytest.mark.parametrize("name", ["folder", "csv"])
def test_a_users_own_images_need_a_root(name):
    with pytest.raises(ConfigError, match=r"needs dataset\.root"):
        datasets.open_dataset(name)


def test_a_table_is_opened_by_its_file_or_its_folder(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "labels.csv").write_text("path,labels\ncat/1.jpg,cat|tom\ndog/1.jpg,dog\n")
    for root in (tmp_path, tmp_path / "labels.csv"):
        dataset = datasets.open_dataset("csv", root, separator="|")
        assert dataset.classes == ("cat", "dog", "tom")


def test_options_of_another_dataset_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="'csv' has no option 'seperator'; did you mean"):
        datasets.open_dataset("csv", tmp_path, seperator="|")
    with pytest.raises(ConfigError, match="'folder' has no option 'seed'; it has no options"):
        datasets.open_dataset("folder", tmp_path, seed=1)


@pytest.mark.parametrize("value", ["", 1, None])
def test_an_option_of_the_wrong_type_is_refused(tmp_path, value):
    with pytest.raises(ConfigError, match=r"dataset\.separator must be a str such as ';'"):
        datasets.open_dataset("csv", tmp_path, separator=value)


def test_the_demo_is_drawn_on_first_use_and_then_found(tmp_path, monkeypatch):
    drawn = []

    def draw(root, seed):
        drawn.append((root, seed))
        make_folder(root)

    monkeypatch.setattr("spptransfer.datasets.catalogue.generate", draw)
    dataset = datasets.open_dataset("demo", data_root=tmp_path, seed=3)
    assert drawn == [(tmp_path / "demo", 3)]
    assert dataset.name == "demo"
    assert dataset.classes == ("cat", "dog")
    datasets.open_dataset("demo", tmp_path / "mine")
    assert drawn[-1] == (tmp_path / "mine", 0)


def test_status_says_what_is_here_and_how_to_get_the_rest(tmp_path):
    make_folder(tmp_path / "caltech101" / "101_ObjectCategories")
    found = {item.name: item for item in datasets.status(tmp_path)}
    assert tuple(found) == datasets.names()
    assert found["caltech101"].present
    assert found["caltech101"].images == 2
    assert found["caltech101"].where == tmp_path / "caltech101" / "101_ObjectCategories"
    assert not found["voc2007"].present
    assert "--fetch voc2007" in found["voc2007"].how
    assert not found["demo"].present


def test_status_does_not_take_the_data_root_for_the_demo(tmp_path):
    make_folder(tmp_path)
    assert not any(item.present for item in datasets.status(tmp_path))
    make_folder(tmp_path / "demo")
    assert {item.name for item in datasets.status(tmp_path) if item.present} == {"demo"}


def test_status_reports_a_damaged_dataset_instead_of_failing(tmp_path):
    (tmp_path / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main").mkdir(parents=True)
    voc2007 = datasets.status(tmp_path)[-1]
    assert not voc2007.present
    assert "no label files" in voc2007.how


def test_opening_a_dataset_loads_neither_torch_nor_scikit_learn():
    code = (
        "import sys, spptransfer.datasets, spptransfer.protocols, spptransfer.metrics;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'sklearn', 'pooch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
