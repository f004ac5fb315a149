"""A cache file opened for reading: its datasets as arrays that stay on the disk."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from spptransfer.cache.ids import decode
from spptransfer.cache.layout import WAY_OUT, Block, Extent, Header, body_sha256, row_runs
from spptransfer.cache.rows import CHECKSUM_BYTES, COLUMNS
from spptransfer.errors import CacheError
from spptransfer.ids import TextById
from spptransfer.spec import FeatureSpec

_RELEASE_BYTES = 1 << 23
# The most that the system maps around a byte that is looked at.
_FAULT_BYTES = 1 << 21
# Rows are read with those between them if that is at most so many times as much.
_SPAN = 2
# About what an id and the reason of its failure take while they are copied.
_FAILURE_BYTES = 1024


class MappedFile:
    """The datasets of a sealed file by name.

    Neither the map nor positioned reads share a file position, so nothing goes wrong where a
    process forks with the file open.

    Parameters
    ----------
    path : Path
        The file.
    header : Header, optional
        What is known of it where it is not sealed yet.

    Raises
    ------
    CacheError
        If the file is missing, foreign, of another version, truncated or damaged.
    """

    def __init__(self, path: Path, header: Header | None = None) -> None:
        try:
            self._file = open(path, "rb")  # noqa: SIM115 - open as long as its arrays are used
        except OSError as error:
            raise CacheError(f"cannot open the cache '{path}': {error.strerror}") from error
        self.path = path
        self.header = header or Header.read(self._file, path)
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        self._unreleased = 0

    def array(self, name: str) -> npt.NDArray[Any]:
        """Map a dataset; nothing is read until its numbers are looked at.

        Raises
        ------
        CacheError
            If the file has no such dataset.
        """
        extent = self.header.extents.get(name)
        if extent is None:
            raise CacheError(f"'{self.path}' is damaged: '{name}' is missing")
        dtype = np.dtype(extent.dtype)
        flat = np.frombuffer(self._map, dtype, extent.nbytes // dtype.itemsize, extent.offset)
        return flat.reshape(extent.shape)

    def row_numbers(self, name: str) -> npt.NDArray[np.int64]:
        """Map a dataset of row numbers, after making sure that there are such rows."""
        numbers = self.array(name)
        count = self.header.extents["rows/id"].shape[0]
        if len(numbers) and not (numbers.min() >= 0 and numbers.max() < count):
            raise CacheError(
                f"'{self.path}' is damaged: '{name}' points beyond its rows; {WAY_OUT}"
            )
        return numbers

    def failures(self) -> TextById:
        """Reason for every row that has no features, by id."""
        rows, errors = self.row_numbers("failures/row"), self.array("failures/error")
        ids, runs = self.array("rows/id"), row_runs(min(len(rows), len(errors)), _FAILURE_BYTES)
        return TextById(
            pair
            for run in runs
            for pair in zip(decode(ids[rows[run]]), decode(errors[run]), strict=True)
        )

    def read_into(self, name: str, start: int, out: npt.NDArray[Any]) -> None:
        """Read consecutive rows of a dataset into a contiguous array of its type.

        Faster than through the map, and it leaves no pages of the file behind in the process.
        """
        if not out.size:
            return
        extent = self.header.extents[name]
        row_bytes = out.nbytes // len(out)
        buffer, offset = out.data.cast("B"), extent.offset + start * row_bytes
        while buffer:
            count = os.preadv(self._file.fileno(), [buffer], offset)
            if not count:
                raise CacheError(f"'{self.path}' was truncated while it was read")
            buffer, offset = buffer[count:], offset + count

    def rows(self, name: str, positions: slice | npt.NDArray[np.intp]) -> npt.NDArray[Any]:
        """Read rows of a dataset: neighbours at once, others through the map."""
        if isinstance(positions, slice):
            return self._run(name, positions)
        run = as_slice(positions)
        if run is not None:
            return self._run(name, run)
        first, stop = int(positions.min()), int(positions.max()) + 1
        if first >= 0 and stop - first <= _SPAN * len(positions):
            return self._run(name, slice(first, stop))[positions - first]
        return self._scattered(name, positions)

    def _scattered(self, name: str, positions: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
        """Read rows through the map; narrow ones, which lie among others, in the file's order."""
        mapped = self.array(name)
        row_bytes = mapped.itemsize * math.prod(mapped.shape[1:])
        if row_bytes >= mmap.PAGESIZE:
            return mapped[positions]
        rows = np.empty((len(positions), *mapped.shape[1:]), mapped.dtype)
        order = np.argsort(positions, kind="stable")
        windows = positions[order] * row_bytes // _RELEASE_BYTES
        for part in np.split(order, np.flatnonzero(np.diff(windows)) + 1):
            rows[part] = mapped[positions[part]]
            self.release(min(_RELEASE_BYTES, len(part) * (row_bytes + _FAULT_BYTES)))
        return rows

    def _run(self, name: str, run: slice) -> npt.NDArray[Any]:
        extent = self.header.extents[name]
        start, stop, _ = run.indices(extent.shape[0])
        rows = np.empty((max(0, stop - start), *extent.shape[1:]), extent.dtype)
        self.read_into(name, start, rows)
        return rows

    def is_intact(self) -> bool:
        """Whether all is what was written but the features, for which their rows vouch."""
        header = self.header
        file = self._file.fileno()
        found = body_sha256(file, header.header_bytes, header.extents, header.version)
        return found == header.sha256

    def reopened(self) -> IO[bytes]:
        """The very file that is mapped, whatever its path names by now, to read from its start."""
        copy = os.fdopen(os.dup(self._file.fileno()), "rb")
        copy.seek(0)
        return copy

    def release(self, looked_at: int) -> None:
        """Give back mapped pages after so many bytes were looked at in passing.

        The system would do so anyhow when memory is short; until then they count as ours.
        """
        self._unreleased += looked_at
        if self._unreleased >= _RELEASE_BYTES:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._unreleased = 0


def as_slice(positions: npt.NDArray[np.intp]) -> slice | None:
    """The slice that consecutive positions are; one slice is read faster than many rows."""
    if not len(positions):
        return slice(0, 0)
    start, stop = int(positions[0]), int(positions[0]) + len(positions)
    return slice(start, stop) if np.array_equal(positions, np.arange(start, stop)) else None


def check_extents(
    extents: Mapping[str, Extent], spec: FeatureSpec, blocks: Sequence[Block]
) -> None:
    """Compare the shapes and types of all datasets with what the spec asks for.

    Raises
    ------
    CacheError, KeyError, ValueError
        If one is missing or another.
    """
    (count,) = extents["rows/id"].shape
    storage = np.dtype(spec.storage).str
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "rows/by_id": ("<i8", (count,)),
        "rows/checksum": ("|u1", (count, CHECKSUM_BYTES)),
        **{f"rows/{name}": (np.dtype(dtype).str, (count,)) for name, dtype in COLUMNS.items()},
        **{block.name: (storage, (count, block.width)) for block in blocks},
    }
    for name, (dtype, shape) in expected.items():
        found = extents[name]
        if (found.dtype, found.shape) != (dtype, shape):
            raise CacheError(f"'{name}' is {found.shape} {found.dtype}, not {shape} {dtype}")
    for name, kind in (("rows/id", "S"), ("failures/error", "S"), ("failures/row", "i")):
        if np.dtype(extents[name].dtype).kind != kind or len(extents[name].shape) != 1:
            raise CacheError(f"'{name}' is {extents[name]}")
    if "labels/targets" in extents:
        if extents["labels/targets"].shape[:1] != (count,):
            raise CacheError("labels and rows differ in length")
        if np.dtype(extents["labels/classes"].dtype).kind != "S":
            raise CacheError("the names of classes are no text")
