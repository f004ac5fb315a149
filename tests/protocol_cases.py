"""Made-up datasets for tests of protocols."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spptransfer import protocols
from spptransfer.datasets import Dataset
from spptransfer.protocols import Split


def single_label(sizes: dict[str, int], **changes) -> Dataset:
    ids = tuple(f"{name}/{k:03d}.jpg" for name, size in sizes.items() for k in range(size))
    targets = np.repeat(np.arange(len(sizes)), list(sizes.values())).astype(np.int32)
    return Dataset("folder", Path("/i"), ids, tuple(sizes), targets, **changes)


def voc2007(splits: dict[str, int]) -> Dataset:
    """Images of three classes, so many per split; trainval is train and val together."""
    rng = np.random.default_rng(0)
    official, start = {}, 0
    for name, size in splits.items():
        official[name] = tuple(f"{k:06d}" for k in range(start, start + size))
        start += size
    if {"train", "val"} <= set(official):
        official["trainval"] = official["train"] + official["val"]
    ids = tuple(f"{k:06d}" for k in range(start))
    targets = rng.choice([-1, 0, 1], p=[0.6, 0.1, 0.3], size=(start, 3)).astype(np.int8)
    return Dataset("voc2007", Path("/v"), ids, ("a", "b", "c"), targets, official_splits=official)


def beside(split: Split, fold: int) -> tuple[str, ...]:
    """What a classifier is fitted on that is validated on a fold."""
    return tuple(id for id in split.train if id not in split.folds[fold])


def make(name: str, dataset: Dataset, **given):
    protocol = protocols.get(name)
    return protocol.make_splits(dataset, protocol.settings(given))


def table(splits: dict[str, int]) -> Dataset:
    """Two classes in turn; the first images belong to the first split, and so on."""
    ids = tuple(f"{k}.jpg" for k in range(sum(splits.values())))
    official, start = {}, 0
    for name, size in splits.items():
        official[name] = ids[start : start + size]
        start += size
    targets = (np.arange(len(ids)) % 2).astype(np.int32)
    return Dataset("csv", Path("/t"), ids, ("a", "b"), targets, official_splits=official)
