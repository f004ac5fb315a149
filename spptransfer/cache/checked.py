"""Rows compared with their checksums as they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from spptransfer.cache.layout import row_runs
from spptransfer.cache.reading import FeatureCache
from spptransfer.cache.rows import CHECKSUM_BYTES, TABLE_BYTES, Chunk, Rows, checksums
from spptransfer.errors import CacheError

# Positions of some rows, the file that has them, and where it has them.
Place = tuple[npt.NDArray[np.intp], FeatureCache, npt.NDArray[np.intp]]


def compare_rows(
    cache: FeatureCache, positions: slice | npt.NDArray[np.intp]
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


def read_together(places: Sequence[Place]) -> tuple[npt.NDArray[np.intp], Chunk]:
    """Read rows that lie in several files, at least one, in the order of their positions.

    Raises
    ------
    CacheError
        If a row is not what was written.
    """
    wanted = np.sort(np.concatenate([positions for positions, _, _ in places]))
    first = places[0][1]
    rows = Rows.empty([""] * len(wanted))
    values = {b: np.empty((len(wanted), b.width), first.spec.storage) for b in first.blocks}
    recorded = np.empty((len(wanted), CHECKSUM_BYTES), np.uint8)
    for positions, cache, at in places:
        chunk, into = read_checked(cache, at), np.searchsorted(wanted, positions)
        assert chunk.checksums is not None
        rows.put(into, chunk.rows)
        recorded[into] = chunk.checksums
        for block in first.blocks:
            values[block][into] = chunk.features[block]
    return wanted, Chunk(rows, values, recorded)


def checked_runs(cache: FeatureCache, count: int) -> Iterator[slice]:
    """Cut so many rows into runs that are compared at once."""
    row_bytes = sum(block.width for block in cache.blocks) * np.dtype(cache.spec.storage).itemsize
    return row_runs(count, row_bytes + TABLE_BYTES)


def is_sound(cache: FeatureCache) -> bool:
    """Whether a file is what was written, to the last byte."""
    return cache.file.is_intact() and all(
        compare_rows(cache, run)[1].all() for run in checked_runs(cache, cache.count)
    )
