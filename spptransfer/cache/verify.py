"""Finding out whether a cache is what it claims to be, row by row."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import numpy.typing as npt

from spptransfer import images
from spptransfer.cache.checked import checked_runs, compare_rows
from spptransfer.cache.ids import id_runs, sort_ids
from spptransfer.cache.layout import row_runs
from spptransfer.cache.outline import extents_of
from spptransfer.cache.reading import FeatureCache
from spptransfer.cache.rows import FAILED, OK, TABLE_BYTES, FeatureRows, Rows
from spptransfer.cache.unfinished import held, write_part
from spptransfer.errors import ImageError
from spptransfer.ids import Ids

if TYPE_CHECKING:
    from spptransfer.datasets import Dataset


@dataclass(frozen=True)
class Problem:
    """What is wrong with a row, or with the file where `id` is None.

    Examples
    --------
    >>> print(Problem("cat/1.jpg", "the image has changed since"))
    cat/1.jpg: the image has changed since
    """

    id: str | None
    what: str

    def __str__(self) -> str:
        return self.what if self.id is None else f"{self.id}: {self.what}"


def verify(path: Path, dataset: Dataset | None = None) -> list[Problem]:
    """Check a cache: structure, checksums, ids, finite numbers; with a dataset, its images too.

    Parameters
    ----------
    path : Path
        The cache.
    dataset : Dataset, optional
        What it was made from: the ids must be the same, and every image is hashed again.

    Returns
    -------
    list of Problem
        Empty if all is well.

    Raises
    ------
    CacheError
        If the file cannot be opened at all: it is missing, foreign, truncated, or its header is
        damaged.
    """
    cache = FeatureCache(path)
    problems = [*_check_rows(cache), *_check_file(cache)]
    if dataset is not None:
        problems += _check_images(cache, dataset)
    return problems


def _check_rows(cache: FeatureCache) -> Iterator[Problem]:
    for rows, _, right in _read_all(cache):
        for position in np.flatnonzero(~right):
            yield Problem(rows.ids[position], "the row is not what was written (checksum)")
    yield from _check_ids(cache)


def _check_ids(cache: FeatureCache) -> Iterator[Problem]:
    def read(name: str) -> Iterator[npt.NDArray[Any]]:
        return (cache.file.rows(name, run) for run in id_runs(cache.count))

    stored = chain.from_iterable(part.tolist() for part in read("rows/by_id"))
    ascending = sort_ids(read("rows/id"), Path(tempfile.gettempdir()))
    in_order = True
    for id, entries in groupby(ascending, key=itemgetter(0)):
        positions = [position for _, position in entries]
        in_order &= positions == list(islice(stored, len(positions)))
        if len(positions) > 1:
            yield Problem(id.decode("utf-8", "surrogateescape"), "the id occurs more than once")
    if not in_order:
        yield Problem(None, "the index of ids does not sort them")


def _read_all(
    cache: FeatureCache,
) -> Iterator[tuple[Rows, FeatureRows, npt.NDArray[np.bool_]]]:
    """All rows, some at a time, and whether each is what was written and finite."""
    for run in checked_runs(cache, cache.count):
        (rows, features, _), right = compare_rows(cache, run)
        for values in features.values():
            right &= np.isfinite(values).all(axis=1) | (rows.status == FAILED)
        yield rows, features, right


def _check_file(cache: FeatureCache) -> Iterator[Problem]:
    if not cache.file.is_intact():
        yield Problem(None, "the file is not what was written (SHA-256)")
        return
    with cache.file.reopened() as opened, h5py.File(opened, "r") as file:
        if dict(cache.header.attributes) != {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in file.attrs.items()
        }:
            yield Problem(None, "the header and the HDF5 attributes differ")
        if extents_of(file) != dict(cache.header.extents):
            yield Problem(None, "the header and the HDF5 datasets differ")


def _check_images(cache: FeatureCache, dataset: Dataset) -> Iterator[Problem]:
    ids = Ids.of(dataset.ids)
    has_row = np.zeros(len(dataset), dtype=bool)
    for run in row_runs(cache.count, TABLE_BYTES):
        rows = cache.rows_at(run)
        positions = ids.find(rows.ids)
        has_row[positions[positions >= 0]] = True
        for id, position, digest in zip(rows.ids, positions, rows.digest.tolist(), strict=True):
            if position < 0:
                yield Problem(id, "the dataset has no such image")
            elif digest:
                what = _compare_image(dataset.path(id), digest.decode())
                if what:
                    yield Problem(id, what)
    for id in ids.take(np.flatnonzero(~has_row)):
        yield Problem(id, "the image has no row")


def _compare_image(path: Path, digest: str) -> str:
    try:
        same = images.content_digest(images.read_bytes(path)) == digest
    except ImageError as error:
        return str(error)
    return "" if same else "the image has changed since"


def rescue(path: Path, wrong: set[str | None]) -> FeatureCache:
    """Turn the good rows of a damaged file into parts and remove the file.

    Parameters
    ----------
    path : Path
        The cache.
    wrong : set of str or None
        Ids of rows that are not to be kept, as `Problem` has them.

    Returns
    -------
    FeatureCache
        The file as it was, which has no name any more.
    """
    with held(path) as folder:
        cache = FeatureCache(path)
        for number, (rows, features, right) in enumerate(_read_all(cache)):
            unsuspected = np.array([id not in wrong for id in rows.ids])
            keep = np.flatnonzero(right & unsuspected & (rows.status == OK))
            if len(keep):
                write_part(
                    folder,
                    number,
                    rows.take(keep),
                    {block: values[keep] for block, values in features.items()},
                    spec=cache.spec,
                    channels=cache.channels,
                    dataset=cache.dataset,
                    computed_by=cache.computed_by,
                )
        path.unlink()
    return cache
