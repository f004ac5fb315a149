"""Synthetic run folders of any size, with the shapes and keys of real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from spptransfer import metrics
from spptransfer.datasets.coco import read_coco
from spptransfer.datasets.generated import generate_scenes
from spptransfer.detection.detections import Detections, save_detections
from spptransfer.detection.evaluation import describe_evaluation, evaluate_detections

MakeRun = Callable[..., Path]
CANDIDATES = (0.01, 0.1, 1.0, 10.0)
CHANNELS = 3


def blocks_of(levels: tuple[int | None, ...], channels: int = CHANNELS) -> list[dict[str, Any]]:
    blocks, start = [], 0
    for level in levels:
        stop = start + channels * (level or 5) ** 2
        blocks.append({"scale": 224, "level": level, "start": start, "stop": stop})
        start = stop
    return blocks


def single_label_split(rng, n_classes: int, n_test: int) -> tuple[np.ndarray, np.ndarray]:
    targets = np.arange(n_test, dtype=np.int32) % n_classes
    scores = rng.normal(size=(n_test, n_classes)).astype(np.float32)
    scores[np.arange(n_test), targets] += 2.5
    return scores, targets


def multi_label_split(rng, n_classes: int, n_test: int) -> tuple[np.ndarray, np.ndarray]:
    targets = rng.choice([1, 0, -1], size=(n_test, n_classes), p=[0.2, 0.05, 0.75]).astype(np.int8)
    targets[:n_classes] = np.where(np.eye(n_classes, dtype=bool), 1, targets[:n_classes])
    return (rng.normal(size=targets.shape) + 0.8 * targets).astype(np.float32), targets


def metrics_of(splits, classes: list[str], multi_label: bool) -> dict[str, Any]:
    """The results' metrics from the splits' (scores, targets), as a run computes them."""
    found = {}
    for name in metrics.metrics_of(multi_label):
        metric = metrics.METRICS[name]
        computed = [metric.compute(targets, scores) for scores, targets in splits]
        per_split = [float(value[0] if metric.per_class else value) for value in computed]
        per_class = None
        if metric.per_class:
            means = np.mean([value[1] for value in computed], axis=0).tolist()
            per_class = dict(zip(classes, means, strict=True))
        found[name] = {
            "value": float(np.mean(per_split)),
            "std": float(np.std(per_split, ddof=1)) if len(per_split) > 1 else None,
            "per_split": per_split,
            "per_class": per_class,
        }
    return found


def results_of(
    *, classes: list[str], multi_label: bool, splits, levels, root: Path | None
) -> dict[str, Any]:
    measured = metrics_of(splits, classes, multi_label)
    headline = next(iter(measured))
    per_class_C = {name: CANDIDATES[index % 4] for index, name in enumerate(classes)}
    blocks = blocks_of(levels)
    return {
        "format": "spptransfer-results",
        "format_version": 1,
        "name": "synthetic",
        "pipeline": {"dataset": {"name": "synthetic", "root": None}},
        "command": "spptransfer run pipelines/synthetic.yaml --data-root 'some where'",
        "started": "2026-11-22T16:00:00Z",
        "finished": "2026-11-22T16:04:10Z",
        "versions": {"spptransfer": "0.1.0", "python": "3.11.7", "numpy": "2.0"},
        "machine": {"platform": "Linux", "processors": 2, "device": "cpu"},
        "dataset": {
            "name": "synthetic",
            "root": str(root) if root else None,
            "images": sum(len(targets) for _, targets in splits),
            "classes": classes,
            "multi_label": multi_label,
            "path_template": "{id}",
        },
        "features": {
            "spec": {"backbone": "alexnet", "preprocessing": {"mean": [0.5, 0.4]}},
            "layers": ["spp"],
            "fingerprint": "9c1e7a40d1b2",
            "levels": [level for level in levels if level],
            "scales": [224],
            "combine": "concat",
            "channels": CHANNELS,
            "dimension": blocks[-1]["stop"],
            "blocks": blocks,
            "cache": "cache/synthetic.h5",
        },
        "rows": {"ok": 99, "failed": 1, "reused": 7, "failures": [{"id": "x", "error": "cut"}]},
        "classifier": {"normalize": ["l2"], "loss": "squared_hinge", "C": list(CANDIDATES)},
        "protocol": {
            "name": "synthetic",
            "description": "Random scores on invented images.",
            "headline": headline,
            "checksum": "ab" * 32,
        },
        "headline": {"metric": headline, **measured[headline]},
        "metrics": measured,
        "splits": [
            {
                "name": f"split {number + 1}",
                "train": 30,
                "test": len(targets),
                "checksum": "cd" * 32,
                "C": per_class_C if multi_label else CANDIDATES[1 + number % 2],
                "validation": [{"C": C, "score": 0.7 + 0.01 * C} for C in CANDIDATES],
                "metrics": {name: entry["per_split"][number] for name, entry in measured.items()},
                "solver": None,
            }
            for number, (_, targets) in enumerate(splits)
        ],
        "calibration": {
            "metric": "expected calibration error",
            "value": 0.125,
            "std": None,
            "bins": {
                "counts": [0, 30, 10],
                "confidence": [None, 0.5, 0.875],
                "right": [None, 0.4, 0.9],
            },
        },
        "timings": {
            "load": 5.5,
            "read": 12.1,
            "compute": 200.3,
            "write": 1.2,
            "train": 30.2,
            "total": 250.0,
        },
    }


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write a run folder: ``make_run(classes, splits=, test=, multi_label=, …) -> Path``."""

    def make(
        classes: int | list[str],
        *,
        splits: int = 1,
        test: int = 40,
        multi_label: bool = False,
        levels: tuple[int | None, ...] = (4, 2, 1),
        ids: list[str] | None = None,
        root: Path | None = None,
        predictions: bool = True,
        model: bool = True,
        change: Callable[[dict[str, Any]], object] = lambda results: None,
    ) -> Path:
        rng = np.random.default_rng(0)
        names = [f"class_{n}" for n in range(classes)] if isinstance(classes, int) else classes
        draw = multi_label_split if multi_label else single_label_split
        drawn = [draw(rng, len(names), test) for _ in range(splits)]
        results = results_of(
            classes=names, multi_label=multi_label, splits=drawn, levels=levels, root=root
        )
        change(results)
        run = tmp_path / "run"
        run.mkdir()
        (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
        if predictions:
            write_predictions(run, drawn, ids or [f"image {n:05d}.jpg" for n in range(test)])
        if model:
            weights = rng.normal(size=(len(names), results["features"]["dimension"]))
            tensors = {
                "coef": weights.astype(np.float32),
                "intercept": np.zeros(len(names), np.float32),
            }
            save_file(tensors, run / "model.safetensors", metadata={"spptransfer": "{}"})
        return run

    return make


def write_predictions(run: Path, drawn, ids: list[str]) -> None:
    arrays = {}
    for number, (scores, targets) in enumerate(drawn):
        arrays[f"split{number:02d}/ids"] = np.array(ids)
        arrays[f"split{number:02d}/scores"] = scores
        arrays[f"split{number:02d}/probabilities"] = 1 / (1 + np.exp(-scores))
        arrays[f"split{number:02d}/targets"] = targets
    np.savez(run / "predictions.npz", **arrays)


@pytest.fixture
def change_predictions() -> Callable[..., Path]:
    """Replace arrays of a run's first split: ``change_predictions(run, scores=…) -> run``."""

    def change(run: Path, **replaced: np.ndarray) -> Path:
        with np.load(run / "predictions.npz") as file:
            arrays = dict(file)
        arrays.update({f"split00/{name}": array for name, array in replaced.items()})
        np.savez(run / "predictions.npz", **arrays)
        return run

    return change


@pytest.fixture(scope="session")
def noise_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 noise images, the worst case for JPEG."""
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    for number in range(40):
        pixels = rng.integers(0, 256, size=(300, 400, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"image {number:05d}.jpg", quality=90)
    return folder


@pytest.fixture
def make_detection_run(tmp_path: Path) -> MakeRun:
    """Write the folder of a detector's run: ``make_detection_run(n_images=, …) -> Path``."""

    def make(
        n_images: int = 12,
        *,
        classes: list[str] | None = None,
        detections: bool = True,
        change: Callable[[dict[str, Any]], object] = lambda results: None,
    ) -> Path:
        rng, found = np.random.default_rng(0), []
        generate_scenes(tmp_path / "scenes", train=1, val=n_images)
        dataset = read_coco(tmp_path / "scenes")
        dataset = dataset.subset(dataset.positions(dataset.official_splits["val"]))
        names = classes or [*dataset.classes, "unseen"]
        objects = [
            one._replace(difficult=rng.random(len(one.labels)) < 0.1)
            for one in dataset.annotations()
        ]
        for number, (boxes, labels, _) in enumerate(objects):
            for box, label in zip(boxes, labels, strict=True):
                for _ in range(rng.integers(0, 4)):
                    shift = rng.normal(size=4) * rng.choice([3, 20, 90])
                    moved = np.sort((box + shift).reshape(2, 2), axis=0).ravel()
                    named = label if rng.random() < 0.7 else rng.integers(len(dataset.classes))
                    found.append((number, moved, named, rng.normal() - np.abs(shift).mean() / 20))
        images, boxes, labels, scores = map(np.array, zip(*found, strict=True))
        tested = Detections(images, boxes, labels.astype(np.int32), scores.astype(np.float32))
        recall = dict.fromkeys(names, 0.93) | {names[-1]: None}
        described = describe_evaluation(
            evaluate_detections(tested, objects, names),
            coco={"AP": 0.31, "AP50": 0.52, "AP75": 0.33},
            proposals={
                "method": "selective_search",
                "windows": 681.4,
                "recall": {"0.5": 0.93, "0.7": 0.71},
                "per_class": recall,
            },
            similar=[dataset.classes[:2], dataset.classes[2:]],
        )
        usual = results_of(
            classes=names,
            multi_label=True,
            splits=[multi_label_split(rng, len(names), 8)],
            levels=(6, 3, 2, 1),
            root=dataset.root,
        )
        spent = {"proposals": 80.0, "pool": 33.0, "mine": 21.0, "polish": 2.0}
        results = {**usual, **described, "timings": {**spent, **usual["timings"], "total": 400.0}}
        results["dataset"]["path_template"] = dataset.path_template
        change(results)
        run = tmp_path / "detector"
        run.mkdir()
        (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
        if detections:
            save_detections(run / "detections.npz", dataset.ids, tested, objects)
        return run

    return make
