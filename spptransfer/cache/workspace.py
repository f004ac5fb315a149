"""A cache in the making: what is known of its rows, wherever they lie, until it is finished."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from spptransfer.cache.checked import read_checked, read_together
from spptransfer.cache.draft import Draft
from spptransfer.cache.files import (
    behind_link,
    explained,
    is_read_only,
    make_folder,
    sync_folder,
)
from spptransfer.cache.ids import check_ids, encoded_width
from spptransfer.cache.layout import blocks_of, row_runs
from spptransfer.cache.lock import Lock
from spptransfer.cache.outline import Labels, Outline
from spptransfer.cache.reading import FeatureCache
from spptransfer.cache.rows import OK, TABLE_BYTES, Chunk, Rows
from spptransfer.cache.unfinished import (
    LostDraftError,
    by_age,
    draft_files,
    intact_rows,
    is_draft,
    leave,
    move_draft,
    open_draft,
    open_part,
    part_files,
    parts_folder,
    remove_draft,
    remove_remains,
    write_note,
)
from spptransfer.cache.whereabouts import Whereabouts
from spptransfer.errors import CacheError, SpecMismatchError
from spptransfer.ids import Ids
from spptransfer.spec import FeatureSpec

logger = logging.getLogger(__name__)

# What is known of new rows: the part that has them, or their positions in the draft.
Written = Path | npt.NDArray[np.intp]
# Where there is a finished file, it is the first one that is looked at.
_FINISHED = 0


class Workspace:
    """Rows known so far for one cache file: those of the finished file, its draft and all parts.

    Use it as a context manager: it holds the cache against other writers until it is left. Where
    we may not write, a finished file can still be looked at, and `finish` if it lacks nothing.

    Parameters
    ----------
    path : Path
        Where the finished file stands or will stand.
    spec : FeatureSpec
        Spec of all rows. Where a finished file of a wider spec stands, its spec is taken.
    channels : int
        Channels of the spec's layer.
    dataset : str
        Name of the dataset.
    ids : sequence of str
        All ids that the finished file is to hold, in order.

    Raises
    ------
    CacheError
        If another process holds the cache (the message says which one and since when), or an id
        cannot be stored.
    SpecMismatchError
        If the file or a part was made with another spec.
    """

    def __init__(
        self, path: Path, *, spec: FeatureSpec, channels: int, dataset: str, ids: Sequence[str]
    ) -> None:
        path = behind_link(path)
        self.path = path
        self.spec = spec
        self.channels = channels
        self.dataset = dataset
        self.folder = parts_folder(path)
        self.finished: FeatureCache | None = None
        self._lock = Lock(self.folder / "lock", path)
        check_ids(ids)
        self._ids = Ids.of(ids)
        self._rows = Whereabouts(self._ids, self._open)
        self._computed_by: set[str] = set()
        self._draft: Draft | None = None
        self._draft_path = self.folder / f"draft-{self._ids.sha256()[:16]}.h5"
        self._draft_is_empty = False
        self._left = False
        self._read_only: CacheError | None = None
        self._guard = threading.Lock()

    def __enter__(self) -> Workspace:
        self._left, self._draft, self._read_only = False, None, None
        try:
            make_folder(self.folder)
            self._lock.acquire()
        except CacheError as error:
            if not (self.path.exists() and is_read_only(error)):
                raise
            self._read_only = error
        try:
            self._take_stock()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with self._guard:
            self._left = True
        if self._read_only is not None:
            return
        if self._draft is not None:
            self._draft.close()
        if self._draft_is_empty and self._lock.is_ours():
            remove_draft(self._draft_path)
        leave(self.folder, self._lock)

    def _take_stock(self) -> None:
        self._rows.forget()
        self.finished = None
        if self.path.exists():
            self.finished = FeatureCache.open(self.path, self.spec)
            self.spec = self.finished.spec
            self._add(self.path, self.finished.computed_by)
        files: list[Path] = []
        if self._read_only is None:
            remove_remains(self.path)
            files = [*draft_files(self.folder), *part_files(self.folder)]
        # What was written last counts; the finished file among equals, as it was made of the rest.
        for file in by_age(files if self.finished is None else [*files, self.path]):
            if file == self.path and self.finished is not None:
                self._rows.note_all(_FINISHED, self.finished)
            elif is_draft(file):
                self._take_draft(file)
            elif (cache := open_part(file)) is not None:
                self._adopt(cache)
            else:
                logger.warning("'%s' is damaged and will be made again", file)
                file.unlink()

    def _take_draft(self, path: Path) -> None:
        """Make the rows of a draft known that a kill has left whole."""
        try:
            cache = open_draft(path)
        except LostDraftError as error:
            logger.warning("%s; its rows will be made again", error)
            remove_draft(path)
            return
        self._check_spec(cache)
        number, any_row, intact = self._add(path), False, False
        for rows in intact_rows(cache):
            intact |= len(rows) > 0
            positions = self._ids.find(cache.ids_at(rows))
            # Where this one is to be gone on with, a row anywhere else would be written over.
            here = (positions == rows) if path == self._draft_path else (positions >= 0)
            self._rows.note(number, positions[here], rows[here])
            any_row |= bool(here.any())
        if any_row:
            self._computed_by.update(cache.computed_by)
        if path == self._draft_path:
            self._draft_is_empty = not any_row
        elif not intact:  # rows of other ids may be asked for again
            remove_draft(path)

    def adopt(self, written: Written) -> None:
        """Make new rows known: those of a part, or those that `put` wrote."""
        if isinstance(written, Path):
            self._adopt(FeatureCache(written))
            return
        number = self._rows.number(self._draft_path)
        assert number is not None, "`put` has begun the draft"
        self._rows.note(number, written, written)

    def _adopt(self, part: FeatureCache) -> None:
        self._check_spec(part)
        self._rows.note_all(self._add(part.path, part.computed_by), part)

    def _check_spec(self, part: FeatureCache) -> None:
        if part.spec != self.spec:
            differences = "; ".join(part.spec.differences(self.spec))
            raise SpecMismatchError(f"'{part.path}' was made with another spec: {differences}")

    def _add(self, path: Path, computed_by: Iterable[str] = ()) -> int:
        with self._guard:
            self._computed_by.update(computed_by)
            return self._rows.add(path)

    def _open(self, path: Path) -> FeatureCache:
        # The finished file is the one that was looked at, whoever replaces it meanwhile.
        if path == self.path and self.finished is not None:
            return self.finished
        return open_draft(path) if is_draft(path) else FeatureCache(path)

    def put(
        self, positions: npt.NDArray[np.intp], chunk: Chunk, computed_by: Iterable[str]
    ) -> npt.NDArray[np.intp]:
        """Write new rows where they will stay, and force them onto the disk; `adopt` them then.

        Several threads may do so at once.

        Parameters
        ----------
        positions : ndarray of int, shape (n_rows,)
            Where they stand among all ids, ascending.
        chunk : Chunk
            The rows.
        computed_by : iterable of str
            Names and versions of what computed them.

        Returns
        -------
        ndarray of int
            The positions.

        Raises
        ------
        CacheError
            If the disk is full, or the cache is no longer ours to write.
        """
        self._lock.check()
        draft = self._open_draft(computed_by)
        draft.put(positions, chunk, durable=True)
        self._draft_is_empty = False
        return positions

    def begin(self, besides: int = 0) -> int:
        """Make sure that there is room for all rows; as `Draft.check_room`."""
        return self._open_draft().check_room(besides)

    def _open_draft(self, computed_by: Iterable[str] = ()) -> Draft:
        """The file that is going to be the finished one, with a note of all who took part."""
        names = set(computed_by)
        if self._read_only is not None:
            raise self._read_only
        with self._guard:
            if self._left:
                raise CacheError(f"'{self.path}' is no longer being written")
            if self._draft is None:
                self._draft = self._begin_draft()
            if not names <= self._computed_by:
                write_note(self._draft, self._computed_by | names)
                self._computed_by |= names
            return self._draft

    def _begin_draft(self) -> Draft:
        path = self._draft_path
        self._lock.check()
        outline = Outline(
            self.spec, self.channels, self.dataset, len(self._ids), encoded_width(self._ids)
        )
        draft = Draft(path, outline, self.path)
        try:
            number = self._rows.number(path)
            if number is not None and open_draft(path).header.extents != draft.extents:
                # Another version of HDF5 lays files out in another way: rows are copied then.
                draft.close()
                self._rows.move(number, move_draft(path))
                draft, number = Draft(path, outline, self.path), None
            if number is None:
                self._draft_is_empty = True
                write_note(draft, self._computed_by)
                self._rows.add(path)
        except BaseException:
            draft.close()
            raise
        return draft

    def count_removed(self) -> int:
        """Rows of the finished file that no id asks for any more."""
        if self.finished is None:
            return 0
        return sum(int((found < 0).sum()) for _, found in self._rows.positions(self.finished))

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Which of the ids have a row."""
        return self._rows.known

    def known_rows(self) -> Iterator[tuple[npt.NDArray[np.intp], Rows]]:
        """Newest rows known, some at a time, with their positions among all ids."""
        for run in row_runs(len(self._ids), TABLE_BYTES):
            for here, cache, rows in self._rows.places(run):
                yield run.start + here, cache.rows_at(rows)

    def known_failures(self) -> Iterator[tuple[str, str]]:
        """Ids and reasons of the rows known that have no features."""
        draft = self._draft.failures() if self._draft else None
        if draft is not None:
            yield from zip(self._ids.take(draft.rows), draft.reasons, strict=True)
        for run in row_runs(len(self._ids), TABLE_BYTES):
            for _, cache, rows in self._rows.places(run):
                if cache.path == self._draft_path:
                    continue
                failed = rows[cache.file.rows("rows/status", rows) != OK]
                if len(failed):
                    table = cache.rows_at(failed)
                    yield from zip(table.ids, table.error, strict=True)

    def is_finished(self, labels: Labels | None) -> bool:
        """Whether the finished file already holds exactly the rows known, in order, and labels."""
        if self.finished is None or self.finished.count != len(self._ids):
            return False
        if not self._rows.are_rows_of(_FINISHED):
            return False
        targets = self.finished.targets
        if labels is None or targets is None:
            return labels is None and targets is None
        same_classes = tuple(labels.classes) == self.finished.classes
        return same_classes and np.array_equal(labels.targets, targets)

    def finish(self, labels: Labels | None) -> None:
        """Bring the rows of all ids, which must be known, into one finished file; drop the parts.

        Parameters
        ----------
        labels : Labels or None
            Labels in the order of the ids.
        """
        if not self.is_finished(labels):
            if not self.known.all():
                raise CacheError(f"'{self.path}' cannot be finished: not every image has a row")
            draft = self._open_draft()
            for positions, chunk in self._elsewhere():
                self.put(positions, chunk, ())
            self._lock.check()
            draft.seal(labels, self._computed_by)
            with explained(self.path):
                draft.close()
                os.replace(draft.path, self.path)
                sync_folder(self.path.parent)
        if self._read_only is not None:
            return
        self._lock.check()
        with explained(self.path):
            for part in part_files(self.folder):
                part.unlink()
            for path in [*draft_files(self.folder), self._draft_path]:
                remove_draft(path)

    def _elsewhere(self) -> Iterator[tuple[npt.NDArray[np.intp], Chunk]]:
        """Rows that the draft lacks, with their positions, checked against their checksums."""
        width = sum(block.width for block in blocks_of(self.spec, self.channels))
        row_bytes = width * np.dtype(self.spec.storage).itemsize
        for run in row_runs(len(self._ids), row_bytes + TABLE_BYTES):
            places = [p for p in self._rows.places(run) if p[1].path != self._draft_path]
            pairs: Iterable[tuple[npt.NDArray[np.intp], Chunk]]
            if all(here[-1] - here[0] < len(here) for here, _, _ in places):
                # Side by side, as parts mostly are: nothing to put together.
                pairs = ((here, read_checked(cache, at)) for here, cache, at in places)
            else:
                pairs = [read_together(places)]
            for here, chunk in pairs:
                positions = run.start + here
                if chunk.rows.ids != list(self._ids.take(positions)):
                    raise CacheError(f"'{self.path}' cannot be finished: its rows are mixed up")
                yield positions, chunk
