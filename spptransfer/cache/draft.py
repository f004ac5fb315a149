"""A cache file in the making: every row is written where it will stay."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spptransfer.cache.files import bytes_held, check_space, explained, temporary_name
from spptransfer.cache.ids import encode, id_runs, sort_ids
from spptransfer.cache.layout import FEATURES, Extent, Header, body_sha256
from spptransfer.cache.outline import Failures, Labels, Outline, write_skeleton
from spptransfer.cache.positioned import FileClosedError, PositionedFile
from spptransfer.cache.rows import CHECKSUM_BYTES, COLUMNS, FAILED, Chunk, checksums
from spptransfer.errors import CacheError
from spptransfer.ids import Ids

# How names of files begin that are there for moments.
SKELETON = "skeleton"
_COPIED_BYTES = 1 << 18
_ROWS = ("rows/", FEATURES)
# The dataset that says of a row that it is there.
_COMMIT = "rows/checksum"


class Draft:
    """A file with room for every row of a cache, filled in any order and by several threads.

    A row is there as soon as its checksum is, which is written last: whatever a kill or a power
    cut leaves of it otherwise has none or a wrong one.

    Parameters
    ----------
    path : Path
        The file; one that is there is gone on with.
    outline : Outline
        What it is to hold.
    name : Path
        What it is to become, for messages.

    Raises
    ------
    CacheError
        If the disk has no room for the whole file, or the folder cannot be written to.
    """

    def __init__(self, path: Path, outline: Outline, name: Path) -> None:
        self.path = path
        self.outline = outline
        self._name = name
        self._failures: list[tuple[npt.NDArray[np.intp], Ids]] = []
        self._guard = threading.Lock()
        with self._explained():
            self.check_room()
            with self._skeleton() as skeleton:
                self.extents = write_skeleton(skeleton, outline)
                self._room = skeleton.stat().st_size
            self._file = PositionedFile(path, self._room)

    def check_room(self, besides: int = 0) -> int:
        """Refuse a disk without room for the whole file.

        Parameters
        ----------
        besides : int, default=0
            Bytes that others are yet to take of the same disk.

        Returns
        -------
        int
            Bytes that this file is yet to take.
        """
        lacking = self.outline.needed - (bytes_held(self.path) if self.path.exists() else 0)
        with explained(self._name, self.outline.needed + besides):
            check_space(self.path, lacking + besides)
        return lacking

    def _explained(self) -> AbstractContextManager[None]:
        return explained(self._name, self.outline.needed)

    def _skeleton(self) -> AbstractContextManager[Path]:
        return temporary_name(self.path.with_name(f"{SKELETON}-{threading.get_ident():x}"))

    def close(self) -> None:
        """Let go of the file, which stays as it is, once nobody puts anything any more."""
        self._file.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Write, but neither when the file was closed nor when somebody else finished it."""
        try:
            with self._file.using(), self._explained():
                if not self._file.is_at(self.path):
                    raise CacheError(f"'{self._name}' was finished or removed by somebody else")
                yield
        except FileClosedError as error:
            raise CacheError(f"'{self._name}' is no longer being written: {error}") from error

    def put(self, positions: npt.NDArray[np.intp], chunk: Chunk, *, durable: bool = False) -> None:
        """Write rows where they belong.

        Parameters
        ----------
        positions : ndarray of int, shape (n_rows,)
            Numbers of the rows in the file, ascending.
        chunk : Chunk
            The rows. Checksums that they come with are written as they are: what was checked is
            vouched for from end to end.
        durable : bool, default=False
            Force them onto the disk, so that after a power cut too a row with a checksum has all
            that belongs to it.

        Raises
        ------
        CacheError
            If the disk is full, or the file was closed or finished meanwhile.
        """
        columns = self._columns(positions, chunk)
        failed = np.flatnonzero(chunk.rows.status == FAILED)
        if len(failed):
            reasons = Ids(chunk.rows.error[i] for i in failed)
            with self._guard:
                self._failures.append((positions[failed], reasons))
        with self._writing():
            if durable and self._any_checksum(positions):
                self._clear(positions)
                self._file.sync()
            for name, numbers in columns.items():
                if name == _COMMIT and durable:
                    self._file.sync()
                self._write(name, positions, numbers)
            if durable:
                self._sync_or_clear(positions)

    def _columns(
        self, positions: npt.NDArray[np.intp], chunk: Chunk
    ) -> dict[str, npt.NDArray[Any]]:
        """Numbers of rows by dataset; checksums are the last."""
        rows, features, known = chunk
        encoded, blocks = encode(rows.ids), self.outline.blocks
        if encoded.itemsize > self.outline.id_width or not _are_rows(positions, self.outline.count):
            raise ValueError(f"rows {positions} are not those announced")
        storage = self.outline.spec.storage
        values = {b: np.ascontiguousarray(features[b], dtype=storage) for b in blocks}
        return {
            "rows/id": encoded.astype(f"S{self.outline.id_width}"),
            **{f"rows/{n}": getattr(rows, n).astype(t) for n, t in COLUMNS.items()},
            **{block.name: numbers for block, numbers in values.items()},
            _COMMIT: checksums(rows, values, blocks) if known is None else known,
        }

    def _write(self, name: str, positions: npt.NDArray[np.intp], numbers: npt.NDArray[Any]) -> None:
        """Write rows of one dataset."""
        for start, run in _runs(positions) if numbers.size else ():
            raw = np.ascontiguousarray(numbers[run]).reshape(-1).view(np.uint8)
            row_bytes = raw.nbytes // (run.stop - run.start)
            self._file.write(raw.data, self.extents[name].offset + start * row_bytes)

    def _any_checksum(self, positions: npt.NDArray[np.intp]) -> bool:
        offset = self.extents[_COMMIT].offset
        return any(
            any(self._file.read(CHECKSUM_BYTES * (run.stop - run.start), at))
            for start, run in _runs(positions)
            for at in [offset + CHECKSUM_BYTES * start]
        )

    def _clear(self, positions: npt.NDArray[np.intp]) -> None:
        """Take checksums back, and with them the rows."""
        self._write(_COMMIT, positions, np.zeros((len(positions), CHECKSUM_BYTES), np.uint8))

    def _sync_or_clear(self, positions: npt.NDArray[np.intp]) -> None:
        try:
            self._file.sync()
        except OSError:
            # What is still in memory would be taken for what is on the disk by the next run.
            with contextlib.suppress(OSError):
                self._clear(positions)
            raise

    def header(self, computed_by: Iterable[str]) -> Header:
        """What would be said of the file if it were sealed, but for its hash."""
        attributes = self.outline.attributes(computed_by)
        return Header(self.outline.header_bytes, self._room, "", attributes, self.extents)

    def failures(self) -> Failures:
        """Rows without features so far, and why; those of an earlier run were not kept."""
        with self._guard:
            positions = np.concatenate([np.empty(0, np.int64), *(at for at, _ in self._failures)])
            reasons = Ids(reason for _, some in self._failures for reason in some)
        rows, last = np.unique(positions[::-1], return_index=True)
        return Failures(rows, reasons.take(len(positions) - 1 - last))

    def seal(self, labels: Labels | None, computed_by: Iterable[str]) -> None:
        """Make the file a cache, all of whose rows were put.

        Parameters
        ----------
        labels : Labels or None
            Labels of the rows.
        computed_by : iterable of str
            Names and versions of what computed the rows.
        """
        outline, names = self.outline, list(computed_by)
        with self._writing():
            self._write_order()
            with self._skeleton() as skeleton:
                extents = write_skeleton(skeleton, outline, labels, self.failures(), names)
                self._take_over(skeleton, extents)
            self._file.sync(everything=True)
            digest = body_sha256(self._file.descriptor, outline.header_bytes, extents)
            attributes = outline.attributes(names)
            header = Header(outline.header_bytes, self._file.size, digest, attributes, extents)
            self._file.write(memoryview(header.pack()), 0)
            self._file.sync(everything=True)

    def _write_order(self) -> None:
        """Write the numbers of the rows in ascending order of their ids."""
        runs = list(id_runs(self.outline.count))
        in_order = sort_ids(map(self._ids, runs), self.path.parent)
        for run in runs:
            positions = (position for _, position in islice(in_order, run.stop - run.start))
            self._write("rows/by_id", np.arange(run.start, run.stop), np.fromiter(positions, "<i8"))

    def _ids(self, run: slice) -> npt.NDArray[np.bytes_]:
        extent = self.extents["rows/id"]
        width = self.outline.id_width
        size, offset = (run.stop - run.start) * width, extent.offset + run.start * width
        return np.frombuffer(self._file.read(size, offset), extent.dtype)

    def _take_over(self, skeleton: Path, extents: dict[str, Extent]) -> None:
        """Copy all but the rows from a finished skeleton."""
        rows = {name: extent for name, extent in extents.items() if name.startswith(_ROWS)}
        if any(self.extents[name] != extent for name, extent in rows.items()):
            raise RuntimeError("HDF5 moved the rows")
        taken = sorted((extent.offset, extent.offset + extent.nbytes) for extent in rows.values())
        with open(skeleton, "rb") as source:
            size = os.fstat(source.fileno()).st_size
            self._file.resize(size)
            position = self.outline.header_bytes
            for start, stop in [*taken, (size, size)]:
                while position < start:
                    count = min(start - position, _COPIED_BYTES)
                    piece = os.pread(source.fileno(), count, position)
                    self._file.write(memoryview(piece), position)
                    position += len(piece)
                position = max(position, stop)


def _are_rows(positions: npt.NDArray[np.intp], count: int) -> bool:
    return not len(positions) or (positions[0] >= 0 and positions[-1] < count)


def _runs(positions: npt.NDArray[np.intp]) -> Iterator[tuple[int, slice]]:
    """Neighbours among ascending positions: the first one's position, and where they are."""
    breaks = np.flatnonzero(np.diff(positions) != 1) + 1
    edges = [0, *breaks.tolist(), len(positions)]
    for start, stop in pairwise(edges):
        if stop > start:
            yield int(positions[start]), slice(start, stop)
