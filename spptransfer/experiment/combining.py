"""Several finished runs on the same splits become one: model combination.

* Detectors (He et al., TPAMI 2015, section 4.4): the union of their detections, thinned out by
  NMS class by class. Scores become comparable by each detector's confidences, in log-odds, which
  rank as probabilities do and do not run out of digits near 1.
* Classifiers: the mean of their probabilities.
* Classifiers by `concat`: one linear SVM for all on the features of all caches side by side.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spptransfer.cache import FeatureCache
from spptransfer.config import parse_pipeline
from spptransfer.datasets.annotations import Annotations
from spptransfer.detection.boxes import suppress
from spptransfer.detection.detections import Detections, save_detections
from spptransfer.detection.evaluation import describe_evaluation, evaluate_detections
from spptransfer.errors import ConfigError
from spptransfer.experiment.preparation import Machine, prepare
from spptransfer.experiment.results import (
    RESULTS,
    RunResult,
    describe_calibration,
    describe_execution,
    describe_metrics,
    describe_rows,
    describe_split,
    headline_of,
    new_folder,
    plain,
    timed_name,
    write_predictions,
    write_report_of,
)
from spptransfer.experiment.running import check, read_features
from spptransfer.files import write_text
from spptransfer.normalization import FITTED_STEPS, STEPS, PyramidNormalizer
from spptransfer.protocols import Split, read_splits, splits_checksum, write_splits
from spptransfer.protocols.evaluate import Evaluation, SplitResult, evaluate, measure
from spptransfer.protocols.training import Classifier
from spptransfer.report.run_folder import (
    DETECTION,
    GRID,
    MissingPartError,
    Predictions,
    RunFolder,
    read_results,
)
from spptransfer.spec import FeatureSpec

NAME = "combined"
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Run:
    """A finished run, and the splits that it was tested on."""

    folder: RunFolder
    splits: list[Split]

    @property
    def is_detection(self) -> bool:
        return self.folder.results.get("kind") == DETECTION


def combine_runs(
    folders: Sequence[Path],
    machine: Machine,
    command: str,
    *,
    concat: bool = False,
    nms: float | None = None,
) -> RunResult:
    """Combine the models of finished runs, and write what that makes of their test images.

    Parameters
    ----------
    folders : sequence of Path
        Two runs or more on the same splits and classes: of detectors, or of classifiers.
    machine : Machine
        Where the new run lands; with `concat`, also where data and weights lie.
    command : str
        For the record.
    concat : bool, default=False
        Train on the features of all caches side by side instead of averaging scores. C is chosen
        as in the first run.
    nms : float, optional
        The most that detections of a class overlap, by default that of the first run.

    Returns
    -------
    RunResult
        Its results have each run's metrics under ``combined``. There is no model.

    Raises
    ------
    ConfigError
        If the runs do not fit, or something in their folders is absent.
    """
    started = datetime.now(UTC)
    runs = [_open(folder) for folder in folders]
    _check_together(runs, concat=concat, nms=nms)
    with new_folder(machine.runs_dir, timed_name(NAME, started), command) as folder:
        if runs[0].is_detection:
            said = _combine_detections(folder, runs, nms)
        else:
            said = _combine_scores(folder, runs, machine if concat else None)
        description = f"{said.pop('description')} {_description(runs[0])}".strip()
        write_splits(folder / "splits.json", runs[0].splits, description=description)
        results = _describe(runs, said, description, command, started)
        write_text(folder / RESULTS, json.dumps(results, indent=1))
        write_report_of(folder)
    return RunResult(folder, results)


# ---- what is combined ----


def _open(folder: Path) -> _Run:
    results = read_results(folder)
    if results["format"] == GRID:
        raise ConfigError(f"'{folder}' is a table of runs; give runs in it")
    return _Run(RunFolder.of(folder, results), read_splits(folder / "splits.json"))


def _check_together(runs: Sequence[_Run], *, concat: bool, nms: float | None) -> None:
    """Refuse runs that were not tested on the same, and options of the other kind of runs."""
    if len(runs) < 2:
        raise ConfigError("give at least two runs to combine")
    first = runs[0]
    for other in runs[1:]:
        pair = f"'{first.folder.path}' and '{other.folder.path}'"
        if first.is_detection != other.is_detection:
            raise ConfigError(f"{pair} are runs of a detector and a classifier: give one kind")
        if first.folder.classes != other.folder.classes:
            raise ConfigError(f"{pair} have other classes")
        if splits_checksum(first.splits) != splits_checksum(other.splits):
            raise ConfigError(
                f"{pair} have other splits: run one with protocol.split_file="
                f"{first.folder.path / 'splits.json'}"
            )
    if first.is_detection and concat:
        raise ConfigError("--concat is for classifiers; detections are joined")
    if not first.is_detection and nms is not None:
        raise ConfigError("--nms is for detectors; scores of classifiers are averaged")
    if nms is not None and not 0 <= nms <= 1:
        raise ConfigError(f"--nms: {nms:g} must be from 0 to 1")


def _order(ids: Sequence[str], run: _Run, known: npt.NDArray[np.str_]) -> npt.NDArray[np.intp]:
    """Return where the images of a run stand in the first run's list."""
    position = {str(id): at for at, id in enumerate(ids)}
    if position.keys() != set(known.tolist()) or len(position) != len(known):
        raise ConfigError(f"'{run.folder.path}' holds results of other images than its splits")
    return np.array([position[id] for id in known.tolist()], np.intp)


# ---- detectors ----


def _combine_detections(folder: Path, runs: Sequence[_Run], nms: float | None) -> dict[str, Any]:
    """Join detections, write them, and describe their evaluation."""
    from spptransfer.experiment.detection import DETECTIONS, coco_if_installed  # imports torch

    split, classes = runs[0].splits[0], runs[0].folder.classes
    if nms is None:
        nms = float(runs[0].folder.results["pipeline"]["detection"]["nms"])
    together, truth = _joined(runs, split.test)
    found = together.take(_suppressed(together, len(classes), nms))
    save_detections(folder / DETECTIONS, split.test, found, truth)
    evaluation = evaluate_detections(found, truth, classes)
    return {
        **describe_evaluation(evaluation, coco=coco_if_installed(found, truth, classes)),
        "description": f"Union of the detections of {len(runs)} detectors, by the log-odds of "
        f"their confidences, thinned out to overlaps of at most {nms:g}.",
        "splits": [_split_sizes(split)],
    }


def _joined(runs: Sequence[_Run], ids: Sequence[str]) -> tuple[Detections, Annotations]:
    """Return the detections of all runs, scored by log-odds, and the objects in the images."""
    from spptransfer.detection.detector import TransferDetector  # imports torch

    parts, truths = [], []
    for run in runs:
        try:
            tested, evaluation = run.folder.tested()
        except MissingPartError as error:
            raise ConfigError(f"'{run.folder.path}': {error}") from error
        places, found = _order(ids, run, tested), evaluation.detections
        slope, offset = TransferDetector.load(run.folder.path).sigmoids[found.labels].T
        odds = slope * found.scores + offset
        parts.append(found._replace(images=places[found.images], scores=odds))
        truths.append(Annotations.of(evaluation.objects[int(at)] for at in np.argsort(places)))
        arrays = [(*truth.objects, truth.starts) for truth in (truths[0], truths[-1])]
        if not all(map(np.array_equal, *arrays)):
            raise ConfigError(f"'{run.folder.path}' was tested on other objects than the first run")
    return Detections(*map(np.concatenate, zip(*parts, strict=True))), truths[0]


def _suppressed(found: Detections, n_classes: int, nms: float) -> npt.NDArray[np.intp]:
    """Return which detections stay of each class in each image, by falling score."""
    groups = found.images * n_classes + found.labels
    order = np.argsort(groups, kind="stable")
    bounds = np.flatnonzero(np.diff(groups[order])) + 1
    kept = [
        rows[suppress(found.boxes[rows], found.scores[rows], nms)]
        for rows in np.split(order, bounds)
    ]
    stay = np.concatenate(kept)
    return stay[np.argsort(-found.scores[stay], kind="stable")]


# ---- classifiers ----


def _combine_scores(folder: Path, runs: Sequence[_Run], machine: Machine | None) -> dict[str, Any]:
    """Average scores, or train on all caches; write predictions, and describe the evaluation."""
    classes, names = runs[0].folder.classes, f"{len(runs)} runs"
    if machine is None:
        evaluation = _average(runs)
        said = f"Mean of the probabilities that {names} give."
    else:
        evaluation = _train_on_all(runs, machine)
        said = f"One linear SVM on the features of {names} side by side, each normalised alone."
    write_predictions(folder / "predictions.npz", evaluation.results)
    metric = runs[0].folder.results["headline"]["metric"]
    return {
        "description": said,
        "cautions": evaluation.cautions(metric, classes),
        "metrics": describe_metrics(evaluation, classes),
        "calibration": describe_calibration(evaluation),
        "splits": [
            {**describe_split(result, classes), **_split_sizes(result.split)}
            for result in evaluation.results
        ],
    }


def _average(runs: Sequence[_Run]) -> Evaluation:
    """Average the scores of each split's test images, and measure them."""
    predictions = [_predictions(run) for run in runs]
    n_classes = len(runs[0].folder.classes)
    # What has no weights of its own: an average of others.
    nothing = Classifier(
        np.empty((n_classes, 0), np.float32), np.zeros(n_classes, np.float32), float("nan")
    )
    found = Evaluation()
    for split, *each in zip(runs[0].splits, *predictions, strict=True):
        total, targets = np.zeros((len(split.test), n_classes)), each[0].targets
        for run, one in zip(runs, each, strict=True):
            places = np.argsort(_order(split.test, run, one.ids))
            if np.isnan(one.probabilities).any():
                raise ConfigError(f"'{run.folder.path}' has no probabilities that can be averaged")
            total += one.probabilities[places]
            if one is each[0]:
                targets = one.targets[places]
            elif np.any(one.targets[places] != targets):
                raise ConfigError(f"'{run.folder.path}' was tested on other labels than the first")
        scores = (total / len(runs)).astype(np.float32)
        measured, nowhere = measure(targets, scores), PyramidNormalizer(())
        found.results.append(
            SplitResult(split, nothing, nowhere, targets, scores, scores, *measured)
        )
    return found


def _predictions(run: _Run) -> list[Predictions]:
    try:
        return run.folder.predictions()
    except MissingPartError as error:
        raise ConfigError(f"'{run.folder.path}': {error}") from error


def _train_on_all(runs: Sequence[_Run], machine: Machine) -> Evaluation:
    """Train on the features of all runs side by side, as the first run's pipeline says."""
    first = runs[0].folder.results
    experiment = prepare(NAME, parse_pipeline(first["pipeline"]), machine)
    readers = [_reader(run) for run in runs]

    def read(ids: Sequence[str]) -> Scores:
        return np.concatenate([reader(ids) for reader in readers], axis=1)

    return evaluate(
        read,
        experiment.counted,
        runs[0].splits,
        training=check(experiment),
        normalize=(),
        progress=machine.progress,
    )


def _reader(run: _Run) -> Any:
    """Return what reads a run's features, normalised as it had them."""
    results, features = run.folder.results, run.folder.results["features"]
    steps = results["classifier"].get("normalize") or ()
    if learning := set(FITTED_STEPS).intersection(steps):
        rest = ", ".join(step for step in STEPS if step not in FITTED_STEPS)
        raise ConfigError(
            f"--concat: '{run.folder.path}' normalises by {', '.join(sorted(learning))}, which "
            f"learns from its training images; allowed: {rest}"
        )
    if not features.get("cache"):
        raise ConfigError(f"--concat: '{run.folder.path}' has no cache of features")
    cache = FeatureCache.open(features["cache"], FeatureSpec.from_dict(features["spec"]))
    selection = {name: features[name] for name in ("layers", "levels", "scales", "combine")}
    blocks = [column.stop - column.start for column in cache.columns(**selection)]
    normalizer = PyramidNormalizer(steps, block_sizes=blocks, copy=False)
    return lambda ids: normalizer.fit_transform(read_features(cache, ids, **selection))


# ---- what is written ----


def _split_sizes(split: Split) -> dict[str, Any]:
    train, test = len(split.train), len(split.test)
    return {"name": split.name, "train": train, "test": test, "checksum": split.checksum}


def _description(run: _Run) -> str:
    return str(run.folder.results["protocol"].get("description") or "")


def _describe(
    runs: Sequence[_Run],
    said: Mapping[str, Any],
    description: str,
    command: str,
    started: datetime,
) -> dict[str, Any]:
    """Return the contents of ``results.json``."""
    first, failures = runs[0].folder.results, dict[str, str]()
    for run in runs:
        failed = run.folder.results["rows"].get("failures", ())
        failures |= {row["id"]: row["error"] for row in failed}
    total = sum(first["rows"].get(kind, 0) for kind in ("ok", "failed"))
    metric = first["headline"]["metric"]
    results: dict[str, Any] = plain(
        {
            **describe_execution(NAME, command, started),
            "dataset": first["dataset"],
            "features": {},
            "rows": describe_rows(total, failures),
            "protocol": {
                **{key: first["protocol"].get(key) for key in ("name", "settings")},
                "description": description,
                "headline": metric,
                "checksum": splits_checksum(runs[0].splits),
            },
            **said,
            "headline": headline_of(metric, said["metrics"]),
            "combined": [_describe_run(run) for run in runs],
        }
    )
    return results


def _describe_run(run: _Run) -> dict[str, Any]:
    results = run.folder.results
    return {
        "run": run.folder.path.resolve(),
        "name": results["name"],
        "headline": results["headline"],
        "metrics": {name: one["value"] for name, one in results["metrics"].items()},
    }
