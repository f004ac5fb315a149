"""The table of rows: what is known of every image besides its features."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from spptransfer.system import count_processors
from spptransfer.cache.ids import encode
from spptransfer.cache.layout import Block

OK, FAILED = 0, 1
CHECKSUM_BYTES = 16
# What a row of the table takes in memory while it is copied, about, as Python's strings mostly.
TABLE_BYTES = 1024

COLUMNS = {
    "digest": "S64",
    "height": "<i4",
    "width": "<i4",
    "status": "|u1",
    "size": "<i8",
    "modified": "<i8",
    "changed": "<i8",
}
# A row's checksum covers these and its id; the rest only says when a file need not be read.
_CHECKED = ("digest", "height", "width", "status")

# Bytes from which on several threads take checksums.
WORTH_THREADS = 1 << 22

FeatureRows = Mapping[Block, npt.NDArray[Any]]


@dataclass(repr=False)
class Rows:
    """Columns of equal length about images.

    `digest` is the SHA-256 of the image file, `height` and `width` are the upright image's.
    `size`, `modified` and `changed` (nanoseconds) are what the file system said of the file when
    it was read: as long as it says so the file is not read again to see whether it changed.
    """

    ids: list[str]
    digest: npt.NDArray[np.bytes_]
    height: npt.NDArray[np.int32]
    width: npt.NDArray[np.int32]
    status: npt.NDArray[np.uint8]
    size: npt.NDArray[np.int64]
    modified: npt.NDArray[np.int64]
    changed: npt.NDArray[np.int64]
    error: list[str]

    @classmethod
    def empty(cls, ids: Sequence[str]) -> Rows:
        """Rows that have failed until something is known about them."""
        count = len(ids)
        columns = {name: np.zeros(count, dtype) for name, dtype in COLUMNS.items()}
        columns["status"][:] = FAILED
        return cls(ids=list(ids), error=[""] * count, **columns)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        failed = int(np.count_nonzero(self.status != OK))
        return f"<Rows: {len(self)} images" + (f", {failed} failed>" if failed else ">")

    def take(self, positions: npt.NDArray[np.intp]) -> Rows:
        """Some of the rows."""
        columns = {name: getattr(self, name)[positions] for name in COLUMNS}
        ids, error = ([texts[i] for i in positions] for texts in (self.ids, self.error))
        return Rows(ids=ids, error=error, **columns)

    def put(self, positions: npt.NDArray[np.intp], other: Rows) -> None:
        """Take over rows of another table, in its order, at some positions."""
        for name in COLUMNS:
            getattr(self, name)[positions] = getattr(other, name)
        for position, id, error in zip(positions, other.ids, other.error, strict=True):
            self.ids[position], self.error[position] = id, error


class Chunk(NamedTuple):
    """Some rows with their features, and their checksums where they were checked already."""

    rows: Rows
    features: FeatureRows
    checksums: npt.NDArray[np.uint8] | None = None


def checksums(rows: Rows, features: FeatureRows, blocks: Sequence[Block]) -> npt.NDArray[np.uint8]:
    """BLAKE2b-128 over the id, the checked columns and the features of every row.

    Returns
    -------
    ndarray of uint8, shape (n_rows, 16)
    """
    ids = encode(rows.ids).tolist()
    parts = [np.ascontiguousarray(getattr(rows, name)) for name in _CHECKED]
    parts += [np.ascontiguousarray(features[block]) for block in blocks]
    count = max(1, len(rows))
    raw = [part.view(np.uint8).reshape(len(rows), part.nbytes // count) for part in parts]

    def digests(run: range) -> bytes:
        found = bytearray()
        for position in run:
            hasher = hashlib.blake2b(ids[position] + b"\0", digest_size=CHECKSUM_BYTES)
            for part in raw:
                hasher.update(part[position])
            found += hasher.digest()
        return bytes(found)

    n_threads = count_processors() if sum(p.nbytes for p in parts) > WORTH_THREADS else 1
    step = max(1, -(-len(rows) // n_threads))
    runs = [range(at, min(at + step, len(rows))) for at in range(0, len(rows), step)]
    with ThreadPoolExecutor(n_threads) as pool:
        joined = b"".join(map(digests, runs) if n_threads == 1 else pool.map(digests, runs))
    return np.frombuffer(joined, np.uint8).reshape(-1, CHECKSUM_BYTES)
