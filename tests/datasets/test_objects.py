"""What holds for boxes in any of the three layouts."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from box_files import CLASSES, IMAGES, coco_content, write_coco, write_images, write_voc, write_yolo
from hypothesis import given
from hypothesis import strategies as st
from image_files import encode, picture, rotated_by_exif

from spptransfer import datasets
from spptransfer.datasets.coco import read_coco
from spptransfer.datasets.objects import FoundObjects, ObjectList
from spptransfer.datasets.voc2007 import find_voc2007, read_voc2007
from spptransfer.datasets.yolo import read_yolo
from spptransfer.errors import DatasetError


def read_voc(root):
    return read_voc2007(find_voc2007(root))


LAYOUTS = pytest.mark.parametrize(
    ("write", "read"),
    [(write_voc, read_voc), (write_coco, read_coco), (write_yolo, read_yolo)],
    ids=["voc2007", "coco", "yolo"],
)


def by_name(dataset, annotations=None):
    """Classes and boxes by the image's name, as `IMAGES` has them."""
    annotations = dataset.annotations() if annotations is None else annotations
    return {
        dataset.path(id).stem: [
            (dataset.classes[label], tuple(box))
            for label, box in zip(found.labels, found.boxes.round(9).tolist(), strict=True)
        ]
        for id, found in zip(dataset.ids, annotations, strict=True)
    }


EXPECTED = {name: objects for name, (*_, objects) in IMAGES.items()}


@LAYOUTS
def test_boxes_of_upright_images_are_the_same_in_every_layout(write, read, tmp_path):
    dataset = read(write(tmp_path))
    assert dataset.classes == CLASSES
    assert by_name(dataset) == EXPECTED
    targets = dict(zip(by_name(dataset), dataset.targets.tolist(), strict=True))
    assert targets == {"a": [1, 1], "b": [-1, 1], "empty": [-1, -1]}


@LAYOUTS
def test_a_subset_opens_no_image_but_its_own(write, read, tmp_path):
    whole = read(write(tmp_path))
    last = len(whole) - 1
    for id in whole.ids[:last]:
        whole.path(id).unlink()
    some = pickle.loads(pickle.dumps(whole.subset([last])))
    assert by_name(some) == {some.path(id).stem: EXPECTED[some.path(id).stem] for id in some.ids}


@LAYOUTS
def test_what_is_left_out_or_clipped_is_counted_in_one_line(write, read, tmp_path, caplog):
    odd = [("cat", (30, 20, 60, 50)), ("cat", (50, 0, 60, 9)), ("dog", (5, 5, 5, 9))]
    dataset = read(write(tmp_path, images={**IMAGES, "odd": (40, 30, 1, odd)}))
    caplog.clear()
    assert by_name(dataset)["odd"] == [("cat", (30, 20, 40, 30))]
    assert len(caplog.messages) == 1
    for told in ("1 with empty boxes (in", "1 outside their images (in", "clipped 1 box that"):
        assert told in caplog.messages[0]
    assert caplog.messages[0].count("odd") == 3


@LAYOUTS
def test_an_unknown_class_is_counted_by_name(write, read, tmp_path, caplog):
    dataset = read(write(tmp_path))
    known = replace(dataset, classes=("cat",), targets=dataset.targets[:, :1])
    found = by_name(known)
    assert (found["a"], found["b"]) == ([("cat", (4, 6, 24, 21))], [])
    assert "dropped of 3 objects: 2 of unknown classes, 'dog' (2)" in caplog.text


@LAYOUTS
def test_images_that_are_missing_are_named_unless_all_are(write, read, tmp_path, caplog):
    dataset = read(write(tmp_path))
    (gone,) = (id for id in dataset.ids if "b" in dataset.path(id).stem)
    dataset.path(gone).unlink()
    assert by_name(dataset) == {**EXPECTED, "b": []}
    assert "1 image cannot be read" in caplog.text
    assert "No such file" in caplog.text
    for id in dataset.ids:
        dataset.path(id).unlink(missing_ok=True)
    with pytest.raises(DatasetError, match="none of its 3 images is there"):
        dataset.annotations()


def of_one(width, height, orientation, stated):
    return {"x": (*stated, 1, [("cat", (0, 0, 5, 5))])}, rotated_by_exif(
        picture(height, width), orientation, "JPEG"
    )


@pytest.mark.parametrize(("write", "read"), [(write_voc, read_voc), (write_coco, read_coco)])
@pytest.mark.parametrize(
    ("orientation", "stated", "why"),
    [
        (6, (40, 30), "its size before the EXIF orientation turns it"),
        (1, (40, 30), "width and height are exchanged; an EXIF orientation that was removed"),
        (3, (60, 80), "another version of the file was annotated; an EXIF orientation may be why"),
    ],
)
def test_another_size_than_annotated_is_refused(write, read, orientation, stated, why, tmp_path):
    images, file = of_one(30, 40, orientation, stated)
    dataset = read(write(tmp_path, images=images))
    dataset.paths()[0].write_bytes(file)
    told = f"'x.*' is 30 x 40 pixels upright, its annotation says {stated[0]} x {stated[1]}: {why}"
    with pytest.raises(DatasetError, match=told):
        dataset.annotations()


def test_headers_alone_are_read(tmp_path):
    dataset = read_coco(write_coco(tmp_path, images={"a": (400, 300, 1, EXPECTED["a"])}))
    whole = encode(picture(300, 400), "JPEG")
    dataset.paths()[0].write_bytes(whole[: len(whole) // 3])
    assert by_name(dataset) == {"a": EXPECTED["a"]}
    dataset.paths()[0].write_bytes(b"\xff\xd8\xff" + bytes(40_000))
    assert by_name(dataset) == {"a": []}


@given(
    sides=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    objects=st.lists(
        st.tuples(st.sampled_from("xyz"), *[st.floats(-12, 12)] * 4, st.booleans()), min_size=1
    ),
)
def test_labels_of_images_are_those_of_their_usable_objects(sides, objects):
    width, height = sides
    expected = {"x": -1, "y": -1}
    listed = ObjectList()
    for name, x0, y0, x1, y1, is_difficult in objects:
        listed.add(0, name, (x0, y0, x1, y1), is_difficult)
        inside = min(x1, width) > max(x0, 0) and min(y1, height) > max(y0, 0)
        if inside and name in expected:
            expected[name] = max(expected[name], 0 if is_difficult else 1)
    found = FoundObjects.of(listed, ("x", "y"), [sides])
    if max(expected.values()) < 0:
        with pytest.raises(DatasetError, match="can be used: "):
            found.targets(2)
    else:
        assert found.targets(2).tolist() == [list(expected.values())]


def test_the_same_dataset_trains_a_classifier(tmp_path):
    write_coco(tmp_path / "pets" / "train")
    write_coco(tmp_path / "pets" / "valid", images={"c": IMAGES["a"]})
    dataset = datasets.open_dataset("coco", "pets", data_root=tmp_path)
    assert dataset.multi_label
    assert dataset.targets.dtype == np.int8
    assert dataset.targets_of(dataset.official_splits["valid"]).tolist() == [[1, 1]]


def test_images_without_objects_are_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    write_images(tmp_path)
    read_coco(write_coco(tmp_path, coco_content())).annotations()
    assert "3 objects, 1 image without any" in caplog.text
