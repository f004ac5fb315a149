"""Train and test on the features of an experiment, and write a run folder."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spptransfer.cache import FeatureCache
from spptransfer.errors import CacheError
from spptransfer.experiment.features import (
    extract_features,
    read_features,
    splits_with_features,
    use_cache,
)
from spptransfer.experiment.preparation import Experiment, resolve_precision
from spptransfer.experiment.results import MODEL, REPORT, RunFacts, run_folder, write_run
from spptransfer.extraction import Extraction
from spptransfer.protocols.training import Training, check_training

if TYPE_CHECKING:
    from spptransfer.models import TransferModel
    from spptransfer.protocols.evaluate import Evaluation

logger = logging.getLogger(__name__)

DEFAULT_C = (0.01, 0.1, 1.0, 10.0)


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
        """The model of the first split; a table has one in the folder of each run."""
        return self.folder / MODEL


def run(experiment: Experiment, command: str, *, from_cache: bool = False) -> RunResult:
    """Extract what is missing, train and test, write results, model and report."""
    check(experiment)
    if not from_cache:
        (experiment,) = resolve_precision([experiment])
    started = datetime.now(UTC)
    with run_folder(experiment, started, command) as folder:
        extraction = use_cache(experiment) if from_cache else extract_features([experiment])[0]
        return finish_run(folder, experiment, extraction, command, started)


def check(experiment: Experiment) -> None:
    """Tell before hours of extraction whatever would make them useless."""
    has_folds = any(split.folds for split in experiment.splits)
    multi_label = experiment.counted.multi_label
    check_training(_training(experiment), multi_label=multi_label, has_folds=has_folds)


def finish_run(
    folder: Path,
    experiment: Experiment,
    extraction: Extraction,
    command: str,
    started: datetime,
    notes: Mapping[str, Any] | None = None,
) -> RunResult:
    """Train and test on features that are there, and fill the run's folder."""
    from spptransfer.protocols.evaluate import evaluate  # imports scikit-learn

    _log_features(experiment, extraction)
    cache = FeatureCache.open(extraction.path)
    section = experiment.pipeline.features
    selection: dict[str, Any] = {
        "levels": experiment.levels,
        "scales": section.scales,
        "combine": section.combine,
    }
    columns = cache.columns(**selection)
    begin = time.perf_counter()
    evaluation = evaluate(
        lambda ids: read_features(cache, ids, **selection),
        experiment.counted,
        splits_with_features(experiment, extraction, cache),
        training=_training(experiment),
        normalize=experiment.pipeline.classifier.normalize,
        block_sizes=[column.stop - column.start for column in columns],
        progress=experiment.machine.progress,
    )
    seconds = {**extraction.seconds, "train": time.perf_counter() - begin}
    facts = RunFacts(
        experiment, cache, extraction, evaluation, columns, seconds, command, started, notes or {}
    )
    results = write_run(folder, facts, _model(experiment, evaluation))
    logger.info("%(metric)s: %(value)s (standard deviation %(std)s)", results["headline"])
    write_report_of(folder)
    return RunResult(folder, results)


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


def _log_features(experiment: Experiment, extraction: Extraction) -> None:
    if experiment.precision_choice:
        logger.info("precision: %(precision)s (%(reason)s)", experiment.precision_choice)
    logger.info(
        "%s: %d images added, %d changed, %d unchanged, %d removed, %d failed",
        extraction.path,
        extraction.added,
        extraction.changed,
        extraction.unchanged,
        extraction.removed,
        len(extraction.failures),
    )
    for id, error in extraction.failures.items():
        logger.info("failed: %r: %s", id, error)


def _training(experiment: Experiment) -> Training:
    section, protocol = experiment.pipeline.classifier, experiment.protocol
    multi_label = experiment.counted.multi_label
    return Training(
        C=section.C or protocol.C or DEFAULT_C,
        loss=section.loss,
        class_weight=section.class_weight or (protocol.class_weight if multi_label else None),
        solver=section.solver,
        engine=section.engine,
        scheduler=section.scheduler,
        chosen_by=protocol.choose_C_by(multi_label),
        per_class=experiment.settings["choose_C"] == "per class",
        difficult=protocol.difficult_in_training,
    )


def _model(experiment: Experiment, evaluation: Evaluation) -> TransferModel:
    """Build the model of the first split, with the spec of just the levels and scales it needs."""
    from spptransfer.models import TransferModel

    first, section = evaluation.results[0], experiment.pipeline.features
    C = first.classifier.C
    weights = experiment.backbone.path()
    return TransferModel(
        spec=experiment.wanted,
        weights=section.weights,
        weights_path=None if weights is None else weights.resolve(),
        levels=experiment.levels,
        scales=section.scales,
        combine=section.combine,
        normalizer=first.normalizer,
        coef=first.classifier.coef,
        intercept=first.classifier.intercept,
        classes=experiment.counted.classes,
        multi_label=experiment.counted.multi_label,
        C=C if isinstance(C, float) else [float(c) for c in C],
        protocol=experiment.protocol.description(experiment.settings, experiment.dataset),
    )
