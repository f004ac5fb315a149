from __future__ import annotations

import json
import os
import re
import shutil
import sys
from datetime import datetime
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors import safe_open
from small_projects import CLASSES, draw_image, experiment

import spptransfer
from spptransfer.backbones import BackboneRef
from spptransfer.cache import FeatureCache
from spptransfer.errors import CacheError, ConfigError, DatasetError
from spptransfer.experiment import extract_features, run
from spptransfer.extraction import Interrupted
from spptransfer.metrics import mean_per_class_accuracy, overall_accuracy
from spptransfer.models import TransferModel

COMMAND = "spptransfer run small.yaml"


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """Three splits with a choice of C."""
    work = tmp_path_factory.mktemp("work")
    settings = {"classifier": {"C": [0.1, 1.0]}, "protocol": {"splits": 3, "folds": 2}}
    return run(experiment(images, work, **settings), COMMAND)


# ---- what a run leaves behind ----


def test_a_run_leaves_its_files(finished):
    assert {path.name for path in finished.folder.iterdir()} == {
        "results.json",
        "predictions.npz",
        "splits.json",
        "model.safetensors",
        "report.html",
        "log.txt",
    }
    assert json.loads((finished.folder / "results.json").read_text()) == finished.results


def test_results_have_the_documented_keys(finished, images):
    results = finished.results
    assert results["format"] == "spptransfer-results"
    assert results["format_version"] == 1
    assert results["name"] == "small"
    assert results["command"] == COMMAND
    assert datetime.fromisoformat(results["started"]) <= datetime.fromisoformat(results["finished"])
    assert set(results["versions"]) >= {"spptransfer", "python", "torch", "numpy", "h5py", "pillow"}
    machine = results["machine"]
    assert machine["device"] == "cpu"
    assert machine["processor"]
    checkout = Path(spptransfer.__file__).parents[1]
    assert ("commit" in machine) == (checkout / ".git").exists()
    assert re.fullmatch("[0-9a-f]{40}(-dirty)?", machine.get("commit", 40 * "0"))
    assert results["dataset"] == {
        "name": "folder",
        "root": str(images),
        "path_template": "{id}",
        "images": 18,
        "classes": list(CLASSES),
        "multi_label": False,
        "same_image_in_two_classes": {"pairs": 0, "examples": []},
    }
    assert results["rows"] == {"ok": 18, "failed": 0, "reused": 0, "failures": []}
    assert results["classifier"]["C"] == [0.1, 1.0]
    assert results["protocol"]["name"] == "folder"
    assert len(results["protocol"]["checksum"]) == 64
    assert set(results["timings"]) == {"load", "read", "compute", "write", "train", "total"}
    assert sum(results["timings"].values()) <= 2 * results["timings"]["total"]
    json.dumps(results, allow_nan=False)


def test_blocks_say_what_the_columns_of_the_model_are(finished):
    features = finished.results["features"]
    assert features["levels"] == [3, 1]
    assert features["blocks"] == [
        {"layer": "spp", "scale": 64, "level": 3, "start": 0, "stop": 9 * 192},
        {"layer": "spp", "scale": 64, "level": 1, "start": 9 * 192, "stop": 10 * 192},
    ]
    assert (features["channels"], features["dimension"]) == ({"spp": 192}, 1920)
    with safe_open(finished.model, framework="numpy") as file:
        assert file.get_tensor("coef").shape == (3, 1920)
        assert file.get_tensor("intercept").shape == (3,)


def test_metrics_can_be_recomputed_from_the_predictions(finished):
    predictions = np.load(finished.folder / "predictions.npz", allow_pickle=False)
    results = finished.results
    overall, per_class = [], []
    for number, split in enumerate(results["splits"]):
        targets = predictions[f"split{number:02d}/targets"]
        guesses = predictions[f"split{number:02d}/scores"].argmax(axis=1)
        ids = predictions[f"split{number:02d}/ids"]
        assert [CLASSES[t] for t in targets] == [id.split("/")[0] for id in ids]
        overall.append(overall_accuracy(targets, guesses))
        per_class.append(mean_per_class_accuracy(targets, guesses, 3))
        assert split["test"] == len(ids)
        assert split["metrics"]["overall accuracy"] == overall[-1]
        assert split["C"] in (0.1, 1.0)
        assert [entry["C"] for entry in split["validation"]] == [0.1, 1.0]
    metric = results["metrics"]["overall accuracy"]
    assert metric["per_split"] == overall
    assert metric["value"] == pytest.approx(np.mean(overall))
    assert metric["std"] == pytest.approx(np.std(overall, ddof=1))
    assert results["metrics"]["mean per-class accuracy"]["value"] == pytest.approx(
        np.mean(per_class)
    )
    assert results["headline"] == {
        "metric": "overall accuracy",
        "value": metric["value"],
        "std": metric["std"],
    }


def test_the_log_tells_the_command_the_counts_and_every_split(finished):
    log = (finished.folder / "log.txt").read_text()
    for words in (COMMAND, "18 images added", "split 1", "split 3", "overall accuracy"):
        assert words in log


def test_runs_of_one_second_get_folders_of_their_own(images, tmp_path):
    for _ in range(2):
        run(experiment(images, tmp_path), COMMAND)
    assert len(list((tmp_path / "runs").iterdir())) == 2


# ---- the cache is reused ----


opened: list[str] = []


def note_opened(event: str, arguments: tuple) -> None:
    if event == "open":
        opened.append(str(arguments[0]))


def test_another_classifier_opens_neither_an_image_nor_the_weights(images, tmp_path):
    weights = shutil.copy(BackboneRef("spp-mini", "embedded").path(), tmp_path / "mine.safetensors")
    os.utime(weights, (1e9, 1e9))
    features = {"weights": str(weights)}
    first = run(experiment(images, tmp_path, features=features), COMMAND)
    sys.addaudithook(note_opened)
    opened.clear()
    changed = {"C": [3.0], "normalize": ["signed_sqrt", "l2"], "solver": "scikit-learn"}
    again = experiment(images, tmp_path, features=features, classifier=changed)
    assert extract_features([again])[0].unchanged == 18
    assert [path for path in opened if path.endswith(".h5")]
    assert not [path for path in opened if path.endswith((".png", ".safetensors"))]
    second = run(again, COMMAND)
    assert second.results["rows"]["reused"] == 18
    assert second.results["features"] == first.results["features"]
    machine = first.results["machine"], second.results["machine"]
    assert [each["device"] for each in machine] == ["cpu", None]
    assert machine[0]["runtime"].split()[0] in ("torch", "onnxruntime", "openvino")
    assert machine[1]["runtime"] is None
    assert str(weights) not in opened


def test_training_on_a_cache_that_lacks_images_says_how_many(images, tmp_path):
    copied = shutil.copytree(images, tmp_path / "photos")
    extract_features([experiment(copied, tmp_path)])
    for number in (90, 91):
        draw_image(copied / "bee" / f"{number}.png", 0, number)
    with pytest.raises(CacheError, match=r"lacks 2 of the dataset's 20 images"):
        run(experiment(copied, tmp_path), COMMAND, from_cache=True)


def test_a_wider_cache_gives_exactly_the_numbers_of_a_narrow_one(images, tmp_path):
    """Its levels and scales are a choice of columns, not another computation."""
    features = {"levels": [3, 1], "scales": [64]}
    settings = {"features": features, "protocol": {"splits": 2}}
    narrow = run(experiment(images, tmp_path / "narrow", **settings), COMMAND)
    wide = {"layer": ["fc6", "spp"], "levels": [6], "scales": [64, 96]}
    extract_features([experiment(images, tmp_path / "wide", features=wide)])
    served = run(experiment(images, tmp_path / "wide", **settings), COMMAND)
    assert served.results["rows"]["reused"] == 18
    assert len(list((tmp_path / "wide" / "cache").glob("*.h5"))) == 1
    for key in ("spec", "fingerprint", "channels", "blocks", "dimension"):
        assert served.results["features"][key] == narrow.results["features"][key]
    (scored,) = TransferModel.load(served.folder).score([images / "bee" / "000.png"])
    assert not scored.error
    mine, theirs = (np.load(r.folder / "predictions.npz") for r in (served, narrow))
    for name in mine.files:
        np.testing.assert_array_equal(mine[name], theirs[name])


# ---- what fails ----


def test_a_broken_image_is_a_failed_row_and_splits_stay_as_they_were(images, tmp_path):
    copied = shutil.copytree(images, tmp_path / "photos")
    settings = {"protocol": {"splits": 3}}
    whole = experiment(copied, tmp_path, **settings).splits
    broken = whole[0].test[0]
    (copied / broken).write_bytes(b"no image")
    result = run(experiment(copied, tmp_path, **settings), COMMAND)
    rows = result.results["rows"]
    assert (rows["ok"], rows["failed"]) == (17, 1)
    assert rows["failures"][0]["id"] == broken
    assert "no image of a known format" in rows["failures"][0]["error"]
    assert repr(broken) in (result.folder / "log.txt").read_text()
    predictions = np.load(result.folder / "predictions.npz")
    for number, split in enumerate(whole):
        expected = [id for id in split.test if id != broken]
        assert list(predictions[f"split{number:02d}/ids"]) == expected


def test_a_class_of_broken_images_is_an_error_that_counts_them_and_gives_a_reason(images, tmp_path):
    copied = shutil.copytree(images, tmp_path / "photos")
    for path in (copied / "bee").iterdir():
        path.write_bytes(b"no image")
    told = r"'bee' has no .*\(6 of 18 images have no features, as 'bee/000\.png': no image of"
    with pytest.raises(DatasetError, match=told):
        run(experiment(copied, tmp_path), COMMAND)


def overwrite_with_nan(path: Path, id: str) -> None:
    """What a failing disk might leave of a row."""
    position = list(FeatureCache.open(path).ids).index(id)
    with h5py.File(path) as file:
        blocks = [
            (block.id.get_offset(), block.shape[1], block.dtype)
            for scale in file["features/spp"].values()
            for block in scale.values()
        ]
    with open(path, "r+b") as file:
        for offset, width, dtype in blocks:
            file.seek(offset + position * width * dtype.itemsize)
            file.write(np.full(width, np.nan, dtype).tobytes())


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_numbers_that_are_not_finite_are_damage_that_can_be_repaired(images, tmp_path, storage):
    given = {"features": {"storage": storage}}
    path = extract_features([experiment(images, tmp_path, **given)])[0].path
    overwrite_with_nan(path, "cat/002.png")
    told = r"is damaged: the features of 'cat/002\.png' are not finite; .*cache verify --repair"
    with pytest.raises(CacheError, match=told):
        run(experiment(images, tmp_path, **given), COMMAND)
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        ({"classifier": {"C": [1.0, 2.0]}}, ConfigError, "no folds"),
        ({"classifier": {"class_weight": {1: 2.0}}}, ConfigError, "class_weight"),
        ({"protocol": {"choose_C": "per class"}}, ConfigError, "choose_C"),
        (
            {"protocol": {"train_per_class": 50, "test_fraction": None}},
            DatasetError,
            "class 'bee' has 6 images",
        ),
    ],
)
def test_what_would_make_the_features_useless_is_told_first(
    images, tmp_path, sections, error, message
):
    with pytest.raises(error, match=message):
        run(experiment(images, tmp_path, **sections), COMMAND)
    assert not (tmp_path / "runs").exists()
    assert not list(tmp_path.rglob("*.h5"))


@pytest.mark.parametrize("place", ["cache", "runs"])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_computed(
    place, images, tmp_path
):
    (tmp_path / place).write_text("a file, no folder")
    with pytest.raises(CacheError, match=f"cannot write '.*{place}'"):
        run(experiment(images, tmp_path), COMMAND)


def test_an_interrupted_run_leaves_no_folder_but_what_it_finished(images, tmp_path):
    stopped = experiment(images, tmp_path)
    stopped.machine.stop.set()
    with pytest.raises(Interrupted, match="run the same command again"):
        run(stopped, COMMAND)
    assert list((tmp_path / "runs").iterdir()) == []
    assert run(experiment(images, tmp_path), COMMAND).results["rows"]["ok"] == 18


def test_a_run_that_is_asked_to_stop_with_nothing_left_to_extract_trains_nothing(images, tmp_path):
    extract_features([experiment(images, tmp_path)])
    stopped = experiment(images, tmp_path)
    stopped.machine.stop.set()
    with pytest.raises(Interrupted, match=r"\.h5' are complete; run the same command again"):
        run(stopped, COMMAND)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_report_that_fails_does_not_cost_the_results(images, tmp_path, monkeypatch):
    def fail(folder):
        raise RuntimeError("no report today")

    monkeypatch.setattr("spptransfer.report.write_report", fail)
    with pytest.raises(RuntimeError):
        run(experiment(images, tmp_path), COMMAND)
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "results.json").exists()
    assert (folder / "model.safetensors").exists()
