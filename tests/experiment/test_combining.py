"""Finished runs on the same splits become one, and what does not fit is refused in a line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from small_projects import experiment, machine_in

from spptransfer import metrics
from spptransfer.cache import FeatureCache
from spptransfer.detection.boxes import overlaps
from spptransfer.detection.detections import Detections, load_detections, save_detections
from spptransfer.detection.detector import TransferDetector
from spptransfer.errors import ConfigError
from spptransfer.experiment import run
from spptransfer.experiment.combining import combine_runs
from spptransfer.normalization import PyramidNormalizer
from spptransfer.protocols import Split, read_splits, splits_checksum, write_splits
from spptransfer.svm import LinearSVM

ACCURACY = "overall accuracy"
AREA = "mean average precision (area)"
CLASSES = ("ant", "bee", "cat")


def combined(folder: Path, *runs: Path, **given):
    return combine_runs(runs, machine_in(folder), "spptransfer combine", **given)


# ---- classifiers ----


def likely(scores) -> np.ndarray:
    return (1 / (1 + np.exp(-scores))).astype(np.float32)


def write_scores(folder: Path, splits, scores, targets, classes=CLASSES, order=None) -> Path:
    """Write what a classifier's run leaves of its test images, in any order of these."""
    folder.mkdir(parents=True)
    write_splits(folder / "splits.json", splits)
    multi_label = targets[0].ndim == 2
    names = metrics.metrics_of(multi_label=multi_label)
    facts = {
        "format": "spptransfer-results",
        "format_version": 1,
        "name": folder.name,
        "dataset": {"name": "folder", "classes": classes, "multi_label": multi_label},
        "features": {},
        "rows": {"ok": 9, "failed": 0, "reused": 0, "failures": []},
        "protocol": {"name": "folder", "settings": {}, "checksum": splits_checksum(splits)},
        "headline": {"metric": AREA if multi_label else ACCURACY, "value": 0.5, "std": None},
        "metrics": {name: {"value": 0.5} for name in names},
        "splits": [{} for _ in splits],
    }
    (folder / "results.json").write_text(json.dumps(facts))
    arrays = {}
    for number, split in enumerate(splits):
        rows = np.arange(len(split.test)) if order is None else order
        arrays[f"split{number:02d}/ids"] = np.array(split.test)[rows]
        arrays[f"split{number:02d}/scores"] = scores[number][rows].astype(np.float32)
        arrays[f"split{number:02d}/probabilities"] = likely(scores[number][rows])
        arrays[f"split{number:02d}/targets"] = targets[number][rows]
    np.savez(folder / "predictions.npz", **arrays)
    return folder


def drawn(multi_label: bool, seed: int = 0, count: int = 30):
    """Two splits, and scores of two classifiers that know something of the targets."""
    random = np.random.default_rng(seed)
    ids = [f"{number:02d}.png" for number in range(count)]
    splits = [Split(f"split {k}", ("train.png",), tuple(random.permutation(ids))) for k in (1, 2)]
    if multi_label:
        targets = [random.choice([-1, 0, 1], (count, 3), p=[0.6, 0.1, 0.3]) for _ in splits]
        truth = targets
    else:
        targets = [random.integers(0, 3, count) for _ in splits]
        truth = [2 * np.eye(3)[each] - 1 for each in targets]
    runs = [
        [one * size + random.normal(place, 1.5 * size, (count, 3)) for one in truth]
        for size, place in ((1, 0), (40, -7))
    ]
    return splits, targets, runs


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_probabilities_of_all_runs_are_averaged(tmp_path, multi_label):
    splits, targets, (one, other) = drawn(multi_label)
    first = write_scores(tmp_path / "a", splits, one, targets)
    order = np.random.default_rng(1).permutation(30)
    second = write_scores(tmp_path / "b", splits, other, targets, order=order)
    done = combined(tmp_path, first, second)
    for number, target in enumerate(targets):
        mean = (likely(one[number]) + likely(other[number])) / 2
        with np.load(done.folder / "predictions.npz") as arrays:
            np.testing.assert_allclose(arrays[f"split{number:02d}/scores"], mean, atol=1e-5)
            np.testing.assert_array_equal(arrays[f"split{number:02d}/targets"], target)
        for name, value in done.results["splits"][number]["metrics"].items():
            assert value == pytest.approx(metrics.METRICS[name].value(target, mean))
    assert "<html" in done.report.read_text("utf-8")
    assert [Path(each["run"]).name for each in done.results["combined"]] == ["a", "b"]
    metric = AREA if multi_label else ACCURACY
    assert done.results["headline"]["metric"] == metric
    per_split = done.results["metrics"][metric]["per_split"]
    assert done.results["headline"]["value"] == pytest.approx(np.mean(per_split))


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_run_combined_with_itself_is_that_run_and_the_result_can_be_combined(
    tmp_path, multi_label
):
    splits, targets, (one, _) = drawn(multi_label)
    first = write_scores(tmp_path / "a", splits, one, targets)
    again = combined(tmp_path, first, combined(tmp_path, first, first).folder)
    for number, target in enumerate(targets):
        for name, value in again.results["splits"][number]["metrics"].items():
            expected = metrics.METRICS[name].value(target, one[number])
            assert value == pytest.approx(expected, abs=1e-6)


def test_two_classifiers_that_err_apart_are_better_together(tmp_path):
    splits, targets, runs = drawn(True, count=400)
    folders = [
        write_scores(tmp_path / n, splits, one, targets) for n, one in zip("ab", runs, strict=True)
    ]
    alone = [metrics.METRICS[AREA].value(targets[0], one[0]) for one in runs]
    together = combined(tmp_path, *folders).results["splits"][0]["metrics"][AREA]
    assert together > max(alone) + 0.02


def test_a_classifier_of_scores_that_are_all_equal_changes_nothing(tmp_path):
    splits, targets, (one, _) = drawn(False)
    first = write_scores(tmp_path / "a", splits, one, targets)
    flat = write_scores(tmp_path / "b", splits, [np.ones((30, 3))] * 2, targets)
    found = combined(tmp_path, first, flat).results["splits"][0]["metrics"][ACCURACY]
    assert found == metrics.METRICS[ACCURACY].value(targets[0], one[0])


def test_what_does_not_fit_is_refused_and_leaves_no_folder(tmp_path, detector_run):
    splits, targets, (one, _) = drawn(False)
    first = write_scores(tmp_path / "a", splits, one, targets)
    renamed = write_scores(tmp_path / "b", splits, one, targets, classes=("x", "y", "z"))
    fewer = write_scores(tmp_path / "c", splits[:1], one, targets)
    other_labels = write_scores(tmp_path / "d", splits, one, [targets[1], targets[0]])
    empty = write_scores(tmp_path / "e", splits, one, targets)
    (empty / "predictions.npz").unlink()
    cases = [
        ((first,), {}, "at least two runs"),
        ((first, renamed), {}, "'.*a' and '.*b' have other classes"),
        ((first, fewer), {}, "'.*a' and '.*c' have other splits: .*splits.json"),
        ((first, other_labels), {}, "'.*d' was tested on other labels"),
        ((first, empty), {}, "'.*e': this run folder holds no predictions.npz"),
        ((first, detector_run / "run"), {}, "runs of a detector and a classifier"),
        ((first, tmp_path), {}, "is not a run folder"),
        ((first, first), {"nms": 0.3}, "--nms is for detectors"),
        ((detector_run / "run",) * 2, {"concat": True}, "--concat is for classifiers"),
        ((detector_run / "run",) * 2, {"nms": 3}, "--nms: 3 must be from 0 to 1"),
    ]
    for runs, given, complaint in cases:
        with pytest.raises(ConfigError, match=rf"^[^\n]*{complaint}[^\n]*$"):
            combined(tmp_path, *runs, **given)
    assert not list((tmp_path / "runs").glob("*"))


def test_one_classifier_on_all_caches_is_that_of_their_features_side_by_side(tmp_path, images):
    sections = ({}, {"features": {"layer": ["conv3", "spp"]}, "classifier": {"C": [9.0]}})
    made = [experiment(images, tmp_path, **each) for each in sections]
    runs = [run(each, "x") for each in made]
    done = combined(tmp_path, *(each.folder for each in runs), concat=True)
    (split,) = read_splits(done.folder / "splits.json")
    dataset, parts = made[0].dataset, []
    for each, one in zip(made, runs, strict=True):
        cache = FeatureCache.open(one.results["features"]["cache"])
        blocks = [column.stop - column.start for column in cache.columns(**each.selection)]
        normalizer = PyramidNormalizer(one.results["classifier"]["normalize"], block_sizes=blocks)
        ids = split.train + split.test
        parts.append(normalizer.fit_transform(cache.matrix(ids, **each.selection)))
    X, count = np.hstack(parts), len(split.train)
    svm = LinearSVM(1.0).fit(X[:count], dataset.targets_of(split.train))  # C of the first run
    with np.load(done.folder / "predictions.npz") as arrays:
        np.testing.assert_allclose(
            arrays["split00/scores"], svm.decision_function(X[count:]), atol=2e-3
        )
    assert done.results["splits"][0]["C"] == 1.0


@pytest.mark.parametrize("step", ["standardize", "mean_length"])
def test_caches_whose_normalisation_learns_are_not_put_side_by_side(tmp_path, images, step):
    done = run(experiment(images, tmp_path, classifier={"normalize": [step]}), "x")
    with pytest.raises(ConfigError, match=rf"--concat: .* normalises by {step}, which learns"):
        combined(tmp_path, done.folder, done.folder, concat=True)


# ---- detectors ----


def other_run(detector_run: Path, folder: Path, seed=0, size=1.0, shift=0.0, order=None) -> Path:
    """The run of a detector whose boxes lie elsewhere, with values and confidences to match."""
    shutil.copytree(detector_run / "run", folder)
    ids, found, objects = load_detections(folder / "detections.npz")
    if seed:
        draw = np.random.default_rng(seed)
        moved = found.boxes + draw.normal(0, 6, found.boxes.shape)
        found = found._replace(boxes=np.sort(moved.reshape(-1, 2, 2), axis=1).reshape(-1, 4))
    found = found._replace(scores=(size * found.scores + shift).astype(np.float32))
    order = np.arange(len(ids)) if order is None else order
    found = found._replace(images=np.argsort(order)[found.images])
    objects = [objects[int(at)] for at in order]
    save_detections(folder / "detections.npz", ids[order], found, objects)
    tensors = load_file(folder / "model.safetensors")
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        facts = file.metadata()
    slope, offset = tensors["sigmoids"].T
    tensors["sigmoids"] = np.column_stack([slope / size, offset - slope * shift / size])
    save_file(tensors, folder / "model.safetensors", metadata=facts)
    return folder


def joined_slowly(runs, nms: float) -> set:
    """Union and NMS, one detection after the other: image, class, and rounded box."""
    every = []
    for folder in runs:
        ids, found, _ = load_detections(folder / "detections.npz")
        for image, box, label, score in zip(*found, strict=True):
            slope, offset = TransferDetector.load(folder).sigmoids[label]
            every.append((-(slope * score + offset), str(ids[image]), int(label), box))
    kept = []
    for _, id, label, box in sorted(every, key=lambda each: each[0]):
        alike = [b for i, k, b in kept if (i, k) == (id, label)]
        if not any(overlaps(box[None], b[None])[0, 0] > nms for b in alike):
            kept.append((id, label, box))
    return {(id, label, *box.round(3)) for id, label, box in kept}


def as_set(folder: Path) -> set:
    ids, found, _ = load_detections(folder / "detections.npz")
    rows = zip(found.images, found.labels, found.boxes, strict=True)
    return {(str(ids[image]), int(label), *box.round(3)) for image, label, box in rows}


def test_detections_are_joined_and_thinned_out_whatever_the_order_of_the_images(
    detector_run, tmp_path
):
    order = np.array([3, 1, 4, 0, 2])
    other = other_run(detector_run, tmp_path / "other", seed=1, size=3.0, shift=1, order=order)
    runs = (detector_run / "run", other)
    for nms in (None, 0.6):
        done = combined(tmp_path, *runs, nms=nms)
        assert as_set(done.folder) == joined_slowly(runs, 0.2 if nms is None else nms)
    assert (done.results["kind"], done.results["rows"]["ok"]) == ("detection", 19)
    assert "<html" in done.report.read_text("utf-8")


def test_a_detector_combined_with_itself_in_other_units_is_that_detector(detector_run, tmp_path):
    other = other_run(detector_run, tmp_path / "other", size=8.0, shift=-3)
    # Detections that are means of windows may overlap by more than at which windows are suppressed.
    done = combined(tmp_path, detector_run / "run", other, nms=0.99)
    assert as_set(done.folder) == as_set(detector_run / "run")
    alone = json.loads((detector_run / "run" / "results.json").read_text("utf-8"))
    for name, metric in alone["metrics"].items():
        assert done.results["metrics"][name]["value"] == pytest.approx(metric["value"], abs=1e-6)


def test_detectors_that_find_nothing_make_one_that_finds_nothing(detector_run, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(detector_run / "run", tmp_path / name)
        ids, _, objects = load_detections(tmp_path / name / "detections.npz")
        save_detections(tmp_path / name / "detections.npz", ids, Detections.empty(), objects)
    done = combined(tmp_path, tmp_path / "a", tmp_path / "b")
    assert done.results["headline"]["value"] == 0


def test_detectors_that_were_tested_on_other_objects_are_refused(detector_run, tmp_path):
    shutil.copytree(detector_run / "run", tmp_path / "other")
    ids, found, objects = load_detections(tmp_path / "other" / "detections.npz")
    moved = [each._replace(boxes=each.boxes + 1) for each in objects]
    save_detections(tmp_path / "other" / "detections.npz", ids, found, moved)
    with pytest.raises(ConfigError, match=r"'.*other' was tested on other objects"):
        combined(tmp_path, detector_run / "run", tmp_path / "other")
