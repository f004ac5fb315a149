from __future__ import annotations

import json

import pytest
from box_files import CLASSES, IMAGES, coco_content, write_coco, write_images

from spptransfer.datasets.coco import read_coco
from spptransfer.errors import DatasetError


def changed(**changes):
    """The usual content with the first entry of some lists changed, or a list replaced."""
    content = coco_content()
    for key, change in changes.items():
        content[key] = change if isinstance(change, list) else [{**content[key][0], **change}]
        content[key] += [] if isinstance(change, list) else coco_content()[key][1:]
    return content


def test_the_folders_of_an_export_are_the_splits(tmp_path):
    write_coco(tmp_path / "train")
    write_coco(tmp_path / "valid", images={"c": IMAGES["a"]})
    dataset = read_coco(tmp_path)
    assert dataset.official_splits == {
        "train": ("train/a.jpg", "train/b.jpg", "train/empty.jpg"),
        "valid": ("valid/c.jpg",),
    }
    assert all(path.is_file() for path in dataset.paths())


def test_cocos_own_folders_are_read(tmp_path):
    for split, above in (("train2017", ""), ("val2017", "images")):
        images = {f"{split}-{name}": image for name, image in IMAGES.items()}
        write_images(tmp_path / above / split, images)
        write_coco(tmp_path / "annotations", coco_content(images), f"instances_{split}.json", {})
    (tmp_path / "annotations" / "captions_train2017.json").touch()
    dataset = read_coco(tmp_path)
    assert list(dataset.official_splits) == ["train2017", "val2017"]
    assert dataset.ids[0] == "train2017/train2017-a.jpg"
    assert dataset.ids[-1] == "images/val2017/val2017-empty.jpg"
    assert len(dataset.annotations().objects.labels) == 6


@pytest.mark.parametrize("folder", ["", "images", "annotations/../images"])
def test_a_single_file_is_read_by_its_folder_or_its_own_name(folder, tmp_path):
    file = tmp_path / ("annotations" if ".." in folder else "") / "mine.json"
    write_coco(file.parent, name=file.name, images={})
    write_images(tmp_path / folder.rpartition("/")[2])
    file.write_text(json.dumps(coco_content()))
    for place in (tmp_path, file):
        dataset = read_coco(place)
        assert dataset.root == tmp_path
        assert dataset.path(dataset.ids[0]) == tmp_path / folder.rpartition("/")[2] / "a.jpg"
        assert dataset.official_splits == {}


def test_a_heading_is_no_class_but_a_category_without_objects_is(tmp_path):
    content = coco_content()
    content["categories"].append({"id": 5, "name": "bird", "supercategory": "pets"})
    assert read_coco(write_coco(tmp_path, content)).classes == (*CLASSES, "bird")


def test_classes_are_told_apart_by_their_names_whatever_their_numbers(tmp_path):
    write_coco(tmp_path / "train")
    text = json.dumps(coco_content()).replace('"id": 7,', '"id": 99,')
    text = text.replace('"category_id": 7,', '"category_id": 99,')
    write_coco(tmp_path / "valid", text)
    dataset = read_coco(tmp_path)
    assert dataset.classes == CLASSES
    assert dataset.targets[:3].tolist() == dataset.targets[3:].tolist()


def test_a_crowd_is_difficult(tmp_path):
    dataset = read_coco(write_coco(tmp_path, changed(annotations={"iscrowd": 1})))
    assert dataset.annotations()[0].difficult.tolist() == [True, False]
    assert dataset.targets[0].tolist() == [1, 0]


def test_sizes_may_be_absent_and_paths_windows(tmp_path):
    image = {"file_name": ".\\a.jpg", "width": None, "height": 0}
    dataset = read_coco(write_coco(tmp_path, changed(images=image)))
    assert dataset.ids[0] == "a.jpg"
    assert len(dataset.annotations()[0].labels) == 2


def test_an_object_of_no_category_is_counted_by_its_number(tmp_path, caplog):
    dataset = read_coco(write_coco(tmp_path, changed(annotations={"category_id": 3})))
    assert dataset.annotations()[0].labels.tolist() == [0]
    assert "1 of unknown classes, 'category 3' (1) (in a.jpg)" in caplog.text


TWICE = [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Invalid JSON: EOF"),
        ("[]", "should be an object"),
        ({"images": [], "annotations": []}, "categories: Field required"),
        (changed(images=[], annotations=[]), "no images are listed in _annotations.coco.json"),
        (changed(annotations=[]), "none of 0 objects can be used"),
        (changed(annotations={"bbox": [1, 2, 3]}), r"annotations.0.bbox.3: Field required"),
        (changed(annotations={"bbox": [0, 0, "w", 1]}), r"annotations.0.bbox.2: .* valid number"),
        (changed(annotations={"bbox": [0, 0, float("nan"), 1]}), "bbox.2: .* finite number"),
        (changed(annotations={"image_id": 9}), r"annotations.0: no image has the id 9"),
        (changed(annotations={"id": 1}), "the annotation id 1 occurs 2 times"),
        (changed(images=TWICE), "the image id 1 occurs 2 times"),
        (changed(categories={"id": 7}), "the category id 7 occurs 2 times"),
        (changed(images={"file_name": "b.jpg"}), "image 'b.jpg' is listed already, in "),
        (changed(images={"file_name": ""}), "images.0.file_name: .* at least 1 character"),
        (changed(categories=[{"id": 1, "name": "x"}]), r"none of 3 .* used: of unknown classes"),
    ],
)
def test_a_broken_file_is_told_in_one_line(content, message, tmp_path):
    with pytest.raises(DatasetError, match=message) as caught:
        read_coco(write_coco(tmp_path, content))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_such_a_file_says_what_was_looked_for(tmp_path):
    for name in ("a.json", "b.json"):
        (tmp_path / name).touch()
    with pytest.raises(DatasetError, match=r"looked for \*/_annotations.coco.json"):
        read_coco(tmp_path)
