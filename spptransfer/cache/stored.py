"""An HDF5 file of rows, read by position: it is what its spec asks for, or it is refused."""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from spptransfer.cache.layout import (
    FORMAT_VERSION,
    PAGE,
    Block,
    Shape,
    blocks_of,
    head_datasets,
    row_datasets,
    row_runs,
)
from spptransfer.cache.rows import (
    CHECKED,
    PENDING,
    STAMP,
    TABLE_BYTES,
    FeatureRows,
    RowTable,
    checksums,
)
from spptransfer.cache.seal import DamagedFileError
from spptransfer.errors import CacheError
from spptransfer.ids import Ids, decode
from spptransfer.spec import FeatureSpec

Positions = slice | npt.NDArray[np.intp]

# Rows are read with those between them if that is at most so many times as much.
_SPAN = 2
# The most that is mapped of a narrow column at once.
_WINDOW = 1 << 23


class RowFile:
    """The rows of a file, finished or not.

    HDF5's parser reads it, then everything that could lead out of the file is refused: links,
    external and virtual storage, filters, other types and shapes than the spec's.
    """

    def __init__(self, path: str | os.PathLike[str], *, writable: bool = False) -> None:
        self.path = Path(path)
        try:
            self._raw = open(path, "r+b" if writable else "rb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise CacheError(f"cannot open the cache '{path}': {error.strerror}") from error
        weakref.finalize(self, self._raw.close)
        self._data: dict[str, h5py.Dataset] = {}
        self._wide: dict[str, npt.NDArray[Any]] = {}
        try:
            self._check_start()
            self._file = _open_hdf5(self.path, writable)
            if not os.path.samestat(os.fstat(self._raw.fileno()), os.stat(path)):
                raise CacheError(f"'{path}' was replaced while it was opened")
            self._read_identity()
            self._read_layout()
        except CacheError:
            self.close()
            raise
        except OSError as error:
            self.close()
            if error.errno:  # the disk's, and it may be in order again later
                reason = " ".join(str(error.strerror).split())
                raise CacheError(f"cannot open the cache '{path}': {reason}") from error
            raise DamagedFileError(self.path, error) from error
        except (KeyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
            self.close()
            raise DamagedFileError(self.path, error) from error

    def _check_start(self) -> None:
        """Look at the file before HDF5 does."""

    def close(self) -> None:
        """Close the file; what was read of it stays."""
        if hasattr(self, "_file"):
            self._data.clear()
            self._wide.clear()
            self._file.close()
        self._raw.close()

    def _read_identity(self) -> None:
        given = self._file.attrs
        version = int(given["format_version"])
        if version != FORMAT_VERSION:
            raise CacheError(
                f"'{self.path}' was begun in format version {version}; "
                f"this release writes {FORMAT_VERSION}"
            )
        texts = [given[name] for name in ("spec", "fingerprint", "dataset")]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("an attribute is no text")
        try:
            self.spec = FeatureSpec.from_dict(json.loads(texts[0]))
        except CacheError as error:
            raise DamagedFileError(self.path, error) from error
        self.fingerprint, self.dataset = texts[1:]
        self.channels = int(given["channels"])
        self.blocks: tuple[Block, ...] = blocks_of(self.spec, self.channels)
        if self.fingerprint != self.spec.fingerprint:
            raise ValueError("its fingerprint is not that of its spec")

    def _read_layout(self) -> None:
        size = self._raw.seek(0, os.SEEK_END)
        texts = {"rows/id": _find(self._file, "rows/id")}
        self.count: int = texts["rows/id"].shape[0]
        rows = row_datasets(self.count, self.spec.storage, self.blocks)
        expected = head_datasets(self.count) | rows
        if self._file.id.links.exists(b"labels"):
            texts["labels/classes"] = _find(self._file, "labels/classes")
            single = len(_find(self._file, "labels/targets").shape) == 1
            several = (self.count, texts["labels/classes"].shape[0])
            expected["labels/targets"] = ((self.count,), "<i4") if single else (several, "|i1")
        for name, node in texts.items():
            if node.dtype.kind != "S" or len(node.shape) != 1:
                raise ValueError(f"'{name}' is {node.shape} {node.dtype}")
            expected[name] = (node.shape, node.dtype.str)
        self._data = {name: _find(self._file, name) for name in expected}
        _check_names(self._file, expected)
        # Where each dataset begins and ends; numbers are never read from anywhere else.
        self.extents = {
            name: _extent(self._data[name], expected[name], name, size) for name in expected
        }
        self.head_bytes = min(self.extents[name][0] for name in ("rows/id", *rows))
        raw = self._data["computed_by"][()].decode("utf-8", "replace")
        self.computed_by = tuple(filter(None, raw.split(", ")))
        classes = self._data.get("labels/classes")
        self.classes = () if classes is None else tuple(decode(classes[()]))

    def column(self, name: str) -> npt.NDArray[Any]:
        """Map a column of the table of rows, such as ``"digest"``, as it is stored."""
        return self._map(f"rows/{name}")

    @property
    def targets(self) -> npt.NDArray[Any] | None:
        """Labels of all rows as the dataset has them, failed rows included."""
        node = self._data.get("labels/targets")
        return None if node is None else node[()]

    def ids_at(self, positions: Positions) -> list[str]:
        """Return the ids of rows by position in the file."""
        return decode(self._rows("rows/id", positions))

    def positions_in(self, ids: Ids) -> Iterator[tuple[int, npt.NDArray[np.intp]]]:
        """Find all rows among ids, some at a time from the given row on; -1 for other ids."""
        for run in row_runs(self.count, TABLE_BYTES):
            yield run.start, ids.find_encoded(self._rows("rows/id", run))

    def rows_at(self, positions: Positions) -> RowTable:
        """Read part of the table of rows."""
        columns = {name: self._rows(f"rows/{name}", positions) for name in ("id", *CHECKED)}
        return self._table(columns, positions)

    def _table(self, columns: dict[str, Any], positions: Positions) -> RowTable:
        stamp = self._rows("rows/stamp", positions)
        return RowTable(
            ids=decode(columns["id"]),
            error=decode_loosely(columns["error"]),
            **{name: columns[name] for name in CHECKED if name != "error"},
            **{name: stamp[:, i] for i, name in enumerate(STAMP)},
        )

    def read(self, block: Block, positions: Positions) -> npt.NDArray[Any]:
        """Read stored features of rows by position in the file."""
        return self._rows(block.name, positions)

    def compare(
        self, positions: Positions
    ) -> tuple[RowTable, FeatureRows, npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        """Read rows with all they have, their checksums, and whether each is what was written."""
        features = {block: self.read(block, positions) for block in self.blocks}
        recorded = self._rows("rows/checksum", positions)
        columns = {name: self._rows(f"rows/{name}", positions) for name in ("id", *CHECKED)}
        right = (checksums(columns, features, self.blocks) == recorded).all(axis=1)
        right &= columns["status"] != PENDING
        return self._table(columns, positions), features, recorded, right

    def checked(self, positions: Positions) -> tuple[RowTable, FeatureRows, npt.NDArray[np.uint8]]:
        """Read rows with all they have, and their checksums."""
        table, features, recorded, right = self.compare(positions)
        for wrong in np.flatnonzero(~right)[:1]:
            raise CacheError(f"row '{table.ids[wrong]}' of '{self.path}' is not what was written")
        return table, features, recorded

    def checked_runs(self, count: int) -> Iterator[slice]:
        """Cut so many rows into runs that are compared at once."""
        width = sum(block.width for block in self.blocks)
        return row_runs(count, width * np.dtype(self.spec.storage).itemsize + TABLE_BYTES)

    def gaps(self) -> Iterator[tuple[int, int]]:
        """Go through the bytes behind the head that belong to no dataset: they are zeros."""
        position = self.head_bytes
        for start, stop in sorted(self.extents.values()):
            if start >= position:
                yield position, start
            position = max(position, stop)
        yield position, self._raw.seek(0, os.SEEK_END)

    def _rows(self, name: str, positions: Positions) -> npt.NDArray[Any]:
        """Read rows of a dataset: neighbours at once, others through a map."""
        if isinstance(positions, slice):
            return self._run(name, positions)
        run = as_slice(positions)
        if run is not None:
            return self._run(name, run)
        first, stop = int(positions.min()), int(positions.max()) + 1
        if first >= 0 and stop - first <= _SPAN * len(positions):
            return self._run(name, slice(first, stop))[positions - first]
        node = self._data[name]
        row_bytes = node.dtype.itemsize * math.prod(node.shape[1:])
        if row_bytes >= PAGE:
            if name not in self._wide:
                self._wide[name] = self._map(name)
            return np.asarray(self._wide[name][positions])
        # Narrow rows lie among others, which are mapped with them and count as this process's: so
        # they are read in the file's order, and what was looked at is let go of by and by.
        rows = np.empty((len(positions), *node.shape[1:]), node.dtype)
        order = np.argsort(positions, kind="stable")
        windows = positions[order] * row_bytes // _WINDOW
        for part in np.split(order, np.flatnonzero(np.diff(windows)) + 1):
            rows[part] = self._map(name)[positions[part]]
        return rows

    def _run(self, name: str, run: slice) -> npt.NDArray[Any]:
        start, stop, _ = run.indices(self.count)
        node = self._data[name]
        rows = np.empty((max(0, stop - start), *node.shape[1:]), node.dtype)
        self._read_into(name, start, rows)
        return rows

    def _read_into(self, name: str, start: int, out: npt.NDArray[Any]) -> None:
        """Read consecutive rows of a dataset into a contiguous array of its type."""
        if out.size:
            self._data[name].read_direct(out, np.s_[start : start + len(out)])

    def _map(self, name: str) -> npt.NDArray[Any]:
        node, (offset, _) = self._data[name], self.extents[name]
        return np.memmap(self._raw, node.dtype, "r", offset, node.shape)


def as_slice(positions: npt.NDArray[np.intp]) -> slice | None:
    """Return the slice that consecutive positions are; one is read faster than many rows."""
    if not len(positions):
        return slice(0, 0)
    start, stop = int(positions[0]), int(positions[0]) + len(positions)
    if start < 0 or int(positions[-1]) != stop - 1:
        return None
    return slice(start, stop) if np.array_equal(positions, np.arange(start, stop)) else None


def decode_loosely(encoded: npt.NDArray[np.bytes_]) -> list[str]:
    """Decode texts that nobody looks up."""
    return [text.decode("utf-8", "replace") for text in encoded.tolist()]


def _open_hdf5(path: Path, writable: bool) -> h5py.File:
    """Open a file without HDF5's locks and buffers: a write fails where it is asked for."""
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_sieve_buf_size(0)
    access.set_file_locking(False, True)
    mode = h5py.h5f.ACC_RDWR if writable else h5py.h5f.ACC_RDONLY
    return h5py.File(h5py.h5f.open(os.fsencode(path), mode, access))


def _find(file: h5py.File, name: str) -> h5py.Dataset:
    """Return a dataset that is reached by hard links alone."""
    node: Any = file
    for part in name.split("/"):
        if not isinstance(node, h5py.Group) or not node.id.links.exists(part.encode()):
            raise ValueError(f"'{name}' is missing")
        if node.id.links.get_info(part.encode()).type != h5py.h5l.TYPE_HARD:
            raise ValueError(f"'{name}' is a link to elsewhere")
        node = node[part]
    if not isinstance(node, h5py.Dataset) or node.shape is None:
        raise ValueError(f"'{name}' is no dataset")
    return node


def _check_names(file: h5py.File, names: dict[str, Any]) -> None:
    """Refuse a file that has anything else than the datasets of some names."""
    children: dict[str, set[str]] = {}
    for name in names:
        parts = name.split("/")
        for depth in range(len(parts)):
            children.setdefault("/".join(parts[:depth]), set()).add(parts[depth])
    for name, wanted in children.items():
        group = file[name] if name else file
        if len(group) != len(wanted) or set(group) != wanted:
            raise ValueError(f"group '/{name}' has not what it should have")


def _extent(node: h5py.Dataset, wanted: tuple[Shape, str], name: str, size: int) -> tuple[int, int]:
    """Return where a dataset begins and ends; it must lie in the file as one piece."""
    shape, dtype = wanted
    if (node.shape, node.dtype.str) != (shape, dtype) or 0 in shape:
        raise ValueError(f"'{name}' is {node.shape} {node.dtype.str}, not {shape} {dtype}")
    creation = node.id.get_create_plist()
    if creation.get_layout() != h5py.h5d.CONTIGUOUS or creation.get_nfilters():
        raise ValueError(f"'{name}' is not stored in one piece")
    if creation.get_external_count():
        raise ValueError(f"'{name}' lies in another file")
    offset, length = node.id.get_offset(), math.prod(shape) * node.dtype.itemsize
    if not offset or offset < PAGE or offset + length > size:
        raise ValueError(f"'{name}' reaches beyond the {size:,} bytes of the file")
    return offset, offset + length
