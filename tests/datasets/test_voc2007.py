from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spptransfer.datasets import open_dataset
from spptransfer.datasets.voc2007 import find_voc2007, read_voc2007
from spptransfer.errors import DatasetError

TRAIN = {"000012": (1, -1, -1), "000017": (-1, 0, 1)}
VAL = {"000005": (-1, 1, -1), "000007": (0, -1, 1)}
TEST = {"000001": (-1, -1, 1)}
CLASSES = ("bird", "cat", "train")


def make_voc2007(root: Path, splits=None, classes=CLASSES) -> Path:
    """Label files (and empty images) in the official layout."""
    splits = splits or {"train": TRAIN, "val": VAL, "trainval": TRAIN | VAL}
    tree = root / "VOCdevkit" / "VOC2007"
    (tree / "ImageSets" / "Main").mkdir(parents=True)
    (tree / "JPEGImages").mkdir()
    for split, rows in splits.items():
        main = tree / "ImageSets" / "Main"
        (main / f"{split}.txt").write_text("".join(f"{id}\n" for id in rows))
        for position, name in enumerate(classes):
            lines = (f"{id} {labels[position]:2d}\n" for id, labels in rows.items())
            (main / f"{name}_{split}.txt").write_text("".join(lines))
        for id in rows:
            (tree / "JPEGImages" / f"{id}.jpg").touch()
    return tree


def test_labels_splits_and_paths_of_the_official_tree(tmp_path):
    dataset = read_voc2007(make_voc2007(tmp_path))
    assert dataset.ids == ("000005", "000007", "000012", "000017")
    assert dataset.classes == CLASSES
    assert dataset.targets.dtype == np.int8
    assert dataset.targets.tolist() == [[-1, 1, -1], [0, -1, 1], [1, -1, -1], [-1, 0, 1]]
    assert dataset.official_splits == {
        "train": ("000012", "000017"),
        "val": ("000005", "000007"),
        "trainval": ("000012", "000017", "000005", "000007"),
    }
    assert dataset.root == tmp_path
    assert dataset.path_template == "VOCdevkit/VOC2007/JPEGImages/{id}.jpg"
    assert all(path.is_file() for path in dataset.paths())


def test_any_split_that_exists_is_read(tmp_path):
    dataset = read_voc2007(make_voc2007(tmp_path, {"test": TEST, "mine": VAL}))
    assert list(dataset.official_splits) == ["test", "mine"]
    assert dataset.targets_of(["000001"]).tolist() == [[-1, -1, 1]]


def test_the_class_train_is_not_taken_for_a_split(tmp_path):
    dataset = read_voc2007(make_voc2007(tmp_path, {"train": TRAIN}))
    assert list(dataset.official_splits) == ["train"]
    assert dataset.targets_of(["000017"])[0, CLASSES.index("train")] == 1


@pytest.mark.parametrize("place", [".", "VOCdevkit", "VOCdevkit/VOC2007"])
def test_it_is_found_from_any_folder_of_the_tree(tmp_path, place):
    tree = make_voc2007(tmp_path / "data" / "voc2007")
    assert find_voc2007(tmp_path / "data").samefile(tree)
    assert find_voc2007(tmp_path / "data" / "voc2007" / place).samefile(tree)
    assert find_voc2007(tmp_path) is None


def test_a_renamed_tree_still_finds_its_images(tmp_path):
    tree = make_voc2007(tmp_path).rename(tmp_path / "pascal")
    dataset = read_voc2007(find_voc2007(tree))
    assert dataset.root == tree
    assert all(path.is_file() for path in dataset.paths())


def rewrite(tree: Path, name: str, text: str) -> None:
    (tree / "ImageSets" / "Main" / name).write_text(text)


def test_splits_that_contradict_each_other_are_refused(tmp_path):
    tree = make_voc2007(tmp_path)
    rewrite(tree, "cat_trainval.txt", "000012 -1\n000017 1\n000005 1\n000007 -1\n")
    with pytest.raises(DatasetError, match=r"image 000017 .* label of 'cat' in split 'trainval'"):
        read_voc2007(tree)


def test_classes_that_list_other_images_are_refused(tmp_path):
    tree = make_voc2007(tmp_path)
    rewrite(tree, "cat_val.txt", "000005 1\n")
    with pytest.raises(DatasetError, match=r"'bird_val.txt' and 'cat_val.txt' do not list"):
        read_voc2007(tree)


def test_a_class_without_one_of_the_splits_is_named(tmp_path):
    tree = make_voc2007(tmp_path)
    (tree / "ImageSets" / "Main" / "cat_val.txt").unlink()
    with pytest.raises(DatasetError, match="class 'cat' lacks the split 'val'"):
        read_voc2007(tree)


@pytest.mark.parametrize("line", ["000005 2", "000005", "000005 1 1", "000005 yes"])
def test_a_malformed_line_is_shown_with_its_number(tmp_path, line):
    tree = make_voc2007(tmp_path)
    rewrite(tree, "cat_val.txt", f"000007 1\n\n{line}\n")
    with pytest.raises(DatasetError, match=f"cat_val.txt, line 3: '{line}'"):
        read_voc2007(tree)


def test_a_byte_order_mark_is_no_part_of_the_first_id(tmp_path):
    tree = make_voc2007(tmp_path)
    for path in (tree / "ImageSets" / "Main").glob("*_val.txt"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_voc2007(tree).official_splits["val"] == ("000005", "000007")


def test_an_image_listed_twice_is_refused(tmp_path):
    tree = make_voc2007(tmp_path)
    rewrite(tree, "bird_val.txt", "000005 1\n000005 1\n")
    with pytest.raises(DatasetError, match="line 2: image 000005 is listed twice"):
        read_voc2007(tree)


def test_a_tree_without_labels_is_refused(tmp_path):
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    with pytest.raises(DatasetError, match="no label files"):
        read_voc2007(tmp_path)


def test_the_real_part_of_voc2007_is_read_whole(voc2007_root):
    dataset = open_dataset("voc2007", data_root=voc2007_root)
    assert len(dataset.classes) == 20
    assert {name: len(ids) for name, ids in dataset.official_splits.items()} == {
        "train": 400,
        "val": 400,
        "trainval": 800,
    }
    assert all(path.is_file() for path in dataset.paths())
    for split in ("train", "val"):
        assert (dataset.targets_of(dataset.official_splits[split]) == 1).sum(axis=0).min() >= 13


def test_every_label_of_the_real_files_is_where_its_id_is(voc2007_root):
    dataset = open_dataset("voc2007", data_root=voc2007_root)
    main = find_voc2007(voc2007_root) / "ImageSets" / "Main"
    for position, name in enumerate(dataset.classes):
        rows = [line.split() for line in (main / f"{name}_trainval.txt").read_text().splitlines()]
        found = dataset.targets_of([id for id, _ in rows])[:, position]
        assert found.tolist() == [int(label) for _, label in rows]
