"""What is to be done: a dataset compared with the rows known so far."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from spptransfer import images
from spptransfer.cache.rows import OK, Rows
from spptransfer.cache.workspace import Workspace
from spptransfer.datasets import Dataset
from spptransfer.errors import DatasetError, ImageError
from spptransfer.extraction.batches import PASSING, Source, Stamp, probe
from spptransfer.ids import Ids, TextById


@dataclass(frozen=True)
class Part:
    """A run of images that is computed and written as one.

    `lack` says for every cache which of the images it lacks; without it each lacks all of them.
    `positions` says where they stand in the dataset; without it they are 0, 1, 2 and so on.
    """

    number: int
    ids: tuple[str, ...]
    sources: tuple[Source, ...]
    lack: tuple[npt.NDArray[np.bool_], ...] = ()
    positions: npt.NDArray[np.intp] | None = None

    def lacking(self, cache: int) -> npt.NDArray[np.bool_]:
        """Which of the images a cache lacks, by its number."""
        return self.lack[cache] if self.lack else np.ones(len(self.ids), dtype=bool)

    def lacking_positions(self, cache: int) -> npt.NDArray[np.intp]:
        """Where these stand in the dataset."""
        positions = np.arange(len(self.ids)) if self.positions is None else self.positions
        return positions[self.lacking(cache)]


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
    reused : int
        Unchanged images that have features.
    """

    def __init__(self, dataset: Dataset, workspace: Workspace, redo: Collection[str] = ()) -> None:
        self._dataset = dataset
        self._workspace = workspace
        self._ids = Ids.of(dataset.ids)
        again = self._positions(redo)
        self.todo = ~workspace.known
        self.added = int(self.todo.sum())
        failed = np.zeros(len(dataset), dtype=bool)
        for positions, rows in workspace.known_rows():
            failed[positions] = rows.status != OK
            for i, path in enumerate(dataset.iter_paths(positions)):
                self.todo[positions[i]] = not self._is_unchanged(rows, i, path)
        self.todo[again] = True
        self.changed = int(self.todo.sum()) - self.added
        self.unchanged = len(dataset) - self.added - self.changed
        self.reused = self.unchanged - int((failed & ~self.todo).sum())
        self.removed = workspace.count_removed()

    def _positions(self, redo: Collection[str]) -> npt.NDArray[np.intp]:
        """Where the images are that are asked for again."""
        wanted = list(redo)
        positions = self._ids.find(wanted)
        for unknown in np.flatnonzero(positions < 0)[:1]:
            raise DatasetError(f"dataset '{self._dataset.name}' has no image '{wanted[unknown]}'")
        return positions

    def _is_unchanged(self, rows: Rows, i: int, path: Path) -> bool:
        """Whether a known row still describes its file; only the stamp is read if that is so."""
        error = rows.error[i]
        if error in PASSING:
            return False
        try:
            stamp = Stamp.of(path)
            known = Stamp(int(rows.size[i]), int(rows.modified[i]), int(rows.changed[i]))
            # What could not even be read may be readable now, and its stamp would not tell.
            if stamp == known and (rows.digest[i] or not error):
                return True
            return images.content_digest(images.read_bytes(path)).encode() == rows.digest[i]
        except (OSError, ValueError, ImageError):
            spec = self._workspace.spec
            return probe(path, spec.scales, spec.view).error == error

    def part(
        self, number: int, positions: npt.NDArray[np.intp], lack: tuple[npt.NDArray[np.bool_], ...]
    ) -> Part:
        """Some images of the dataset, by position, as a part; `lack` as in `Part`."""
        paths = tuple(self._dataset.iter_paths(positions))
        return Part(number, tuple(self._ids.take(positions)), paths, lack, positions)

    def failures(self) -> TextById:
        """Reason for every image without features, once the workspace has a row for each."""
        return TextById(self._workspace.known_failures())
