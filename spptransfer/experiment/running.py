"""Extract, train, and write a run folder."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spptransfer.cache import FeatureCache
from spptransfer.files import make_folder
from spptransfer.errors import CacheError
from spptransfer.experiment.cached import read_features, splits_with_features, use_cache
from spptransfer.experiment.precision import Tell, decide
from spptransfer.experiment.prepare import Experiment, weights_path
from spptransfer.experiment.results import MODEL, RunFacts, run_folder, write_run
from spptransfer.extraction import Destination, Extraction, Interrupted, extract_together
from spptransfer.extraction.division import check_engine
from spptransfer.protocols.training import Training, check_training

if TYPE_CHECKING:
    from spptransfer.models import TransferModel
    from spptransfer.protocols.evaluate import Evaluation

logger = logging.getLogger(__name__)

DEFAULT_C = (0.01, 0.1, 1.0, 10.0)


@dataclass
class RunResult:
    """What a run left behind.

    Attributes
    ----------
    folder : Path
        The run's folder.
    results : dict
        Contents of its ``results.json``.
    report : Path
        The HTML report.
    model : Path
        The model of the first split.
    """

    folder: Path
    results: dict[str, Any]
    report: Path
    model: Path


def extract_features(experiment: Experiment, tell: Tell = lambda line: None) -> Extraction:
    """Bring the experiment's cache up to date.

    Parameters
    ----------
    experiment : Experiment
        From `prepare`.
    tell : callable
        Is told which precision was chosen, where that is left to us.

    Returns
    -------
    Extraction
        What was added, changed, removed or failed.
    """
    (extraction,) = extract_together_for(decide([experiment], tell))
    return extraction


def extract_together_for(experiments: Sequence[Experiment]) -> list[Extraction]:
    """Bring the caches of several experiments up to date, all from one pass over the images.

    Parameters
    ----------
    experiments : sequence of Experiment
        With caches of their own, of one dataset, whose features differ in nothing but layer,
        levels, pooling, scales, view and storage.

    Returns
    -------
    list of Extraction
        One for each.

    Raises
    ------
    Interrupted
        If it was asked to stop, be it while the last part was made.
    """
    first = experiments[0]
    # A cache that is there must not become one of failed rows because a disk is not mounted.
    first.dataset.check_images()
    machine = first.machine
    layers = tuple(dict.fromkeys(experiment.wanted.layer for experiment in experiments))
    make_folder(machine.cache_dir)
    machine.stop.extracting = True
    try:
        extractions = extract_together(
            first.dataset,
            [Destination(*each.cache, each.channels) for each in experiments],
            load_backbone=first.loader(layers),
            device=machine.device,
            runtime=machine.runtime,
            jobs=machine.jobs,
            engine=check_engine(machine.engine),
            scheduler=machine.scheduler,
            progress=machine.progress,
            stop=machine.stop,
        )
    finally:
        machine.stop.extracting = False
    # Whoever asks to stop means the whole command, even where there was nothing left to extract.
    if machine.stop.is_set():
        raise Interrupted(
            f"interrupted: the features in '{extractions[0].path}' are complete; "
            "run the same command again to go on"
        )
    return extractions


def run(experiment: Experiment, command: str, tell: Tell = lambda line: None) -> RunResult:
    """Extract what is missing, train and test, write results, model and report.

    Parameters
    ----------
    experiment : Experiment
        From `prepare`.
    command : str
        The command as the user gave it, for the record.
    tell : callable
        As in `extract_features`.

    Returns
    -------
    RunResult

    Raises
    ------
    ConfigError, DatasetError
        If the dataset or the classifier's settings do not fit the protocol; told before
        anything is computed.
    CacheError
        If the cache or the run's folder cannot be written.
    Interrupted
        If it was asked to stop.
    """
    check(experiment)
    (decided,) = decide([experiment], tell)
    return run_with(decided, command, extract_features)


def train(experiment: Experiment, command: str) -> RunResult:
    """Train and test on a cache that is there already; no image is looked at.

    Parameters
    ----------
    experiment, command
        As in `run`.

    Returns
    -------
    RunResult

    Raises
    ------
    CacheError
        If there is no such cache, or it lacks images of the dataset, or is damaged.
    DatasetError
        If too few images have features.
    """
    check(experiment)
    return run_with(experiment, command, use_cache)


def run_with(
    experiment: Experiment,
    command: str,
    get_features: Callable[[Experiment], Extraction],
    *,
    folder_name: str | None = None,
    notes: Mapping[str, Any] | None = None,
) -> RunResult:
    """Train and test on features from anywhere, write results, model and report.

    Parameters
    ----------
    experiment, command
        As in `run`; the experiment is one that `check` has passed.
    get_features : callable
        Brings the experiment's cache up to date.
    folder_name : str, optional
        Name of the run's folder, by default that of the pipeline and the time.
    notes : mapping, optional
        What else goes into ``results.json``.

    Returns
    -------
    RunResult
    """
    started = datetime.now(UTC)
    with run_folder(experiment, started, command, folder_name) as folder:
        if experiment.precision_choice:
            logger.info("precision: %(precision)s (%(reason)s)", experiment.precision_choice)
        extraction = get_features(experiment)
        _log_extraction(extraction)
        facts = _train_on(experiment, extraction, command, started)
        facts.notes = notes or {}
        results = write_run(folder, facts, _model(experiment, facts.evaluation))
        logger.info("%(metric)s: %(value)s (standard deviation %(std)s)", results["headline"])
        report = report_on(folder)
    return RunResult(folder, results, report, folder / MODEL)


def report_on(folder: Path) -> Path:
    """Write the page of a run that is complete without it, and say so where that fails."""
    from spptransfer.report import write_report

    try:
        return write_report(folder)
    except CacheError as error:
        again = f"spptransfer report {shlex.quote(str(folder))}"
        raise CacheError(
            f"{error} (the run in '{folder}' is complete but for its report; `{again}` makes it)"
        ) from error


def check(experiment: Experiment) -> None:
    """Tell before hours of extraction whatever would make them useless."""
    has_folds = any(split.folds for split in experiment.splits)
    multi_label = experiment.counted.multi_label
    check_training(_training(experiment), multi_label=multi_label, has_folds=has_folds)


def _train_on(
    experiment: Experiment, extraction: Extraction, command: str, started: datetime
) -> RunFacts:
    from spptransfer.protocols.evaluate import evaluate  # imports scikit-learn

    cache = FeatureCache.open(extraction.path)
    section = experiment.pipeline.features
    selection: dict[str, Any] = {
        "levels": experiment.levels,
        "scales": section.scales,
        "combine": section.combine,
    }
    columns = cache.columns(**selection)
    splits = splits_with_features(experiment, extraction, cache)
    begin = time.perf_counter()
    evaluation = evaluate(
        lambda ids: read_features(cache, ids, **selection),
        experiment.counted,
        splits,
        training=_training(experiment),
        normalize=experiment.pipeline.classifier.normalize,
        block_sizes=[column.stop - column.start for column in columns],
        progress=experiment.machine.progress,
    )
    return RunFacts(
        experiment=experiment,
        cache=cache,
        extraction=extraction,
        evaluation=evaluation,
        columns=columns,
        seconds={**extraction.seconds, "train": time.perf_counter() - begin},
        device=_device(experiment, extraction),
        command=command,
        started=started,
    )


def _device(experiment: Experiment, extraction: Extraction) -> str | None:
    """What the features were computed on; torch is not asked where nothing was computed."""
    if not extraction.added + extraction.changed:
        return None
    from spptransfer.extraction.compute import choose_device

    return str(choose_device(experiment.machine.device, experiment.machine.runtime))


def _log_extraction(extraction: Extraction) -> None:
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
    """The model of the first split, with the spec of just the levels and scales it needs."""
    from spptransfer.models import TransferModel

    first, section = evaluation.results[0], experiment.pipeline.features
    C = first.classifier.C
    return TransferModel(
        spec=experiment.wanted,
        weights=section.weights,
        weights_path=weights_path(experiment),
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
