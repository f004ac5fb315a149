"""A cache file in the making: every row is written where it will stay."""

from __future__ import annotations

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
from spptransfer.cache.rows import COLUMNS, FAILED, Chunk, checksums
from spptransfer.ids import Ids

# How names of files begin that are there for moments.
SKELETON = "skeleton"
_COPIED_BYTES = 1 << 18
_ROWS = ("rows/", FEATURES)
# What goes to the disk is data alone where the system can tell it from the rest.
_sync_data = getattr(os, "fdatasync", os.fsync)


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
            check_space(path, outline.needed - (bytes_held(path) if path.exists() else 0))
            with self._skeleton() as skeleton:
                self.extents = write_skeleton(skeleton, outline)
                self._room = skeleton.stat().st_size
            # Read and write by whoever may so by the process's mask, as of any other new file.
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            if os.fstat(self._descriptor).st_size < self._room:
                os.ftruncate(self._descriptor, self._room)

    def _explained(self) -> AbstractContextManager[None]:
        return explained(self._name, self.outline.needed)

    def _skeleton(self) -> AbstractContextManager[Path]:
        return temporary_name(self.path.with_name(f"{SKELETON}-{threading.get_ident():x}"))

    def close(self) -> None:
        """Let go of the file, which stays as it is."""
        os.close(self._descriptor)

    def put(self, positions: npt.NDArray[np.intp], chunk: Chunk) -> None:
        """Write rows where they belong.

        Parameters
        ----------
        positions : ndarray of int, shape (n_rows,)
            Numbers of the rows in the file, ascending.
        chunk : Chunk
            The rows. Checksums that they come with are written as they are: what was checked is
            vouched for from end to end.

        Raises
        ------
        CacheError
            If the disk is full.
        """
        rows, features, known = chunk
        encoded = encode(rows.ids)
        if encoded.itemsize > self.outline.id_width or not _are_rows(positions, self.outline.count):
            raise ValueError(f"rows {positions} are not those announced")
        storage, blocks = self.outline.spec.storage, self.outline.blocks
        values = {b: np.ascontiguousarray(features[b], dtype=storage) for b in blocks}
        columns: dict[str, npt.NDArray[Any]] = {
            "rows/id": encoded.astype(f"S{self.outline.id_width}"),
            **{f"rows/{n}": getattr(rows, n).astype(t) for n, t in COLUMNS.items()},
            **{block.name: numbers for block, numbers in values.items()},
            "rows/checksum": checksums(rows, values, blocks) if known is None else known,
        }
        failed = np.flatnonzero(rows.status == FAILED)
        if len(failed):
            with self._guard:
                self._failures.append((positions[failed], Ids(rows.error[i] for i in failed)))
        with self._explained():
            for name, numbers in columns.items():
                for start, run in _runs(positions):
                    self._write(name, start, numbers[run])

    def _write(self, name: str, start: int, numbers: npt.NDArray[Any]) -> None:
        """Write neighbouring rows of one dataset."""
        if numbers.size:
            raw = np.ascontiguousarray(numbers).reshape(-1).view(np.uint8)
            offset = self.extents[name].offset + start * (raw.nbytes // len(numbers))
            write_at(self._descriptor, raw.data, offset)

    def header(self, computed_by: Iterable[str]) -> Header:
        """What would be said of the file if it were sealed, but for its hash."""
        attributes = self.outline.attributes(computed_by)
        return Header(self.outline.header_bytes, self._room, "", attributes, self.extents)

    def sync(self) -> None:
        """Force all rows onto the disk."""
        with self._explained():
            _sync_data(self._descriptor)

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
        with self._explained():
            self._write_order()
            with self._skeleton() as skeleton:
                extents = write_skeleton(skeleton, outline, labels, self.failures(), names)
                self._take_over(skeleton, extents)
            os.fsync(self._descriptor)
            digest = body_sha256(self.path, outline.header_bytes, extents)
            size = os.fstat(self._descriptor).st_size
            attributes = outline.attributes(names)
            header = Header(outline.header_bytes, size, digest, attributes, extents)
            write_at(self._descriptor, memoryview(header.pack()), 0)
            os.fsync(self._descriptor)

    def _write_order(self) -> None:
        """Write the numbers of the rows in ascending order of their ids."""
        runs = list(id_runs(self.outline.count))
        in_order = sort_ids(map(self._ids, runs), self.path.parent)
        for run in runs:
            positions = (position for _, position in islice(in_order, run.stop - run.start))
            self._write("rows/by_id", run.start, np.fromiter(positions, "<i8"))

    def _ids(self, run: slice) -> npt.NDArray[np.bytes_]:
        extent = self.extents["rows/id"]
        width = self.outline.id_width
        size, offset = (run.stop - run.start) * width, extent.offset + run.start * width
        return np.frombuffer(os.pread(self._descriptor, size, offset), extent.dtype)

    def _take_over(self, skeleton: Path, extents: dict[str, Extent]) -> None:
        """Copy all but the rows from a finished skeleton."""
        rows = {name: extent for name, extent in extents.items() if name.startswith(_ROWS)}
        if any(self.extents[name] != extent for name, extent in rows.items()):
            raise RuntimeError("HDF5 moved the rows")
        taken = sorted((extent.offset, extent.offset + extent.nbytes) for extent in rows.values())
        with open(skeleton, "rb") as source:
            size = os.fstat(source.fileno()).st_size
            os.ftruncate(self._descriptor, size)
            position = self.outline.header_bytes
            for start, stop in [*taken, (size, size)]:
                while position < start:
                    count = min(start - position, _COPIED_BYTES)
                    piece = os.pread(source.fileno(), count, position)
                    write_at(self._descriptor, memoryview(piece), position)
                    position += len(piece)
                position = max(position, stop)


def write_at(descriptor: int, raw: memoryview, offset: int) -> None:
    """Write bytes at a place of a file, however many calls that takes."""
    while raw:
        written = os.pwrite(descriptor, raw, offset)
        raw, offset = raw[written:], offset + written


def _are_rows(positions: npt.NDArray[np.intp], count: int) -> bool:
    return not len(positions) or (positions[0] >= 0 and positions[-1] < count)


def _runs(positions: npt.NDArray[np.intp]) -> Iterator[tuple[int, slice]]:
    """Neighbours among ascending positions: the first one's position, and where they are."""
    breaks = np.flatnonzero(np.diff(positions) != 1) + 1
    edges = [0, *breaks.tolist(), len(positions)]
    for start, stop in pairwise(edges):
        if stop > start:
            yield int(positions[start]), slice(start, stop)
