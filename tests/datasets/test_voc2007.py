from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from box_files import voc_xml, write_voc

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


# Boxes ---------------------------------------------------------------------------------------


def annotate(root: Path, content: str | bytes, name: str = "a") -> Path:
    """The small set of `box_files` with another annotation of one image."""
    file = find_voc2007(write_voc(root)) / "Annotations" / f"{name}.xml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def read(root: Path):
    return read_voc2007(find_voc2007(root))


def test_an_object_may_be_difficult_and_its_parts_are_no_objects(tmp_path):
    part = "<part><name>dog</name><bndbox><xmin>1</xmin></bndbox></part>"
    objects = [
        ("cat", (3, 4, 20, 20), f"<difficult>1</difficult>{part}"),
        ("dog", ("4.5", 1, "9.25", 8), "<difficult>0</difficult>"),
    ]
    found = read(annotate(tmp_path, voc_xml((40, 30), objects))).annotations()[0]
    assert found.boxes.tolist() == [[2, 3, 20, 20], [3.5, 0, 9.25, 8]]
    assert (found.labels.tolist(), found.difficult.tolist()) == ([0, 1], [True, False])


def test_a_size_of_nothing_is_none(tmp_path):
    assert len(read(annotate(tmp_path, voc_xml((0, 0)))).annotations()[0].labels) == 0


LAUGHS = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no element found"),
        ("<annotation><object>", "no element found"),
        ("<html></html>", "it holds <html>, not <annotation>"),
        (LAUGHS, "a DOCTYPE is not read"),
        (LAUGHS.encode("utf-16"), "a DOCTYPE is not read"),
        (b"<annotation>\xff</annotation>", "can't decode byte 0xff"),
        (" " * (1 << 23), "it has 8,388,608 bytes; at most 4,194,304 are read"),
        (
            voc_xml((40, 30), [("cat", ("", 1, 2, 3), "")]),
            "<bndbox/xmin> is '', which is no number",
        ),
        (voc_xml((40, 30), [("cat", (1, 1, "nan", 3), "")]), "<bndbox/xmax> is 'nan'"),
        (voc_xml((40, 30), [("cat", (1, 1, 2, 3), "<difficult>no</difficult>")]), "is 'no', which"),
        (voc_xml(("wide", 30)), "<size/width> is 'wide'"),
        (voc_xml((30, 40)), "'a' is 40 x 30 pixels upright, its annotation says 30 x 40"),
    ],
)
def test_a_broken_annotation_is_told_only_when_boxes_are_asked_for(content, message, tmp_path):
    dataset = read(annotate(tmp_path, content))
    with pytest.raises(DatasetError, match=message) as caught:
        dataset.annotations()
    assert "\n" not in str(caught.value)
    assert len(dataset.subset([1]).annotations()) == 1


def test_an_image_without_its_annotation_is_no_negative(tmp_path):
    dataset = read(write_voc(tmp_path))
    (find_voc2007(tmp_path) / "Annotations" / "b.xml").unlink()
    with pytest.raises(DatasetError, match=r"lacks 1 annotation file of 3: .*b\.xml"):
        dataset.annotations()


# The real files ------------------------------------------------------------------------------


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


TRAIN_COUNTS = [30, 45, 29, 27, 43, 22, 88, 40, 62, 30, 22, 39, 45, 26, 357, 65, 28, 26, 21, 26]
VAL_COUNTS = [23, 28, 44, 27, 75, 20, 93, 26, 80, 35, 27, 38, 39, 20, 361, 59, 54, 26, 23, 21]


def test_the_real_boxes_are_all_there_and_fit_images_and_labels(voc2007_root, caplog):
    whole = open_dataset("voc2007", data_root=voc2007_root)
    n_objects = n_difficult = 0
    for split, counts in (("train", TRAIN_COUNTS), ("val", VAL_COUNTS)):
        dataset = whole.subset(whole.positions(whole.official_splits[split]))
        annotations = dataset.annotations()
        _, labels, difficult = annotations.objects
        assert np.bincount(labels[~difficult]).tolist() == counts
        n_objects, n_difficult = n_objects + len(labels), n_difficult + difficult.sum()
        for row, found in zip(dataset.targets, annotations, strict=True):
            sure = np.unique(found.labels[~found.difficult])
            assert np.flatnonzero(row == 1).tolist() == sure.tolist()
            assert np.flatnonzero(row >= 0).tolist() == np.unique(found.labels).tolist()
    assert (n_objects, n_difficult) == (2720, 530)
    assert caplog.messages == []
