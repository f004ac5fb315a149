"""What a run writes down: every number with its metric, protocol, spec and command."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib.metadata
import json
import logging
import math
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spptransfer._version import __version__
from spptransfer.cache import FeatureCache
from spptransfer.calibration import CALIBRATION_ERROR, confidences, reliability
from spptransfer.datasets import Dataset
from spptransfer.detection.formats import write_voc_scores
from spptransfer.errors import CacheError, ConfigError
from spptransfer.experiment.preparation import Experiment, plain_name
from spptransfer.extraction import Extraction
from spptransfer.files import atomic_write, make_folder, os_errors_as_cache_error, write_text
from spptransfer.protocols import Split, shared_content, splits_checksum, write_splits
from spptransfer.protocols.splits import sizes_of
from spptransfer.system import checkout, count_processors, processor_name
from spptransfer.text import plural

if TYPE_CHECKING:
    from spptransfer.protocols.evaluate import Evaluation, SplitResult

logger = logging.getLogger(__name__)

FORMAT = "spptransfer-results"
FORMAT_VERSION = 1
RESULTS, MODEL, REPORT = "results.json", "model.safetensors", "report.html"
# The protocols whose results the VOC devkit reads.
DEVKIT = ("voc2007", "voc2007-vissl")
_LIBRARIES = ("torch", "numpy", "scikit-learn", "h5py", "pillow")
_SHOWN_PAIRS = 20


@dataclass(frozen=True)
class RunFacts:
    """Everything that `write_run` puts on the record."""

    experiment: Experiment
    cache: FeatureCache
    extraction: Extraction
    evaluation: Evaluation
    seconds: Mapping[str, float]
    command: str
    started: datetime


@dataclass(frozen=True)
class RunResult:
    """What a run, or a table of runs, left behind."""

    folder: Path
    results: dict[str, Any]

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder / REPORT

    @property
    def model(self) -> Path:
        """The model of all labelled images; a table has one in the folder of each run."""
        return self.folder / MODEL


@contextlib.contextmanager
def run_folder(
    experiment: Experiment, started: datetime, command: str, name: str | None = None
) -> Iterator[Path]:
    """Create the folder of a run, with a log in it; it does not stay if it gets no results.

    By default it is named after the pipeline and the time; where there is such a folder already
    a number is added.
    """
    name = name or timed_name(experiment.name, started)
    with new_folder(experiment.machine.runs_dir, name, command) as folder:
        yield folder


def timed_name(name: str, started: datetime) -> str:
    """Name a run's folder by what is run, and when."""
    return f"{name}-{started.strftime('%Y%m%d-%H%M%S')}"


@contextlib.contextmanager
def new_folder(runs_dir: Path, name: str, command: str) -> Iterator[Path]:
    """Create a folder with a log in it; it does not stay if it gets no results."""
    folder = _new_folder(runs_dir, plain_name(name))
    try:
        with _logging_to(folder / "log.txt", command):
            yield folder
    except BaseException:
        if not (folder / RESULTS).exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise


class _LogFile(logging.FileHandler):
    """A log file on a disk that may fill up: the lines that find no room are left out."""

    failure: OSError | None = None

    def handleError(self, record: logging.LogRecord) -> None:
        """Keep what went wrong, where logging prints it with a traceback for every line."""
        error = sys.exception()
        if isinstance(error, OSError):
            self.failure = self.failure or error
        else:
            super().handleError(record)

    def close(self) -> None:
        """Close the file, which tries once more to write what is left."""
        try:
            super().close()
        except OSError as error:
            self.failure = self.failure or error


@contextlib.contextmanager
def _logging_to(path: Path, first_line: str) -> Iterator[None]:
    """Write what the library logs into a file too; its first line must find room."""
    library = logging.getLogger("spptransfer")
    with os_errors_as_cache_error(path):
        handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    level = library.level
    library.addHandler(handler)
    library.setLevel(logging.INFO)
    try:
        logger.info("%s", first_line)
        with os_errors_as_cache_error(path):
            if handler.failure is not None:
                raise handler.failure
        yield
    finally:
        library.setLevel(level)
        library.removeHandler(handler)
        handler.close()
    if handler.failure is not None:
        logger.warning("'%s' is not complete: %s", path, handler.failure.strerror)


def write_run(folder: Path, facts: RunFacts, notes: Mapping[str, Any]) -> dict[str, Any]:
    """Write model, splits, predictions and results into the folder of a run."""
    experiment, found = facts.experiment, facts.evaluation.results
    described = experiment.protocol.description(experiment.settings, experiment.dataset)
    trained = facts.evaluation.for_use
    assert trained is not None
    _write_model(folder / MODEL, experiment, trained, described)
    with os_errors_as_cache_error(folder / "splits.json"):
        splits = [result.split for result in found]
        write_splits(folder / "splits.json", splits, description=described)
    write_predictions(folder / "predictions.npz", found)
    if experiment.protocol.name in DEVKIT:
        _write_for_devkit(folder / "devkit", experiment, found[0])
    results = {**describe_run(facts, trained, described), **notes}
    # The last of them: a folder that has it is a complete run.
    write_text(folder / RESULTS, json.dumps(results, indent=1))
    return results


def _write_for_devkit(folder: Path, experiment: Experiment, result: SplitResult) -> None:
    names = (result.split.test, experiment.counted.classes, experiment.settings["test"])
    try:
        write_voc_scores(folder, result.scores, *names)
    except ConfigError as error:  # no reason to lose what was trained
        logger.warning("no files for the devkit: %s", error)


def _write_model(path: Path, experiment: Experiment, trained: SplitResult, described: str) -> None:
    """Save the model for use, with the spec of just the levels and scales it needs."""
    from spptransfer.models import TransferModel

    weights, C = experiment.backbone.path(), trained.classifier.C
    spec, cache = experiment.wanted, FeatureCache.open(experiment.cache[0])
    model = TransferModel(
        spec=spec,
        weights=experiment.backbone.weights,
        weights_path=None if weights is None else weights.resolve(),
        **experiment.selection,
        normalizer=trained.normalizer,
        coef=trained.classifier.coef,
        intercept=trained.classifier.intercept,
        sigmoids=trained.classifier.sigmoids,
        classes=experiment.counted.classes,
        multi_label=experiment.counted.multi_label,
        C=plain(C),
        protocol=f"Trained on {trained_on(trained)}. Measured before: {described}",
        probe=cache.probe[[cache.spec.layers.index(layer) for layer in spec.layers]],
    )
    model.save(path)


def trained_on(trained: SplitResult) -> str:
    """Say in words what a model for use was trained on, and how its C came about."""
    n_folds, C = trained.split.n_folds, trained.classifier.C
    how = f" at C = {C:g}" if isinstance(C, float) else " at a C for each class"
    if trained.classifier.validation:
        how += f", chosen by {n_folds}-fold cross-validation on all of them"
    return f"all {plural(len(trained.split.train), 'labelled image')}{how}"


def describe_run(facts: RunFacts, trained: SplitResult, described: str) -> dict[str, Any]:
    """Return the contents of ``results.json``: plain JSON values, metrics as fractions of 1."""
    experiment, extraction, evaluation = facts.experiment, facts.extraction, facts.evaluation
    dataset, pipeline = experiment.counted, experiment.pipeline
    headline, digests = experiment.protocol.headline(dataset.multi_label), facts.cache.digests()
    metrics = describe_metrics(evaluation, dataset.classes)
    execution = describe_execution(experiment.name, facts.command, facts.started, facts.seconds)
    computed = {"device": extraction.device, "runtime": extraction.computed_by or None}
    splits = [result.split for result in evaluation.results]
    shared = [pair for split in splits for pair in shared_content(split, digests)]
    results: dict[str, Any] = plain(
        {
            **execution,
            "pipeline": pipeline.model_dump(mode="json", exclude={"grid"}),
            "machine": {**execution["machine"], **computed},
            "dataset": {
                **describe_dataset(dataset),
                "same_image_in_two_classes": _pairs(_in_two_classes(dataset, digests)),
            },
            "features": _features(facts),
            "rows": describe_rows(
                len(experiment.dataset), extraction.failures, reused=extraction.reused
            ),
            "batches": {"all": extraction.batches, "full": extraction.full_batches},
            "classifier": pipeline.classifier.model_dump(mode="json"),
            "protocol": {
                **describe_protocol(experiment, headline, described, splits),
                "same_image_in_train_and_test": _pairs(shared),
            },
            "model": {
                "trained_on": trained_on(trained),
                "images": len(trained.split.train),
                **_chosen(trained, dataset.classes),
            },
            "cautions": evaluation.cautions(headline, dataset.classes),
            "headline": headline_of(headline, metrics),
            "metrics": metrics,
            "calibration": describe_calibration(evaluation),
            "splits": [describe_split(result, dataset.classes) for result in evaluation.results],
        }
    )
    return results


def describe_execution(
    name: str, command: str, started: datetime, seconds: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Return what was run, when and on what."""
    finished = datetime.now(UTC)
    spent = {**(seconds or {}), "total": (finished - started).total_seconds()}
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": name,
        "command": command,
        "started": started.isoformat(timespec="seconds"),
        "finished": finished.isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": machine_facts(),
        "timings": {kind: round(each, 3) for kind, each in spent.items()},
    }


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """Return what a dataset is, and where its images lie."""
    names = ("name", "path_template", "classes", "multi_label")
    facts = {name: getattr(dataset, name) for name in names}
    return {**facts, "root": dataset.root.resolve(), "images": len(dataset)}


def describe_rows(total: int, failures: Mapping[str, str], *, reused: int = 0) -> dict[str, Any]:
    """Return how many images there are by what became of them, and why some failed."""
    said = [{"id": id, "error": error} for id, error in failures.items()]
    return {**count_rows(total, len(failures), reused), "failures": said}


def describe_protocol(
    experiment: Experiment, headline: str, described: str, splits: Sequence[Split]
) -> dict[str, Any]:
    """Return how something was measured."""
    return {
        "name": experiment.protocol.name,
        "description": described,
        "headline": headline,
        "settings": experiment.settings,
        "checksum": splits_checksum(splits),
    }


def headline_of(metric: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the one number that stands for all."""
    return {"metric": metric, **{key: metrics[metric].get(key) for key in ("value", "std")}}


def describe_metrics(evaluation: Evaluation, classes: Sequence[str]) -> dict[str, Any]:
    """Return every metric over the splits by its full name, as ``results.json`` has them."""
    metrics = {}
    for name in evaluation.results[0].metrics:
        per_class = evaluation.class_means(name)
        metrics[name] = {
            "value": evaluation.mean(name),
            "std": evaluation.std(name),
            "per_split": evaluation.values(name),
            "per_class": None if per_class is None else _by_class(classes, per_class),
            "left_out": [classes[k] for k in evaluation.left_out(name)],
        }
    return metrics


def describe_calibration(evaluation: Evaluation) -> dict[str, Any]:
    """Return how far the probabilities of the test images may be trusted."""
    found = [confidences(r.probabilities, r.scores, r.targets) for r in evaluation.results]
    confidence, right = map(np.concatenate, zip(*found, strict=True))
    values, bins = [reliability(*each).error for each in found], reliability(confidence, right)
    return {
        "metric": CALIBRATION_ERROR,
        "value": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "per_split": values,
        "bins": {name: getattr(bins, name) for name in ("counts", "confidence", "right")},
    }


def learning_curve(
    evaluation: Evaluation, settings: Mapping[str, Any], classes: Sequence[str]
) -> tuple[Evaluation, dict[str, Any]]:
    """Return the evaluation of the largest training size, and each size's as the results have it.

    Where there is one size only, that is the evaluation itself and nothing.
    """
    sizes, found, points = sizes_of(settings), evaluation.results, []
    repeats = len(found) // max(1, len(sizes))
    for number, size in enumerate(sizes):
        part = replace(evaluation, results=found[number * repeats : (number + 1) * repeats])
        metrics = describe_metrics(part, classes)
        for metric in metrics.values():
            del metric["per_class"]
        splits = [describe_split(result, classes) for result in part.results]
        points.append({"train_per_class": size, "metrics": metrics, "splits": splits})
    return (part, {"learning_curve": plain(points)}) if points else (evaluation, {})


def count_rows(total: int, failed: int, reused: int) -> dict[str, int]:
    """Count images by what became of them; those reused are among the ``ok``."""
    return {"ok": total - failed, "failed": failed, "reused": min(reused, total - failed)}


def _features(facts: RunFacts) -> dict[str, Any]:
    experiment, section = facts.experiment, facts.experiment.pipeline.features
    columns = facts.cache.columns(**experiment.selection)
    return {
        "spec": experiment.wanted.to_dict(),
        "fingerprint": experiment.wanted.fingerprint,
        "weights": section.weights,
        **experiment.selection,
        "precision_choice": experiment.precision_choice if section.precision == "auto" else None,
        "channels": {layer: facts.cache.channels[layer] for layer in section.layer},
        "dimension": columns[-1].stop,
        "blocks": [dataclasses.asdict(column) for column in columns],
        "cache": facts.cache.path.resolve(),
    }


def _pairs(found: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return {"pairs": len(found), "examples": found[:_SHOWN_PAIRS]}


def _in_two_classes(dataset: Dataset, digests: Mapping[str, str]) -> list[tuple[str, str]]:
    """Find images that are the same file as an earlier one with another label."""
    first: dict[str, tuple[str, Any]] = {}
    pairs = []
    for id, target in zip(dataset.ids, dataset.targets, strict=True):
        if id in digests:
            known, label = first.setdefault(digests[id], (id, target))
            if np.any(label != target):
                pairs.append((known, id))
    return pairs


def describe_same_images(results: Mapping[str, Any]) -> str:
    """Say which files a run's numbers count twice; nothing where there are none."""
    told = []
    for found, where in (
        (results["dataset"]["same_image_in_two_classes"], "in two classes"),
        (results["protocol"]["same_image_in_train_and_test"], "in training and test"),
    ):
        if found["pairs"]:
            one, other = found["examples"][0]
            pairs = plural(found["pairs"], "pair")
            told.append(f"the same image {where}: {pairs}, as '{one}' and '{other}'")
    return "; ".join(told)


def describe_split(result: SplitResult, classes: Sequence[str]) -> dict[str, Any]:
    """Return a split's sizes, choice of C and metrics."""
    return {
        "name": result.split.name,
        "train": len(result.split.train),
        "test": len(result.split.test),
        "checksum": result.split.checksum,
        **_chosen(result, classes),
        "metrics": result.metrics,
    }


def _chosen(result: SplitResult, classes: Sequence[str]) -> dict[str, Any]:
    C = result.classifier.C
    return {
        "C": C if isinstance(C, float) else _by_class(classes, C),
        "validation": result.classifier.validation,
        "solver": result.classifier.solver or None,
    }


def _by_class(classes: Sequence[str], values: npt.NDArray[np.floating]) -> dict[str, float]:
    return dict(zip(classes, values.tolist(), strict=True))


def plain(value: Any) -> Any:
    """Return a value as JSON has it, which knows no path, no tuple and no NaN."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def machine_facts() -> dict[str, Any]:
    """Return what the numbers were computed on."""
    facts = {"platform": platform.platform(), "processor": processor_name()}
    return {**facts, "processors": count_processors(), **checkout()}


def versions() -> dict[str, str]:
    """Return the versions of this package and of what its numbers depend on."""
    libraries = zip(_LIBRARIES, map(importlib.metadata.version, _LIBRARIES), strict=True)
    return {"spptransfer": __version__, "python": platform.python_version(), **dict(libraries)}


def write_predictions(path: Path, results: Sequence[SplitResult]) -> None:
    """Write what was said of every test image, and the targets, readable without pickle."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for number, result in enumerate(results):
        prefix = f"split{number:02d}"
        arrays[f"{prefix}/ids"] = np.array(result.split.test)
        arrays[f"{prefix}/scores"] = result.scores.astype(np.float32)
        arrays[f"{prefix}/probabilities"] = result.probabilities
        arrays[f"{prefix}/targets"] = result.targets
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _new_folder(parent: Path, name: str) -> Path:
    make_folder(parent)
    with os_errors_as_cache_error(parent / name):
        for number in range(1, 1000):
            folder = parent / (name if number == 1 else f"{name}-{number}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
        raise FileExistsError(errno.EEXIST, "there are too many folders of that name")


def write_report_of(folder: Path) -> None:
    """Write the page of a run that is complete without it, and say so where that fails."""
    from spptransfer.report import write_report

    try:
        write_report(folder)
    except CacheError as error:
        again = f"spptransfer report {shlex.quote(str(folder))}"
        raise CacheError(
            f"{error} (the run in '{folder}' is complete but for its report; `{again}` makes it)"
        ) from error
