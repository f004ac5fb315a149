"""Caches that are written row by row where the rows will stay, for the tests of that."""

from __future__ import annotations

import numpy as np
from cache_files import CHANNELS, make_cache, make_ids, make_rows, make_spec

from spptransfer.cache import FeatureCache
from spptransfer.cache.rows import Chunk
from spptransfer.cache.unfinished import (
    parts_folder,
)
from spptransfer.cache.verify import verify
from spptransfer.cache.workspace import Workspace

SPEC = make_spec()
IDS = make_ids(12)
ROWS, FEATURES = make_rows(IDS, SPEC)
BLOCK = next(iter(FEATURES))
TORCH = ["torch 2"]


def workspace(path, spec=SPEC, ids=IDS):
    return Workspace(path, spec=spec, channels=CHANNELS, dataset="made up", ids=ids)


def chunk(positions, seed=0, failed=()):
    rows, features = make_rows(IDS, SPEC, seed=seed, failed=failed)
    positions = np.array(positions, dtype=np.intp)
    return Chunk(rows.take(positions), {b: values[positions] for b, values in features.items()})


def put(space, positions, computed_by=TORCH, **given):
    written = space.put(np.array(positions, np.intp), chunk(positions, **given), computed_by)
    space.adopt(written)


def begin(path, positions, **given):
    with workspace(path) as space:
        put(space, positions, **given)


def go_on(path, positions=()):
    """What is known; then the rest is put, and the file finished."""
    with workspace(path) as space:
        known = np.flatnonzero(space.known).tolist()
        for position in sorted({*range(12), *positions} - set(known)):
            put(space, [position])
        space.finish(None)
    return known


def finished_at_once(path):
    make_cache(path, 12, SPEC, labels=None)
    return FeatureCache.open(path).matrix()


def assert_finished(path):
    np.testing.assert_array_equal(
        FeatureCache.open(path).matrix(), finished_at_once(path.with_name("at once.h5"))
    )
    assert FeatureCache.open(path).ids == IDS
    assert verify(path) == []
    assert not parts_folder(path).exists()
