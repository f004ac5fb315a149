"""Rows of a cache extracted again: some to be compared, wrong ones to be replaced."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spptransfer.cache.files import behind_link
from spptransfer.cache.reading import FeatureCache
from spptransfer.cache.rows import OK
from spptransfer.cache.verify import Problem, rescue
from spptransfer.datasets import Dataset
from spptransfer.extraction.compute import FeatureComputer
from spptransfer.extraction.engine import Extraction, extract
from spptransfer.extraction.parts import PartMaker, PartSettings
from spptransfer.extraction.plan import Part
from spptransfer.extraction.progress import Clock
from spptransfer.ids import Ids

# Other batches, threads or devices may round differently; a wrong image differs far more.
TOLERANCE = {"float32": 1e-3, "float16": 1e-2}


def compare_sample(
    path: Path,
    problems: Sequence[Problem],
    dataset: Dataset,
    load_backbone: Callable[[], Any],
    *,
    sample: int = 10,
    device: str = "cpu",
    runtime: str = "torch",
) -> list[Problem]:
    """Extract some rows again, away from the cache, and compare.

    Parameters
    ----------
    path : Path
        The cache.
    problems : sequence of Problem
        What `verify` found with the dataset: such rows are passed over.
    dataset : Dataset
        The images.
    load_backbone : callable
        Returns the `Backbone`.
    sample : int, default=10
        Number of rows, the same ones every time.
    device : str, default="cpu"
        A torch device.
    runtime : {"torch", "openvino", "onnxruntime"}, default="torch"
        Who computes the network's maps.

    Returns
    -------
    list of Problem
        Empty if all is well.

    Notes
    -----
    A row extracted again must agree to 1e-3 (float16: 1e-2) of its largest number: batches,
    threads and devices round differently.
    """
    if not sample:
        return []
    cache = FeatureCache(path)
    chosen = _draw(cache, {problem.id for problem in problems}, sample)
    computer = FeatureComputer(load_backbone(), cache.spec, device, runtime=runtime, threads=1)
    settings = PartSettings(path.parent, cache.spec, cache.channels, cache.dataset)
    with PartMaker(settings, computer, Clock(), workers=1) as maker:
        part = Part(0, tuple(chosen), tuple(dataset.path(id) for id in chosen))
        rows, features = maker.compute(part)
    found = []
    for i, (id, row) in enumerate(chosen.items()):
        if rows.status[i] != OK:
            found.append(Problem(id, f"extracted again, it fails: {rows.error[i]}"))
            continue
        distance = max(
            _distance(cache.read(block, slice(row, row + 1)), features[block][i])
            for block in cache.blocks
        )
        if distance > TOLERANCE[cache.spec.storage]:
            what = f"extracted again, it differs by {distance:.2g} of its maximum"
            found.append(Problem(id, what))
    return found


def _draw(cache: FeatureCache, bad: set[str | None], count: int) -> dict[str, int]:
    """Some rows with features by id: their positions."""
    good = np.flatnonzero(cache.column("status") == OK)
    drawn = random.Random(0).sample(range(len(good)), min(count + len(bad), len(good)))
    named = zip(cache.ids_at(good[drawn]), good[drawn].tolist(), strict=True)
    return dict(sorted([(id, row) for id, row in named if id not in bad][:count]))


def _distance(stored: npt.NDArray[Any], again: npt.NDArray[Any]) -> float:
    """Largest difference, as a share of the largest number."""
    difference = np.abs(stored.astype(np.float64) - again).max()
    return float(difference / max(np.abs(stored).max(), 1e-12))


def repair(
    path: Path,
    problems: Sequence[Problem],
    dataset: Dataset,
    load_backbone: Callable[[], Any],
    **options: Any,
) -> Extraction:
    """Extract anew the rows that `verify` complained of, and write the file anew around them.

    Parameters
    ----------
    path : Path
        The cache.
    problems : sequence of Problem
        What `verify` found.
    dataset : Dataset
        The images.
    load_backbone : callable
        Returns the `Backbone`.
    **options
        Further arguments of `spptransfer.extraction.extract`, but for `redo`.

    Returns
    -------
    Extraction

    Raises
    ------
    CacheError
        If the file cannot be opened at all; it has to be deleted and made again then.
    """
    wrong = {problem.id for problem in problems}
    cache = rescue(behind_link(path), wrong)
    # By name, since what an interrupted run left may have the same rows.
    names = sorted(filter(None, wrong))
    found = Ids.of(dataset.ids).find(names) >= 0
    return extract(
        dataset,
        cache.spec,
        channels=cache.channels,
        path=path,
        load_backbone=load_backbone,
        redo=[name for name, there in zip(names, found, strict=True) if there],
        **options,
    )
