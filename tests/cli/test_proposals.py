"""`spptransfer proposals` tells what the windows of a pipeline can find at most."""

from __future__ import annotations

import json

import pytest
from PIL import Image


@pytest.fixture
def scenes(tmp_path, monkeypatch):
    """The current folder: a pipeline of a detector on four images with an object each."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scenes").mkdir()
    images, boxes, windows = [], [], {}
    for number in range(4):
        name = f"{number}.png"
        Image.new("RGB", (80, 60), (50 * number,) * 3).save(tmp_path / "scenes" / name)
        images.append({"id": number, "file_name": name, "width": 80, "height": 60})
        box = {"bbox": [10, 10, 30, 20], "iscrowd": 0, "area": 600}
        boxes.append({"id": number + 1, "image_id": number, "category_id": number % 2, **box})
        # The object itself, a part of more than half of it, and the whole image alone.
        windows[name] = [[[10, 10, 40, 30]], [[10, 10, 28, 30]], [], []][number]
    classes = [{"id": 0, "name": "dot"}, {"id": 1, "name": "line"}]
    objects = {"images": images, "annotations": boxes, "categories": classes}
    (tmp_path / "scenes" / "objects.json").write_text(json.dumps(objects))
    (tmp_path / "windows.json").write_text(json.dumps(windows))
    (tmp_path / "small.yaml").write_text(
        "dataset: {name: coco, root: scenes}\n"
        "features: {backbone: spp-mini, scales: [64]}\n"
        "classifier: {C: [1]}\n"
        "detection: {proposals: {name: file, path: windows.json}, max_windows: 200}\n"
        "protocol: {name: detection, folds: 0}\n"
    )
    return tmp_path


def found(parts, count, overlap):
    """Objects that are found in all images."""
    return sum(part["objects"] * part["recall"][count][overlap] for part in parts.values())


def test_recall_is_told_by_number_of_windows_and_overlap(scenes, cli):
    done = cli("proposals", "small.yaml", "--json")
    assert (done.status, done.json["rows"]) == (0, {"ok": 4, "failed": 0, "reused": 0})
    parts = done.json["proposals"]
    assert sum(part["objects"] for part in parts.values()) == 4
    assert [found(parts, "200", overlap) for overlap in ("0.5", "0.7")] == pytest.approx([2, 1])
    assert list(parts["test"]["recall"]) == ["100", "200"]
    first = cli("proposals", "small.yaml", "--json", "--set", "detection.max_windows=1")
    assert found(first.json["proposals"], "1", "0.5") == 0  # the whole image
    lines = cli("proposals", "small.yaml", "--quiet").out
    assert lines == ""
    lines = cli("proposals", "small.yaml").out.splitlines()
    assert lines[0].startswith("proposals: file sha256=")
    assert lines[-5].split() == ["images", "windows", "IoU", "0.5", "IoU", "0.7"]


def test_an_image_that_cannot_be_read_is_counted(scenes, cli):
    (scenes / "scenes" / "2.png").write_bytes(b"no image")
    done = cli("proposals", "small.yaml", "--json")
    assert (done.status, done.json["status"]) == (1, "incomplete")
    assert done.json["rows"] == {"ok": 3, "failed": 1, "reused": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("detection.proposals=gird", "'gird' is unknown; did you mean 'grid'"),
        ("detection.proposals.path=absent.json", "cannot read 'absent.json'"),
        ("detection.proposals.pth=absent.json", "file has no 'pth'"),
    ],
)
def test_what_is_wrong_with_the_method_is_one_line(scenes, cli, change, message):
    done = cli("proposals", "small.yaml", "--set", change)
    assert done.status == 2
    assert message in done.complaint


def test_a_pipeline_without_a_detector_is_refused(project, cli):
    done = cli("proposals", "small.yaml")
    assert done.status == 2
    assert "'small' trains no detector" in done.complaint
