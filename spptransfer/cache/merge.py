"""One cache out of several with one fingerprint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import numpy.typing as npt

from spptransfer.cache.checked import checked_runs, read_checked
from spptransfer.cache.files import behind_link, explained
from spptransfer.cache.ids import id_runs, sort_ids
from spptransfer.cache.outline import Labels
from spptransfer.cache.reading import FeatureCache
from spptransfer.cache.rows import OK, Chunk
from spptransfer.cache.unfinished import held
from spptransfer.cache.writing import write_cache
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
        If another cache is at `path` already, or somebody writes it.
    SpecMismatchError
        If the sources were made with different specs; the message names the fields.
    """
    if not sources:
        raise CacheError("merge: at least one cache is needed")
    path = behind_link(path)
    with explained(path):
        path.parent.stat()
    with held(path):
        _merge(path, sources)
    return FeatureCache.open(path)


def _merge(path: Path, sources: Sequence[Path]) -> None:
    if path.exists() and not any(source.exists() and source.samefile(path) for source in sources):
        raise CacheError(f"'{path}' is there already: name it among the caches too, or delete it")
    caches = [FeatureCache.open(source) for source in sources]
    first = caches[0]
    for cache in caches[1:]:
        if (cache.spec, cache.channels) != (first.spec, first.channels):
            differences = "; ".join(first.spec.differences(cache.spec))
            raise SpecMismatchError(
                f"'{first.path}' and '{cache.path}' have different specs: {differences}"
            )
    chosen = _choose_rows(caches, path.parent)
    write_cache(
        path,
        spec=first.spec,
        channels=first.channels,
        dataset=first.dataset,
        count=sum(int(np.count_nonzero(rows)) for rows in chosen),
        id_width=max(cache.column("id").itemsize for cache in caches),
        chunks=_copy(caches, chosen),
        labels=_labels(caches, chosen),
        computed_by=chain.from_iterable(cache.computed_by for cache in caches),
    )


def _choose_rows(caches: Sequence[FeatureCache], folder: Path) -> list[npt.NDArray[np.bool_]]:
    """Rows to take from each cache: the first with features of every id, else the first."""
    good = np.concatenate([cache.column("status") == OK for cache in caches])
    taken = np.zeros(len(good), dtype=bool)
    starts = np.cumsum([0, *(cache.count for cache in caches)])
    runs = (cache.file.rows("rows/id", run) for cache in caches for run in id_runs(cache.count))
    for id, entries in groupby(sort_ids(runs, folder), key=itemgetter(0)):
        positions = [position for _, position in entries]
        with_features = [position for position in positions if good[position]]
        taken[(with_features or positions)[0]] = True
        if len(with_features) > 1:
            _check_agreement(caches, starts, id, with_features)
    return np.split(taken, starts[1:-1])


def _check_agreement(
    caches: Sequence[FeatureCache],
    starts: npt.NDArray[np.intp],
    id: bytes,
    positions: Sequence[int],
) -> None:
    """Rows of one id that hold features must have the same checksum."""
    recorded = set()
    for position in positions:
        number = int(np.searchsorted(starts, position, side="right")) - 1
        row = position - int(starts[number])
        recorded.add(caches[number].file.rows("rows/checksum", slice(row, row + 1)).tobytes())
    if len(recorded) > 1:
        name = id.decode("utf-8", "surrogateescape")
        raise CacheError(
            f"the caches disagree about the row '{name}': extract it anew in one of them"
        )


def _copy(
    caches: Sequence[FeatureCache], chosen: Sequence[npt.NDArray[np.bool_]]
) -> Iterator[Chunk]:
    for cache, taken in zip(caches, chosen, strict=True):
        for run in checked_runs(cache, cache.count):
            if taken[run].any():
                yield read_checked(cache, run.start + np.flatnonzero(taken[run]))


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
