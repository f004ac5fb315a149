"""Finding out whether a cache is what it claims to be, row by row."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from spptransfer import images
from spptransfer.cache.layout import Labels, Layout, row_runs
from spptransfer.cache.partial import PartialFile, partial_path
from spptransfer.cache.reading import FeatureCache
from spptransfer.cache.rows import FAILED, OK, TABLE_BYTES, FeatureRows, RowTable
from spptransfer.cache.writer import writer_lock
from spptransfer.datasets import Dataset
from spptransfer.errors import ImageError
from spptransfer.files import check_space, os_errors_as_cache_error
from spptransfer.ids import Ids

Row = tuple[RowTable, FeatureRows, npt.NDArray[np.uint8], npt.NDArray[np.bool_]]


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
    """Check a cache: structure, checksums, ids, finite numbers; with a dataset, its images too."""
    cache = FeatureCache(path)
    problems = [
        Problem(table.ids[position], "the row is not what was written (checksum)")
        for table, _, _, right in _read_all(cache)
        for position in np.flatnonzero(~right)
    ]
    problems += [*_check_ids(cache), *_check_gaps(cache)]
    if dataset is not None:
        problems += _check_images(cache, dataset)
    return problems


def _read_all(cache: FeatureCache) -> Iterator[Row]:
    """Read all rows, some at a time, and whether each is what was written and finite."""
    for run in cache.checked_runs(cache.count):
        table, features, recorded, right = cache.compare(run)
        for values in features.values():
            right &= np.isfinite(values).all(axis=1) | (table.status == FAILED)
        yield table, features, recorded, right


def _check_ids(cache: FeatureCache) -> Iterator[Problem]:
    ids = np.sort(cache.column("id"))
    for id in np.unique(ids[1:][ids[1:] == ids[:-1]]).tolist():
        yield Problem(id.decode("utf-8", "surrogateescape"), "the id occurs more than once")


def _check_gaps(cache: FeatureCache) -> Iterator[Problem]:
    with open(cache.path, "rb") as file:
        for start, stop in cache.gaps():
            file.seek(start)
            if file.read(stop - start).strip(b"\0"):
                yield Problem(None, f"bytes {start:,} to {stop:,} of the file are no row's")


def _check_images(cache: FeatureCache, dataset: Dataset) -> Iterator[Problem]:
    ids = Ids.of(dataset.ids)
    has_row = np.zeros(len(dataset), dtype=bool)
    for run in row_runs(cache.count, TABLE_BYTES):
        table = cache.rows_at(run)
        positions = ids.find(table.ids)
        has_row[positions[positions >= 0]] = True
        for id, position, digest in zip(table.ids, positions, table.digest.tolist(), strict=True):
            if position < 0:
                yield Problem(id, "the dataset has no such image")
            elif digest:
                what = _compare_image(dataset.path(id), digest.decode("ascii", "replace"))
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


def rescue(path: Path, wrong: Collection[str | None]) -> FeatureCache:
    """Turn the good rows of a damaged file into an unfinished one, and remove the file."""
    with writer_lock(path):
        cache, refused = FeatureCache(path), set(wrong)
        targets = cache.targets
        labels = None if targets is None else Labels(cache.classes, targets)
        ids = Ids.from_encoded(np.array(cache.column("id")))
        layout = Layout(cache.spec, cache.channels, cache.dataset, ids, labels)
        with os_errors_as_cache_error(path, layout.needed):
            check_space(path, layout.needed)
            rescued, start = PartialFile.create(partial_path(path, layout), layout), 0
            try:
                rescued.note(cache.computed_by)
                for table, features, recorded, right in _read_all(cache):
                    right &= [id not in refused for id in table.ids]
                    keep = np.flatnonzero(right & (table.status == OK))
                    some = {block: values[keep] for block, values in features.items()}
                    rescued.put(start + keep, table.take(keep), some, known=recorded[keep])
                    start += len(right)
            finally:
                rescued.close()
                cache.close()
            path.unlink()
    return cache
