from __future__ import annotations

import os
import sys
import tracemalloc
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from spptransfer.datasets import open_dataset
from spptransfer.datasets.folder import (
    BACKGROUND,
    FOLDER,
    find_caltech101,
    gather_images,
    read_folder,
)
from spptransfer.errors import DatasetError


def touch(root: Path, *ids: str) -> Path:
    for id in ids:
        path = root / id
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_subfolders_are_classes_and_ids_are_relative_paths(tmp_path):
    dataset = read_folder(touch(tmp_path, "dog/2.png", "cat/1.jpg", "dog/1.jpg"))
    assert dataset.ids == ("cat/1.jpg", "dog/1.jpg", "dog/2.png")
    assert dataset.classes == ("cat", "dog")
    assert dataset.targets.tolist() == [0, 1, 1]
    assert dataset.path("dog/2.png") == tmp_path / "dog" / "2.png"


def test_the_order_is_that_of_code_points_whatever_the_locale(tmp_path):
    dataset = read_folder(touch(tmp_path, "b/1.jpg", "B/1.jpg", "a b/1.jpg", "é/1.jpg", "a/1.jpg"))
    assert dataset.classes == ("B", "a", "a b", "b", "é")
    assert list(dataset.ids) == sorted(dataset.ids)
    names = [dataset.classes[target] for target in dataset.targets]
    assert names == [id.split("/")[0] for id in dataset.ids]


def test_suffixes_count_in_any_case_and_other_files_do_not(tmp_path):
    touch(tmp_path, "cat/1.JPG", "cat/2.JpEg", "cat/tmp", "cat/Thumbs.db", "cat/notes.txt")
    touch(tmp_path, "dog/1.webp", "dog/jpg", "empty/readme.md")
    dataset = read_folder(tmp_path)
    assert dataset.ids == ("cat/1.JPG", "cat/2.JpEg", "dog/1.webp")
    assert dataset.classes == ("cat", "dog")


def test_links_are_followed_but_not_in_circles(tmp_path):
    images = touch(tmp_path / "images", "cat/1.jpg", "dog/1.jpg")
    touch(tmp_path / "elsewhere", "2.jpg")
    (images / "cow").symlink_to(tmp_path / "elsewhere")
    (images / "cat" / "up").symlink_to(images)
    (images / "dog" / "here").symlink_to(images / "dog")
    (images / "dog" / "itself").symlink_to(images / "dog" / "itself")
    (images / "dog" / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "elsewhere" / "back").symlink_to(images)
    assert read_folder(images).ids == ("cat/1.jpg", "cow/2.jpg", "dog/1.jpg")


def test_a_broken_link_named_like_an_image_stays_in_the_list(tmp_path):
    touch(tmp_path, "cat/1.jpg", "dog/1.jpg")
    (tmp_path / "cat" / "2.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert "cat/2.jpg" in read_folder(tmp_path).ids


def test_a_flat_folder_is_read_without_labels(tmp_path, caplog):
    dataset = read_folder(touch(tmp_path, "2.jpg", "1.jpg"))
    assert dataset.ids == ("1.jpg", "2.jpg")
    assert not dataset.labelled
    assert dataset.targets.tolist() == [-1, -1]
    assert "no class folders" in caplog.text


def test_images_beside_class_folders_are_skipped_with_a_warning(tmp_path, caplog):
    dataset = read_folder(touch(tmp_path, "stray.jpg", "cat/1.jpg", "dog/1.jpg"))
    assert dataset.ids == ("cat/1.jpg", "dog/1.jpg")
    assert "skipped 1 image that lies in no class folder" in caplog.text
    caplog.clear()
    read_folder(touch(tmp_path, "second.jpg"))
    assert "skipped 2 images that lie in no class folder" in caplog.text


def test_files_left_out_by_their_suffix_are_told_with_counts(tmp_path, caplog):
    touch(tmp_path, "cat/1.jpg", "dog/1.jpg", "dog/2.HEIC", "dog/deep/3.heic", "cat/photo1")
    read_folder(tmp_path)
    assert caplog.messages == [f"{tmp_path}: skipped 3 files by suffix: .heic (2), none (1)"]


def test_folders_without_a_single_image_are_told(tmp_path, caplog):
    touch(tmp_path, "cat/1.jpg", "dog/deep/1.jpg", "heic/1.heic", "notes/deep/1.txt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cat" / "empty too").mkdir()
    assert read_folder(tmp_path).classes == ("cat", "dog")
    assert caplog.messages[1:] == [
        f"{tmp_path}: folders without images are no classes: empty, heic, notes"
    ]


def test_what_is_left_out_of_a_flat_folder_is_told_too(tmp_path, caplog):
    read_folder(touch(tmp_path, "1.jpg", "2.heic", "heic/3.heic"))
    assert "skipped 2 files by suffix: .heic (2)" in caplog.text
    assert "no classes: heic" in caplog.text


def test_hidden_files_notes_and_what_systems_leave_make_no_noise(tmp_path, caplog):
    touch(tmp_path, "cat/1.jpg", "dog/1.jpg", "README", "labels.csv", ".hidden/x", ".git/1.jpg")
    touch(tmp_path, "cat/._1.jpg", "cat/.cache/2.jpg")
    touch(tmp_path, "cat/Thumbs.db", "cat/.DS_Store", "cat/desktop.ini", "cat/1.txt", "dog/1.xml")
    touch(tmp_path, "dog/1.json", "dog/tmp")
    (tmp_path / "dog" / "gone").symlink_to(tmp_path / "nowhere")
    assert read_folder(tmp_path).ids == ("cat/1.jpg", "dog/1.jpg")
    assert not caplog.messages


SYSTEM_FOLDERS = (
    *("@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "__MACOSX"),
    *(".ipynb_checkpoints", "lost+found", ".Trash-1000", "@Recycle", "#snapshot", "$Recycle.Bin"),
)


@pytest.mark.parametrize("name", SYSTEM_FOLDERS)
def test_folders_that_systems_leave_behind_are_left_out_at_any_depth_and_counted(
    tmp_path, caplog, name
):
    touch(tmp_path, "cat/1.jpg", "dog/1.jpg", f"{name}/1.jpg", f"cat/{name}/1/2.jpg")
    assert read_folder(tmp_path).ids == ("cat/1.jpg", "dog/1.jpg")
    told = f"{tmp_path}: skipped 2 folders of systems: {name} (2)"
    assert caplog.messages == [told]
    assert gather_images([tmp_path / "cat"]) == [tmp_path / "cat" / "1.jpg"]
    assert caplog.messages[1] == f"{tmp_path / 'cat'}: skipped 1 folder of a system: {name} (1)"


def test_class_folders_that_differ_only_by_unicodes_form_are_one_class(tmp_path, caplog):
    names = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    touch(tmp_path, f"{names[0]}/1.jpg", f"{names[1]}/2.jpg", "tea/1.jpg")
    dataset = read_folder(tmp_path)
    assert dataset.classes == (names[0], "tea")
    assert dataset.targets_of([f"{names[1]}/2.jpg", f"{names[0]}/1.jpg"]).tolist() == [0, 0]
    assert all(path.is_file() for path in dataset.paths())
    assert not caplog.messages


@pytest.mark.parametrize("validation", ["val", "valid", "Validation"])
def test_folders_called_like_splits_with_the_same_class_folders_are_the_splits(
    tmp_path, caplog, validation
):
    names = ("train/cat/1.jpg", "train/dog/1.jpg", f"{validation}/cat/2.jpg", "test/dog/x/1.jpg")
    dataset = read_folder(touch(tmp_path, *names, "train/stray.jpg"))
    assert dataset.classes == ("cat", "dog")
    assert set(dataset.ids) == set(names)
    assert dataset.targets_of(names).tolist() == [0, 1, 0, 1]
    assert dataset.official_splits == {
        "train": names[:2],
        validation.lower(): names[2:3],
        "test": names[3:],
    }
    assert "skipped 1 image that lies in no class folder" in caplog.text
    sizes = f"train (2 images), {validation.lower()} (1 image), test (1 image)"
    assert f"folders with the same class folders are the splits: {sizes}" in caplog.text


def test_without_a_test_folder_the_validation_images_are_tested_on(tmp_path, caplog):
    dataset = read_folder(touch(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "val/cat/2.jpg"))
    assert dataset.official_splits["test"] == ("val/cat/2.jpg",)
    assert set(dataset.official_splits) == {"train", "test"}
    assert "train (2 images), val (1 image); 'val' is tested on" in caplog.text


@pytest.mark.parametrize(
    "names",
    [
        ("train/steam/1.jpg", "test/tube/1.jpg"),
        ("train/1.jpg", "test/1.jpg"),
        ("train/cat/1.jpg", "val/1.jpg"),
        ("train/cat/1.jpg", "val/cat/1.jpg", "bus/cat/1.jpg"),
        ("val/cat/1.jpg", "test/cat/1.jpg"),
    ],
)
def test_other_folders_called_like_splits_are_classes(tmp_path, names):
    dataset = read_folder(touch(tmp_path, *names))
    assert set(dataset.classes) == {name.split("/")[0] for name in names}
    assert not dataset.official_splits


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name")
def test_a_name_that_is_not_utf8_is_an_id_like_others(tmp_path, caplog):
    touch(tmp_path, "cat/1.jpg", os.fsdecode(b"cat/\xff.jpg"), os.fsdecode(b"d\xe9g/1.jpg"))
    touch(tmp_path, os.fsdecode(b"cat/1.\xff"))
    dataset = read_folder(tmp_path)
    assert dataset.ids == ("cat/1.jpg", "cat/\udcff.jpg", "d\udce9g/1.jpg")
    assert dataset.classes == ("cat", "d\udce9g")
    assert all(path.is_file() for path in dataset.paths())
    assert gather_images([tmp_path])[1].name == "\udcff.jpg"
    assert "skipped 1 file by suffix: .\udcff (1)" in caplog.text


def test_without_images_the_error_says_what_was_looked_for(tmp_path):
    touch(tmp_path, "cat/1.txt")
    with pytest.raises(DatasetError, match=r"no images in .*\.jpg.* its subfolders$"):
        read_folder(tmp_path)
    touch(tmp_path, "cat/1.heic")
    with pytest.raises(DatasetError, match=r"; skipped 1 file by suffix: \.heic \(1\)"):
        read_folder(tmp_path)
    with pytest.raises(DatasetError, match=r"; .*: skipped 1 file by suffix: \.heic \(1\)"):
        gather_images([tmp_path])


def test_files_left_out_of_a_folder_to_score_are_told(tmp_path, caplog):
    touch(tmp_path, "new/1.jpg", "new/2.heic", "photo1")
    found = gather_images([tmp_path / "new", tmp_path / "photo1"])
    assert found == [tmp_path / "new" / "1.jpg", tmp_path / "photo1"]
    assert caplog.messages == [f"{tmp_path / 'new'}: skipped 1 file by suffix: .heic (1)"]


def test_an_image_that_several_paths_lead_to_is_scored_once(tmp_path, monkeypatch):
    monkeypatch.chdir(touch(tmp_path, "new/1.jpg", "new/2.jpg"))
    given = ["new/2.jpg", tmp_path / "new", "new/../new/1.jpg", "./new"]
    assert gather_images(given) == [Path("new/2.jpg"), tmp_path / "new" / "1.jpg"]


def test_a_file_or_a_missing_folder_is_no_dataset(tmp_path):
    for path in (tmp_path / "missing", touch(tmp_path, "1.jpg") / "1.jpg"):
        with pytest.raises(DatasetError, match="is not a folder"):
            read_folder(path)


def test_a_folder_of_many_images_is_held_as_text_of_fixed_width(tmp_path):
    names = [f"{label}/{number}.jpg" for label in ("b", "a") for number in range(1000)]
    touch(tmp_path, *names)
    tracemalloc.start()
    try:
        dataset = read_folder(tmp_path)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert dataset.ids == sorted(names)
    assert dataset.targets.tolist() == [0] * 1000 + [1] * 1000
    assert held / len(dataset) < 60
    assert peak / len(dataset) < 300


# Caltech-101 ---------------------------------------------------------------------------------


def make_caltech101(root: Path) -> Path:
    """Empty files in the layout of the official archive."""
    names = (f"{name}/image_0001.jpg" for name in (BACKGROUND, "accordion"))
    return touch(root / FOLDER, *names)


@pytest.mark.parametrize("above", [".", "caltech101", "caltech-101"])
def test_it_is_found_from_the_folder_around_it(tmp_path, above):
    categories = make_caltech101(tmp_path / above)
    assert find_caltech101(tmp_path).samefile(categories)
    assert find_caltech101(categories) == categories


def test_a_renamed_folder_of_categories_is_recognised(tmp_path):
    renamed = make_caltech101(tmp_path).rename(tmp_path / "images")
    assert find_caltech101(renamed) == renamed
    assert find_caltech101(tmp_path) is None


def test_the_complete_archive_has_9144_images_in_102_categories(caltech101_root):
    dataset = open_dataset("caltech101", data_root=caltech101_root)
    assert len(dataset) == 9144
    assert len(dataset.classes) == 102
    sizes = np.bincount(dataset.targets)
    assert dict(zip(dataset.classes, sizes, strict=True))["airplanes"] == 800
    assert sizes.min() == 31
    assert dataset.path("accordion/image_0001.jpg").is_file()
