"""Finding out whether a cache is what it claims to be, row by row."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spptransfer import images
from spptransfer.cache.layout import row_runs
from spptransfer.cache.reading import FeatureCache
from spptransfer.cache.rows import FAILED, TABLE_BYTES
from spptransfer.datasets import Dataset
from spptransfer.errors import ImageError
from spptransfer.ids import Ids, decode


@dataclass(frozen=True)
class Problem:
    """What is wrong with a row, or with the file where `id` is None."""

    id: str | None
    what: str

    def __str__(self) -> str:
        return self.what if self.id is None else f"{self.id}: {self.what}"


def verify(path: Path, dataset: Dataset | None = None) -> list[Problem]:
    """Check a cache: structure, checksums, ids, finite numbers; with a dataset, its images too."""
    with contextlib.closing(FeatureCache(path)) as cache:
        problems = [*_check_rows(cache), *_check_ids(cache), *_check_gaps(cache)]
        if dataset is not None:
            problems += _check_images(cache, dataset)
    return problems


def _check_rows(cache: FeatureCache) -> Iterator[Problem]:
    for run in row_runs(cache.count, cache.row_bytes):
        numbers, right = cache.compare(run)
        for block in cache.blocks:
            finite = np.isfinite(numbers[block.name]).all(axis=1)
            right &= finite | (numbers["rows/status"] == FAILED)
        for id in decode(numbers["rows/id"][~right]):
            yield Problem(id, "the row is not what was written (checksum)")


def _check_ids(cache: FeatureCache) -> Iterator[Problem]:
    ids = np.sort(cache.column("rows/id"))
    for id in decode(np.unique(ids[1:][ids[1:] == ids[:-1]])):
        yield Problem(id, "the id occurs more than once")


def _check_gaps(cache: FeatureCache) -> Iterator[Problem]:
    """Look at the bytes behind the head that belong to no dataset: they are zeros."""
    position, size = cache.head_bytes, cache.path.stat().st_size
    with open(cache.path, "rb") as file:
        for start, stop in [*sorted(cache.extents.values()), (size, size)]:
            file.seek(position)
            if start > position and file.read(start - position).strip(b"\0"):
                yield Problem(None, f"bytes {position:,} to {start:,} of the file are no row's")
            position = max(position, stop)


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
