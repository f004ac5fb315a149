"""The table of rows: what is known of every image besides its features."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spptransfer.cache.layout import Block

OK, FAILED = 0, 1
CHECKSUM_BYTES = 16
# What a row of the table takes in memory, about.
TABLE_BYTES = 256
_FIND_ROWS = 1 << 16

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

FeatureRows = Mapping[Block, npt.NDArray[Any]]


@dataclass
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


def encode(texts: Collection[str]) -> npt.NDArray[np.bytes_]:
    """Store strings as fixed-length UTF-8, which every HDF5 reader understands.

    Bytes of file names that are no UTF-8 are kept as they are.
    """
    width = max((len(_to_bytes(text)) for text in texts), default=0)
    return np.fromiter(map(_to_bytes, texts), dtype=f"S{max(1, width)}", count=len(texts))


def decode(encoded: npt.NDArray[np.bytes_]) -> list[str]:
    """Undo `encode`."""
    return [text.decode("utf-8", "surrogateescape") for text in encoded.tolist()]


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def checksums(rows: Rows, features: FeatureRows, blocks: Sequence[Block]) -> npt.NDArray[np.uint8]:
    """BLAKE2b-128 over the id, the checked columns and the features of every row.

    Returns
    -------
    ndarray of uint8, shape (n_rows, 16)
    """
    ids = encode(rows.ids).tolist()
    parts = [np.ascontiguousarray(getattr(rows, name)) for name in _CHECKED]
    parts += [np.ascontiguousarray(features[block]) for block in blocks]
    raw = [part.view(np.uint8).reshape(len(rows), -1) for part in parts]
    digests = bytearray()
    for position, id in enumerate(ids):
        hasher = hashlib.blake2b(id + b"\0", digest_size=CHECKSUM_BYTES)
        for part in raw:
            hasher.update(part[position])
        digests += hasher.digest()
    return np.frombuffer(bytes(digests), np.uint8).reshape(-1, CHECKSUM_BYTES)


class IdIndex:
    """Finds rows by id without a Python object per row.

    Parameters
    ----------
    encoded : ndarray of bytes, shape (n_rows,)
        Ids, each different.
    order : ndarray of int64, shape (n_rows,), optional
        Positions in ascending order of the ids; sorted anew if absent.

    Examples
    --------
    >>> IdIndex(encode(["b", "a"])).find(["a", "c", "b"])
    array([ 1, -1,  0])
    """

    def __init__(
        self, encoded: npt.NDArray[np.bytes_], order: npt.NDArray[np.int64] | None = None
    ) -> None:
        self._encoded = encoded
        self.order = np.argsort(encoded, kind="stable") if order is None else order

    def find(self, ids: Sequence[str]) -> npt.NDArray[np.intp]:
        """Positions of ids, -1 for those that are unknown."""
        found = self.find_encoded(encode(ids))
        # A NUL at the end is lost in fixed-length text; no file name has one.
        found[[i for i, id in enumerate(ids) if id.endswith("\0")]] = -1
        return found

    def find_encoded(self, wanted: npt.NDArray[np.bytes_]) -> npt.NDArray[np.intp]:
        """Positions of ids as `encode` stores them, -1 for those that are unknown."""
        found = np.full(len(wanted), -1, dtype=np.intp)
        if not len(self._encoded):
            return found
        # Some at a time, for temporary arrays would otherwise be as long as the table.
        for start in range(0, len(wanted), _FIND_ROWS):
            part = wanted[start : start + _FIND_ROWS]
            # Cutting longer ones off to the column's width is undone by comparing whole ids.
            narrow = part.astype(self._encoded.dtype)
            rank = np.searchsorted(self._encoded, narrow, sorter=self.order)
            position = self.order[np.minimum(rank, len(self.order) - 1)]
            known = self._encoded[position] == part
            found[start : start + _FIND_ROWS] = np.where(known, position, -1)
        return found

    def duplicates(self) -> list[str]:
        """Ids that occur more than once."""
        twice: set[str] = set()
        for start in range(0, len(self.order), _FIND_ROWS):
            in_order = self._encoded[self.order[start : start + _FIND_ROWS + 1]]
            twice.update(decode(in_order[1:][in_order[1:] == in_order[:-1]]))
        return sorted(twice)
