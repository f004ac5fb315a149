"""Ids of images: as text in a file, found by value, sorted, however many there are."""

from __future__ import annotations

import heapq
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from spptransfer.cache.files import scratch_file
from spptransfer.cache.layout import row_runs
from spptransfer.errors import CacheError

_FIND_ROWS = 1 << 16
_MERGED_ROWS = 128
# About what an id takes while it is sorted; `id_runs` cuts by it.
_SORTED_BYTES = 128


def encode(texts: Collection[str]) -> npt.NDArray[np.bytes_]:
    """Store strings as fixed-length UTF-8, which every HDF5 reader understands.

    Bytes of file names that are no UTF-8 are kept as they are.
    """
    return np.fromiter(map(_to_bytes, texts), f"S{encoded_width(texts)}", count=len(texts))


def encoded_width(texts: Iterable[str]) -> int:
    """Bytes per string that `encode` needs, at least one."""
    return max(1, max((len(_to_bytes(text)) for text in texts), default=0))


def check_ids(texts: Iterable[str]) -> None:
    """Refuse ids that would not come back as they were.

    Raises
    ------
    CacheError
        If one ends in a NUL, or is no text that UTF-8 can tell from every other.
    """
    for text in texts:
        if text.endswith("\0"):
            raise CacheError(f"the id {text!r} ends in a NUL, which fixed-length text cannot hold")
        if not text.isascii() and not _comes_back(text):
            raise CacheError(f"the id {text!r} is no text in UTF-8")


def _comes_back(text: str) -> bool:
    try:
        return _to_bytes(text).decode("utf-8", "surrogateescape") == text
    except UnicodeEncodeError:
        return False


def decode(encoded: npt.NDArray[np.bytes_]) -> list[str]:
    """Undo `encode`."""
    return [text.decode("utf-8", "surrogateescape") for text in encoded.tolist()]


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def id_runs(count: int) -> Iterator[slice]:
    """Cut rows into runs whose ids are held in memory together."""
    return row_runs(count, _SORTED_BYTES)


def sort_ids(runs: Iterable[npt.NDArray[np.bytes_]], folder: Path) -> Iterator[tuple[bytes, int]]:
    """Sort more ids than memory holds: every run on its own, then merged from a scratch file.

    Parameters
    ----------
    runs : iterable of ndarray of bytes
        Consecutive ids as `encode` stores them.
    folder : Path
        Where the scratch file is made.

    Yields
    ------
    (bytes, int)
        An id and its position among all, in ascending order of the ids' bytes; equal ones by
        position.

    Examples
    --------
    >>> list(sort_ids([encode(["b", "a"]), encode(["a"])], Path(".")))
    [(b'a', 1), (b'a', 2), (b'b', 0)]
    """
    start, pieces = 0, []
    with scratch_file(folder) as file:
        for ids in runs:
            order = np.argsort(ids, kind="stable")
            entries = np.empty(len(ids), [("id", ids.dtype), ("position", "<i8")])
            entries["id"], entries["position"] = ids[order], start + order
            pieces.append(_read_entries(file, file.tell(), len(ids), entries.dtype))
            file.write(entries.tobytes())
            start += len(ids)
        file.flush()
        yield from heapq.merge(*pieces)


def _read_entries(
    file: IO[bytes], offset: int, count: int, dtype: np.dtype[np.void]
) -> Iterator[tuple[bytes, int]]:
    for start in range(0, count, _MERGED_ROWS):
        size = min(_MERGED_ROWS, count - start) * dtype.itemsize
        raw = os.pread(file.fileno(), size, offset + start * dtype.itemsize)
        yield from np.frombuffer(raw, dtype).tolist()


class SortedIndex:
    """Finds rows by id in a file that holds the ids' order, without a Python object per row.

    Parameters
    ----------
    encoded : ndarray of bytes, shape (n_rows,)
        Ids, each different.
    order : ndarray of int64, shape (n_rows,)
        Positions in ascending order of the ids.

    Examples
    --------
    >>> SortedIndex(encode(["b", "a"]), np.array([1, 0])).find(["a", "c", "b"])
    array([ 1, -1,  0])
    """

    def __init__(self, encoded: npt.NDArray[np.bytes_], order: npt.NDArray[np.int64]) -> None:
        self._encoded = encoded
        self._order = order

    def find(self, ids: Sequence[str]) -> npt.NDArray[np.intp]:
        """Positions of ids, -1 for those that are unknown."""
        wanted = encode(ids)
        found = np.full(len(wanted), -1, dtype=np.intp)
        if not len(self._encoded):
            return found
        # Some at a time, for temporary arrays would otherwise be as long as the table.
        for start in range(0, len(wanted), _FIND_ROWS):
            part = wanted[start : start + _FIND_ROWS]
            # Cutting longer ones off to the column's width is undone by comparing whole ids.
            narrow = part.astype(self._encoded.dtype)
            rank = np.searchsorted(self._encoded, narrow, sorter=self._order)
            position = self._order[np.minimum(rank, len(self._order) - 1)]
            known = self._encoded[position] == part
            found[start : start + _FIND_ROWS] = np.where(known, position, -1)
        # A NUL at the end is lost in fixed-length text; no file name has one.
        found[[i for i, id in enumerate(ids) if id.endswith("\0")]] = -1
        return found
