"""Ids of images: many short texts in one numpy array, found by value."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, overload

import numpy as np
import numpy.typing as npt

_CHUNK = 1 << 16
_SHOWN = 8


def encode(texts: Iterable[str]) -> npt.NDArray[np.bytes_]:
    r"""Encode strings as fixed-width UTF-8, which every HDF5 reader understands.

    Examples
    --------
    >>> encode(["a", "bc"])
    array([b'a', b'bc'], dtype='|S2')
    >>> decode(encode(["caf\xe9"]))
    ['café']
    """
    remaining, chunks = iter(texts), []
    while chunk := [_to_bytes(text) for text in islice(remaining, _CHUNK)]:
        chunks.append(np.array(chunk, dtype=np.bytes_))
    return np.concatenate(chunks) if chunks else np.empty(0, "S1")


def decode(encoded: npt.NDArray[np.bytes_]) -> list[str]:
    """Decode what `encode` made."""
    return [text.decode("utf-8", "surrogateescape") for text in encoded.tolist()]


def _to_bytes(text: str) -> bytes:
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError(f"{text!r} is no text in UTF-8") from None
    if raw.endswith(b"\0"):
        raise ValueError(f"{text!r} ends in a NUL, which fixed-width text cannot hold")
    if not text.isascii() and raw.decode("utf-8", "surrogateescape") != text:
        raise ValueError(f"{text!r} is no text in UTF-8")
    return raw


class Ids(Sequence[str]):
    """An immutable sequence of strings, found by value.

    It holds their UTF-8 text in one array as wide as the longest, and 8 bytes more per string
    once strings are looked up. It equals tuples and lists of the same strings.

    Examples
    --------
    >>> ids = Ids(["cat/1.jpg", "cat/2.jpg", "dog/1.jpg"])
    >>> ids[-1], len(ids), "cat/1.jpg" in ids
    ('dog/1.jpg', 3, True)
    >>> ids[1:]
    Ids(['cat/2.jpg', 'dog/1.jpg'])
    >>> ids.find(["dog/1.jpg", "cow/1.jpg", "cat/1.jpg"])
    array([ 2, -1,  0])
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.encoded = encode(texts)

    @classmethod
    def from_encoded(cls, encoded: npt.NDArray[np.bytes_]) -> Ids:
        """Take over an array that `encode` made."""
        ids = cls.__new__(cls)
        ids.encoded = encoded
        return ids

    @classmethod
    def of(cls, texts: Iterable[str]) -> Ids:
        """Return `texts` themselves where they are `Ids` already, else a copy of theirs."""
        return texts if isinstance(texts, Ids) else cls(texts)

    @classmethod
    def sort(cls, texts: Iterable[str]) -> Ids:
        """Collect strings in the order of their code points.

        Examples
        --------
        >>> Ids.sort(["b", "a"])
        Ids(['a', 'b'])
        """
        encoded = encode(texts)
        encoded.sort()
        return cls.from_encoded(encoded)

    def __len__(self) -> int:
        return len(self.encoded)

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> Ids: ...
    def __getitem__(self, key: int | slice) -> str | Ids:
        """Return one string, or some of them."""
        if isinstance(key, slice):
            return self.from_encoded(self.encoded[key])
        return bytes(self.encoded[key]).decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _CHUNK):
            yield from decode(self.encoded[start : start + _CHUNK])

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and bool(self.find([text])[0] >= 0)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Ids):
            return np.array_equal(self.encoded, other.encoded)
        if not isinstance(other, (tuple, list)):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:_SHOWN]))
        more = f", ... ({len(self):,} in all)" if len(self) > _SHOWN else ""
        return f"Ids([{shown}{more}])"

    def __reduce__(self) -> tuple[Any, ...]:
        return Ids.from_encoded, (self.encoded,)

    def take(self, positions: Iterable[int] | npt.NDArray[np.intp]) -> Ids:
        """Return the strings at some positions, in that order."""
        if not isinstance(positions, np.ndarray):
            positions = np.fromiter(positions, np.intp)
        return self.from_encoded(self.encoded[positions])

    def narrow(self) -> Ids:
        """Return the same strings in an array no wider than the longest."""
        chunks = [self.encoded[at : at + _CHUNK] for at in range(0, len(self), _CHUNK)]
        longest = max((int(np.char.str_len(chunk).max()) for chunk in chunks), default=0)
        narrow = f"S{max(1, longest)}"
        return (
            self if self.encoded.dtype == narrow else self.from_encoded(self.encoded.astype(narrow))
        )

    def sha256(self) -> str:
        """Return a hash of the strings and their order.

        Examples
        --------
        >>> Ids(["a", "bc"]).sha256() == Ids(["ab", "c"]).sha256()
        False
        """
        encoded = self.narrow().encoded
        hasher = hashlib.sha256(encoded.dtype.str.encode())
        hasher.update(np.ascontiguousarray(encoded).tobytes())
        return hasher.hexdigest()

    @cached_property
    def _order(self) -> npt.NDArray[np.intp]:
        return np.argsort(self.encoded, kind="stable")

    def find(self, texts: Iterable[str]) -> npt.NDArray[np.intp]:
        """Find strings."""
        if isinstance(texts, Ids):
            return self.find_encoded(texts.encoded)
        wanted = list(texts)
        try:
            return self.find_encoded(encode(wanted))
        except ValueError:  # such a string cannot be here
            return np.array([self._find_one(text) for text in wanted], np.intp)

    def _find_one(self, text: str) -> int:
        try:
            return int(self.find_encoded(encode([text]))[0])
        except ValueError:
            return -1

    def find_encoded(self, wanted: npt.NDArray[np.bytes_]) -> npt.NDArray[np.intp]:
        """Find strings as `encode` stores them; see `find`."""
        found = np.full(len(wanted), -1, dtype=np.intp)
        if not len(self):
            return found
        # Some at a time, for temporary arrays would otherwise be as long as the ids.
        for start in range(0, len(wanted), _CHUNK):
            part = wanted[start : start + _CHUNK]
            # Cutting longer ones off to the ids' width is undone by comparing whole strings.
            narrow = part.astype(self.encoded.dtype)
            rank = np.searchsorted(self.encoded, narrow, sorter=self._order)
            position = self._order[np.minimum(rank, len(self) - 1)]
            known = self.encoded[position] == part
            found[start : start + _CHUNK] = np.where(known, position, -1)
        return found

    def repetition(self) -> tuple[int, int] | None:
        """Return the positions of the first string that was there before, and of where it was.

        Examples
        --------
        >>> Ids(["a", "b", "c", "b", "a"]).repetition()
        (1, 3)
        """
        again = self.encoded[self._order[1:]] == self.encoded[self._order[:-1]]
        if not again.any():
            return None
        later = int(self._order[1:][again].min())
        return int(self.find([self[later]])[0]), later
