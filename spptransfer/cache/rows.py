"""The table of rows: what is known of every image besides its features."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spptransfer.cache.layout import CHECKSUM_BYTES, Block, row_datasets, short_text
from spptransfer.ids import encode
from spptransfer.system import count_processors

# A row whose status is 0 was never written: room in a file reads as zeros.
PENDING, OK, FAILED = 0, 1, 2

# What a row of the table takes in memory while it is copied, about, as Python's strings mostly.
TABLE_BYTES = 1024
# Bytes from which on several threads take checksums.
_WORTH_THREADS = 1 << 22
# A row's checksum covers these, its id and its features.
CHECKED = ("digest", "height", "width", "status", "error")
STAMP = ("size", "modified", "changed")

FeatureRows = Mapping[Block, npt.NDArray[Any]]


@dataclass(repr=False)
class RowTable:
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
    def empty(cls, ids: Sequence[str]) -> RowTable:
        """Make rows that have failed until something is known about them."""
        count = len(ids)
        return cls(
            ids=list(ids),
            digest=np.zeros(count, "S64"),
            height=np.zeros(count, np.int32),
            width=np.zeros(count, np.int32),
            status=np.full(count, FAILED, np.uint8),
            size=np.zeros(count, np.int64),
            modified=np.zeros(count, np.int64),
            changed=np.zeros(count, np.int64),
            error=[""] * count,
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        failed = int(np.count_nonzero(self.status != OK))
        return f"<RowTable: {len(self)} images" + (f", {failed} failed>" if failed else ">")

    def take(self, positions: npt.NDArray[np.intp]) -> RowTable:
        """Return some of the rows."""
        columns: dict[str, Any] = {
            name: [value[i] for i in positions] if isinstance(value, list) else value[positions]
            for name, value in vars(self).items()
        }
        return RowTable(**columns)

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Return the columns as they are stored, ids and stamps included."""
        found = {"id": encode(self.ids), "error": encode(map(short_text, self.error))}
        found |= {name: getattr(self, name) for name in CHECKED if name != "error"}
        types = {name: dtype for name, (_, dtype) in row_datasets(1, "f4", ()).items()}
        stamp = np.stack([getattr(self, name) for name in STAMP], axis=1).astype("<i8")
        return {
            **{name: v.astype(types.get(f"rows/{name}", v.dtype)) for name, v in found.items()},
            "stamp": stamp,
        }


def checksums(
    columns: Mapping[str, npt.NDArray[Any]], features: FeatureRows, blocks: Sequence[Block]
) -> npt.NDArray[np.uint8]:
    """Compute BLAKE2b-128 over the id, the checked columns and the features of every row."""
    ids = columns["id"].tolist()
    table = [_bytes(columns[name]) for name in CHECKED]
    parts = [np.concatenate(table, axis=1), *(_bytes(features[block]) for block in blocks)]

    def digests(run: range) -> bytes:
        found = bytearray()
        for position in run:
            hasher = hashlib.blake2b(ids[position] + b"\0", digest_size=CHECKSUM_BYTES)
            for part in parts:
                hasher.update(part[position])
            found += hasher.digest()
        return bytes(found)

    threads = count_processors() if sum(p.nbytes for p in parts) > _WORTH_THREADS else 1
    step = max(1, -(-len(ids) // threads))
    runs = [range(at, min(at + step, len(ids))) for at in range(0, len(ids), step)]
    with ThreadPoolExecutor(threads) as pool:
        joined = b"".join(map(digests, runs) if threads == 1 else pool.map(digests, runs))
    return np.frombuffer(joined, np.uint8).reshape(-1, CHECKSUM_BYTES)


def _bytes(column: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    raw = np.ascontiguousarray(column)
    return raw.reshape(-1).view(np.uint8).reshape(len(raw), -1) if len(raw) else raw.view(np.uint8)
