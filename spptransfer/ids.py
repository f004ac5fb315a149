"""Ids of images: many short texts in one numpy array, found by value."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from operator import methodcaller
from typing import Any, overload

import numpy as np
import numpy.typing as npt

Encoded = npt.NDArray[np.bytes_]

_CHUNK = 1 << 13
_SHOWN = 8
_UTF8 = ("utf-8", "surrogateescape")  # names of files that are no UTF-8 come as lone surrogates


def encode(texts: Iterable[str]) -> Encoded:
    """Encode strings as fixed-width UTF-8, which every HDF5 reader understands."""
    remaining, chunks = iter(texts), [np.empty(0, "S1")]
    while chunk := list(islice(remaining, _CHUNK)):
        try:
            encoded = np.array(list(map(methodcaller("encode", *_UTF8), chunk)), np.bytes_)
        except UnicodeEncodeError as error:
            raise ValueError(f"{error.object!r} is no text in UTF-8") from None
        if (found := decode(encoded)) != chunk:
            text = next(text for text, back in zip(chunk, found, strict=True) if text != back)
            nul = text.endswith("\0")
            why = (
                "ends in a NUL, which fixed-width text cannot hold"
                if nul
                else "is no text in UTF-8"
            )
            raise ValueError(f"{text!r} {why}")
        chunks.append(encoded)
    return np.concatenate(chunks)


def decode(encoded: Encoded) -> list[str]:
    """Decode what `encode` made."""
    return list(map(methodcaller("decode", *_UTF8), encoded.tolist()))


class Ids(Sequence[str]):
    """An immutable sequence of strings, found by value.

    It holds their UTF-8 text in one array as wide as the longest, and 8 bytes more per string
    once strings are looked up. It equals tuples and lists of the same strings. An array that
    `encode` made is taken over as it is.

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

    def __init__(self, texts: Iterable[str] | Encoded = ()) -> None:
        self.encoded = texts if isinstance(texts, np.ndarray) else encode(texts)

    @classmethod
    def of(cls, texts: Iterable[str]) -> Ids:
        """Return `texts` themselves where they are `Ids` already, else a copy of theirs."""
        return texts if isinstance(texts, Ids) else cls(texts)

    @classmethod
    def sort(cls, texts: Iterable[str]) -> Ids:
        """Collect strings in the order of their code points."""
        return cls(np.sort(encode(texts)))

    def __len__(self) -> int:
        return len(self.encoded)

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> Ids: ...
    def __getitem__(self, key: int | slice) -> str | Ids:
        """Return one string, or some of them."""
        if isinstance(key, slice):
            return Ids(self.encoded[key])
        text: str = self.encoded[key].decode(*_UTF8)
        return text

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _CHUNK):
            yield from decode(self.encoded[start : start + _CHUNK])

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and bool(self.find([text])[0] >= 0)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (tuple, list)):
            return list(self) == list(other)
        return np.array_equal(self.encoded, other.encoded) if isinstance(other, Ids) else False

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:_SHOWN]))
        more = f", ... ({len(self):,} in all)" if len(self) > _SHOWN else ""
        return f"Ids([{shown}{more}])"

    def __reduce__(self) -> tuple[Any, ...]:
        return Ids, (self.encoded,)

    def take(self, positions: Iterable[int] | npt.NDArray[np.intp]) -> Ids:
        """Return the strings at some positions, in that order."""
        if not isinstance(positions, np.ndarray):
            positions = np.fromiter(positions, np.intp)
        return Ids(self.encoded[positions])

    def narrow(self) -> Ids:
        """Return the same strings in an array no wider than the longest."""
        longest = np.char.str_len(self.encoded).max(initial=1)
        return Ids(self.encoded.astype(f"S{longest}", copy=False))

    def sha256(self) -> str:
        """Return a hash of the strings and their order."""
        encoded = self.narrow().encoded
        hasher = hashlib.sha256(encoded.dtype.str.encode())
        hasher.update(np.ascontiguousarray(encoded).tobytes())
        return hasher.hexdigest()

    @cached_property
    def _order(self) -> npt.NDArray[np.intp]:
        return np.argsort(self.encoded, kind="stable")

    def find(self, texts: Iterable[str] | Encoded) -> npt.NDArray[np.intp]:
        """Return the positions of strings, -1 for those that are not here."""
        if not isinstance(texts, (Ids, np.ndarray)):
            wanted = list(texts)
            try:
                texts = Ids(wanted)
            except ValueError:  # such a string cannot be here
                if len(wanted) == 1:
                    return np.array([-1])
                return np.concatenate([self.find([text]) for text in wanted])
        encoded = texts.encoded if isinstance(texts, Ids) else texts
        found = np.full(len(encoded), -1, dtype=np.intp)
        # Some at a time, for temporary arrays would otherwise be as long as the ids.
        for start in range(0, len(encoded) if len(self) else 0, _CHUNK):
            part = encoded[start : start + _CHUNK]
            # Cutting longer ones off to the ids' width is undone by comparing whole strings.
            rank = np.searchsorted(
                self.encoded, part.astype(self.encoded.dtype), sorter=self._order
            )
            position = self._order[np.minimum(rank, len(self) - 1)]
            known = self.encoded[position] == part
            found[start : start + _CHUNK] = np.where(known, position, -1)
        return found

    def repetition(self) -> tuple[int, int] | None:
        """Return the positions of the first string that was there before, and of where it was."""
        again = self.encoded[self._order[1:]] == self.encoded[self._order[:-1]]
        if not again.any():
            return None
        later = int(self._order[1:][again].min())
        return int(self.find([self[later]])[0]), later
