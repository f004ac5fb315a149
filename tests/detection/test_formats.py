"""Files of detections, read back by parsers that share nothing with what wrote them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from detection_cases import CLASSES, detections, scenes
from hypothesis import given, settings
from hypothesis import strategies as st

from spptransfer.datasets.annotations import Objects
from spptransfer.detection.detections import Detections, load_detections, save_detections
from spptransfer.detection.formats import (
    file_of,
    write_coco_results,
    write_voc_annotations,
    write_voc_results,
    write_voc_scores,
    write_yolo,
)
from spptransfer.errors import CacheError, ConfigError

IDS = ["a.jpg", "cats/b.png", "cats/2.5"]
SIZES = [(10, 8), (640, 480), (7, 9)]
FOUND = detections(
    [
        (0, [0, 0, 10, 8], 1, 0.1),
        (1, [1.25, 100 / 3, 640, 479.5], 0, -1.5),
        (0, [2, 3, 4, 5], 0, 7.0),
        (2, [0.2, 0.4, 0.6, 0.7], 2, 0.25),
    ]
)


def rows(found: Detections) -> list[tuple]:
    """Image, label, score and corners of each, in an order of their own."""
    columns = zip(found.images, found.labels, found.scores, found.boxes, strict=True)
    return sorted((int(i), int(k), float(s), *box.tolist()) for i, k, s, box in columns)


def assert_same(read: list[tuple], found: Detections, **tolerance: float) -> None:
    expected = rows(found)
    assert [row[:2] for row in sorted(read)] == [row[:2] for row in expected]
    assert np.array(sorted(read)) == pytest.approx(np.array(expected), **tolerance)


def test_the_devkits_files_hold_pixels_from_one_on_by_falling_score(tmp_path):
    files = write_voc_results(tmp_path / "new", FOUND, IDS, CLASSES, "val")
    assert [file.name for file in files] == [f"comp3_det_val_{name}.txt" for name in CLASSES]
    assert files[1].read_text().split() == ["a.jpg", "0.100000001", "1", "1", "10", "8"]
    read = []
    for label, file in enumerate(files):
        lines = [line.split(" ") for line in file.read_text().splitlines()]
        scores = [float(line[1]) for line in lines]
        assert scores == sorted(scores, reverse=True)
        for id, score, *corners in lines:
            x0, y0, x1, y1 = map(float, corners)
            read.append((IDS.index(id), label, float(score), x0 - 1, y0 - 1, x1, y1))
    assert_same(read, FOUND, rel=1e-8)


def test_a_class_that_was_never_found_has_an_empty_file(tmp_path):
    files = write_voc_results(tmp_path, Detections.empty(), IDS, CLASSES, "test")
    assert [file.read_text() for file in files] == ["", "", ""]


def test_the_devkits_files_of_classification_hold_every_images_score(tmp_path):
    scores = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    ids = ["000007", "000005", "x"]
    written = write_voc_scores(tmp_path / "devkit", scores, ids, CLASSES, "test")
    assert [path.name for path in written] == [f"comp1_cls_test_{name}.txt" for name in CLASSES]
    for path, column in zip(written, scores.T, strict=True):
        read = [line.split() for line in path.read_text().splitlines()]
        assert [id for id, _ in read] == ids
        np.testing.assert_array_equal(np.array([score for _, score in read], np.float32), column)
    with pytest.raises(ConfigError, match="cannot hold an id with a space"):
        write_voc_scores(tmp_path / "other", scores, ["a b", "c", "d"], CLASSES, "test")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["a/b", "..\\c", "d:e", "nul\0"])
def test_names_that_lead_out_of_the_folder_are_refused_by_the_devkits_files(tmp_path, name):
    for classes, split in (((name,), "val"), (("cat",), name)):
        with pytest.raises(ConfigError, match="cannot be part of the devkit's name of a file"):
            write_voc_results(tmp_path, Detections.empty(), [], classes, split)
    with pytest.raises(ConfigError, match=r"id with a space: 'two words'"):
        write_voc_results(tmp_path, FOUND, ["a", "two words", "c"], CLASSES, "val")
    assert list(tmp_path.iterdir()) == []


def test_cocos_results_are_read_by_the_numbers_of_the_file_beside_them(tmp_path):
    results, listing = write_coco_results(tmp_path / "x" / "r.json", FOUND, IDS, CLASSES, SIZES)
    described = json.loads(listing.read_text())
    assert listing.name == "r_images.json"
    names = {image["id"]: image["file_name"] for image in described["images"]}
    sizes = [(image["width"], image["height"]) for image in described["images"]]
    classes = {category["id"]: category["name"] for category in described["categories"]}
    assert sizes == SIZES
    read = []
    for one in json.loads(results.read_text()):
        x, y, width, height = one["bbox"]
        image, label = IDS.index(names[one["image_id"]]), CLASSES.index(classes[one["category_id"]])
        read.append((image, label, one["score"], x, y, x + width, y + height))
    assert_same(read, FOUND)


def test_a_datasets_own_numbers_are_kept(tmp_path):
    numbers = {"image_ids": [900, 7, 8], "category_ids": [1, 44, 90]}
    files = write_coco_results(tmp_path / "r.json", FOUND, IDS, CLASSES, SIZES, **numbers)
    assert len(files) == 1
    read = json.loads(files[0].read_text())
    assert [(one["image_id"], one["category_id"]) for one in read] == [
        (900, 44), (7, 1), (900, 1), (8, 90)
    ]  # fmt: skip


@pytest.mark.parametrize("scores", [True, False])
def test_yolos_texts_hold_shares_of_the_sides(tmp_path, scores):
    files = write_yolo(tmp_path, FOUND, IDS, SIZES, scores=scores)
    assert [file.relative_to(tmp_path).as_posix() for file in files] == [
        "a.txt", "cats/b.txt", "cats/2.5.txt"
    ]  # fmt: skip
    read = []
    for image, (file, (width, height)) in enumerate(zip(files, SIZES, strict=True)):
        for line in file.read_text().splitlines():
            label, x, y, w, h, *score = line.split(" ")
            assert len(score) == scores
            x, y, w, h = float(x) * width, float(y) * height, float(w) * width, float(h) * height
            corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
            read.append((image, int(label), *(map(float, score) if scores else (0,)), *corners))
    expected = FOUND if scores else FOUND._replace(scores=np.zeros(4, np.float32))
    assert_same(read, expected, abs=1e-4)


def test_annotations_hold_whole_pixels_within_the_image(tmp_path):
    classes = ("<cat> & dog\x07", *CLASSES[1:])
    files = write_voc_annotations(tmp_path, FOUND, IDS, classes, SIZES)
    roots = [ElementTree.parse(file).getroot() for file in files]
    assert [root.findtext("filename") for root in roots] == ["a.jpg", "b.png", "2.5"]
    assert roots[1].findtext("folder") == "cats"
    found = []
    for root, size in zip(roots, SIZES, strict=True):
        assert (int(root.findtext("size/width")), int(root.findtext("size/height"))) == size
        for thing in root.iter("object"):
            corners = [
                int(thing.findtext(f"bndbox/{tag}")) for tag in ["xmin", "ymin", "xmax", "ymax"]
            ]
            assert 1 <= corners[0] <= corners[2] <= size[0]
            assert 1 <= corners[1] <= corners[3] <= size[1]
            found.append((thing.findtext("name"), corners))
    assert found == [
        ("<cat> & dog\ufffd", [3, 4, 4, 5]),  # the better one first
        ("dog", [1, 1, 10, 8]),
        ("<cat> & dog\ufffd", [2, 34, 640, 480]),
        ("car", [1, 1, 1, 1]),
    ]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(["..", ".", "", "a", "C:", "~", "b.jpg", "nul\0", "x y"]), max_size=5),
    st.sampled_from(["/", "\\"]),
)
def test_no_id_leads_out_of_the_folder(parts, separator):
    folder = Path("out", "put")
    try:
        path = file_of(folder, separator.join(parts), ".txt")
    except ConfigError:
        assert not any(part.strip(". ") for part in parts)
        return
    below = path.relative_to(folder)
    assert ".." not in below.parts
    assert not any(set(part) & set(":\\\0") for part in below.parts)
    assert len(below.parts) <= len(parts)


def test_an_absolute_id_lies_below_the_folder_and_two_ids_never_share_a_file(tmp_path):
    out = tmp_path / "out"
    files = write_yolo(out, Detections.empty(), ["/etc/a.jpg", "../../b.jpg"], SIZES[:2])
    assert files == [out / "etc" / "a.txt", out / "b.txt"]
    with pytest.raises(ConfigError, match=r"'c.jpg' and 'c.png' would share the file '.*c.txt'"):
        write_yolo(out, Detections.empty(), ["c.jpg", "c.png"], SIZES[:2])
    assert sorted(path.name for path in out.rglob("*.txt")) == ["a.txt", "b.txt"]


def test_what_cannot_be_written_is_one_error_and_leaves_no_part(tmp_path):
    (tmp_path / "a").write_text("a file")
    with pytest.raises(CacheError, match="cannot write"):
        write_voc_annotations(tmp_path / "a", FOUND, IDS, CLASSES, SIZES)
    (tmp_path / "r.json").mkdir()
    with pytest.raises(CacheError, match="cannot write"):
        write_coco_results(tmp_path / "r.json", FOUND, IDS, CLASSES, SIZES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "r.json"]


@settings(max_examples=40, deadline=None)
@given(scenes())
def test_what_was_found_and_what_is_there_come_back_from_the_disk(tmp_path_factory, scene):
    found, objects = scene
    path = tmp_path_factory.mktemp("found") / "detections.npz"
    ids = [f"sub/{number}.jpg" for number in range(len(objects))]
    save_detections(path, ids, found, objects)
    back = load_detections(path)
    assert back.ids.tolist() == ids
    for ours, theirs in zip(found, back.detections, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours == theirs).all()
    assert [[part.tolist() for part in one] for one in back.objects] == [
        [part.tolist() for part in one] for one in objects
    ]


@pytest.mark.parametrize("name", ["objects/images", "detections/scores", "detections/boxes"])
def test_a_file_whose_arrays_do_not_fit_is_refused(tmp_path, name):
    save_detections(tmp_path / "d.npz", ["a"], FOUND.take(FOUND.images == 0), [Objects.of()])
    with np.load(tmp_path / "d.npz") as arrays:
        changed = {**arrays, name: np.zeros(7)}
    np.savez(tmp_path / "d.npz", **changed)
    with pytest.raises(ValueError, match="not"):
        load_detections(tmp_path / "d.npz")
    (tmp_path / "d.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises((ValueError, OSError, EOFError, zipfile.BadZipFile)):
        load_detections(tmp_path / "d.npz")
