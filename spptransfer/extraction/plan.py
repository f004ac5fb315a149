"""What is to be done: a dataset compared with the rows known so far."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from spptransfer import images
from spptransfer.cache.layout import short_text
from spptransfer.cache.rows import OK, RowTable
from spptransfer.cache.writer import CacheWriter
from spptransfer.datasets import Dataset
from spptransfer.errors import ImageError
from spptransfer.extraction.batches import Mask, Part
from spptransfer.extraction.reading import (
    PASSING,
    Rendering,
    Stamp,
    read_header,
    stamp_of,
    view_sizes,
)
from spptransfer.ids import Ids


class Plan:
    """Compare a dataset with the rows of one cache."""

    def __init__(self, dataset: Dataset, writer: CacheWriter, redo: Collection[str] = ()) -> None:
        self._spec = writer.spec
        again = dataset.positions(redo)
        self.todo: Mask = ~writer.known
        self.added = int(self.todo.sum())
        failed = np.zeros(len(dataset), dtype=bool)
        for positions, table in writer.known_rows():
            failed[positions] = table.status != OK
            for i, path in enumerate(dataset.iter_paths(positions)):
                self.todo[positions[i]] = not self._is_unchanged(table, i, path)
        self.todo[again] = True
        self.changed = int(self.todo.sum()) - self.added
        self.unchanged = len(dataset) - self.added - self.changed
        self.reused = self.unchanged - int((failed & ~self.todo).sum())
        self.removed = writer.removed

    def _is_unchanged(self, table: RowTable, i: int, path: Path) -> bool:
        """Tell whether a row still describes its file, by the file's stamp alone where it can."""
        error = table.error[i]
        if error in PASSING:
            return False
        known = Stamp(*table.stamp[i].tolist())
        try:
            # What could not even be read may be readable now, and its stamp would not tell.
            if stamp_of(path) == known and (table.digest[i] or not error):
                return True
            return images.content_digest(images.read_bytes(path)).encode() == table.digest[i]
        except (OSError, ValueError, ImageError):
            renderings = [Rendering(scale, self._spec.view) for scale in self._spec.scales]
            found = view_sizes(read_header(path), renderings)
            return isinstance(found, str) and short_text(found) == error


def parts_of(dataset: Dataset, plans: Sequence[Plan], part_rows: int) -> Iterator[Part]:
    """Cut the dataset, not the work left, into parts, each with what every cache lacks of it.

    A resumed run then meets the same parts, hence the same batches, as an uninterrupted one.
    """
    known, todo = Ids.of(dataset.ids), np.logical_or.reduce([plan.todo for plan in plans])
    for start in range(0, len(todo), part_rows):
        chosen = start + np.flatnonzero(todo[start : start + part_rows])
        if len(chosen):
            ids, paths = list(known.take(chosen)), list(dataset.iter_paths(chosen))
            yield Part(chosen, ids, paths, tuple(plan.todo[chosen] for plan in plans))
