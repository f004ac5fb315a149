"""Whole runs, of the demo and on real photographs, as a user starts them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, real_data

from spptransfer import FeatureCache
from spptransfer.cli import main
from spptransfer.models import TransferModel
from spptransfer.runtimes import ComputeOptions

pytestmark = pytest.mark.slow

PIPELINES = REPOSITORY / "pipelines"
CATEGORIES = ("airplanes", "butterfly", "chair", "crab", "dolphin", "panda", "pizza", "sunflower")
PER_CATEGORY = 24
CPU = ComputeOptions(device="cpu")


def run(capsys, pipeline: Path, *options) -> dict:
    """Run a pipeline; gives the machine-readable line with the results under ``"results"``."""
    capsys.readouterr()
    assert main(["run", str(pipeline), "--json", *map(str, options)]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    return {**line, "results": json.loads(Path(line["run"], "results.json").read_text())}


def recomputed_scores(line: dict, images: list[Path]) -> np.ndarray:
    model = TransferModel.load(line["model"])
    return np.array([scores.values for scores in model.score(images, options=CPU)])


def check_model_and_report(line: dict, root: Path) -> None:
    """Files and cached features are scored alike, and the report needs no other file."""
    cache, features = FeatureCache.open(line["cache"]), line["results"]["features"]
    rows = cache.matrix(**{key: features[key] for key in ("levels", "scales", "combine")})[::7]
    scores = TransferModel.load(line["model"]).decision_function(rows)
    again = recomputed_scores(line, [root / id for id in cache.ids[::7]])
    np.testing.assert_allclose(again, scores, rtol=0, atol=1e-4 * np.abs(scores).max())
    assert line["results"]["model"]["images"] == len(cache)
    page = Path(line["report"]).read_text()
    assert len(page) < 5_000_000
    assert "http-equiv" in page or "<style" in page
    assert 'src="http' not in page


def test_the_demo_tells_shapes_and_textures_apart(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first = run(capsys, PIPELINES / "demo.yaml")
    assert first["headline"]["metric"] == "overall accuracy"
    assert first["headline"]["value"] > 0.8
    assert first["rows"]["failed"] == 0
    assert len(first["results"]["dataset"]["classes"]) >= 8
    check_model_and_report(first, tmp_path / "demo-images")

    second = run(capsys, PIPELINES / "demo.yaml")
    assert second["rows"]["reused"] == first["rows"]["ok"]
    assert second["metrics"] == first["metrics"]

    chosen = f"C: [{first['results']['splits'][0]['C']}], solver: scikit-learn"
    other = run(
        capsys, PIPELINES / "demo.yaml",
        "--set", f"classifier={{normalize: [l2], {chosen}}}", "--set", "protocol.folds=0",
    )  # fmt: skip
    assert other["headline"]["value"] == pytest.approx(first["headline"]["value"], abs=0.03)

    cache = FeatureCache.open(first["cache"])
    assert len(cache) == first["rows"]["ok"]
    assert cache.matrix(levels=[3, 1]).shape == (len(cache), 10 * cache.channels["spp"])


@pytest.fixture
def photographs(caltech101_root, tmp_path) -> Path:
    """A few categories of Caltech-101 as a user's folder, by links."""
    root = tmp_path / "my photographs"
    for category in CATEGORIES:
        (root / category).mkdir(parents=True)
        images = sorted((caltech101_root / "101_ObjectCategories" / category).glob("*.jpg"))
        for image in images[:PER_CATEGORY]:
            (root / category / image.name).symlink_to(image)
    return root


@pytest.mark.parametrize(
    ("backbone", "weights", "levels", "at_least"),
    [
        ("alexnet", "alexnet_trunk.pth", [6, 3, 2, 1], 0.88),
        ("squeezenet1_1", "squeezenet1_1.pth", [6, 3, 2, 1], 0.90),
        ("mobilenet_v2", "mobilenet_v2_trunk.pth", [3, 2, 1], 0.92),
    ],
)
def test_real_photographs_are_told_apart_by_real_backbones(
    backbone, weights, levels, at_least, photographs, tmp_path, monkeypatch, capsys
):
    path = real_data(f"weights/{weights}")
    monkeypatch.chdir(tmp_path)
    line = run(
        capsys,
        PIPELINES / "your_images.yaml",
        "--set", f"dataset.root={photographs}",
        "--set", f"features.backbone={backbone}",
        "--set", f"features.weights={path}",
        "--set", "classifier.C=[1]",
        "--set", "protocol={name: folder, test_fraction: 0.5, splits: 3, folds: 0}",
    )  # fmt: skip
    assert line["headline"]["value"] >= at_least
    features = line["results"]["features"]
    assert (features["levels"], features["scales"]) == (levels, [224])
    check_model_and_report(line, photographs)


def test_a_table_with_its_own_split_gives_the_numbers_of_its_folder(
    photographs, tmp_path, monkeypatch, capsys
):
    """The same images, split the same way, named by a table instead of by folders."""
    path = real_data("weights/squeezenet1_1.pth")
    monkeypatch.chdir(tmp_path)
    options = (
        "--set", f"features={{backbone: squeezenet1_1, weights: {path}, scales: [96]}}",
        "--set", "classifier.C=[1]",
    )  # fmt: skip
    settings = "protocol={name: folder, test_fraction: 0.5, folds: 0}"
    by_folder = run(
        capsys, PIPELINES / "your_images.yaml", "--set", f"dataset.root={photographs}",
        "--set", settings, *options,
    )  # fmt: skip
    tested = set(np.load(Path(by_folder["run"], "predictions.npz"))["split00/ids"])
    ids = sorted(f"{p.parent.name}/{p.name}" for p in photographs.rglob("*.jpg"))
    rows = [f"{id},{id.split('/')[0]},{'test' if id in tested else 'train'}" for id in ids]
    (photographs / "table.csv").write_text("\n".join(["path,label,split", *rows]))
    by_table = run(
        capsys, PIPELINES / "your_images.yaml",
        "--set", f"dataset={{name: csv, root: {photographs / 'table.csv'}}}",
        "--set", "protocol={name: csv, folds: 0}", *options,
    )  # fmt: skip
    assert by_table["metrics"] == by_folder["metrics"]


def test_voc_is_measured_as_its_devkit_does(voc2007_root, tmp_path, monkeypatch, capsys):
    path = real_data("weights/squeezenet1_1.pth")
    monkeypatch.chdir(tmp_path)
    line = run(
        capsys,
        PIPELINES / "voc2007.yaml",
        "--data-root", voc2007_root,
        "--set", f"features={{backbone: squeezenet1_1, weights: {path}, scales: [96]}}",
        "--set", "classifier.C=[1]",
        "--set", "protocol={name: voc2007, train: train, test: val, folds: 0}",
    )  # fmt: skip
    assert line["headline"]["metric"] == "mean average precision (11-point)"
    assert line["headline"]["value"] > 0.3
    assert len(line["metrics"]) == 3
    assert len(line["results"]["dataset"]["classes"]) == 20
    assert line["results"]["splits"][0]["train"] == line["results"]["splits"][0]["test"] == 400
