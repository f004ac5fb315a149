from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel, Field

from spptransfer import datasets
from spptransfer.config import parse_pipeline, read_pipeline
from spptransfer.errors import ConfigError, DatasetError


def make_folder(root):
    for id in ("cat/1.jpg", "dog/1.jpg"):
        (root / id).parent.mkdir(parents=True, exist_ok=True)
        (root / id).touch()
    return root


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="unknown dataset 'voc07'; did you mean 'voc2007'"):
        datasets.open_dataset("voc07")


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


def test_the_demo_is_drawn_on_first_use_and_then_found(tmp_path):
    assert not {item.name: item.present for item in datasets.status(tmp_path)}["demo"]
    dataset = datasets.open_dataset("demo", data_root=tmp_path)
    assert (dataset.name, len(dataset), len(dataset.classes)) == ("demo", 300, 10)
    assert dataset.root == tmp_path / "demo"
    assert {item.name: item.images for item in datasets.status(tmp_path)}["demo"] == 300
    with pytest.raises(DatasetError, match="generated with other settings"):
        datasets.open_dataset("demo", tmp_path / "demo", seed=3)


def test_the_scenes_are_drawn_on_first_use_with_their_boxes(tmp_path):
    scenes = datasets.open_dataset("scenes", data_root=tmp_path)
    assert (scenes.name, len(scenes), len(scenes.classes)) == ("scenes", 120, 4)
    assert {name: len(ids) for name, ids in scenes.official_splits.items()} == {
        "train": 80,
        "val": 40,
    }
    assert len(scenes.annotations()) == 120


# Registered from outside ---------------------------------------------------------------------


def read_shelf(
    place: Path, *, colours: tuple[str, ...] = ("red", "blue"), depth: int = 1
) -> datasets.Dataset:
    """A dataset as a user may write it: classes are the beginnings of names."""
    found = sorted(path.name for path in place.glob("/".join(["*"] * depth)))
    targets = [colours.index(name.split("-")[0]) for name in found]
    return datasets.Dataset("anything", place, found, colours, np.array(targets))


@pytest.fixture
def registered():
    """Register datasets, and remove them after the test."""
    before = datasets.names()
    yield datasets.register
    for name in set(datasets.names()) - set(before):
        datasets.unregister(name)


@pytest.fixture
def shelf(tmp_path):
    (tmp_path / "shelf").mkdir()
    for name in ("red-1.png", "green-1.png", "red-2.png"):
        (tmp_path / "shelf" / name).touch()
    return tmp_path


def test_a_dataset_registered_from_outside_goes_through_a_pipeline_file(registered, shelf):
    registered("shelf", read_shelf, how="ask the librarian")
    (shelf / "mine.yaml").write_text(
        "dataset: {name: shelf, colours: [green, red]}\nprotocol: {name: folder}\n"
    )
    section = read_pipeline(shelf / "mine.yaml").dataset
    assert section.options() == {"colours": ("green", "red"), "depth": 1}
    dataset = datasets.open_dataset(
        section.name, section.root, data_root=shelf, **section.options()
    )
    assert dataset.name == "shelf"
    assert dataset.ids == ("green-1.png", "red-1.png", "red-2.png")
    assert dataset.targets.tolist() == [0, 1, 1]
    assert datasets.names()[-1] == "shelf"


def test_mistakes_in_its_section_are_told_as_for_any_other(registered, shelf):
    registered("shelf", read_shelf, how="ask the librarian")
    with pytest.raises(ConfigError, match=r"dataset\.depth: input should be a valid integer"):
        parse_pipeline(
            {"dataset": {"name": "shelf", "depth": "deep"}, "protocol": {"name": "folder"}}
        )
    with pytest.raises(ConfigError, match=r"unknown key 'dataset.colors'; did you mean 'colours'"):
        datasets.open_dataset("shelf", data_root=shelf, colors=("red",))
    with pytest.raises(DatasetError, match=r"looked in .*attic/shelf; to get it: ask the libr"):
        datasets.open_dataset("shelf", data_root=shelf / "attic")


def test_it_is_found_by_its_own_rule_and_listed(registered, shelf):
    def find(place):
        return place / "shelf" if (place / "shelf").is_dir() else None

    registered("library", lambda place: read_shelf(place, colours=("red", "green")), find=find)
    assert len(datasets.open_dataset("library", data_root=shelf)) == 3
    library = datasets.status(shelf)[-1]
    assert (library.name, library.present, library.images) == ("library", True, 3)


def test_options_may_be_a_model_that_makes_root_a_needed_key(registered, shelf):
    class Options(BaseModel):
        root: str = Field(description="the shelf's folder")
        depth: int = 1

    def read(place, depth):
        return read_shelf(place, colours=("red", "green"), depth=depth)

    registered("shelf", read, options=Options)
    with pytest.raises(ConfigError, match=r"'dataset\.root' is missing: the shelf's folder"):
        datasets.open_dataset("shelf", data_root=shelf)
    assert len(datasets.open_dataset("shelf", shelf / "shelf")) == 3
    assert not datasets.status(shelf)[-1].present


def test_an_option_called_name_is_refused(registered):
    with pytest.raises(ConfigError, match="dataset 'shelf': an option cannot be called 'name'"):
        registered("shelf", lambda place, name="x": None)
    with pytest.raises(ConfigError, match="unknown dataset 'shelf'"):
        datasets.unregister("shelf")


# What is here --------------------------------------------------------------------------------


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


def test_status_takes_no_other_folder_for_the_demo_and_draws_nothing(tmp_path):
    make_folder(tmp_path)
    assert not any(item.present for item in datasets.status(tmp_path))
    (tmp_path / "demo").mkdir()
    assert not any(item.present for item in datasets.status(tmp_path))
    assert not list((tmp_path / "demo").iterdir())
    make_folder(tmp_path / "demo")
    demo = {item.name: item for item in datasets.status(tmp_path)}["demo"]
    assert not demo.present
    assert "is not a generated image set" in demo.how


def test_status_reports_a_damaged_dataset_instead_of_failing(tmp_path):
    (tmp_path / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main").mkdir(parents=True)
    voc2007 = {item.name: item for item in datasets.status(tmp_path)}["voc2007"]
    assert not voc2007.present
    assert "no label files" in voc2007.how
