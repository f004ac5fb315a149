"""Small caches of made-up rows, shared by the tests of every room that reads caches."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spptransfer import images
from spptransfer.cache.ids import encoded_width
from spptransfer.cache.layout import blocks_of
from spptransfer.cache.outline import Labels
from spptransfer.cache.rows import OK, Chunk, Rows
from spptransfer.cache.writing import write_cache
from spptransfer.spec import FeatureSpec

CHANNELS = 3


def make_spec(**changes) -> FeatureSpec:
    fields = {
        "backbone": "squeezenet1_1",
        "weights_sha256": "00",
        "layer": "spp",
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


def make_rows(ids: list[str], spec: FeatureSpec, channels: int = CHANNELS, failed=(), seed=0):
    """A table of rows and their features; those at the positions `failed` have none."""
    generator = np.random.default_rng(seed)
    rows = Rows.empty(ids)
    rows.digest[:] = [f"{seed:02x}{i:062x}".encode() for i in range(len(ids))]
    rows.height[:], rows.width[:] = 40, 60
    rows.status[:] = OK
    features = {
        b: generator.normal(size=(len(ids), b.width)).astype(spec.storage)
        for b in blocks_of(spec, channels)
    }
    for position in failed:
        rows.status[position], rows.error[position] = 1, f"reason {position}"
        for values in features.values():
            values[position] = np.nan
    return rows, features


def make_cache(
    path: Path, count: int = 10, spec: FeatureSpec | None = None, channels=CHANNELS, **given
) -> tuple[Rows, dict]:
    """Write a cache; returns what is in it. `given`: ids, failed, seed, labels."""
    spec = spec or make_spec()
    labels = given.pop("labels", "default")
    ids = given.pop("ids", None) or make_ids(count)
    rows, features = make_rows(ids, spec, channels, **given)
    if labels == "default":
        labels = Labels(("ant", "bee", "cat"), np.arange(len(ids), dtype=np.int32) % 3)
    write_cache(
        path,
        spec=spec,
        channels=channels,
        dataset="made up",
        count=len(ids),
        id_width=encoded_width(ids),
        chunks=in_chunks(rows, features, 4),
        labels=labels,
    )
    return rows, features


def in_chunks(rows: Rows, features: dict, step: int):
    for start in range(0, len(rows), step):
        run = slice(start, start + step)
        columns = {name: value[run] for name, value in vars(rows).items()}
        yield Chunk(Rows(**columns), {b: values[run] for b, values in features.items()})
