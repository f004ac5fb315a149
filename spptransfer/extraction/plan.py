"""What is to be done: a dataset compared with the rows known so far."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from spptransfer import images
from spptransfer.cache.rows import OK, Rows
from spptransfer.cache.workspace import Workspace
from spptransfer.datasets import Dataset
from spptransfer.errors import DatasetError, ImageError
from spptransfer.extraction.batches import PASSING, Source, Stamp, probe
from spptransfer.images import check_view


@dataclass(frozen=True)
class Part:
    """A run of images that is computed and written as one."""

    number: int
    ids: tuple[str, ...]
    sources: tuple[Source, ...]


class Plan:
    """Which images of a dataset have to be computed.

    Parameters
    ----------
    dataset : Dataset
        The images.
    workspace : Workspace
        The rows known so far.
    redo : collection of str, optional
        Ids to compute although nothing about them changed.

    Attributes
    ----------
    todo : ndarray of bool, shape (n_images,)
        By position in the dataset.
    added, changed, unchanged, removed : int
        Images by what was known of them before.
    """

    def __init__(self, dataset: Dataset, workspace: Workspace, redo: Collection[str] = ()) -> None:
        self._dataset = dataset
        self._workspace = workspace
        self._again = frozenset(redo)
        for unknown in self._again.difference(dataset.ids):
            raise DatasetError(f"dataset '{dataset.name}' has no image '{unknown}'")
        self.todo = ~workspace.known
        self.added = int(self.todo.sum())
        for positions, rows in workspace.known_rows():
            for i, position in enumerate(positions):
                self.todo[position] = not self._is_unchanged(rows, i)
        self.changed = int(self.todo.sum()) - self.added
        self.unchanged = len(dataset) - self.added - self.changed
        self.removed = workspace.count_removed()

    def _is_unchanged(self, rows: Rows, i: int) -> bool:
        """Whether a known row still describes its file; only the stamp is read if that is so."""
        id, error = rows.ids[i], rows.error[i]
        if id in self._again or error in PASSING:
            return False
        path = self._dataset.path(id)
        try:
            stamp = Stamp.of(path)
            if stamp == Stamp(int(rows.size[i]), int(rows.modified[i]), int(rows.changed[i])):
                return True
            return images.content_digest(images.read_bytes(path)).encode() == rows.digest[i]
        except (OSError, ValueError, ImageError):
            spec = self._workspace.spec
            return probe(path, spec.scales, check_view(spec.view)).error == error

    def count_parts(self, part_rows: int) -> int:
        """Number of parts that have something to do."""
        return len(np.unique(np.flatnonzero(self.todo) // part_rows))

    def parts(self, part_rows: int) -> Iterator[Part]:
        """Cut the dataset, not the work left, into parts.

        A resumed run then meets the same parts, hence the same batches, as an uninterrupted one.
        """
        ids = self._dataset.ids
        for number, start in enumerate(range(0, len(ids), part_rows)):
            chosen = start + np.flatnonzero(self.todo[start : start + part_rows])
            if len(chosen):
                part = tuple(ids[i] for i in chosen)
                yield Part(number, part, tuple(self._dataset.path(id) for id in part))

    def failures(self) -> dict[str, str]:
        """Reason for every image without features, once the workspace has a row for each."""
        return {
            rows.ids[i]: rows.error[i]
            for _, rows in self._workspace.known_rows()
            for i in np.flatnonzero(rows.status != OK)
        }
