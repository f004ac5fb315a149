from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from spptransfer.datasets import Dataset
from spptransfer.errors import DatasetError


def single_label(**changes) -> Dataset:
    parts = {
        "name": "folder",
        "root": Path("/images"),
        "ids": ("b", "a", "c", "d"),
        "classes": ("x", "y", "z"),
        "targets": np.array([0, 1, 2, 1], dtype=np.int32),
    }
    return Dataset(**{**parts, **changes})


def multi_label() -> Dataset:
    targets = np.array([[1, -1], [0, 1], [-1, -1]], dtype=np.int8)
    return Dataset("csv", Path("/images"), ("a", "b", "c"), ("x", "y"), targets)


def test_targets_are_found_by_id_in_the_order_asked_for():
    assert single_label().targets_of(["d", "b", "d"]).tolist() == [1, 0, 1]
    assert multi_label().targets_of(("c", "b")).tolist() == [[-1, -1], [0, 1]]
    assert single_label().targets_of([]).shape == (0,)
    assert multi_label().targets_of([]).shape == (0, 2)


def test_an_unknown_id_is_named():
    for lookup in (single_label().path, lambda id: single_label().targets_of(["a", id])):
        with pytest.raises(DatasetError, match=r"no image with the id 'nowhere\.jpg'"):
            lookup("nowhere.jpg")


@pytest.mark.parametrize(("id", "why"), [("a\0", "ends in a NUL"), ("\ud800", "no text in UTF-8")])
def test_what_is_no_text_is_no_id(id, why):
    with pytest.raises(DatasetError, match=rf"dataset 'folder': the id .* {why}"):
        single_label(ids=("b", "a", "c", id))
    with pytest.raises(DatasetError, match=rf"dataset 'folder': the id .* {why}"):
        single_label(official_splits={"test": [id]})


def test_an_id_that_occurs_twice_is_named():
    with pytest.raises(DatasetError, match="the id 'a' occurs more than once"):
        single_label(ids=("a", "b", "a", "c"))


@pytest.mark.parametrize("targets", [np.zeros(3, np.int32), np.zeros((4, 2), np.int8)])
def test_targets_that_fit_neither_images_nor_classes_are_refused(targets):
    with pytest.raises(DatasetError, match="do not fit 4 images and 3 classes"):
        single_label(targets=targets)


@pytest.mark.parametrize("dtype", ["int64", ">i2", "uint32", "bool"])
def test_whole_numbers_of_any_type_become_those_that_targets_are(dtype):
    dataset = single_label(classes=("x", "y"), targets=np.array([0, 1, 1, 0], dtype=dtype))
    assert dataset.targets.dtype == np.int32
    assert dataset.targets.tolist() == [0, 1, 1, 0]
    several = Dataset("csv", Path("/i"), ("a",), ("x", "y"), np.array([[1, -1]]))
    assert several.targets.dtype == np.int8


@pytest.mark.parametrize(
    "targets", [[0.0, 1.0, 2.0, 1.0], [0, 1, 2, 1 << 40], ["x", "y", "z", "x"]]
)
def test_targets_that_are_no_such_numbers_are_refused(targets):
    with pytest.raises(DatasetError, match=r"dataset 'folder': targets of type .* are not int32"):
        single_label(targets=np.array(targets))


def test_paths_follow_the_template_even_if_an_id_holds_braces():
    dataset = single_label(ids=("{0}", "{id}", "a/b.jpg", "{"), path_template="JPEG/{id}.jpg")
    assert dataset.path("{0}") == Path("/images/JPEG/{0}.jpg")
    assert [path.name for path in dataset.paths()] == ["{0}.jpg", "{id}.jpg", "b.jpg.jpg", "{.jpg"]


def test_an_absolute_id_is_its_own_path():
    dataset = single_label(ids=("/elsewhere/1.jpg", "a", "b", "c"))
    assert dataset.path("/elsewhere/1.jpg") == Path("/elsewhere/1.jpg")


def test_targets_cannot_be_changed_but_the_callers_array_can():
    targets = np.array([0, 1, 2, 1], dtype=np.int32)
    with pytest.raises(ValueError, match="read-only"):
        single_label(targets=targets).targets[0] = 2
    targets[0] = 2


def test_a_dataset_none_of_whose_images_is_there_is_refused_with_the_first_path(tmp_path):
    dataset = single_label(root=tmp_path, path_template="JPEG/{id}.jpg")
    where = f"looked for at '{tmp_path}/JPEG/b.jpg'; paths are relative to {tmp_path}$"
    with pytest.raises(DatasetError, match=f"none of its 4 images is there; the first is {where}"):
        dataset.check_images()
    (tmp_path / "JPEG").mkdir()
    (tmp_path / "JPEG" / "d.jpg").touch()
    dataset.check_images()


def test_it_says_how_many_labels_an_image_has():
    assert not single_label().multi_label
    assert multi_label().multi_label
    assert single_label().labelled
    assert not single_label(classes=(), targets=np.full(4, -1, np.int32)).labelled


def test_without_a_class_the_others_are_renumbered():
    dataset = single_label(official_splits={"train": ("a", "b"), "test": ("c", "d")})
    smaller = dataset.without_class("y")
    assert smaller.ids == ("b", "c")
    assert smaller.classes == ("x", "z")
    assert smaller.targets.tolist() == [0, 1]
    assert smaller.targets.dtype == np.int32
    assert smaller.official_splits == {"train": ("b",), "test": ("c",)}
    assert smaller.targets_of(["c"]).tolist() == [1]


def test_a_subset_has_its_images_in_the_order_of_their_positions():
    dataset = single_label(
        official_splits={"train": ("a", "b"), "test": ("c", "d")}, path_template="{id}.jpg"
    )
    some = dataset.subset(np.array([3, 0]))
    assert some.ids == ("d", "b")
    assert some.classes == dataset.classes
    assert some.targets.tolist() == [1, 0]
    assert some.official_splits == {"train": ("b",), "test": ("d",)}
    assert some.path("d") == dataset.path("d")
    assert multi_label().subset([1]).targets.tolist() == [[0, 1]]
    none = dataset.subset([])
    assert (len(none), none.targets.shape, none.classes) == (0, (0,), dataset.classes)
    with pytest.raises(DatasetError, match="the id 'b' occurs more than once"):
        dataset.subset([0, 0])


def test_a_class_that_is_not_there_cannot_be_dropped():
    with pytest.raises(DatasetError, match="allowed: x, y, z"):
        single_label().without_class("w")
    with pytest.raises(DatasetError, match="cannot drop"):
        multi_label().without_class("x")


def test_a_pickled_dataset_finds_its_images():
    dataset = pickle.loads(pickle.dumps(multi_label()))
    assert dataset.targets_of(("c", "b")).tolist() == [[-1, -1], [0, 1]]
    assert dataset.paths() == multi_label().paths()
