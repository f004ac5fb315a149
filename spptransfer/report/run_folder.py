"""What a run left in its folder, as the report reads it, and what its results say."""

from __future__ import annotations

import json
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from spptransfer.datasets.tar import place_in_tar
from spptransfer.detection.detections import load_detections
from spptransfer.detection.evaluation import DetectionEvaluation, evaluate_detections
from spptransfer.errors import ConfigError, DatasetError
from spptransfer.images import Place
from spptransfer.report.formatting import clean
from spptransfer.text import listed

RUN, GRID = "spptransfer-results", "spptransfer-grid"
DETECTION = "detection"  # kind of a run; one of classification has none
FORMAT_VERSION = 1
STAGES = ("load", "read", "compute", "write", "train")
_REQUIRED = ("name", "dataset", "features", "headline", "splits")
_OPTIONAL = (
    "pipeline",
    "versions",
    "machine",
    "rows",
    "classifier",
    "protocol",
    "metrics",
    "timings",
    "detection",
)
_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, DatasetError)
# Readers of anybody's images: such a name says how they lie in a folder, not what they are.
_LAYOUTS = ("folder", "csv", "coco", "voc")


class MissingPartError(Exception):
    """A part of the run folder that one section needs is absent or damaged."""


class Predictions(NamedTuple):
    """What the classifiers said about one split's test images.

    Attributes
    ----------
    ids : ndarray of str, shape (n_test,)
        Image ids.
    scores : ndarray of float32, shape (n_test, n_classes)
        Decision values; minus infinity where one is missing, which loses against every other.
    probabilities : ndarray of float32, shape (n_test, n_classes)
        What the decision values stand for; NaN where it is not known.
    targets : ndarray of int
        Shape (n_test,), the class index; or, where an image can have several labels,
        shape (n_test, n_classes) in {1, 0 = ignored, -1}.
    """

    ids: npt.NDArray[np.str_]
    scores: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]
    targets: npt.NDArray[np.integer]


@dataclass(frozen=True)
class RunFolder:
    """One execution of a pipeline file: its folder, results and names of the classes."""

    path: Path
    results: dict[str, Any]
    classes: list[str]
    multi_label: bool

    @classmethod
    def of(cls, path: Path, results: Mapping[str, Any]) -> RunFolder:
        """Take a folder with what its ``results.json`` holds; what is optional may be lacking."""
        for key in _REQUIRED:
            if key not in results:
                raise ConfigError(
                    f"'{path / 'results.json'}' lacks '{key}' (needed: {', '.join(_REQUIRED)})"
                )
        complete = dict(results)
        for key in _OPTIONAL:
            complete[key] = results.get(key) or {}
        classes = list(map(str, results["dataset"]["classes"]))
        return cls(path, complete, classes, bool(results["dataset"].get("multi_label")))

    def predictions(self) -> list[Predictions]:
        """Read the predictions of all splits; MissingPartError if that is impossible."""
        splits = []
        try:
            with np.load(self.path / "predictions.npz", allow_pickle=False) as arrays:
                for number in range(len(self.results["splits"])):
                    splits.append(self._split(arrays, f"split{number:02d}"))
        except FileNotFoundError as error:
            raise MissingPartError("this run folder holds no predictions.npz") from error
        except _DAMAGE as error:
            raise MissingPartError(f"predictions.npz cannot be read: {error}") from error
        return splits

    def _split(self, arrays: Mapping[str, npt.NDArray[Any]], name: str) -> Predictions:
        """Read one split and compare its shapes with the list of classes."""
        ids, targets = arrays[f"{name}/ids"], arrays[f"{name}/targets"]
        scores = np.nan_to_num(arrays[f"{name}/scores"], nan=-np.inf, posinf=np.inf, neginf=-np.inf)
        expected = (len(ids), len(self.classes))
        probabilities = arrays[f"{name}/probabilities"]
        for each, array in (("scores", scores), ("probabilities", probabilities)):
            if array.shape != expected:
                raise ValueError(f"{name}/{each} has shape {array.shape}, not {expected}")
        if targets.shape != (expected if self.multi_label else expected[:1]):
            raise ValueError(f"{name}/targets has shape {targets.shape}")
        if not self.multi_label and np.any((targets < 0) | (targets >= expected[1])):
            raise ValueError(f"{name}/targets names a class that does not exist")
        return Predictions(ids, scores, probabilities, targets)

    def tested(self) -> tuple[npt.NDArray[np.str_], DetectionEvaluation]:
        """Evaluate a detector's test images again; MissingPartError if that is impossible."""
        try:
            ids, detections, objects = load_detections(self.path / "detections.npz")
            return ids, evaluate_detections(detections, objects, self.classes)
        except FileNotFoundError as error:
            raise MissingPartError("this run folder holds no detections.npz") from error
        except _DAMAGE as error:
            raise MissingPartError(f"detections.npz cannot be read: {error}") from error

    def weight_blocks(self) -> Iterator[tuple[int | None, npt.NDArray[np.float32]]]:
        """Yield each block's level (None: no grid) and linear weights, (n_classes, width).

        MissingPartError tells of a model that is absent, damaged, or does not fit the results.
        """
        blocks = self.results["features"].get("blocks") or []
        try:
            with safe_open(self.path / "model.safetensors", framework="numpy") as tensors:
                weights = tensors.get_slice("coef")
                shape = tuple(weights.get_shape())
                expected = (len(self.classes), blocks[-1]["stop"] if blocks else 0)
                if len(shape) != 2 or shape[0] != expected[0] or shape[1] < expected[1]:
                    raise ValueError(f"coef has shape {shape}, not {expected}")
                for block in blocks:
                    level, width = block.get("level"), block["stop"] - block["start"]
                    if level is not None and width % level**2:
                        raise ValueError(f"a block of width {width} has no {level}×{level} bins")
                    yield level, weights[:, block["start"] : block["stop"]]
        except FileNotFoundError as error:
            raise MissingPartError("this run folder holds no model.safetensors") from error
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise MissingPartError(f"model.safetensors cannot be read: {error}") from error

    def image_path(self, image_id: str) -> Place | None:
        """Say where an image should lie, whether or not a file is there; None without a root."""
        dataset = self.results["dataset"]
        if not dataset.get("root"):
            return None
        if dataset["name"] == "tar":
            return place_in_tar(Path(dataset["root"]), image_id)
        # Not str.format: an id or a template from a file may hold braces of its own.
        relative = str(dataset.get("path_template") or "{id}").replace("{id}", image_id)
        return Path(dataset["root"]) / relative


def read_results(folder: Path) -> dict[str, Any]:
    """Read the results of a run or of a table of runs.

    What is no number in JSON, NaN and the infinities, becomes None.
    """
    file = folder / "results.json"
    try:
        results = json.loads(file.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(f"'{folder}' is not a run folder: it has no results.json") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"'{file}' cannot be read: {error}") from error
    if not isinstance(results, dict) or results.get("format") not in (RUN, GRID):
        raise ConfigError(f"'{file}' is not a results file (format must be '{RUN}' or '{GRID}')")
    if results.get("format_version") != FORMAT_VERSION:
        raise ConfigError(
            f"'{file}' has format version {results.get('format_version')}; "
            f"this spptransfer reads version {FORMAT_VERSION}"
        )
    return results


def dataset_title(results: Mapping[str, Any]) -> str:
    """Name a dataset, or the folder of one that has no name but its layout's.

    Examples
    --------
    >>> dataset_title({"dataset": {"name": "folder", "root": "/data/birds"}})
    'birds'
    >>> dataset_title({"dataset": {"name": "voc2007", "root": "/data/VOCdevkit"}})
    'voc2007'
    """
    name, root = results["dataset"]["name"], results["dataset"].get("root")
    return Path(root).name or str(name) if root and name in _LAYOUTS else str(name)


def metrics_of(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return all metrics by their full names, the headline first."""
    headline, listed = results["headline"], results.get("metrics") or {}
    name = headline["metric"]
    return {name: listed.get(name, headline), **listed}


def per_class_metric(results: Mapping[str, Any]) -> str | None:
    """Name the first metric that is known per class; None if none is."""
    for name, metric in metrics_of(results).items():
        if metric.get("per_class"):
            return name
    return None


def coverage(results: Mapping[str, Any], metric: str) -> str:
    """Say which classes a metric leaves out, since no test image shows them; nothing for none.

    Examples
    --------
    >>> metrics = {"mean average precision (area)": {"value": 0.9, "left_out": ["white"]}}
    >>> results = {"dataset": {"classes": ["black", "red", "white"]}, "metrics": metrics}
    >>> coverage(results, "mean average precision (area)")
    'over 2 of 3 classes: no test image shows white'
    """
    left_out = (results.get("metrics") or {}).get(metric, {}).get("left_out")
    if not left_out:
        return ""
    total, several = len(results["dataset"]["classes"]), len(results.get("splits") or ()) > 1
    shown = listed(list(map(partial(clean, width=24), left_out)))
    where = "of some splits " if several else ""
    return f"over {total - len(left_out)} of {total} classes: no test image {where}shows {shown}"


def said_in_results(run: RunFolder) -> dict[str, Any]:
    """Return what the pages of all runs show of the results alone."""
    chosen, validation = chosen_C(run.results), validation_curves(run.results)
    return {
        "run": run,
        "results": run.results,
        "dataset": dataset_title(run.results),
        "metrics": metrics_of(run.results),
        "chosen": chosen,
        "validation": validation,
        "candidates": sorted(set().union(*chosen.values(), *map(dict, validation))),
        "stages": stages(run.results["timings"]),
        "learning": learning_curves(run.results),
    }


def chosen_C(results: Mapping[str, Any]) -> dict[str | None, Counter[float]]:
    """Count how many splits chose which C: for each class, or under None for all classes.

    Examples
    --------
    >>> chosen_C({"splits": [{"C": 1.0}, {"C": 0.1}, {"C": 1.0}]})
    {None: Counter({1.0: 2, 0.1: 1})}
    >>> chosen_C({"splits": [{"C": {"ant": 1.0, "bee": 10.0}}]})
    {'ant': Counter({1.0: 1}), 'bee': Counter({10.0: 1})}
    """
    chosen: defaultdict[str | None, Counter[float]] = defaultdict(Counter)
    for split in results["splits"]:
        C = split.get("C")
        for name, value in (C if isinstance(C, Mapping) else {None: C}).items():
            if value is not None:
                chosen[name][value] += 1
    return dict(chosen)


def learning_curves(results: Mapping[str, Any]) -> list[list[tuple[float, float]]]:
    """Return each repeat's headline against the training images of each class; empty for none."""
    metric = results["headline"]["metric"]
    curves: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    for point in results.get("learning_curve") or ():
        for repeat, value in enumerate(point["metrics"][metric]["per_split"]):
            if value is not None:
                curves[repeat].append((float(point["train_per_class"]), float(value)))
    return list(curves.values())


def validation_curves(results: Mapping[str, Any]) -> list[list[tuple[float, float]]]:
    """Return each split's validation score against C, by rising C; empty where C was given."""
    curves = []
    for split in results["splits"]:
        scores = {}
        for point in split.get("validation") or ():
            if point["score"] is not None:
                scores[float(point["C"])] = float(point["score"])
        if scores:
            curves.append(sorted(scores.items()))
    return curves


def stages(timings: Mapping[str, float | None]) -> list[tuple[str, float, float]]:
    """Return the stages that took time: name, seconds, and share of the whole.

    What every run has comes first, then what else is measured.

    Stages may overlap in time; if they exceed the total, the shares are of their sum.

    Examples
    --------
    >>> stages({"read": 1, "train": 2, "total": 4})
    [('read', 1, 0.25), ('train', 2, 0.5), ('other', 1.0, 0.25)]
    """
    spent, total = {}, timings.get("total") or 0.0
    for name in (*STAGES, *timings):
        if name != "total":
            spent[name] = timings.get(name) or 0.0
    named = sum(spent.values())
    spent["other"] = max(0.0, total - named)
    whole = max(total, named)
    return [(name, seconds, seconds / whole) for name, seconds in spent.items() if seconds > 0]
