"""Features of experiments are extracted or read; on them classifiers are trained and tested."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spptransfer.backbones import BackboneInfo
from spptransfer.cache import FeatureCache
from spptransfer.cache.layout import blocks_of
from spptransfer.errors import CacheError, ConfigError, DatasetError
from spptransfer.experiment.preparation import Experiment, pass_key, resolve_precision, steps
from spptransfer.experiment.results import (
    RunFacts,
    RunResult,
    count_rows,
    describe_same_images,
    learning_curve,
    run_folder,
    write_report_of,
    write_run,
)
from spptransfer.extraction import (
    Extraction,
    Interrupted,
    extract,
    extract_shards,
    shard_of,
    shard_path,
)
from spptransfer.files import make_folder
from spptransfer.protocols import Split, all_images, check_splits
from spptransfer.protocols.splits import sizes_of
from spptransfer.protocols.training import Training, check_training
from spptransfer.runtimes import FEW_IMAGES
from spptransfer.scheduler import check_scheduler
from spptransfer.spec import FeatureSpec, layers_of
from spptransfer.text import plural

logger = logging.getLogger(__name__)

DEFAULT_C = (0.01, 0.1, 1.0, 10.0)


@dataclass(frozen=True)
class Shards:
    """How the images of an extraction are divided."""

    count: int
    index: int | None = None
    scheduler: str | None = None


# ---- features ----


def extract_features(
    experiments: Sequence[Experiment], shards: Shards | None = None
) -> list[Extraction]:
    """Bring the caches of experiments up to date; those of one network share a pass."""
    for each in experiments:
        if each.pipeline.detection is not None:
            raise ConfigError("a detector keeps no features; use `spptransfer run`")
        if shards is not None:
            shard_of(each.dataset, shards.index or 1, shards.count)  # says if there are too many
    if shards is not None and shards.scheduler is not None:
        check_scheduler(shards.scheduler, "--scheduler")
    passes: dict[str, dict[Path, Experiment]] = {}
    for each in resolve_precision(experiments):
        path, spec = each.cache
        passes.setdefault(pass_key(each, spec), {}).setdefault(path, each)
    done: list[Extraction] = []
    for together in passes.values():
        done += _extract_together(list(together.values()), shards)
    return done


def _extract_together(experiments: Sequence[Experiment], shards: Shards | None) -> list[Extraction]:
    """Fill several caches from one pass over the images."""
    first = experiments[0]
    machine, dataset = first.machine, first.dataset
    paths, specs = map(list, zip(*[each.cache for each in experiments], strict=True))
    given: dict[str, Any] = {"progress": machine.progress, "stop": machine.stop}
    make: Any = extract
    if shards is not None and shards.index is None:
        make = extract_shards
        given |= {"shards": shards.count, "scheduler": shards.scheduler}
    elif shards is not None and shards.index is not None:
        dataset = shard_of(dataset, shards.index, shards.count)
        paths = [shard_path(path, shards.index, shards.count) for path in paths]
    # A cache that is there must not become one of failed rows because a disk is not mounted.
    dataset.check_images()
    if len(experiments) > 1:
        steps.info("%s", _describe_pass(experiments))
    new = [spec for spec, path in zip(specs, paths, strict=True) if not path.exists()]
    if new:
        steps.info("%s", _forecast(len(dataset), new, first.backbone.info))
    make_folder(machine.cache_dir)
    machine.stop.extracting = True
    try:
        done = list(make(dataset, specs, paths, first.backbone, machine.compute, **given))
    finally:
        machine.stop.extracting = False
    # Whoever asks to stop means the whole command, even where there was nothing left to extract.
    if machine.stop.is_set():
        raise Interrupted(
            f"interrupted: the features in '{done[0].path}' are complete; "
            "run the same command again to go on"
        )
    if done[0].computed_by:
        where = f" on {done[0].device}" if done[0].device else ""
        few = f" (fewer than {FEW_IMAGES} images: other runtimes start too slowly)"
        steps.info(
            "computed by: %s%s%s", done[0].computed_by, where, few if done[0].few_images else ""
        )
    if shards is not None and shards.index is not None:
        _tell_how_to_merge(experiments, shards)
    return done


def _forecast(images: int, specs: Sequence[FeatureSpec], info: BackboneInfo) -> str:
    """Say how large the caches of some specs are going to be."""
    size = 0
    for spec in specs:
        numbers = sum([block.width for block in blocks_of(spec, info.channels_of(spec.layers))])
        width = np.dtype(spec.storage).itemsize
        size += images * numbers * width
    shown = f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
    if len(specs) > 1:
        return f"{plural(len(specs), 'cache')} to make: {plural(images, 'image')}, {shown}"
    times = f"{plural(images, 'image')} x {numbers:,} numbers x {width} bytes"
    return f"cache to make: {times} = {shown}"


def _tell_how_to_merge(experiments: Sequence[Experiment], shards: Shards) -> None:
    for path in (each.cache[0] for each in experiments):
        parts = [shard_path(path, number + 1, shards.count) for number in range(shards.count)]
        merge = shlex.join(["spptransfer", "cache", "merge", str(path), *map(str, parts)])
        steps.info("shard %d of %d; once all are there: %s", shards.index, shards.count, merge)


def _describe_pass(experiments: Sequence[Experiment]) -> str:
    layers = layers_of([each.wanted for each in experiments])
    views = {f"{e.wanted.view} {scale}" for e in experiments for scale in e.cache[1].scales}
    return (
        f"one pass of {experiments[0].wanted.backbone} for {', '.join(layers)} at "
        f"{', '.join(sorted(views))}: {plural(len(experiments), 'cache')}"
    )


def use_cache(experiment: Experiment) -> Extraction:
    """Take the experiment's cache as it is; it must hold all images."""
    path, spec = experiment.cache
    if not path.exists():
        raise CacheError(f"there is no cache '{path}' yet; make it with `spptransfer extract`")
    cache = FeatureCache.open(path, spec)
    # It may hold images, failed ones too, that the dataset has no more.
    ids, known, failures = experiment.dataset.ids, set(cache.ids), dict(cache.failures)
    failures = {id: failures[id] for id in ids if id in failures}
    ok = sum(id in known for id in ids)
    if ok + len(failures) < len(ids):
        raise CacheError(
            f"'{path}' lacks {len(ids) - ok - len(failures):,} of the dataset's {len(ids):,} "
            "images; bring it up to date with `spptransfer extract`"
        )
    return Extraction(path, unchanged=len(ids), reused=ok, failures=failures)


def splits_with_features(
    experiment: Experiment, extraction: Extraction, cache: FeatureCache
) -> list[Split]:
    """Return the splits without the images that have no features."""
    known = set(cache.ids)

    def keep(ids: Sequence[str]) -> tuple[str, ...]:
        return tuple(filter(known.__contains__, ids))

    splits = []
    try:
        for split in experiment.splits:
            folds, own = tuple(map(keep, split.folds)), tuple(map(keep, split.class_train))
            train, test = keep(split.train), keep(split.test)
            splits.append(replace(split, train=train, test=test, folds=folds, class_train=own))
        check_splits(splits, experiment.counted)
    except DatasetError as error:
        if not extraction.failures:
            raise
        total, (id, reason) = len(experiment.dataset), next(iter(extraction.failures.items()))
        told = DatasetError(
            f"{error} ({len(extraction.failures):,} of {total:,} images have no features, as "
            f"'{id}': {reason}; `spptransfer cache info {shlex.quote(str(extraction.path))}` "
            "lists all)"
        )
        rows = count_rows(total, len(extraction.failures), extraction.reused)
        told.facts = {"rows": rows, "cache": str(extraction.path.resolve())}
        raise told from error
    return splits


def read_features(
    cache: FeatureCache, ids: Sequence[str], **selection: Any
) -> npt.NDArray[np.float32]:
    """Read the features of images, shape (n_images, n_features), and refuse damaged ones."""
    X: npt.NDArray[np.float32] = cache.matrix(ids, **selection)
    # One pass without a copy; no sum of float32 is too large for float64.
    if not np.isfinite(X.sum(dtype=np.float64)):
        row = next(i for i, x in enumerate(X) if not np.isfinite(x).all())
        raise CacheError(
            f"'{cache.path}' is damaged: the features of '{ids[row]}' are not finite; "
            "extract such rows anew with `spptransfer cache verify --repair --pipeline "
            f"PIPELINE {shlex.quote(str(cache.path))}`"
        )
    return X


# ---- training and testing ----


def run(experiment: Experiment, command: str, *, from_cache: bool = False) -> RunResult:
    """Extract what is missing, train and test, write results, model and report."""
    if experiment.pipeline.detection is not None:
        from spptransfer.experiment.detection import run_detection  # imports torch

        if from_cache:
            raise ConfigError(
                "a detector keeps no features to be trained from; use `spptransfer run`"
            )
        return run_detection(experiment, command)
    check(experiment)
    if not from_cache:
        (experiment,) = resolve_precision([experiment])
    started = datetime.now(UTC)
    with run_folder(experiment, started, command) as folder:
        begin = time.perf_counter()
        extraction = use_cache(experiment) if from_cache else extract_features([experiment])[0]
        # What is left of the extraction: importing torch, opening the network, comparing lists.
        loading = time.perf_counter() - begin - sum(extraction.seconds.values())
        done = finish_run(folder, experiment, extraction, command, started, loading=loading)
        if told := describe_same_images(done.results):
            logger.warning("%s", told)
        return done


def check(experiment: Experiment) -> Training:
    """Tell before hours of extraction whatever would make them useless; return the settings."""
    if experiment.pipeline.detection is not None:
        raise ConfigError("detection: a table has no detectors; run one pipeline for each")
    section, protocol = experiment.pipeline.classifier, experiment.protocol
    has_folds = any(split.n_folds for split in experiment.splits)
    multi_label = experiment.counted.multi_label
    training = Training(
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
    check_training(training, multi_label=multi_label, has_folds=has_folds)
    return training


def finish_run(
    folder: Path,
    experiment: Experiment,
    extraction: Extraction,
    command: str,
    started: datetime,
    notes: Mapping[str, Any] | None = None,
    *,
    loading: float = 0.0,
) -> RunResult:
    """Train and test on features that are there, and fill the run's folder."""
    begin = time.perf_counter()
    from spptransfer.protocols.evaluate import evaluate  # imports scikit-learn, which takes seconds

    loading = max(0.0, loading) + time.perf_counter() - begin
    _log_features(experiment, extraction)
    cache, selection = FeatureCache.open(extraction.path), experiment.selection
    known, dataset = set(cache.ids), experiment.counted
    labelled = dataset.subset(i for i, id in enumerate(dataset.ids) if id in known)
    begin = time.perf_counter()
    splits = splits_with_features(experiment, extraction, cache)
    of_largest = len(splits) // max(1, len(sizes_of(experiment.settings)))
    evaluation = evaluate(
        lambda ids: read_features(cache, ids, **selection),
        experiment.counted,
        splits,
        training=check(experiment),
        normalize=experiment.pipeline.classifier.normalize or (),
        block_sizes=[column.stop - column.start for column in cache.columns(**selection)],
        for_use=all_images(labelled, experiment.settings),
        uncalibrated=len(splits) - of_largest,
        progress=experiment.machine.progress,
    )
    seconds = {"load": loading, **extraction.seconds, "train": time.perf_counter() - begin}
    evaluation, curve = learning_curve(evaluation, experiment.settings, experiment.counted.classes)
    facts = RunFacts(experiment, cache, extraction, evaluation, seconds, command, started)
    results = write_run(folder, facts, {**(notes or {}), **curve})
    for caution in results["cautions"]:
        logger.warning("%s", caution)
    logger.info("%(metric)s: %(value)s (standard deviation %(std)s)", results["headline"])
    write_report_of(folder)
    return RunResult(folder, results)


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
