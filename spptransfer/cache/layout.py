"""How rows lie in an HDF5 file: names, types, the sealed header. `docs/cache-format.md` tells it.

A file is written once, sealed, and never changed. Its first 512 bytes (an HDF5 user block, which
every HDF5 reader skips) carry the length and SHA-256 of all the bytes behind them, so that
truncation is seen when opening and a single flipped byte when verifying.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from spptransfer.errors import CacheError
from spptransfer.spec import FeatureSpec

FORMAT = "spptransfer-features"
FORMAT_VERSION = 1
HEADER_BYTES = 512
CHECKSUM_ROWS = 256
CHECKSUM_BYTES = 16

OK, FAILED = 0, 1

_HEADER = re.compile(
    rb"spptransfer-features (\d+)\nbytes (\d+)\nsha256 ([0-9a-f]{64})\n\0*", re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """Stored numbers of one scale: a determining level, or a vector (`level` None).

    Examples
    --------
    >>> Block(scale=224, level=6, channels=256).name
    'features/scale_224/level_6'
    """

    scale: int
    level: int | None
    channels: int

    @property
    def name(self) -> str:
        """Name of the dataset in the file."""
        part = "vector" if self.level is None else f"level_{self.level}"
        return f"features/scale_{self.scale}/{part}"

    @property
    def width(self) -> int:
        """Numbers per row."""
        return self.channels * (1 if self.level is None else self.level**2)


def blocks_of(spec: FeatureSpec, channels: int) -> tuple[Block, ...]:
    """Blocks that a file of this spec holds, in the order in which they are stored."""
    levels: tuple[int | None, ...] = spec.levels or (None,)
    return tuple(Block(scale, level, channels) for scale in spec.scales for level in levels)


@dataclass
class Rows:
    """What is known of every row besides its features, as columns of equal length.

    `size` and `modified` (nanoseconds) are those of the image file when it was read; as long as
    they stay the same the file is not read again to see whether its content changed.
    """

    ids: list[str]
    digest: npt.NDArray[np.bytes_]
    height: npt.NDArray[np.int32]
    width: npt.NDArray[np.int32]
    status: npt.NDArray[np.uint8]
    error: list[str]
    size: npt.NDArray[np.int64]
    modified: npt.NDArray[np.int64]

    @classmethod
    def empty(cls, ids: Sequence[str]) -> Rows:
        """Rows that have failed until something is known about them."""
        count = len(ids)
        return cls(
            ids=list(ids),
            digest=np.zeros(count, dtype="S64"),
            height=np.zeros(count, dtype=np.int32),
            width=np.zeros(count, dtype=np.int32),
            status=np.full(count, FAILED, dtype=np.uint8),
            error=[""] * count,
            size=np.zeros(count, dtype=np.int64),
            modified=np.zeros(count, dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def copy_row(self, position: int, other: Rows, other_position: int) -> None:
        """Take over everything but the id from a row of another table."""
        for name in ("digest", "height", "width", "status", "error", "size", "modified"):
            getattr(self, name)[position] = getattr(other, name)[other_position]


_COLUMNS = ("digest", "height", "width", "status", "size", "modified")
_TEXTS = ("ids", "error")


def write_text(group: h5py.Group, name: str, values: Sequence[str]) -> None:
    """Store strings as fixed-length UTF-8, which every HDF5 reader understands.

    Bytes of file names that are no UTF-8 are kept as they are.
    """
    encoded = [value.encode("utf-8", "surrogateescape") for value in values]
    width = max((len(value) for value in encoded), default=0) or 1
    dtype = h5py.string_dtype("utf-8", width)
    group.create_dataset(name, data=np.array(encoded, dtype=f"S{width}").astype(dtype))


def read_text(group: h5py.Group, name: str) -> list[str]:
    """Read what `write_text` stored."""
    raw = read_array(group, name).astype("S")
    return [value.decode("utf-8", "surrogateescape") for value in raw.tolist()]


def write_rows(file: h5py.File, rows: Rows) -> None:
    """Store the table of rows below ``/rows``."""
    group = file.create_group("rows")
    for name in _TEXTS:
        write_text(group, name, getattr(rows, name))
    for name in _COLUMNS:
        group.create_dataset(name, data=getattr(rows, name))


def read_rows(file: h5py.File) -> Rows:
    """Read the table of rows and check that its columns agree in length.

    Raises
    ------
    CacheError
        If a column is missing or of another length.
    """
    group = child(file, "rows")
    columns: dict[str, Any] = {name: read_text(group, name) for name in _TEXTS}
    columns |= {name: read_array(group, name) for name in _COLUMNS}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1:
        raise CacheError(f"the columns of rows differ in length: {lengths}")
    return Rows(**columns)


def child(group: h5py.Group, name: str) -> Any:
    """Get a member that lies in this very file; no link may lead elsewhere."""
    node: Any = group
    for part in name.split("/"):
        try:
            link = node.get(part, getlink=True)
        except (KeyError, RuntimeError, AttributeError) as error:
            raise CacheError(f"'{name}' is missing in the file") from error
        if not isinstance(link, h5py.HardLink):
            raise CacheError(f"'{name}' is missing in the file or a link to somewhere else")
        node = node[part]
    return node


def plain_dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    """Get a dataset whose declared shape is backed by bytes of this very file.

    A foreign file may declare a terabyte that is not there, or point to other files; neither may
    make us allocate or read.
    """
    dataset = child(group, name)
    if not isinstance(dataset, h5py.Dataset):
        raise CacheError(f"'{name}' is no dataset")
    if dataset.chunks is not None or dataset.is_virtual or dataset.external:
        raise CacheError(f"'{name}' is not stored as one contiguous block of this file")
    if dataset.dtype.hasobject or dataset.id.get_storage_size() != dataset.nbytes:
        raise CacheError(f"'{name}' is not stored as its shape {dataset.shape} says")
    return dataset


def read_array(group: h5py.Group, name: str) -> npt.NDArray[Any]:
    """Read a whole dataset after `plain_dataset`'s checks."""
    values: npt.NDArray[Any] = plain_dataset(group, name)[()]
    return values


def block_checksum(rows: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """BLAKE2b over the bytes of up to `CHECKSUM_ROWS` rows."""
    hasher = hashlib.blake2b(np.ascontiguousarray(rows).data, digest_size=CHECKSUM_BYTES)
    return np.frombuffer(hasher.digest(), dtype=np.uint8)


def row_blocks(count: int) -> Iterator[slice]:
    """Cut rows into runs of `CHECKSUM_ROWS`, the unit of reading, writing and checking.

    Examples
    --------
    >>> [(rows.start, rows.stop) for rows in row_blocks(300)]
    [(0, 256), (256, 300)]
    """
    for start in range(0, count, CHECKSUM_ROWS):
        yield slice(start, min(start + CHECKSUM_ROWS, count))


def seal(path: Path) -> None:
    """Write the header of a finished file and force all of it onto the disk."""
    with open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        digest = body_digest(path)
        header = f"{FORMAT} {FORMAT_VERSION}\nbytes {size}\nsha256 {digest}\n".encode()
        file.seek(0)
        file.write(header.ljust(HEADER_BYTES, b"\0"))
        file.flush()
        os.fsync(file.fileno())


def body_digest(path: Path) -> str:
    """SHA-256 of everything behind the header."""
    with open(path, "rb") as file:
        file.seek(HEADER_BYTES)
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_header(path: Path) -> str:
    """Check that a file is a sealed cache of the right length; return its recorded SHA-256.

    Raises
    ------
    CacheError
        If the file is missing, foreign, of a later version, unsealed or truncated.
    """
    try:
        with open(path, "rb") as file:
            header = file.read(HEADER_BYTES)
            size = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise CacheError(f"cannot open the cache '{path}': {error.strerror}") from error
    match = _HEADER.fullmatch(header)
    if match is None:
        raise CacheError(f"'{path}' is no feature cache (its header is not '{FORMAT}')")
    version, recorded_size, digest = int(match[1]), int(match[2]), match[3].decode()
    if version != FORMAT_VERSION:
        raise CacheError(
            f"'{path}' has format version {version}; this release reads {FORMAT_VERSION}"
        )
    if size != recorded_size:
        raise CacheError(f"'{path}' is truncated: {size:,} of {recorded_size:,} bytes")
    return digest
