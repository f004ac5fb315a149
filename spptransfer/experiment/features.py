"""Features of experiments: extracted, or read from a cache that is there."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spptransfer.cache import FeatureCache
from spptransfer.datasets import Dataset
from spptransfer.errors import CacheError, ConfigError, DatasetError
from spptransfer.experiment.preparation import Experiment, pass_key, resolve_precision, steps
from spptransfer.extraction import (
    Extraction,
    Interrupted,
    extract,
    extract_shards,
    shard_of,
    shard_path,
)
from spptransfer.files import make_folder
from spptransfer.protocols import Split, check_splits
from spptransfer.text import plural


@dataclass(frozen=True)
class Shards:
    """How the images of an extraction are divided."""

    count: int
    index: int | None = None
    scheduler: str | None = None


def extract_features(
    experiments: Sequence[Experiment], shards: Shards | None = None
) -> list[Extraction]:
    """Bring the caches of experiments up to date; those of one network share a pass."""
    for each in experiments:
        _check_shards(each.dataset, shards)
    groups: dict[str, dict[Path, Experiment]] = {}
    for each in resolve_precision(experiments):
        path, spec = each.cache
        groups.setdefault(pass_key(each, spec), {}).setdefault(path, each)
    return [
        extraction
        for group in groups.values()
        for extraction in _extract_together(list(group.values()), shards)
    ]


def _extract_together(experiments: Sequence[Experiment], shards: Shards | None) -> list[Extraction]:
    """Fill several caches from one pass over the images."""
    first = experiments[0]
    machine, dataset = first.machine, first.dataset
    paths, specs = (list(column) for column in zip(*(e.cache for e in experiments), strict=True))
    given: dict[str, Any] = {"progress": machine.progress, "stop": machine.stop}
    make: Any = extract
    if shards is not None and shards.index is None:
        make, given = (
            extract_shards,
            {**given, "shards": shards.count, "scheduler": shards.scheduler},
        )
    elif shards is not None and shards.index is not None:
        dataset = shard_of(dataset, shards.index, shards.count)
        paths = [shard_path(path, shards.index, shards.count) for path in paths]
    # A cache that is there must not become one of failed rows because a disk is not mounted.
    dataset.check_images()
    if len(experiments) > 1:
        steps.info("%s", _describe_pass(experiments))
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
    _tell(experiments, shards, done)
    return done


def _check_shards(dataset: Dataset, shards: Shards | None) -> None:
    if shards is not None and shards.count > len(dataset):
        raise ConfigError(
            f"shards: {shards.count:,} are more than the {plural(len(dataset), 'image')}; "
            f"allowed: 1 to {len(dataset)}"
        )


def _tell(
    experiments: Sequence[Experiment], shards: Shards | None, done: Sequence[Extraction]
) -> None:
    """Say what computed, and what is to be done with a single shard."""
    if done[0].computed_by:
        where = f" on {done[0].device}" if done[0].device else ""
        steps.info("computed by: %s%s", done[0].computed_by, where)
    if shards is None or shards.index is None:
        return
    for path in (each.cache[0] for each in experiments):
        parts = [shard_path(path, number + 1, shards.count) for number in range(shards.count)]
        merge = shlex.join(["spptransfer", "cache", "merge", str(path), *map(str, parts)])
        steps.info("shard %d of %d; once all are there: %s", shards.index, shards.count, merge)


def _describe_pass(experiments: Sequence[Experiment]) -> str:
    layers = dict.fromkeys(each.wanted.layer for each in experiments)
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
    total, known, failures = len(experiment.dataset), set(cache.ids), dict(cache.failures)
    failures = {id: failures[id] for id in experiment.dataset.ids if id in failures}
    ok = sum(id in known for id in experiment.dataset.ids)
    if ok + len(failures) < total:
        raise CacheError(
            f"'{path}' lacks {total - ok - len(failures):,} of the dataset's {total:,} images; "
            "bring it up to date with `spptransfer extract`"
        )
    return Extraction(path, unchanged=total, reused=ok, failures=failures)


def count_rows(total: int, extraction: Extraction) -> dict[str, int]:
    """Count images by what became of them; those reused are among the ``ok``."""
    failed = len(extraction.failures)
    return {"ok": total - failed, "failed": failed, "reused": extraction.reused}


def splits_with_features(
    experiment: Experiment, extraction: Extraction, cache: FeatureCache
) -> list[Split]:
    """Return the splits without the images that have no features."""
    known = set(cache.ids)

    def keep(ids: Sequence[str]) -> tuple[str, ...]:
        return tuple(id for id in ids if id in known)

    try:
        splits = [
            replace(
                split,
                train=keep(split.train),
                test=keep(split.test),
                folds=tuple(keep(fold) for fold in split.folds),
            )
            for split in experiment.splits
        ]
        check_splits(splits, experiment.counted)
    except DatasetError as error:
        if not extraction.failures:
            raise
        told = DatasetError(f"{error} ({_failed(experiment, extraction)})")
        told.facts = {
            "rows": count_rows(len(experiment.dataset), extraction),
            "cache": str(extraction.path.resolve()),
        }
        raise told from error
    return splits


def _failed(experiment: Experiment, extraction: Extraction) -> str:
    id, reason = next(iter(extraction.failures.items()))
    return (
        f"{len(extraction.failures):,} of {len(experiment.dataset):,} images have no features, "
        f"as '{id}': {reason}; `spptransfer cache info {shlex.quote(str(extraction.path))}` "
        "lists all"
    )


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
            f"PIPELINE.yaml {shlex.quote(str(cache.path))}`"
        )
    return X
