"""Extract, train, and write a run folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from spptransfer import backbones
from spptransfer.cache import Column, FeatureCache
from spptransfer.errors import CacheError, DatasetError
from spptransfer.experiment.prepare import Experiment, weights_path
from spptransfer.experiment.results import RunFacts, describe_run, write_run
from spptransfer.extraction import Extraction, extract
from spptransfer.models import TransferModel
from spptransfer.protocols import Split
from spptransfer.protocols.evaluate import Evaluation, evaluate
from spptransfer.protocols.splits import check_splits
from spptransfer.protocols.training import Training

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


def extract_features(experiment: Experiment) -> Extraction:
    """Bring the experiment's cache up to date.

    Parameters
    ----------
    experiment : Experiment
        From `prepare`.

    Returns
    -------
    Extraction
        What was added, changed, removed or failed.
    """
    path, spec = experiment.cache
    section, machine = experiment.pipeline.features, experiment.machine
    machine.stop.extracting = True
    try:
        return extract(
            experiment.dataset,
            spec,
            channels=experiment.channels,
            path=path,
            load_backbone=partial(
                backbones.load,
                section.backbone,
                section.weights,
                layer=section.layer,
                weights_dir=machine.weights_dir,
                memo_dir=machine.cache_dir,
            ),
            device=machine.device,
            jobs=machine.jobs,
            progress=machine.progress,
            stop=machine.stop,
        )
    finally:
        machine.stop.extracting = False


def run(experiment: Experiment, command: str) -> RunResult:
    """Extract what is missing, train and test, write results, model and report.

    Parameters
    ----------
    experiment : Experiment
        From `prepare`.
    command : str
        The command as the user gave it, for the record.

    Returns
    -------
    RunResult
    """
    started = datetime.now(UTC)
    _ = experiment.splits  # a protocol that cannot be met is told before hours of extraction
    extraction = extract_features(experiment)
    return _train_on(experiment, extraction, command, started)


def train(experiment: Experiment, command: str) -> RunResult:
    """Train and test on a cache that is there already; no image is looked at.

    Raises
    ------
    CacheError
        If there is no such cache.
    """
    started = datetime.now(UTC)
    _ = experiment.splits
    path, spec = experiment.cache
    if not path.exists():
        raise CacheError(f"there is no cache '{path}' yet; make it with `spptransfer extract`")
    cache = FeatureCache.open(path, spec)
    known = set(cache.ids) | set(cache.failures)
    missing = sum(id not in known for id in experiment.dataset.ids)
    if missing:
        raise CacheError(
            f"'{path}' lacks {missing} images of the dataset; bring it up to date with "
            "`spptransfer extract`"
        )
    unchanged = Extraction(path, unchanged=len(cache), failures=dict(cache.failures))
    return _train_on(experiment, unchanged, command, started)


def _train_on(
    experiment: Experiment, extraction: Extraction, command: str, started: datetime
) -> RunResult:
    cache = FeatureCache.open(extraction.path)
    section = experiment.pipeline.features
    selection: dict[str, Any] = {
        "levels": experiment.levels,
        "scales": section.scales,
        "combine": section.combine,
    }
    columns = cache.columns(**selection)
    splits = _readable(experiment, cache)
    begin = time.perf_counter()
    evaluation = evaluate(
        lambda ids: cache.matrix(ids, **selection),
        experiment.counted,
        splits,
        training=_training(experiment),
        normalize=experiment.pipeline.classifier.normalize,
        block_sizes=[column.stop - column.start for column in columns],
        progress=experiment.machine.progress,
    )
    seconds = {**extraction.seconds, "train": time.perf_counter() - begin}
    facts = RunFacts(experiment, cache, extraction, evaluation, columns, seconds, command, started)
    model = _model(experiment, evaluation, columns)
    return _write(facts, model)


def _write(facts: RunFacts, model: TransferModel) -> RunResult:
    from spptransfer.report import write_report

    folder = write_run(facts, model)
    results = describe_run(facts)
    report = write_report(folder)
    return RunResult(folder, results, report, folder / "model.safetensors")


def _readable(experiment: Experiment, cache: FeatureCache) -> list[Split]:
    """Splits without the images that have no features; a split must survive that."""
    known = set(cache.ids)

    def keep(ids: Sequence[str]) -> tuple[str, ...]:
        return tuple(id for id in ids if id in known)

    splits = [
        replace(
            split,
            train=keep(split.train),
            test=keep(split.test),
            folds=tuple(keep(fold) for fold in split.folds),
        )
        for split in experiment.splits
    ]
    try:
        check_splits(splits, experiment.counted)
    except DatasetError as error:
        failed = len(cache.failures)
        raise DatasetError(f"{error} ({failed} images could not be read)") from error
    return splits


def _training(experiment: Experiment) -> Training:
    section, protocol = experiment.pipeline.classifier, experiment.protocol
    multi_label = experiment.counted.multi_label
    return Training(
        C=section.C or protocol.C or DEFAULT_C,
        loss=section.loss,
        class_weight=section.class_weight or (protocol.class_weight if multi_label else None),
        solver=section.solver,
        chosen_by=protocol.choose_C_by(multi_label),
        per_class=experiment.settings["choose_C"] == "per class",
        difficult=protocol.difficult_in_training,
    )


def _model(
    experiment: Experiment, evaluation: Evaluation, columns: Sequence[Column]
) -> TransferModel:
    """The model of the first split, with the spec of just the levels and scales it needs."""
    first, section = evaluation.results[0], experiment.pipeline.features
    C = first.classifier.C
    return TransferModel(
        spec=experiment.wanted,
        weights=weights_path(experiment),
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
