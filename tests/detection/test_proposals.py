"""Methods propose windows of the image, each once, best first, and say what is wrong with them."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spptransfer.detection.boxes import overlaps
from spptransfer.detection.methods import open_proposer
from spptransfer.errors import ConfigError, DatasetError


def has_opencv() -> bool:
    try:
        open_proposer("selective_search")
    except ConfigError:
        return False
    return True


opencv = pytest.mark.skipif(not has_opencv(), reason="needs the extra 'proposals'")
IMAGE_LEVEL = [
    pytest.param("selective_search", marks=opencv),
    pytest.param("edge_boxes", marks=opencv),
]
METHODS = [*IMAGE_LEVEL, "grid"]


def scene(height=180, width=240, boxes=((30, 20, 90, 110), (130, 60, 220, 160))):
    """Bright rectangles on a noisy dark ground."""
    image = np.random.default_rng(0).integers(0, 40, (height, width, 3), dtype=np.uint8)
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        image[y0:y1, x0:x1] += np.array([[150, 20, 60], [30, 160, 90]], np.uint8)[number]
    return image


def check(windows, image, most):
    height, width = image.shape[:2]
    assert windows.dtype == np.float32
    assert windows[0].tolist() == [0, 0, width, height]
    assert 1 <= len(windows) <= most
    assert (windows[:, :2] >= 0).all()
    assert (windows[:, 2:] <= [width, height]).all()
    assert (windows[:, :2] < windows[:, 2:]).all()
    assert len(np.unique(windows, axis=0)) == len(windows)


@pytest.mark.parametrize("method", METHODS)
@settings(deadline=None, max_examples=25)
@given(
    size=st.tuples(st.integers(1, 130), st.integers(1, 130)),
    most=st.integers(1, 300),
    seed=st.integers(0, 9),
)
def test_windows_lie_in_the_image_each_once_the_whole_image_first(method, size, most, seed):
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    check(open_proposer(method, max_windows=most).propose(image), image, most)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(1, 1), (3, 900), (900, 21), (70, 70)])
def test_thin_and_blank_images_have_windows(method, size):
    image = np.full((*size, 3), 200, np.uint8)
    check(open_proposer(method).propose(image), image, 2000)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_windows_come_each_time_and_fewer_are_the_first_of_them(method):
    image, proposer = scene(), open_proposer(method)
    windows = proposer.propose(image)
    assert np.array_equal(windows, proposer.propose(image))
    fewer = open_proposer(method, max_windows=7).propose(image)
    if method != "edge_boxes":  # which searches until it has enough
        assert np.array_equal(fewer, windows[:7])


@pytest.mark.parametrize("method", IMAGE_LEVEL)
@pytest.mark.parametrize("times", [1, 4])
def test_objects_are_found_in_pixels_of_the_image_whatever_it_was_resized_to(method, times):
    image = scene().repeat(times, 0).repeat(times, 1)
    objects = times * np.array([[30.0, 20, 90, 110], [130, 60, 220, 160]])
    windows = open_proposer(method).propose(image)
    assert (overlaps(objects, windows).max(axis=1) > 0.85).all()
    assert (windows[:, 2:] - windows[:, :2] >= 20).all()


def test_a_grid_covers_the_image_at_every_scale_and_needs_no_pixels():
    proposer = open_proposer("grid", scales=3, smallest=0.2)
    windows = proposer.propose(np.broadcast_to(np.uint8(0), (200, 300, 3)))
    assert not proposer.needs_pixels
    smallest = windows[np.isclose((windows[:, 2] - windows[:, 0]), 60)]
    centres = np.stack([smallest[:, 0] + 30, smallest[:, 1] + 20], axis=1)
    points = np.random.default_rng(0).uniform(0, 1, (500, 2)) * [240, 160] + [30, 20]
    apart = np.abs(points[:, None] - centres[None]) / [60, 40]
    assert apart.max(axis=2).min(axis=1).max() <= 0.2501


@pytest.mark.parametrize("method", METHODS)
def test_a_key_names_the_method_and_all_that_its_windows_depend_on(method):
    usual = open_proposer(method).key
    assert usual == open_proposer(method).key
    assert usual.startswith(method)
    assert usual != open_proposer(method, max_windows=10).key


def written(path, boxes):
    if path.suffix == ".npz":
        np.savez(path, **{id: np.asarray(each) for id, each in boxes.items()})
    else:
        path.write_text(json.dumps(boxes))
    return path


@pytest.mark.parametrize("suffix", ["json", "npz"])
def test_a_file_gives_its_windows_by_id_cut_to_the_image(tmp_path, suffix):
    boxes = {"a/1.jpg": [[5, 5, 20, 20], [5, 5, 20, 20], [-4, 2, 900, 8]], "b": []}
    proposer = open_proposer("file", path=written(tmp_path / f"boxes.{suffix}", boxes))
    image = scene(60, 80, [])
    found = proposer.propose(image, id="a/1.jpg")
    assert found.tolist() == [[0, 0, 80, 60], [5, 5, 20, 20], [0, 2, 80, 8]]
    assert proposer.propose(image, id="b").tolist() == [[0, 0, 80, 60]]
    assert proposer.lacking(["b", "c"]) == ["c"]
    with pytest.raises(DatasetError, match=r"boxes\.\w+' says nothing of the image 'c'"):
        proposer.propose(image, id="c")


def test_the_key_of_a_file_is_that_of_its_content(tmp_path):
    keys = [
        open_proposer("file", path=written(tmp_path / f"{number}.json", boxes)).key
        for number, boxes in enumerate([{"a": []}, {"a": []}, {"b": []}])
    ]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "neither JSON with boxes by image nor"),
        ("no json", "neither JSON with boxes by image nor"),
        ('{"a": [[1, 2, 3]]}', r"'a' needs boxes \[x0, y0, x1, y1\]"),
        ('{"a": [[1, 2, 3, "x"]]}', "'a' needs boxes"),
        ('{"a": [[1, 2, 3, NaN]]}', "'a' has boxes that are not finite"),
        ('{"a": 5}', "'a' needs boxes"),
    ],
)
def test_a_file_that_holds_no_boxes_is_refused_at_once(tmp_path, text, message):
    path = tmp_path / "boxes.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        open_proposer("file", path=path)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gird", {}, "'gird' is unknown; did you mean 'grid'"),
        ("grid", {"side": 3}, "grid has no 'side'; did you mean 'scales'|allowed: scales"),
        ("grid", {"max_windows": 0}, "proposals.max_windows: 0 is no whole number"),
        ("grid", {"max_windows": 2.5}, "2.5 is no whole number"),
        ("grid", {"step": 0}, "proposals.step: 0 is not between 0.1 and 1"),
        ("file", {}, "file needs a path"),
        ("file", {"path": "absent.json"}, "cannot read 'absent.json': No such file"),
    ],
)
def test_what_does_not_exist_is_named(name, options, message):
    with pytest.raises(ConfigError, match=message):
        open_proposer(name, **options)


@pytest.mark.parametrize("method", ["selective_search", "edge_boxes"])
def test_a_missing_opencv_is_named_with_the_way_to_get_it(method, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigError, match=r"pip install 'spptransfer\[proposals\]'"):
        open_proposer(method)
