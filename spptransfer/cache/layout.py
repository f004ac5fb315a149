"""What lies in a cache file, and in which bytes: `docs/cache-format.md` tells it to readers.

A file is an ordinary HDF5 file behind a *header*, an HDF5 user block that every HDF5 reader
skips. The header repeats the attributes and says where each dataset's numbers lie, so this
package never has HDF5's parser read a file that somebody else may have made: whatever a file
claims is compared with its length first, and then mapped. A file is sealed with checksums once
it is complete and never changed afterwards.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from spptransfer.errors import CacheError
from spptransfer.spec import FeatureSpec

FORMAT = "spptransfer-features"
FORMAT_VERSION = 2
# In version 1 the header's hash covered the features too.
READABLE_VERSIONS = (1, 2)

# How the names of datasets of features begin.
FEATURES = "features/"

_RUN_BYTES = 1 << 22
_PIECE_BYTES = 1 << 18
_RUN_ROWS = 256
_HEADER_LIMIT = 1 << 24
WAY_OUT = "copy it anew if it is a copy, or remove it and extract again"
_TITLE = re.compile(rb"spptransfer-features (\d{1,9}) (\d{1,9}) ([0-9a-f]{64})\n")
_DTYPE = re.compile(r"\|u1|\|i1|<i4|<i8|<f2|<f4|\|S[1-9]\d{0,8}")


class ForeignFileError(CacheError):
    """A file that does not begin as ours do."""


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
        return f"{FEATURES}scale_{self.scale}/{part}"

    @property
    def width(self) -> int:
        """Numbers per row."""
        return self.channels * (1 if self.level is None else self.level**2)


def blocks_of(spec: FeatureSpec, channels: int) -> tuple[Block, ...]:
    """Blocks that a file of this spec holds, in the order in which they are stored."""
    levels: tuple[int | None, ...] = spec.levels or (None,)
    return tuple(Block(scale, level, channels) for scale in spec.scales for level in levels)


def row_runs(count: int, row_bytes: int) -> Iterator[slice]:
    """Cut rows into runs of about 4 MiB, at least 256 rows: the unit of reading and writing.

    Examples
    --------
    >>> [(run.start, run.stop) for run in row_runs(300, row_bytes=36_864)]
    [(0, 256), (256, 300)]
    """
    step = max(_RUN_ROWS, _RUN_BYTES // max(1, row_bytes))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


@dataclass(frozen=True)
class Extent:
    """Where the numbers of a dataset lie: `shape` values of `dtype` from byte `offset` on."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Header:
    """What a file says about itself before its HDF5 part begins.

    Attributes
    ----------
    header_bytes, file_bytes : int
        Length of the header and of the whole file.
    sha256 : str
        What `body_sha256` gives.
    attributes : mapping of str to str or int
        The attributes of the HDF5 root group.
    extents : mapping of str to Extent
        By the full name of every dataset.
    version : int
        Of the format.
    """

    header_bytes: int
    file_bytes: int
    sha256: str
    attributes: Mapping[str, Any]
    extents: Mapping[str, Extent]
    version: int = FORMAT_VERSION

    def body(self) -> bytes:
        """The JSON, which `parse` reads; the version stands before it."""
        fields = asdict(self)
        del fields["version"]
        return json.dumps(fields).encode()

    def pack(self) -> bytes:
        """Bytes of the header: a line with version, length and hash, then JSON, then zeros."""
        body = self.body()
        digest = hashlib.sha256(body).hexdigest()
        packed = f"{FORMAT} {self.version} {len(body)} {digest}\n".encode() + body
        if len(packed) > self.header_bytes:
            raise ValueError(f"the header needs {len(packed)} bytes, not {self.header_bytes}")
        return packed.ljust(self.header_bytes, b"\0")

    @classmethod
    def read(cls, file: IO[bytes], path: Path) -> Header:
        """Read and check the header of an open file, without trusting anything it says.

        Raises
        ------
        CacheError
            If the file is foreign, of another version, unsealed, truncated or damaged.
        """
        file_bytes = os.fstat(file.fileno()).st_size
        line = file.readline(128)
        title = _TITLE.fullmatch(line)
        if title is None:
            raise ForeignFileError(f"'{path}' is no feature cache of spptransfer: {_guess(line)}")
        version = int(title[1])
        if version not in READABLE_VERSIONS:
            known = " and ".join(map(str, READABLE_VERSIONS))
            raise CacheError(f"'{path}' has format version {version}; this release reads {known}")
        body = file.read(min(int(title[2]), _HEADER_LIMIT))
        if hashlib.sha256(body).hexdigest().encode() != title[3]:
            raise CacheError(f"'{path}' is damaged: its header is not what was written; {WAY_OUT}")
        header = cls.parse(body, path, version)
        if header.file_bytes != file_bytes:
            raise CacheError(
                f"'{path}' is truncated or was added to: "
                f"{file_bytes:,} of {header.file_bytes:,} bytes; {WAY_OUT}"
            )
        padding = header.header_bytes - len(line) - len(body)
        if not 0 <= padding <= _HEADER_LIMIT or file.read(padding).strip(b"\0"):
            raise CacheError(f"'{path}' is damaged: its header is not what was written; {WAY_OUT}")
        return header

    @classmethod
    def parse(cls, body: bytes, path: Path, version: int = FORMAT_VERSION) -> Header:
        """Read the JSON of a header; every dataset must lie in the bytes that the file has.

        Raises
        ------
        CacheError
            If it is no header.
        """
        try:
            fields = json.loads(body)
            for name in ("header_bytes", "file_bytes"):
                if type(fields[name]) is not int or fields[name] < 0:
                    raise ValueError(f"{name} is {fields[name]!r}")
            extents = {
                name: _check_extent(Extent(**given), fields["file_bytes"])
                for name, given in fields.pop("extents").items()
            }
            return cls(**fields, extents=extents, version=version)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CacheError(f"'{path}' is damaged: {' '.join(str(error).split())}") from error


def _check_extent(extent: Extent, file_bytes: int) -> Extent:
    """Accept an extent only if every byte of it lies in the file."""
    numbers = (*extent.shape, extent.offset)
    if not _DTYPE.fullmatch(extent.dtype) or len(extent.shape) > 2:
        raise ValueError(f"{extent} is of an unknown type")
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError(f"{extent} is no extent")
    if extent.offset + extent.nbytes > file_bytes:
        raise ValueError(f"{extent} reaches beyond the {file_bytes:,} bytes of the file")
    return Extent(extent.dtype, tuple(extent.shape), extent.offset)


def _guess(line: bytes) -> str:
    """What a foreign file probably is."""
    if not line:
        return "it is empty"
    if not line.strip(b"\0"):
        return "it is not finished yet; run the command that makes it again"
    if line.startswith(b"\x89HDF"):
        return "it is an HDF5 file of another program"
    return "it is another kind of file"


def body_sha256(
    file: int, header_bytes: int, extents: Mapping[str, Extent], version: int = FORMAT_VERSION
) -> str:
    """SHA-256 of everything behind the header but the features, for which their rows vouch.

    `file` is a descriptor: whoever replaces the file meanwhile does not change what is read.
    """
    left_out = sorted(
        (extent.offset, extent.offset + extent.nbytes)
        for name, extent in extents.items()
        if name.startswith(FEATURES) and version > 1
    )
    hasher, position = hashlib.sha256(), header_bytes
    for start, stop in [*left_out, (os.fstat(file).st_size, 0)]:
        while position < start:
            piece = os.pread(file, min(start - position, _PIECE_BYTES), position)
            if not piece:
                break
            hasher.update(piece)
            position += len(piece)
        position = max(position, stop)
    return hasher.hexdigest()
