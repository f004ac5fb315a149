"""Rows compared with their checksums as they are read."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from spptransfer.cache.layout import row_runs
from spptransfer.cache.reading import FeatureCache
from spptransfer.cache.rows import TABLE_BYTES, Chunk, checksums
from spptransfer.errors import CacheError


def compare_rows(
    cache: FeatureCache, positions: npt.NDArray[np.intp]
) -> tuple[Chunk, npt.NDArray[np.bool_]]:
    """Read rows with all they have, and whether each is what was written."""
    rows = cache.rows_at(positions)
    features = {block: cache.read(block, positions) for block in cache.blocks}
    recorded = cache.file.rows("rows/checksum", positions)
    right = (checksums(rows, features, cache.blocks) == recorded).all(axis=1)
    cache.file.release(sum(values.nbytes for values in features.values()))
    return Chunk(rows, features, recorded), np.asarray(right)


def read_checked(cache: FeatureCache, positions: npt.NDArray[np.intp]) -> Chunk:
    """Read rows with all they have.

    Raises
    ------
    CacheError
        If a row is not what was written.
    """
    chunk, right = compare_rows(cache, positions)
    for wrong in np.flatnonzero(~right)[:1]:
        raise CacheError(f"row '{chunk.rows.ids[wrong]}' of '{cache.path}' is not what was written")
    return chunk


def checked_runs(cache: FeatureCache, count: int) -> Iterator[slice]:
    """Cut so many rows into runs that are compared at once."""
    row_bytes = sum(block.width for block in cache.blocks) * np.dtype(cache.spec.storage).itemsize
    return row_runs(count, row_bytes + TABLE_BYTES)


def is_sound(cache: FeatureCache) -> bool:
    """Whether a file is what was written, to the last byte."""
    return cache.file.is_intact() and all(
        compare_rows(cache, np.arange(run.start, run.stop))[1].all()
        for run in checked_runs(cache, cache.count)
    )
