"""One cache out of several with one fingerprint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from spptransfer.cache.layout import row_runs
from spptransfer.cache.reading import FeatureCache
from spptransfer.cache.rows import OK, TABLE_BYTES, FeatureRows, Rows, decode
from spptransfer.cache.workspace import read_checked
from spptransfer.cache.writing import Labels, write_cache
from spptransfer.errors import CacheError, SpecMismatchError


def merge(path: Path, sources: Sequence[Path]) -> FeatureCache:
    """Bring the rows of caches or parts, made here or elsewhere, into one cache.

    Parameters
    ----------
    path : Path
        The cache to write; it may be one of the sources.
    sources : sequence of Path
        Caches or parts with one fingerprint. Rows come in the order of the sources; where an id
        has features in several, they must be equal bit for bit.

    Returns
    -------
    FeatureCache
        The merged cache. It has labels if all sources have the same classes.

    Raises
    ------
    CacheError
        If there is no source, a row is damaged, or rows of one id differ; the message names it.
    SpecMismatchError
        If the sources were made with different specs; the message names the fields.
    """
    if not sources:
        raise CacheError("merge: at least one cache is needed")
    caches = [FeatureCache.open(source) for source in sources]
    first = caches[0]
    for cache in caches[1:]:
        if (cache.spec, cache.channels) != (first.spec, first.channels):
            differences = "; ".join(first.spec.differences(cache.spec))
            raise SpecMismatchError(
                f"'{first.path}' and '{cache.path}' have different specs: {differences}"
            )
    chosen = _choose_rows(caches)
    ids = np.concatenate(
        [cache.column("id")[rows] for cache, rows in zip(caches, chosen, strict=True)]
    )
    write_cache(
        path,
        spec=first.spec,
        channels=first.channels,
        dataset=first.dataset,
        ids=ids,
        chunks=_copy(caches, chosen),
        labels=_labels(caches, chosen),
    )
    return FeatureCache.open(path)


def _choose_rows(caches: Sequence[FeatureCache]) -> list[npt.NDArray[np.intp]]:
    """Rows to take from each cache: the first with features of every id, else the first."""
    ids = np.concatenate([cache.column("id") for cache in caches])
    good = np.concatenate([cache.column("status") == OK for cache in caches])
    order = np.lexsort((np.arange(len(ids)), ~good, ids))
    first = np.ones(len(ids), dtype=bool)
    first[1:] = ids[order][1:] != ids[order][:-1]
    _check_agreement(caches, ids[order], good[order], order, first)
    taken = np.zeros(len(ids), dtype=bool)
    taken[order[first]] = True
    return [
        np.flatnonzero(part)
        for part in np.split(taken, np.cumsum([cache.count for cache in caches])[:-1])
    ]


def _check_agreement(
    caches: Sequence[FeatureCache],
    ids: npt.NDArray[np.bytes_],
    good: npt.NDArray[np.bool_],
    order: npt.NDArray[np.intp],
    first: npt.NDArray[np.bool_],
) -> None:
    """Rows of one id that hold features must have the same checksum."""
    sums = np.concatenate([cache.column("checksum") for cache in caches])[order]
    again = np.flatnonzero(~first & good)
    differing = again[(sums[again] != sums[again - 1]).any(axis=1)]
    for position in differing[:1]:
        (id,) = decode(ids[position : position + 1])
        raise CacheError(
            f"the caches disagree about the row '{id}': extract it anew in one of them"
        )


def _copy(
    caches: Sequence[FeatureCache], chosen: Sequence[npt.NDArray[np.intp]]
) -> Iterator[tuple[Rows, FeatureRows]]:
    for cache, rows in zip(caches, chosen, strict=True):
        for run in row_runs(
            len(rows), 4 * sum(block.width for block in cache.blocks) + TABLE_BYTES
        ):
            yield read_checked(cache, rows[run])


def _labels(
    caches: Sequence[FeatureCache], chosen: Sequence[npt.NDArray[np.intp]]
) -> Labels | None:
    targets = [cache.targets for cache in caches]
    if any(cache.classes != caches[0].classes for cache in caches):
        return None
    parts = [t[rows] for t, rows in zip(targets, chosen, strict=True) if t is not None]
    return Labels(caches[0].classes, np.concatenate(parts)) if len(parts) == len(caches) else None
