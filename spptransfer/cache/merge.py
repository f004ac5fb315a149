"""One cache out of several with one fingerprint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from spptransfer.cache.layout import Labels, Layout
from spptransfer.cache.partial import PartialFile
from spptransfer.cache.reading import FeatureCache
from spptransfer.cache.rows import OK
from spptransfer.cache.writer import writer_lock
from spptransfer.errors import CacheError, SpecMismatchError
from spptransfer.files import (
    atomic_write,
    os_errors_as_cache_error,
    remove_leftovers,
    resolve_symlink,
)
from spptransfer.ids import Ids


def merge(path: Path, sources: Sequence[Path]) -> FeatureCache:
    """Merge the rows of several caches, made here or elsewhere, into one.

    Parameters
    ----------
    path : Path
        The cache to write; it may be one of the sources.
    sources : sequence of Path
        Caches with one fingerprint. Rows come in the order of the sources; where an id has
        features in several, they must be equal bit for bit.

    Returns
    -------
    FeatureCache
        The merged cache. It has labels if all sources have the same classes.

    Raises
    ------
    CacheError
        If there is no source, a row is damaged, or rows of one id differ; the message names it.
        If another cache is at `path` already, or somebody writes it.
    SpecMismatchError
        If the sources were made with different specs; the message names the fields.
    """
    if not sources:
        raise CacheError("merge: at least one cache is needed")
    path = resolve_symlink(path)
    with os_errors_as_cache_error(path):
        path.parent.stat()
    with writer_lock(path):
        remove_leftovers(path.parent)
        if path.exists() and not any(s.exists() and s.samefile(path) for s in sources):
            raise CacheError(
                f"'{path}' is there already: name it among the caches too, or delete it"
            )
        caches = [FeatureCache.open(source) for source in sources]
        try:
            _merge(path, caches)
        finally:
            for cache in caches:
                cache.close()
    return FeatureCache.open(path)


def _merge(path: Path, caches: Sequence[FeatureCache]) -> None:
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
    labels = _labels(caches, chosen)
    layout = Layout(first.spec, first.channels, first.dataset, Ids.from_encoded(ids), labels)
    with atomic_write(path, layout.needed) as temporary:
        layout.create(temporary)
        merged, start = PartialFile(temporary, writable=True), 0
        try:
            for cache, rows in _runs(caches, chosen):
                table, features, recorded = cache.checked(rows)
                positions = np.arange(start, start + len(rows))
                merged.put(positions, table, features, known=recorded, durable=False)
                start += len(rows)
            merged.finish({name for cache in caches for name in cache.computed_by})
        finally:
            merged.close()
        for cache in caches:  # Windows replaces no file that is open
            cache.close()


def _choose_rows(caches: Sequence[FeatureCache]) -> list[npt.NDArray[np.bool_]]:
    """Choose rows of each cache: the first with features of every id, else the first."""
    good = np.concatenate([cache.column("status") == OK for cache in caches])
    ids = np.concatenate([cache.column("id") for cache in caches])
    # Equal ids side by side, those with features first and otherwise in the order of the sources.
    order = np.lexsort((~good, ids))
    again = np.flatnonzero(ids[order[1:]] == ids[order[:-1]]) + 1
    taken = np.ones(len(good), dtype=bool)
    taken[order[again]] = False
    starts = np.cumsum([0, *(cache.count for cache in caches)])
    for one, other in zip(order[again - 1], order[again], strict=True):
        if good[other] and _checksum(caches, starts, one) != _checksum(caches, starts, other):
            name = ids[one].decode("utf-8", "surrogateescape")
            raise CacheError(
                f"the caches disagree about the row '{name}': extract it anew in one of them"
            )
    return np.split(taken, starts[1:-1])


def _checksum(caches: Sequence[FeatureCache], starts: npt.NDArray[np.intp], row: int) -> bytes:
    number = int(np.searchsorted(starts, row, side="right")) - 1
    return caches[number].column("checksum")[row - int(starts[number])].tobytes()


def _runs(
    caches: Sequence[FeatureCache], chosen: Sequence[npt.NDArray[np.bool_]]
) -> Iterator[tuple[FeatureCache, npt.NDArray[np.intp]]]:
    for cache, taken in zip(caches, chosen, strict=True):
        for run in cache.checked_runs(cache.count):
            rows = run.start + np.flatnonzero(taken[run])
            if len(rows):
                yield cache, rows


def _labels(
    caches: Sequence[FeatureCache], chosen: Sequence[npt.NDArray[np.bool_]]
) -> Labels | None:
    targets = [cache.targets for cache in caches]
    if any(cache.classes != caches[0].classes for cache in caches):
        return None
    if len({t.ndim for t in targets if t is not None}) > 1:  # one class an image, and several
        return None
    parts = [t[rows] for t, rows in zip(targets, chosen, strict=True) if t is not None]
    return Labels(caches[0].classes, np.concatenate(parts)) if len(parts) == len(caches) else None
