"""Bring a cache up to date: rows known so far, wherever they lie, new ones, and the end."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from spptransfer.cache.layout import Labels, Layout, row_runs
from spptransfer.cache.partial import PartialFile, partial_files, partial_path
from spptransfer.cache.reading import FeatureCache
from spptransfer.cache.rows import FAILED, TABLE_BYTES, FeatureRows, RowTable
from spptransfer.cache.seal import DamagedFileError
from spptransfer.cache.stored import RowFile
from spptransfer.errors import CacheError, SpecMismatchError
from spptransfer.files import (
    bytes_held,
    check_space,
    exclusive_lock,
    is_read_only,
    make_folder,
    os_errors_as_cache_error,
    remove_leftovers,
    resolve_symlink,
    sync_folder,
)
from spptransfer.ids import Ids
from spptransfer.spec import FeatureSpec

logger = logging.getLogger(__name__)

_NOWHERE = -1


def writer_lock(path: Path) -> contextlib.AbstractContextManager[None]:
    """Acquire the right to write a cache."""
    return exclusive_lock(Path(f"{path}.lock"), f"the cache '{path}'")


class CacheWriter:
    """Rows known so far for one cache file: those of the finished file and of unfinished ones.

    Use it as a context manager: it holds the cache against other writers until it is left. Where
    we may not write, a finished file can still be looked at, and `finish` if it lacks nothing.
    """

    def __init__(
        self,
        path: Path,
        *,
        spec: FeatureSpec,
        channels: int,
        dataset: str,
        ids: Ids,
        labels: Labels | None,
    ) -> None:
        self.path = resolve_symlink(path)
        self.spec = spec
        self.channels = channels
        self.dataset = dataset
        self.finished: FeatureCache | None = None
        self._ids = Ids.of(ids)
        self._labels = labels
        self._layout = Layout(spec, channels, dataset, self._ids, labels)
        self._guard = threading.Lock()
        self._stack = contextlib.ExitStack()
        self._left = True

    def __enter__(self) -> CacheWriter:
        self._left = False
        self._read_only: CacheError | None = None
        # Of every id: which of the files has its row, and where. 6 bytes are all that is held.
        self._files: list[RowFile] = []
        self._file = np.full(len(self._ids), _NOWHERE, np.int16)
        self._row = np.zeros(len(self._ids), np.int32)
        self._computed_by: set[str] = set()
        self._partial: PartialFile | None = None
        self._is_empty = False
        self.finished = None
        with contextlib.ExitStack() as stack:
            try:
                make_folder(self.path.parent)
                stack.enter_context(writer_lock(self.path))
            except CacheError as error:
                if not (self.path.exists() and is_read_only(error)):
                    raise
                self._read_only = error
            stack.callback(self._close)
            self._take_stock()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _close(self) -> None:
        with self._guard:
            self._left = True
            for file in self._files:
                file.close()
            if self._partial is not None and self._is_empty:
                self._partial.path.unlink(missing_ok=True)

    def _take_stock(self) -> None:
        if self.path.exists():
            self.finished = FeatureCache.open(self.path, self.spec)
            self.spec, self.channels = self.finished.spec, self.finished.channels
            self._layout = Layout(self.spec, self.channels, self.dataset, self._ids, self._labels)
        if self._read_only is not None:
            files = []
        else:
            remove_leftovers(self.path.parent, f"{_escaped(self.path.name)}.*")
            files = partial_files(self.path)
        if self.finished is not None:
            # What was written last counts; the finished file among equals, as it was made of them.
            files = sorted([*files, self.path], key=lambda file: file.stat().st_mtime_ns)
        for path in files:
            if path == self.path and self.finished is not None:
                self._take_finished(self.finished)
            else:
                self._take_partial(path)

    def _take_finished(self, cache: FeatureCache) -> None:
        self._files.append(cache)
        self._computed_by.update(cache.computed_by)
        for start, positions in cache.positions_in(self._ids):
            here = np.flatnonzero(positions >= 0)
            self._note(cache, positions[here], start + here)

    def _take_partial(self, path: Path) -> None:
        """Make the rows of an unfinished file known that a kill has left whole."""
        own = path == partial_path(self.path, self._layout)
        try:
            partial = PartialFile(path, writable=own)
            if own:
                partial.check_layout(self._layout)
        except DamagedFileError as error:
            logger.warning("%s (its rows will be made again)", error)
            path.unlink()
            return
        self._files.append(partial)
        if own:
            self._partial = partial
            partial.unseal()
        if partial.spec != self.spec:
            differences = "; ".join(partial.spec.differences(self.spec))
            raise SpecMismatchError(f"'{path}' was made with another spec: {differences}")
        intact, wanted = 0, 0
        for rows in partial.known_rows():
            positions = self._ids.find_encoded(partial.column("id")[rows])
            here = positions >= 0
            self._note(partial, positions[here], rows[here])
            intact, wanted = intact + len(rows), wanted + int(here.sum())
        if wanted:
            self._computed_by.update(partial.computed_by)
        if own:
            self._is_empty = not intact
        elif not intact:  # rows of other ids may be asked for again
            partial.close()
            path.unlink()

    def _note(
        self, file: RowFile, positions: npt.NDArray[np.intp], rows: npt.NDArray[np.intp]
    ) -> None:
        self._file[positions] = self._files.index(file)
        self._row[positions] = rows

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Which of the ids have a row."""
        return self._file != _NOWHERE

    def _places(
        self, run: slice
    ) -> Iterator[tuple[npt.NDArray[np.intp], RowFile, npt.NDArray[np.intp]]]:
        """Say which ids of a run each file has a row of, by position, and at which of its own."""
        numbers = self._file[run]
        for number in np.unique(numbers[numbers != _NOWHERE]):
            here = run.start + np.flatnonzero(numbers == number)
            yield here, self._files[number], self._row[here].astype(np.intp)

    def known_rows(self) -> Iterator[tuple[npt.NDArray[np.intp], RowTable]]:
        """Go through the newest rows known, some at a time, without their features."""
        for run in row_runs(len(self._ids), TABLE_BYTES):
            for here, file, rows in self._places(run):
                yield here, file.rows_at(rows)

    def count_removed(self) -> int:
        """Count the rows of the finished file that no id asks for any more."""
        if self.finished is None:
            return 0
        return sum(int((found < 0).sum()) for _, found in self.finished.positions_in(self._ids))

    def failures(self) -> dict[str, str]:
        """Return the reason for every row known that has no features, by id."""
        found: dict[str, str] = {}
        for _, table in self.known_rows():
            for i in np.flatnonzero(table.status == FAILED):
                found[table.ids[i]] = table.error[i]
        return found

    def begin(self, besides: int = 0) -> int:
        """Make sure that there is room for all rows."""
        needed, path = self._layout.needed, partial_path(self.path, self._layout)
        lacking = needed - (bytes_held(path) if path.exists() else 0)
        with os_errors_as_cache_error(self.path, needed + besides):
            check_space(path, lacking + besides)
        self._begun()
        return lacking

    def _begun(self) -> PartialFile:
        """Return the file that is going to be the finished one."""
        if self._read_only is not None:
            raise self._read_only
        with self._guard:
            if self._left:
                raise CacheError(f"'{self.path}' is no longer being written")
            if self._partial is None:
                path = partial_path(self.path, self._layout)
                with os_errors_as_cache_error(self.path, self._layout.needed):
                    check_space(path, self._layout.needed)
                    self._partial = PartialFile.create(path, self._layout)
                self._is_empty = True
                self._files.append(self._partial)
            return self._partial

    def put(
        self,
        positions: npt.NDArray[np.intp],
        table: RowTable,
        features: FeatureRows,
        computed_by: str = "",
        *,
        known: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        """Write new rows where they will stay, and force them onto the disk.

        Several threads may do so at once.
        """
        partial = self._begun()
        with os_errors_as_cache_error(self.path, self._layout.needed):
            with self._guard:
                if computed_by and computed_by not in self._computed_by:
                    self._computed_by.add(computed_by)
                    partial.note(self._computed_by)
            partial.put(positions, table, features, known=known)
        with self._guard:
            self._is_empty = False
            self._note(partial, positions, positions)

    def finish(self) -> None:
        """Bring the rows of all ids, which must be known, into the finished file."""
        if not self._is_finished():
            if not self.known.all():
                raise CacheError(f"'{self.path}' cannot be finished: not every image has a row")
            partial = self._begun()
            self._copy_rows(partial)
            with os_errors_as_cache_error(self.path, self._layout.needed):
                partial.finish(self._computed_by)
                for file in self._files:  # Windows replaces no file that is open
                    file.close()
                os.replace(partial.path, self.path)
                sync_folder(self.path.parent)
            self._partial, self.finished = None, FeatureCache.open(self.path)
            self._files = [self.finished]
            self._file[:], self._row = 0, np.arange(len(self._ids), dtype=np.int32)
        for file in self._files:
            if file is not self.finished:
                file.close()
        self._partial = None
        with os_errors_as_cache_error(self.path):
            for path in [] if self._read_only else partial_files(self.path):
                path.unlink()

    def _is_finished(self) -> bool:
        """Tell whether the finished file holds exactly the rows known, in order, and labels."""
        finished, labels, count = self.finished, self._layout.labels, len(self._ids)
        if finished is None or finished.count != count:
            return False
        in_place = self._row == np.arange(count, dtype=np.int32)
        if not (in_place & (self._file == self._files.index(finished))).all():
            return False
        if labels is None or finished.targets is None:
            return labels is None and finished.targets is None
        same_classes = tuple(labels.classes) == finished.classes
        return same_classes and np.array_equal(labels.targets, finished.targets)

    def _copy_rows(self, partial: PartialFile) -> None:
        """Copy the rows that lie elsewhere, each compared with its checksum."""
        for run in partial.checked_runs(len(self._ids)):
            for here, file, rows in self._places(run):
                if file is not partial:
                    table, features, recorded = file.checked(rows)
                    self.put(here, table, features, known=recorded)


def _escaped(name: str) -> str:
    """Quote what a file pattern would take for more than a character."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
