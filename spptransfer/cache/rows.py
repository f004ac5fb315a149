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
        found = np.full(len(ids), -1, dtype=np.intp)
        width = self._encoded.dtype.itemsize
        raw = [_to_bytes(id) for id in ids]
        # Longer ones would be cut off to the column's width; a NUL at the end would be lost.
        usable = [i for i, id in enumerate(raw) if len(id) <= width and not id.endswith(b"\0")]
        if usable and len(self._encoded):
            wanted = np.array([raw[i] for i in usable], dtype=self._encoded.dtype)
            rank = np.searchsorted(self._encoded, wanted, sorter=self.order)
            position = self.order[np.minimum(rank, len(self.order) - 1)]
            found[usable] = np.where(self._encoded[position] == wanted, position, -1)
        return found

    def duplicates(self) -> list[str]:
        """Ids that occur more than once."""
        in_order = self._encoded[self.order]
        return decode(np.unique(in_order[1:][in_order[1:] == in_order[:-1]]))
