"""Rows of a cache extracted again: some to be compared, wrong ones to be replaced."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spptransfer.backbones import Backbone, BackboneRef
from spptransfer.cache.reading import FeatureCache
from spptransfer.cache.rows import OK
from spptransfer.cache.verify import Problem
from spptransfer.datasets import Dataset
from spptransfer.extraction.engine import Extraction, extract
from spptransfer.ids import Ids
from spptransfer.runtimes import ComputeOptions

# Other batches, runtimes or devices may round differently; a wrong image differs far more.
TOLERANCE = {"float32": 1e-3, "float16": 1e-2}


def compare_sample(
    path: Path,
    problems: Sequence[Problem],
    dataset: Dataset,
    backbone: Backbone | BackboneRef,
    options: ComputeOptions,
    *,
    sample: int = 10,
) -> list[Problem]:
    """Extract some rows again, away from the cache, and compare."""
    if not sample:
        return []
    from spptransfer.extraction.extractor import Extractor

    cache = FeatureCache.open(path)
    chosen = _draw(cache, {problem.id for problem in problems}, sample)
    if not chosen:
        return []
    with Extractor([cache.spec], backbone, options) as extractor:
        (rows,) = extractor.compute([dataset.path(id) for id in chosen], list(chosen))
    found = []
    for i, (id, row) in enumerate(chosen.items()):
        if rows.table.status[i] != OK:
            found.append(Problem(id, f"extracted again, it fails: {rows.table.error[i]}"))
            continue
        distance = max(
            _distance(cache.read(block, slice(row, row + 1)), rows.features[block][i])
            for block in cache.blocks
        )
        if distance > TOLERANCE[cache.spec.storage]:
            what = f"extracted again, it differs by {distance:.2g} of its maximum"
            found.append(Problem(id, what))
    return found


def _draw(cache: FeatureCache, bad: set[str | None], count: int) -> dict[str, int]:
    """Draw rows with features; returns their positions by id."""
    good = np.flatnonzero(cache.column("rows/status") == OK)
    drawn = random.Random(0).sample(range(len(good)), min(count + len(bad), len(good)))
    named = zip(cache.ids_at(good[drawn]), good[drawn].tolist(), strict=True)
    return dict(sorted([(id, row) for id, row in named if id not in bad][:count]))


def _distance(stored: npt.NDArray[Any], again: npt.NDArray[Any]) -> float:
    """Return the largest difference, as a share of the largest number."""
    difference = np.abs(stored.astype(np.float64) - again).max()
    return float(difference / max(np.abs(stored).max(), 1e-12))


def repair(
    path: Path,
    problems: Sequence[Problem],
    dataset: Dataset,
    backbone: Backbone | BackboneRef,
    options: ComputeOptions,
    *,
    progress: bool = False,
) -> Extraction:
    """Extract anew the rows that `verify` complained of, and write the file anew around them."""
    spec = FeatureCache.open(path).spec
    names = sorted({problem.id for problem in problems if problem.id is not None})
    there = Ids.of(dataset.ids).find(names) >= 0
    # One row is made anew at least: then the whole file is, with the bytes that are no row's.
    redo = [name for name, is_there in zip(names, there, strict=True) if is_there]
    redo = redo or list(dataset.ids[:1])
    return extract(dataset, spec, path, backbone, options, progress=progress, redo=redo)
