"""From a feature cache to what is trained on: every image counted, whole splits, sound numbers."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spptransfer.cache import FeatureCache
from spptransfer.errors import CacheError, DatasetError
from spptransfer.experiment.prepare import Experiment
from spptransfer.extraction import Extraction
from spptransfer.protocols import Split
from spptransfer.protocols.splits import check_splits


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


def count_rows(experiment: Experiment, extraction: Extraction) -> dict[str, int]:
    """Images of the dataset by what became of them; those reused are among the ``ok``."""
    failed = len(extraction.failures)
    return {
        "ok": len(experiment.dataset) - failed,
        "failed": failed,
        "reused": extraction.reused,
    }


def splits_with_features(
    experiment: Experiment, extraction: Extraction, cache: FeatureCache
) -> list[Split]:
    """Splits without the images that have no features.

    Raises
    ------
    DatasetError
        If a split does not survive that; it says of how many images and why of the first one.
    """
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
            "rows": count_rows(experiment, extraction),
            "cache": str(extraction.path.resolve()),
        }
        raise told from error
    return splits


def _failed(experiment: Experiment, extraction: Extraction) -> str:
    id, reason = next(iter(extraction.failures.items()))
    return (
        f"{len(extraction.failures):,} of {len(experiment.dataset):,} images have no features, "
        f"as '{id}': {reason}; `spptransfer cache info {_quoted(extraction.path)}` lists all"
    )


def read_features(
    cache: FeatureCache, ids: Sequence[str], **selection: Any
) -> npt.NDArray[np.float32]:
    """Read features of images.

    Parameters
    ----------
    cache : FeatureCache
        The cache.
    ids : sequence of str
        Images that have features in it.
    **selection
        Levels, scales and what becomes of several.

    Returns
    -------
    ndarray of float32, shape (n_images, n_features)

    Raises
    ------
    CacheError
        If a number is NaN or infinite, which is never stored.
    """
    X = cache.matrix(ids, **selection)
    # One pass without a copy; no sum of float32 is too large for float64.
    if not np.isfinite(X.sum(dtype=np.float64)):
        row = next(i for i, x in enumerate(X) if not np.isfinite(x).all())
        raise CacheError(
            f"'{cache.path}' is damaged: the features of '{ids[row]}' are not finite; "
            "extract such rows anew with `spptransfer cache verify --repair --pipeline "
            f"PIPELINE.yaml {_quoted(cache.path)}`"
        )
    return X


def _quoted(path: Path) -> str:
    """Path as a shell takes it."""
    return shlex.quote(str(path))
