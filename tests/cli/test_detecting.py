"""`spptransfer run` of a detector and `spptransfer detect`, as users call them."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from PIL import Image
from small_detectors import write_detection_pipeline


@pytest.fixture
def work(detector_run, tmp_path, monkeypatch) -> Path:
    """The current folder: scenes, a pipeline of a detector, and runs with one of it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(detector_run / "scenes", tmp_path / "scenes")
    shutil.copytree(detector_run / "run", tmp_path / "runs" / "one")
    write_detection_pipeline(tmp_path / "detector.yaml", Path("scenes"))
    return tmp_path


@pytest.fixture
def mixed(work) -> Path:
    """A folder as users have them: deep, with a broken file and one that is no image."""
    (work / "new" / "deep").mkdir(parents=True)
    for name, place in (("000.jpg", "a.jpg"), ("001.png", "deep/b.png")):
        shutil.copy(work / "scenes" / "val" / name, work / "new" / place)
    (work / "new" / "broken.jpg").write_bytes(b"")
    (work / "new" / "notes.txt").write_text("no image")
    return work / "new"


# ---- run ----


def test_run_ends_with_a_line_of_the_usual_keys(cli, work):
    done = cli("run", "detector.yaml", "--device", "cpu", "--quiet", "--json")
    assert done.status == 0
    assert list(done.json) == [
        *("status", "headline", "metrics", "rows", "run", "cache", "report", "model")
    ]
    assert done.json["headline"]["metric"] == "mean average precision (area, IoU 0.5)"
    assert "mean average precision (11-point, IoU 0.5)" in done.json["metrics"]
    assert done.json["rows"] == {"ok": 19, "failed": 0, "reused": 0}
    assert done.json["cache"] is None
    assert Path(done.json["report"]).exists()
    assert Path(done.json["model"]).exists()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("features.view=warp", 'features.view: a detector takes "full" only, not "warp"'),
        ("detection.proposals=lots", "proposals: 'lots' is unknown; allowed: selective_search,"),
        ("protocol.folds=0", "protocol.folds is 0: give one C"),
        ("detection.nms=2", "detection.nms: must be at most 1, got 2"),
        ("detection.windows=9", "detection.windows"),
        ("detection=null", "protocol 'detection' needs a section detection"),
    ],
)
def test_what_a_detector_cannot_be_trained_with_is_one_line(cli, work, setting, said):
    done = cli("run", "detector.yaml", "--set", setting)
    assert done.status == 2
    assert said in done.complaint
    assert [path.name for path in (work / "runs").iterdir()] == ["one"]


def test_a_section_detection_needs_a_protocol_that_detects(cli, work):
    protocol = {"name": "folder", "test": None, "folds": 0}
    write_detection_pipeline(work / "other.yaml", Path("scenes"), protocol=protocol)
    text = (work / "other.yaml").read_text().replace("  test: null\n", "")
    (work / "other.yaml").write_text(text)
    done = cli("run", "other.yaml")
    assert done.status == 2
    assert "protocol 'folder' detects nothing; allowed" in done.complaint


@pytest.mark.parametrize("command", [("extract",), ("extract", "--shards", "2"), ("train",)])
def test_a_detector_keeps_no_features(cli, work, command):
    done = cli(*command, "detector.yaml")
    assert done.status == 2
    assert "a detector keeps no features" in done.complaint
    assert "`spptransfer run`" in done.complaint


def test_a_table_of_detectors_is_refused_in_a_line(cli, work):
    grid = "grid:\n  rows: [{label: a}]\n  columns: [{label: b}]\n"
    (work / "table.yaml").write_text((work / "detector.yaml").read_text() + grid)
    done = cli("run", "table.yaml")
    assert done.status == 2
    assert "a table has no detectors" in done.complaint


# ---- detect ----


def test_detect_tells_class_confidence_and_box_of_each_object(cli, work):
    done = cli("detect", "runs", "scenes/val/000.jpg", "--confidence", "0")
    assert done.status == 0
    chosen, first, *objects, last = done.out.splitlines()
    assert chosen == "the latest run: runs/one"
    assert first == f"scenes/val/000.jpg: {len(objects)} objects"
    name, confidence, box = objects[0].split(maxsplit=2)
    assert name in ("striped_disc", "dotted_star", "ringed_cross", "brick_triangle")
    assert confidence.endswith("%")
    assert [float(corner) for corner in box.strip("[]").split()]
    assert last == f"{len(objects)} objects in 1 image; 0 failed"


def test_json_has_a_line_per_image_and_one_for_the_whole(cli, work, mixed):
    done = cli("detect", "runs", mixed, "--json", "--quiet", "--confidence", "0")
    assert done.status == 1
    *images, last = map(json.loads, done.out.splitlines())
    assert [Path(line["path"]).name for line in images] == ["a.jpg", "broken.jpg", "b.png"]
    reason = "cannot read the image: the file is empty"
    assert images[1] == {"path": str(mixed / "broken.jpg"), "error": reason}
    with Image.open(mixed / "deep" / "b.png") as image:
        assert (images[2]["width"], images[2]["height"]) == image.size
    found = [each for line in images for each in line.get("objects", [])]
    assert found
    for each in found:
        assert list(each) == ["class", "confidence", "decision_value", "box"]
        assert 0 <= each["confidence"] <= 1
    assert last["status"] == "incomplete"
    assert last["rows"] == {"ok": 2, "failed": 1, "reused": 0}
    assert last["model"] == str(work / "runs" / "one")


def test_a_higher_confidence_keeps_some_of_the_objects(cli, work):
    counts = []
    for least in ("0", "0.5", "0.9", "1"):
        image = "scenes/val/001.png"
        done = cli("detect", "runs", image, "--json", "--quiet", "--confidence", least)
        counts.append(len(json.loads(done.out.splitlines()[0])["objects"]))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]
    assert cli("detect", "runs", "scenes/val/001.png", "--confidence", "1.5").status == 2


def test_files_for_other_programs_and_drawn_images_hold_what_was_found(cli, work, mixed):
    places = {"--coco": "found/coco.json", "--yolo": "yolo", "--voc": "voc", "--draw": "drawn"}
    options = [text for pair in places.items() for text in pair]
    done = cli("detect", "runs", mixed, "--json", "--quiet", "--confidence", "0", *options)
    lines = [json.loads(line) for line in done.out.splitlines()[:-1]]
    objects = {Path(line["path"]).stem: line["objects"] for line in lines if "objects" in line}
    coco = json.loads(Path("found/coco.json").read_text())
    assert len(coco) == sum(map(len, objects.values())) > 0
    assert sorted(round(one["score"], 4) for one in coco) == sorted(
        round(one["confidence"], 4) for found in objects.values() for one in found
    )
    for stem, place in (("a", "a"), ("b", "deep/b")):
        assert len(Path(f"yolo/{place}.txt").read_text().splitlines()) == len(objects[stem])
        annotation = ElementTree.parse(f"voc/{place}.xml").getroot()
        named = [each.findtext("name") for each in annotation.iter("object")]
        assert sorted(named) == sorted(each["class"] for each in objects[stem])
        size = [int(annotation.findtext(f"size/{side}")) for side in ("width", "height")]
        with Image.open(f"drawn/{place}.jpg") as drawn:
            assert list(drawn.size) == size
    assert not list(Path("drawn").glob("**/broken*"))


def test_a_folder_without_any_readable_image_leaves_empty_files(cli, work):
    Path("new").mkdir()
    Path("new/broken.jpg").write_bytes(b"")
    done = cli("detect", "runs", "new", "--coco", "coco.json", "--voc", "voc")
    assert done.status == 1
    assert json.loads(Path("coco.json").read_text()) == []


def test_paths_without_images_are_one_line(cli, work):
    Path("none").mkdir()
    for path in ("none", "absent.jpg"):
        done = cli("detect", "runs", path)
        assert done.status == 2
        assert path in done.complaint


# ---- the other kind of model ----


def test_a_model_of_the_other_kind_names_the_command_that_it_is_for(cli, work, finished):
    done = cli("predict", "runs", "scenes/val")
    assert done.status == 2
    assert "use `spptransfer detect`" in done.complaint
    done = cli("detect", finished / "runs", "scenes/val")
    assert done.status == 2
    assert "use `spptransfer predict`" in done.complaint


def test_a_damaged_detector_is_one_line(cli, work):
    (model,) = (work / "runs").glob("*/model.safetensors")
    model.write_bytes(model.read_bytes()[:1000])
    done = cli("detect", "runs", "scenes/val")
    assert done.status == 2
    assert "is no model of spptransfer, or damaged" in done.complaint
