"""A detector finds the same after it was saved, and what is wrong with its file or its weights."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from spptransfer.detection.boxes import overlaps
from spptransfer.detection.detector import TransferDetector, open_proposals
from spptransfer.detection.proposal_cache import windows_of
from spptransfer.detection.regression import decode_boxes
from spptransfer.errors import ModelError
from spptransfer.model_file import NAME
from spptransfer.runtimes import ComputeOptions

OPTIONS = ComputeOptions(device="cpu", runtime="torch", threads=2)


@pytest.fixture(scope="module")
def detector(detector_run) -> TransferDetector:
    return TransferDetector.load(detector_run / "run")


@pytest.fixture(scope="module")
def scenes(detector_run) -> list[Path]:
    return sorted((detector_run / "scenes" / "val").glob("[0-9]*"))


@pytest.fixture(scope="module")
def opened(detector):
    with detector.open(options=OPTIONS) as extractor:
        yield extractor


def changed(detector, **given) -> TransferDetector:
    """A detector with other settings or numbers."""
    names = {field.name for field in dataclasses.fields(TransferDetector)}
    settings = {name: value for name, value in given.items() if name not in names}
    rest = {name: value for name, value in given.items() if name in names}
    return dataclasses.replace(
        detector, settings=detector.settings.model_copy(update=settings), **rest
    )


def without_regression(detector) -> TransferDetector:
    nothing = {"box_coef": detector.box_coef[:0], "box_intercept": detector.box_intercept[:0]}
    return changed(detector, box_regression=False, **nothing)


def windows_in(detector, path) -> np.ndarray:
    (windows,) = windows_of([path], open_proposals(detector.settings))
    return windows.astype(np.float64)


def assert_same(one, other):
    for found, expected in zip(one, other, strict=True):
        np.testing.assert_array_equal(found, expected)


# ---- files ----


@pytest.mark.parametrize("regression", [True, False])
def test_a_saved_detector_finds_the_same(detector, scenes, opened, tmp_path, regression):
    before = detector if regression else without_regression(detector)
    before.save(tmp_path / "some.safetensors")
    after = TransferDetector.load(tmp_path / "some.safetensors")
    pairs = zip(before.detect(scenes, opened), after.detect(scenes, opened), strict=True)
    for one, other in pairs:
        assert len(one.detections.labels)
        assert_same(one.detections, other.detections)
        found = other.detections
        assert_same(
            before.confidences(found.labels, found.scores),
            after.confidences(found.labels, found.scores),
        )
    assert repr(after) == repr(before)
    for name in ("classes", "C", "protocol", "settings", "levels", "layers", "weights_path"):
        assert getattr(after, name) == getattr(before, name)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-40])


def emptied(path):
    path.write_bytes(b"")


def rewritten(change, written=lambda facts: facts):
    """Break what a file says of the detector, or an array of it."""

    def break_it(path):
        with safe_open(path, framework="numpy") as file:
            facts = json.loads(file.metadata()["spptransfer"])
        tensors = load_file(path)
        change(facts, tensors)
        save_file(tensors, path, metadata={"spptransfer": json.dumps(written(facts))})

    return break_it


DAMAGES = {
    "cut short": cut_short,
    "emptied": emptied,
    "removed": Path.unlink,
    "no coefficients": rewritten(lambda facts, tensors: tensors.pop("coef")),
    "other type": rewritten(
        lambda facts, tensors: tensors.update(coef=tensors["coef"].astype(np.float64))
    ),
    "one class less": rewritten(lambda facts, tensors: facts["classes"].pop()),
    "no layers": rewritten(lambda facts, tensors: facts.update(layers=[])),
    "other levels": rewritten(lambda facts, tensors: facts.update(levels=[7])),
    "levels that are none": rewritten(lambda facts, tensors: facts.update(levels=["a"])),
    "unknown backbone": rewritten(lambda facts, tensors: facts["spec"].update(backbone="none")),
    "no spec": rewritten(lambda facts, tensors: facts.pop("spec")),
    "spec of nothing": rewritten(lambda facts, tensors: facts.update(spec=None)),
    "unknown setting": rewritten(lambda facts, tensors: facts["settings"].update(some=1)),
    "wrong setting": rewritten(lambda facts, tensors: facts["settings"].update(nms=7)),
    "unknown normalisation": rewritten(lambda facts, tensors: facts.update(normalize=["l7"])),
    "not fitted": rewritten(lambda facts, tensors: facts.update(normalize=["standardize"])),
    "regression of fewer": rewritten(
        lambda facts, tensors: tensors.update(box_coef=tensors["box_coef"][:1])
    ),
    "other version": rewritten(lambda facts, tensors: facts.update(format_version=99)),
    "facts that are a list": rewritten(lambda facts, tensors: None, lambda facts: [facts]),
    "facts that are a number": rewritten(lambda facts, tensors: None, lambda facts: 7),
    "facts of nothing": rewritten(lambda facts, tensors: facts.clear()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_in_a_line(detector_run, tmp_path, damage):
    shutil.copy(detector_run / "run" / NAME, tmp_path / NAME)
    DAMAGES[damage](tmp_path / NAME)
    with pytest.raises(ModelError) as refused:
        TransferDetector.load(tmp_path)
    assert "\n" not in str(refused.value)
    assert str(tmp_path) in str(refused.value)


def test_other_weights_than_those_of_the_training_are_refused(detector, tmp_path):
    other = {name: array + 1 for name, array in load_file(detector.weights_path).items()}
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=r"^[^\n]*other.safetensors[^\n]*$"):
        detector.open(options=OPTIONS, weights=tmp_path / "other.safetensors")


def test_a_backbone_that_computes_something_else_now_is_refused(detector):
    with pytest.raises(ModelError, match=r"^[^\n]*computes[^\n]*$"):
        changed(detector, probe=detector.probe + 1).open(options=OPTIONS)


# ---- detections ----


def test_detections_of_a_class_overlap_at_most_by_the_limit(detector, scenes, opened):
    for nms in (0.1, 0.5):
        for found in changed(detector, nms=nms, vote_overlap=None).detect(scenes, opened):
            boxes, labels = found.detections.boxes, found.detections.labels
            shared = overlaps(boxes, boxes)[labels[:, None] == labels]
            assert (shared[shared < 1] <= nms).all()
            assert (np.diff(found.detections.scores) <= 0).all()


def test_a_class_has_at_most_so_many_detections_in_an_image(detector, scenes, opened):
    few = changed(detector, detections_per_class=2)
    for found in few.detect(scenes, opened):
        assert np.bincount(found.detections.labels).max() <= 2


def test_detections_lie_in_their_image_and_have_an_extent(detector, scenes, opened):
    far = detector.box_intercept + np.array([0.9, -0.9, 0.2, -0.2], np.float32)
    for found in changed(detector, box_intercept=far).detect(scenes, opened):
        boxes = found.detections.boxes
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= found.size).all()
        assert (boxes[:, :2] < boxes[:, 2:]).all()


def test_without_regression_detections_are_windows_and_with_it_they_move(detector, scenes, opened):
    detector = changed(detector, vote_overlap=None)
    (still,) = without_regression(detector).detect(scenes[:1], opened)
    windows = {tuple(box) for box in windows_in(detector, scenes[0])}
    assert {tuple(box) for box in still.detections.boxes} <= windows
    shift = changed(
        detector,
        nms=1.0,
        box_coef=np.zeros_like(detector.box_coef),
        box_intercept=np.tile(np.float32([0.1, 0, 0, np.log(0.5)]), (4, 1)),
    )
    unmoved = changed(without_regression(detector), nms=1.0)
    (moved,), (still,) = (each.detect(scenes[:1], opened) for each in (shift, unmoved))
    changes = np.tile([0.1, 0, 0, np.log(0.5)], (len(still.detections.boxes), 1))
    expected = decode_boxes(still.detections.boxes, changes, still.size)
    np.testing.assert_allclose(moved.detections.boxes, expected, atol=1e-3)
    np.testing.assert_array_equal(moved.detections.scores, still.detections.scores)


def test_confidences_are_probabilities_that_rise_with_the_decision_value(detector):
    scores = np.linspace(-4, 4, 200, dtype=np.float32)
    for label in range(len(detector.classes)):
        found = detector.confidences(np.full(200, label), scores)
        assert ((found >= 0) & (found <= 1)).all()
        assert (np.diff(found) >= 0).all()
        assert found[0] < 0.5 < found[-1]


def test_confidences_of_far_off_values_are_told_without_a_warning(detector):
    steep = changed(detector, sigmoids=np.float32([[90, 0]] * 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = steep.confidences(np.array([0, 1, 2]), np.float32([-99, 0, 99]))
    assert found.tolist() == [0, 0.5, 1]


def test_a_folder_with_broken_files_is_searched_and_these_are_told(
    detector, scenes, opened, tmp_path
):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    paths = [scenes[0], tmp_path / "broken.jpg", scenes[1], tmp_path / "absent.png"]
    found = list(detector.detect(paths, opened))
    assert [each.path for each in found] == paths
    assert [each.detections is None for each in found] == [False, True, False, True]
    assert [bool(each.error) for each in found] == [False, True, False, True]
    (alone,) = detector.detect([scenes[1]], opened)
    assert_same(found[2].detections, alone.detections)
    assert list(detector.detect([], opened)) == []


def test_an_image_with_a_single_window_is_searched_too(detector, scenes, opened):
    one = changed(detector, max_windows=1)
    (found,) = one.detect(scenes[:1], opened)
    assert len(found.detections.labels) == len(detector.classes)
