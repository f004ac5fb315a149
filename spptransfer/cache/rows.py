"""Rows of a file, finished or not, by position: the table of images, and their features."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import numpy.typing as npt

from spptransfer.backbones.probe import Probe
from spptransfer.cache.layout import (
    CHECKSUM_BYTES,
    ERROR_BYTES,
    FORMAT_VERSION,
    HEAD,
    PAGE,
    Block,
    DamagedFileError,
    Layout,
    Shape,
    blocks_of,
    check_seal,
    datasets_of,
    short_text,
)
from spptransfer.errors import CacheError
from spptransfer.ids import decode, encode
from spptransfer.spec import FeatureSpec
from spptransfer.system import count_processors

# A row whose status is 0 was never written: room in a file reads as zeros.
PENDING, OK, FAILED = 0, 1, 2
# What a row of the table takes in memory while it is copied, about, as Python's strings mostly.
TABLE_BYTES = 1024
# A row's checksum covers these, its id and its features.
CHECKED = ("rows/digest", "rows/height", "rows/width", "rows/status", "rows/error")
# Bytes of a line of a processor's cache.
_LINE = 64
# Rows are read a run at a time where runs of neighbours are so long on average.
_NEIGHBOURS = 16
# So many bytes, and rows, are mapped at once where rows are scattered.
_WINDOW_BYTES, _WINDOW_ROWS = 1 << 23, 1 << 16

Positions = slice | npt.NDArray[np.intp]
# Some rows of every dataset of rows, by its name.
Numbers = dict[str, npt.NDArray[Any]]


@dataclass(repr=False)
class RowTable:
    """What is known of images besides their features, in columns of equal length.

    `digest` is the SHA-256 of the image file, `height` and `width` are the upright image's.
    `stamp` is what the file system said of the file when it was read: its size, and when it was
    modified and changed in nanoseconds. While it says so the file is not read again.
    """

    ids: list[str]
    error: list[str]
    digest: npt.NDArray[np.bytes_]
    height: npt.NDArray[np.int32]
    width: npt.NDArray[np.int32]
    status: npt.NDArray[np.uint8]
    stamp: npt.NDArray[np.int64]

    @classmethod
    def empty(cls, ids: Sequence[str]) -> RowTable:
        """Make rows that have failed until something is known about them."""
        count = len(ids)
        return cls(
            ids=list(ids),
            error=[""] * count,
            digest=np.zeros(count, "S64"),
            height=np.zeros(count, np.int32),
            width=np.zeros(count, np.int32),
            status=np.full(count, FAILED, np.uint8),
            stamp=np.zeros((count, 3), np.int64),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, positions: npt.NDArray[np.intp]) -> RowTable:
        """Return some of the rows."""
        columns: dict[str, Any] = {
            name: [value[i] for i in positions] if isinstance(value, list) else value[positions]
            for name, value in vars(self).items()
        }
        return RowTable(**columns)

    def numbers(self) -> Numbers:
        """Return the columns as they are stored."""
        return {
            "rows/id": encode(self.ids),
            "rows/error": encode(map(short_text, self.error)).astype(f"S{ERROR_BYTES}"),
            "rows/digest": self.digest,
            "rows/height": self.height,
            "rows/width": self.width,
            "rows/status": self.status,
            "rows/stamp": self.stamp,
        }


def checksums(numbers: Numbers, blocks: Sequence[Block]) -> npt.NDArray[np.uint8]:
    """Compute BLAKE2b-128 over the id, the checked columns and the features of every row."""
    ids, parts = numbers["rows/id"].tolist(), []
    table = np.rec.fromarrays([numbers[name] for name in CHECKED])
    for column in (table, *(numbers[block.name] for block in blocks)):
        raw = np.ascontiguousarray(column).reshape(-1).view(np.uint8)
        parts.append((raw.data, len(raw) // len(ids)))

    def digests(start: int) -> bytes:
        found = bytearray()
        for row in range(start, min(start + step, len(ids))):
            hasher = hashlib.blake2b(ids[row] + b"\0", digest_size=CHECKSUM_BYTES)
            for part, size in parts:
                hasher.update(part[row * size : (row + 1) * size])
            found += hasher.digest()
        return bytes(found)

    threads = count_processors()
    step = max(1, -(-len(ids) // threads))
    with ThreadPoolExecutor(threads) as pool:
        joined = b"".join(pool.map(digests, range(0, len(ids), step)))
    return np.frombuffer(joined, np.uint8).reshape(-1, CHECKSUM_BYTES)


class RowFile:
    """An HDF5 file of rows: it is what its spec asks for, or it is refused.

    HDF5's parser reads it, then everything that could lead out of the file is refused: links,
    external and virtual storage, filters, other types and shapes than the spec's.
    """

    # Whether the first page is compared with the file before HDF5 reads any of it.
    _is_sealed: ClassVar[bool] = False

    def __init__(self, path: str | os.PathLike[str], *, writable: bool = False) -> None:
        self.path = Path(path)
        try:
            self._raw = open(path, "r+b" if writable else "rb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise CacheError(f"cannot open the cache '{path}': {error.strerror}") from error
        weakref.finalize(self, self._raw.close)
        self._data: dict[str, h5py.Dataset] = {}
        try:
            self.sha256 = check_seal(self._raw, self.path) if self._is_sealed else ""
            self._file = _open_hdf5(self.path, writable)
            if not os.path.samestat(os.fstat(self._raw.fileno()), os.stat(path)):
                raise CacheError(f"'{path}' was replaced while it was opened")
            self._read_identity()
            self._locate()
        except CacheError:
            self.close()
            raise
        except (OSError, LookupError, TypeError, ValueError, RuntimeError) as error:
            self.close()
            if isinstance(error, OSError) and error.errno:  # the disk's, and it may recover
                reason = " ".join(str(error.strerror).split())
                raise CacheError(f"cannot open the cache '{path}': {reason}") from error
            raise DamagedFileError(self.path, error) from error

    def close(self) -> None:
        """Close the file, which stays as it is; what was read of it stays too."""
        self._data.clear()
        if hasattr(self, "_file"):
            with contextlib.suppress(OSError, RuntimeError):  # HDF5 holds nothing back
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
        spec, self.fingerprint, self.dataset = given["spec"], given["fingerprint"], given["dataset"]
        if not (isinstance(spec, str) and isinstance(self.dataset, str)):
            raise TypeError("an attribute is no text")
        try:
            self.spec = FeatureSpec.from_dict(json.loads(spec))
        except CacheError as error:
            raise DamagedFileError(self.path, error) from error
        if self.fingerprint != self.spec.fingerprint:
            raise ValueError("its fingerprint is not that of its spec")
        counts = map(int, given["channels"])
        self.channels = dict(zip(self.spec.layers, counts, strict=True))
        self.blocks: tuple[Block, ...] = blocks_of(self.spec, self.channels)
        width = sum(block.width for block in self.blocks)
        # What a row takes in memory with all it has, about.
        self.row_bytes = width * np.dtype(self.spec.storage).itemsize + TABLE_BYTES

    def _locate(self) -> None:
        """Find all datasets, and where they lie; numbers are never read from anywhere else."""
        self._data = data = _datasets(self._file)
        self.count: int = data["rows/id"].shape[0]
        expected = datasets_of(self.count, self.spec.storage, self.blocks)
        self._columns = {name for name in data if name.startswith(("rows/", "features/"))}
        texts = ["rows/id"]
        if "labels/classes" in data:
            texts.append("labels/classes")
            single = len(data["labels/targets"].shape) == 1
            several = (self.count, data["labels/classes"].shape[0])
            expected["labels/targets"] = ((self.count,), "<i4") if single else (several, "|i1")
        for name in texts:
            if data[name].dtype.kind != "S" or len(data[name].shape) != 1:
                raise ValueError(f"'{name}' is {data[name].shape} {data[name].dtype}")
            expected[name] = (data[name].shape, data[name].dtype.str)
        for name in data.keys() ^ expected.keys():
            raise ValueError(f"'{name}' is missing, or too much")
        size = self._raw.seek(0, os.SEEK_END)
        self.extents = {name: _extent(data[name], *expected[name], size) for name in expected}
        self.head_bytes = min(self.extents[name][0] for name in self._columns - HEAD)
        raw = data["computed_by"][()].decode("utf-8", "replace")
        self.computed_by = tuple(filter(None, raw.split(", ")))
        self.probe: Probe = data["probe"][()]
        classes = data.get("labels/classes")
        self.classes = () if classes is None else tuple(decode(classes[()]))

    @property
    def targets(self) -> npt.NDArray[Any] | None:
        """Labels of all rows as the dataset has them, failed rows included."""
        node = self._data.get("labels/targets")
        return None if node is None else node[()]

    def matches(self, layout: Layout) -> bool:
        """Tell whether it is for the rows and labels of a layout, in their order."""
        labels = layout.labels
        mine: Any = self.targets
        theirs: Any = None if labels is None else labels.targets
        return (
            self.spec == layout.spec
            and self.classes == (labels.classes if labels else ())
            and np.array_equal(self.column("rows/id"), layout.ids.encoded)
            and np.array_equal(mine, theirs)
        )

    def column(self, name: str) -> npt.NDArray[Any]:
        """Map a dataset, such as ``"rows/digest"``, as it is stored."""
        node, (offset, _) = self._data[name], self.extents[name]
        return np.memmap(self._raw, node.dtype, "r", offset, node.shape)

    def read(self, block: Block, positions: Positions) -> npt.NDArray[Any]:
        """Read stored features of rows by position."""
        return self.rows(block.name, positions)

    def rows(self, name: str, positions: Positions) -> npt.NDArray[Any]:
        """Read rows of a dataset by position: neighbours at once, others through a map."""
        if isinstance(positions, slice):
            positions = np.arange(self.count)[positions]
        node = self._data[name]
        found = _aligned((len(positions), *node.shape[1:]), node.dtype)
        gaps = np.count_nonzero(np.diff(positions) != 1)
        if gaps <= len(positions) // _NEIGHBOURS:
            for first, run in runs_of(positions):
                node.read_direct(found, np.s_[first : first + run.stop - run.start], run)
            return found
        # Rows lie among others, which are mapped with them and count as this process's: so they
        # are read in the file's order, and what was looked at is let go of by and by.
        order = np.argsort(positions, kind="stable")
        ascending = positions[order]
        window = max(_WINDOW_ROWS, _WINDOW_BYTES * self.count // node.nbytes)
        cuts = np.flatnonzero(np.diff(ascending // window)) + 1
        for rows, part in zip(np.split(ascending, cuts), np.split(found, cuts), strict=True):
            np.take(self.column(name), rows, axis=0, out=part, mode="clip")
        return found[np.argsort(order)] if (np.diff(positions) < 0).any() else found

    def ids_at(self, positions: Positions) -> list[str]:
        """Return the ids of rows."""
        return decode(self.rows("rows/id", positions))

    def rows_at(self, positions: Positions) -> RowTable:
        """Read part of the table of rows."""
        errors = self.rows("rows/error", positions).tolist()
        return RowTable(
            ids=self.ids_at(positions),
            error=[text.decode("utf-8", "replace") for text in errors],
            digest=self.rows("rows/digest", positions),
            height=self.rows("rows/height", positions),
            width=self.rows("rows/width", positions),
            status=self.rows("rows/status", positions),
            stamp=self.rows("rows/stamp", positions),
        )

    def failures_at(self, positions: npt.NDArray[np.intp]) -> dict[str, str]:
        """Return the reasons for those of some rows that have no features, by id."""
        table = self.rows_at(positions[self.column("rows/status")[positions] == FAILED])
        return dict(zip(table.ids, table.error, strict=True))

    def compare(self, positions: Positions) -> tuple[Numbers, npt.NDArray[np.bool_]]:
        """Read rows with all they have, and whether each is what was written."""
        numbers = {name: self.rows(name, positions) for name in self._columns}
        right = (checksums(numbers, self.blocks) == numbers["rows/checksum"]).all(axis=1)
        return numbers, right & (numbers["rows/status"] != PENDING)

    def checked(self, positions: Positions) -> Numbers:
        """Read rows with all they have; one that is not what was written is an error."""
        numbers, right = self.compare(positions)
        for id in decode(numbers["rows/id"][~right])[:1]:
            raise CacheError(f"row '{id}' of '{self.path}' is not what was written")
        return numbers


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Allocate an array at a multiple of 64 bytes.

    Numpy puts large ones 16 bytes behind the start of a page, where some processors copy the
    pages of a file to at a third of the speed.
    """
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + _LINE, np.uint8)
    start = -room.ctypes.data % _LINE
    return room[start : start + size].view(dtype).reshape(shape)


def runs_of(positions: npt.NDArray[np.intp]) -> list[tuple[int, slice]]:
    """Cut positions into neighbours: the first one's position, and where they are.

    Examples
    --------
    >>> runs_of(np.array([7, 8, 9, 2]))
    [(7, slice(0, 3, None)), (2, slice(3, 4, None))]
    """
    edges = [0, *(np.flatnonzero(np.diff(positions) != 1) + 1).tolist(), len(positions)]
    return [(int(positions[a]), slice(a, b)) for a, b in itertools.pairwise(edges) if a < b]


def _open_hdf5(path: Path, writable: bool) -> h5py.File:
    """Open a file without HDF5's locks and buffers: a write fails where it is asked for."""
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_sieve_buf_size(0)
    access.set_file_locking(False, True)
    mode = h5py.h5f.ACC_RDWR if writable else h5py.h5f.ACC_RDONLY
    return h5py.File(h5py.h5f.open(os.fsencode(path), mode, access))


def _datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Return all datasets of a file, in which there must be no links but hard ones."""
    links: dict[bytes, int] = {}
    file.id.links.visit(lambda name, info: links.update({name: info.type}), info=True)
    for name, kind in links.items():
        if kind != h5py.h5l.TYPE_HARD:
            raise ValueError(f"'{name.decode()}' is a link to elsewhere")
    nodes = {name.decode(): file[name] for name in links}
    return {name: node for name, node in nodes.items() if isinstance(node, h5py.Dataset)}


def _extent(node: h5py.Dataset, shape: Shape, dtype: str, size: int) -> tuple[int, int]:
    """Return where a dataset begins and ends; it must lie in the file as one piece."""
    if (node.shape, node.dtype.str) != (shape, dtype) or 0 in shape:
        raise ValueError(f"'{node.name}' is {node.shape} {node.dtype.str}, not {shape} {dtype}")
    creation = node.id.get_create_plist()
    if creation.get_layout() != h5py.h5d.CONTIGUOUS or creation.get_nfilters():
        raise ValueError(f"'{node.name}' is not stored in one piece")
    if creation.get_external_count():
        raise ValueError(f"'{node.name}' lies in another file")
    offset, length = node.id.get_offset(), math.prod(shape) * node.dtype.itemsize
    if not offset or offset < PAGE or offset + length > size:
        raise ValueError(f"'{node.name}' reaches beyond the {size:,} bytes of the file")
    return offset, offset + length
