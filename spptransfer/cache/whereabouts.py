"""Where the rows of many ids lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from spptransfer.cache.checked import Place
from spptransfer.cache.ids import id_runs
from spptransfer.cache.layout import row_runs
from spptransfer.cache.reading import FeatureCache
from spptransfer.cache.rows import TABLE_BYTES
from spptransfer.ids import Ids

_NOWHERE = -1
_OPEN_FILES = 8


class Whereabouts:
    """Which of many ids have a row, in which file, and at which of its rows.

    Files go by number and not by name, since one may be made again under the name of an old one.
    What is noted of a row last counts.

    Parameters
    ----------
    ids : Ids
        All ids, in order. An id's place among them is its position.
    open_file : callable
        Opens a file; called again when it was not needed for a while.
    """

    def __init__(self, ids: Ids, open_file: Callable[[Path], FeatureCache]) -> None:
        self._ids = ids
        self._files: list[Path] = []
        # Besides its packed id, these 8 bytes are all that is held of a row.
        self._file = np.full(len(ids), _NOWHERE, dtype=np.int32)
        self._row = np.zeros(len(ids), dtype=np.int32)
        self._open = lru_cache(_OPEN_FILES)(lambda number: open_file(self._files[number]))

    def forget(self) -> None:
        """Know of no file and no row any more."""
        self._files, self._file[:] = [], _NOWHERE
        self._open.cache_clear()

    def add(self, path: Path) -> int:
        """Number a file, of which no row is known yet."""
        self._files.append(path)
        return len(self._files) - 1

    def number(self, path: Path) -> int | None:
        """Give the first number that a file got, if any."""
        return self._files.index(path) if path in self._files else None

    def move(self, number: int, path: Path) -> None:
        """Make known that a file has another name now."""
        self._files[number] = path
        self._open.cache_clear()

    def note(
        self, number: int, positions: npt.NDArray[np.intp], rows: npt.NDArray[np.intp]
    ) -> None:
        """Make known that a file has the rows of the ids at some positions."""
        self._file[positions] = number
        self._row[positions] = rows

    def note_all(self, number: int, cache: FeatureCache) -> None:
        """Make all rows of a file known, but for those of other ids."""
        for start, positions in self.positions(cache):
            rows = np.flatnonzero(positions >= 0)
            self.note(number, positions[rows], start + rows)

    def positions(self, cache: FeatureCache) -> Iterator[tuple[int, npt.NDArray[np.intp]]]:
        """Positions of a file's rows, some at a time from the given one on; -1 for other ids."""
        for run in row_runs(cache.count, TABLE_BYTES):
            yield run.start, self._ids.find(cache.ids_at(run))

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Which of the ids have a row."""
        return self._file != _NOWHERE

    def are_rows_of(self, number: int) -> bool:
        """Whether all ids have the row of their position in one file."""
        return bool((self._file == number).all()) and all(
            np.array_equal(self._row[run], np.arange(run.start, run.stop))
            for run in id_runs(len(self._ids))
        )

    def places(self, run: slice) -> Iterator[Place]:
        """Which rows of a run of positions each file has, from 0 on, and at which of its own."""
        for number in np.unique(self._file[run]):
            if number != _NOWHERE:
                here = np.flatnonzero(self._file[run] == number)
                rows = self._row[run][here].astype(np.intp)
                yield here, self._open(int(number)), rows
