"""A pipeline of a detector becomes results, a detector and a report, also after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_detectors import detection_experiment, draw_scenes
from small_projects import machine_in

from spptransfer.config import parse_pipeline
from spptransfer.detection.detections import load_detections
from spptransfer.detection.detector import TransferDetector
from spptransfer.detection.evaluation import evaluate_detections
from spptransfer.errors import ConfigError
from spptransfer.experiment import extract_features, prepare, run
from spptransfer.experiment.preparation import StopRequest
from spptransfer.extraction import Interrupted
from spptransfer.sections import shipped

AREA = "mean average precision (area, IoU 0.5)"
ELEVEN = "mean average precision (11-point, IoU 0.5)"


@pytest.fixture
def scenes(detector_run) -> Path:
    return detector_run / "scenes"


def results_in(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text("utf-8"))


def test_a_run_leaves_both_measures_a_detector_and_a_report(detector_run):
    folder = detector_run / "run"
    results = results_in(folder)
    assert {AREA, ELEVEN} <= set(results["metrics"])
    assert results["headline"]["metric"] == AREA
    assert results["headline"]["value"] == results["metrics"][AREA]["value"]
    assert set(results["metrics"][AREA]["per_class"]) == set(results["dataset"]["classes"])
    assert results["rows"] == {"ok": 19, "failed": 0, "reused": 0, "failures": []}
    assert [one["C"] for one in results["splits"][0]["validation"]] == [1.0, 10.0]
    assert "<html" in (folder / "report.html").read_text("utf-8")
    assert TransferDetector.load(folder).classes == tuple(results["dataset"]["classes"])


def test_the_measures_are_those_of_the_detections_that_are_kept(detector_run):
    results, tested = (
        results_in(detector_run / "run"),
        load_detections(detector_run / "run" / "detections.npz"),
    )
    found = evaluate_detections(tested.detections, tested.objects, results["dataset"]["classes"])
    assert found.mean("area") == pytest.approx(results["metrics"][AREA]["value"])
    assert found.mean() == pytest.approx(results["metrics"][ELEVEN]["value"])
    assert len(tested.ids) == results["splits"][0]["test"] == 5


def test_the_saved_detector_finds_what_was_tested(detector_run, scenes):
    detector = TransferDetector.load(detector_run / "run")
    tested = load_detections(detector_run / "run" / "detections.npz")
    with detector.open(options=machine_in(detector_run).compute) as extractor:
        (found,) = detector.detect([scenes / str(tested.ids[0])], extractor)
    first = tested.detections.images == 0
    np.testing.assert_allclose(found.detections.boxes, tested.detections.boxes[first], atol=1e-3)
    np.testing.assert_allclose(found.detections.scores, tested.detections.scores[first], atol=1e-5)


class StopAfter(StopRequest):
    """A wish to stop that comes after it was asked for a number of times."""

    left = 0

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


# Sampling, mining and images held out ask once, as does the test: a file each.
@pytest.mark.parametrize("times", [0, 2, 3])
def test_a_run_that_was_stopped_goes_on_to_the_same_detector(detector_run, scenes, tmp_path, times):
    stop = StopAfter()
    stop.left = times
    stopped = detection_experiment(scenes, machine_in(tmp_path, stop=stop))
    with pytest.raises(Interrupted, match="run the same command again to go on"):
        run(stopped, "x")
    assert list((tmp_path / "runs").iterdir()) == []
    done = run(detection_experiment(scenes, machine_in(tmp_path)), "x")
    assert done.model.read_bytes() == (detector_run / "run" / "model.safetensors").read_bytes()
    left = [path.name for path in (tmp_path / "cache").iterdir() if path.name.startswith("detec")]
    assert left == []


@pytest.mark.parametrize("split", ["train", "val"])
def test_broken_images_are_told_by_their_ids_and_the_others_are_used(tmp_path, split):
    root = draw_scenes(tmp_path / "scenes", train=8, val=3)
    (root / split / "000.jpg").write_bytes(b"")
    done = run(detection_experiment(root, machine_in(tmp_path)), "x")
    reason = "cannot read the image: the file is empty"
    assert done.results["rows"]["failures"] == [{"id": f"{split}/000.jpg", "error": reason}]
    assert done.results["rows"]["ok"] == 10


def test_a_detector_that_can_read_no_test_image_finds_nothing(tmp_path):
    root = draw_scenes(tmp_path / "scenes", train=8, val=1)
    (root / "val" / "000.jpg").write_bytes(b"")
    done = run(detection_experiment(root, machine_in(tmp_path)), "x")
    assert done.results["headline"]["value"] is None  # nor is there an object to be found
    assert "There are neither detections nor objects." in done.report.read_text("utf-8")


@pytest.mark.parametrize(
    ("sections", "complaint"),
    [
        ({"features": {"view": "warp"}}, 'features.view: .* takes "full" only, not "warp"'),
        ({"features": {"pooling": "mean"}}, 'features.pooling: .* takes "max" only'),
        ({"features": {"flip": True}}, "features.flip: .* takes false only, not true"),
        ({"features": {"layer": "fc6"}}, "features.layer: 'fc6' is a vector"),
        ({"classifier": {"solver": "scikit-learn"}}, "classifier.solver: .*"),
        ({"protocol": {"choose_C": "per class"}}, "protocol.choose_C: .*"),
        ({"protocol": {"folds": 0}}, "classifier.C: .* protocol.folds is 0: give one C"),
        ({"detection": {"proposals": "lots"}}, "proposals: 'lots' is unknown; allowed: .*grid"),
        (
            {"detection": {"proposals": {"name": "grid", "some": 1}}},
            "proposals: grid has no 'some'",
        ),
        ({"detection": {"positive_overlap": 0.3}}, "detection.positive_overlap: 0.3 must be more"),
    ],
)
def test_what_a_detector_cannot_be_trained_with_is_refused_before_anything_is_computed(
    scenes, tmp_path, sections, complaint
):
    with pytest.raises(ConfigError, match=rf"^{complaint}[^\n]*$"):
        run(detection_experiment(scenes, machine_in(tmp_path), **sections), "x")
    assert not (tmp_path / "runs").exists()


def test_a_detector_has_no_features_to_extract_or_to_be_trained_from(scenes, tmp_path):
    experiment = detection_experiment(scenes, machine_in(tmp_path))
    with pytest.raises(ConfigError, match="keeps no features"):
        extract_features([experiment])
    with pytest.raises(ConfigError, match="keeps no features"):
        run(experiment, "x", from_cache=True)


def test_a_single_C_needs_no_images_held_out(scenes, tmp_path):
    sections = {"classifier": {"C": [2.0]}, "protocol": {"folds": 0}}
    done = run(detection_experiment(scenes, machine_in(tmp_path), **sections), "x")
    assert done.results["model"]["C"] == 2.0
    assert done.results["splits"][0]["validation"] == []


def test_several_layers_scales_and_normalisations_are_taken_together(scenes, tmp_path):
    sections = {
        "features": {"layer": ["conv3", "spp"], "scales": [96, 160], "levels": [2, 1]},
        "classifier": {"normalize": ["signed_sqrt", "standardize"], "class_weight": "balanced"},
        "detection": {"context": None, "box_regression": False, "mining_rounds": 0},
    }
    done = run(detection_experiment(scenes, machine_in(tmp_path), **sections), "x")
    detector = TransferDetector.load(done.folder)
    assert detector.coef.shape == (4, done.results["features"]["dimension"])
    with detector.open(options=machine_in(tmp_path).compute) as extractor:
        (found,) = detector.detect([scenes / "val" / "000.jpg"], extractor)
    assert len(found.detections.labels)


def test_proposals_that_look_at_maps_are_part_of_the_detector(scenes, tmp_path):
    proposals = {"name": "objectness", "scales": 4, "smallest": 0.2}
    sections = {"detection": {"proposals": proposals, "max_windows": 50}}
    done = run(detection_experiment(scenes, machine_in(tmp_path), **sections), "x")
    assert done.results["detection"]["proposals"]["windows"] == 50
    tested = load_detections(done.folder / "detections.npz")
    detector = TransferDetector.load(done.folder)
    with detector.open(options=machine_in(tmp_path).compute) as extractor:
        (found,) = detector.detect([scenes / str(tested.ids[0])], extractor)
    first = tested.detections.images == 0
    np.testing.assert_allclose(found.detections.boxes, tested.detections.boxes[first], atol=1e-3)


@pytest.mark.slow
def test_the_shipped_detector_of_drawn_scenes_finds_most_of_them(tmp_path):
    import yaml

    pipeline = parse_pipeline(yaml.safe_load(shipped()["detect_demo"].read_text("utf-8")))
    experiment = prepare("detect_demo", pipeline, machine_in(tmp_path, data_root=tmp_path))
    assert run(experiment, "run detect_demo").results["metrics"][AREA]["value"] > 0.6
