"""Small caches of made-up rows, shared by the tests of every room that reads caches."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spptransfer import images
from spptransfer.cache import Labels
from spptransfer.cache.layout import blocks_of
from spptransfer.cache.rows import FAILED, OK, RowTable
from spptransfer.cache.writer import CacheWriter
from spptransfer.ids import Ids
from spptransfer.spec import FeatureSpec

CHANNELS = 3


def make_spec(**changes) -> FeatureSpec:
    fields = {
        "backbone": "squeezenet1_1",
        "weights_sha256": "00",
        "layers": ("spp",),
        "levels": (4,),
        "scales": (64,),
        "preprocessing": {
            **images.description(),
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
    }
    return FeatureSpec(**(fields | changes))


def make_ids(count: int) -> list[str]:
    return [f"class {i % 3}/image {i:05d}.jpg" for i in range(count)]


def by_layer(spec: FeatureSpec, channels) -> dict[str, int]:
    return channels if isinstance(channels, dict) else dict.fromkeys(spec.layers, channels)


def make_rows(ids: list[str], spec: FeatureSpec, channels=CHANNELS, failed=(), seed=0):
    """A table of rows and their features; those at the positions `failed` have none."""
    generator = np.random.default_rng(seed)
    rows = RowTable.empty(ids)
    rows.digest[:] = [f"{seed:02x}{i:062x}".encode() for i in range(len(ids))]
    rows.height[:], rows.width[:] = 40, 60
    rows.status[:] = OK
    rows.stamp[:, 0] = np.arange(len(ids))
    features = {
        b: generator.normal(size=(len(ids), b.width)).astype(spec.storage)
        for b in blocks_of(spec, by_layer(spec, channels))
    }
    for position in failed:
        rows.status[position], rows.error[position] = FAILED, f"reason {position}"
        for values in features.values():
            values[position] = np.nan
    return rows, features


def default_labels(count: int) -> Labels:
    return Labels(("ant", "bee", "cat"), np.arange(count, dtype=np.int32) % 3)


def open_writer(path: Path, ids, spec=None, labels=None, channels=CHANNELS) -> CacheWriter:
    spec = spec or make_spec()
    about = {"spec": spec, "channels": by_layer(spec, channels), "dataset": "made up"}
    return CacheWriter(path, **about, ids=Ids(ids), labels=labels)


def make_cache(
    path: Path, count: int = 10, spec: FeatureSpec | None = None, channels=CHANNELS, **given
) -> tuple[RowTable, dict]:
    """Write a cache anew; returns what is in it. `given`: ids, failed, seed, labels."""
    spec = spec or make_spec()
    labels = given.pop("labels", "default")
    ids = given.pop("ids", None) or make_ids(count)
    rows, features = make_rows(ids, spec, channels, **given)
    write_cache(path, rows, features, spec, channels, labels)
    return rows, features


def write_cache(path, rows, features, spec, channels=CHANNELS, labels=None) -> None:
    """Write rows to a file of their own; one that is there goes."""
    path.unlink(missing_ok=True)
    labels = default_labels(len(rows)) if isinstance(labels, str) else labels
    with open_writer(path, rows.ids, spec, labels, channels) as writer:
        writer.put(np.arange(len(rows)), rows, features, "torch 2")
        writer.finish()
