from __future__ import annotations

import pytest
from box_files import CLASSES, IMAGES, write_images, write_yolo

from spptransfer.datasets.yolo import read_yolo
from spptransfer.errors import DatasetError


def relabel(root, text, name="a"):
    (root / "labels" / f"{name}.txt").write_text(text)
    return root


@pytest.mark.parametrize("names", ["{1: dog, 0: cat}", "\n- cat\n- dog", "[cat, dog]\nnc: 2"])
def test_names_are_a_list_or_a_mapping(names, tmp_path):
    dataset = read_yolo(write_yolo(tmp_path, f"names: {names}\ntrain: images\n"))
    assert dataset.classes == CLASSES
    assert dataset.ids == ("images/a.jpg", "images/b.jpg", "images/empty.jpg")
    assert dataset.official_splits == {}


@pytest.mark.parametrize(
    ("data", "layout"),
    [
        ("train: ../train/images\nval: ../valid/images", "{0}/{1}"),
        ("train: images/train\nval: [images/valid]\ntest:", "{1}/{0}"),
        ("path: ../datasets/pets\ntrain: train/images\nval: valid/images", "{0}/{1}"),
        ("path: pets\ntrain: train/images\nval: valid/images", "pets/{0}/{1}"),
    ],
)
def test_splits_are_found_however_their_paths_are_meant(data, layout, tmp_path):
    for split, images in (("train", IMAGES), ("valid", {"c": IMAGES["a"]})):
        write_yolo(tmp_path / "made", images=images)
        for kind in ("images", "labels"):
            place = tmp_path / layout.format(split, kind)
            place.parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "made" / kind).rename(place)
    (tmp_path / "data.yaml").write_text(f"names: [cat, dog]\n{data}\n")
    dataset = read_yolo(tmp_path)
    assert {name: len(ids) for name, ids in dataset.official_splits.items()} == {
        "train": 3,
        "val": 1,
    }
    assert dataset.ids[-1] == layout.format("valid", "images") + "/c.jpg"
    assert [len(each.labels) for each in dataset.annotations()] == [2, 1, 0, 2]


def test_a_split_may_be_a_list_of_files_and_share_images_with_another(tmp_path):
    write_yolo(tmp_path, "names: [cat, dog]\ntrain: some.txt\nval: images/b.jpg\n")
    (tmp_path / "some.txt").write_text("./images/b.jpg\n\nimages/a.jpg\n")
    dataset = read_yolo(tmp_path / "data.yaml")
    assert dataset.official_splits["train"] == ("images/b.jpg", "images/a.jpg")
    assert dataset.official_splits["val"] == ("images/b.jpg",)


def test_a_split_that_is_not_there_is_told(tmp_path, caplog):
    read_yolo(write_yolo(tmp_path, "names: [cat, dog]\ntrain: images\ntest: ../test/images\n"))
    assert "not there, and left out: test: ../test/images" in caplog.text


def test_a_polygon_stands_for_the_box_around_it(tmp_path):
    relabel(write_yolo(tmp_path), "1 0.5 0.1 0.9 0.5 0.5 0.9 0.25 0.5\n")
    (box,) = read_yolo(tmp_path).annotations()[0].boxes
    assert box.tolist() == pytest.approx([10, 3, 36, 27])


def test_only_the_last_folder_images_is_replaced_and_without_one_labels_lie_beside(tmp_path):
    deep = tmp_path / "images" / "images" / "train"
    write_images(deep)
    (tmp_path / "images" / "labels" / "train").mkdir(parents=True)
    (tmp_path / "images" / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 1 1")
    write_images(tmp_path / "beside", {"c": IMAGES["a"]})
    (tmp_path / "beside" / "c.txt").write_text("1 0.5 0.5 1 1")
    data = "names: [cat, dog]\ntrain: images/images/train\nval: beside"
    (tmp_path / "data.yaml").write_text(data)
    assert read_yolo(tmp_path).targets.tolist() == [[1, -1], [-1, -1], [-1, -1], [-1, 1]]


def test_files_without_their_counterpart_are_told_and_images_kept(tmp_path, caplog):
    root = write_yolo(tmp_path)
    (root / "labels" / "empty.txt").unlink()
    (root / "images" / "b.jpg").unlink()
    dataset = read_yolo(root)
    assert [len(each.labels) for each in dataset.annotations()] == [2, 0]
    assert "1 image without a label file (images/empty.jpg)" in caplog.text
    assert "1 label file without an image (b.txt)" in caplog.text


def test_a_class_beyond_the_names_is_counted_by_its_number(tmp_path, caplog):
    relabel(write_yolo(tmp_path), "7 0.5 0.5 1 1\n-1 0.5 0.5 1 1\n0 0.5 0.5 1 1")
    assert read_yolo(tmp_path).annotations()[0].labels.tolist() == [0]
    assert "2 of unknown classes, 'class -1' (1), 'class 7' (1)" in caplog.text


@pytest.mark.parametrize(
    "line",
    ["0 0.5 0.5 1", "0 0.5 0.5 1 1 0.9", "cat 0.5 0.5 1 1", "0 0.5 0.5 1 nan", "0.5 0.5 0.5 1 1"],
)
def test_a_line_that_is_neither_box_nor_polygon_is_shown_with_its_number(line, tmp_path):
    relabel(write_yolo(tmp_path), f"\n{line}\n")
    with pytest.raises(DatasetError, match=f"a.txt: line 2: '{line}' is neither"):
        read_yolo(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("names: [cat", "data.yaml: no YAML"),
        ("train: images", "names: Field required"),
        ("names: [cat, dog]\nnc: 3\ntrain: images", "nc is 3, but names has 2"),
        ("names: []\ntrain: images", "none of 3 objects can be used: of unknown classes, 'class"),
        ("names: [cat, dog]", "names no images as train, val, test"),
        ("names: [cat, dog]\ntrain: photos", "not there: train: photos"),
        ("just text", "should be a valid dictionary"),
        ("names: {cat: 0}\ntrain: images", "names.*valid integer"),
    ],
)
def test_a_broken_data_file_is_told_in_one_line(data, message, tmp_path):
    with pytest.raises(DatasetError, match=message) as caught:
        read_yolo(write_yolo(tmp_path, data))
    assert "\n" not in str(caught.value)


def test_boxes_in_pixels_and_labels_elsewhere_are_no_negatives(tmp_path):
    for name in IMAGES:
        relabel(write_yolo(tmp_path), "0 20 15 10 10", name)
    for name in IMAGES:
        relabel(tmp_path, "0 20 15 10 10", name)
    with pytest.raises(DatasetError, match="none of 3 objects can be used: outside their images"):
        read_yolo(tmp_path)
    (tmp_path / "labels").rename(tmp_path / "boxes")
    with pytest.raises(DatasetError, match=r"none but 3 images without a label file .*labels"):
        read_yolo(tmp_path)


def test_a_folder_without_a_data_file_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"neither a file data\.yaml nor"):
        read_yolo(tmp_path)
