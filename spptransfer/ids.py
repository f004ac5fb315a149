"""Many short texts, such as the ids of a data set, without a Python object for each."""

from __future__ import annotations

import hashlib
import heapq
import operator
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, islice, pairwise
from typing import Any, overload

import numpy as np
import numpy.typing as npt

_RUN = 1024
_SORTED_AT_ONCE = _FOUND_AT_ONCE = 1 << 16
_SHOWN = 8
# Every string there is comes back as it was, those with bytes of odd file names included.
_ENCODING, _ERRORS = "utf-8", "surrogatepass"


class Ids(Sequence[str]):
    """An immutable sequence of strings, found by value.

    It holds their UTF-8 text in one piece and 8 bytes per string to say where each ends, plus
    8 more once strings are looked up. Slices share that; a pickle holds a slice's own part. It
    equals tuples and lists of the same strings.

    Parameters
    ----------
    texts : iterable of str
        The strings, in order; they may repeat.

    Notes
    -----
    What finds a string is one sorted number per string, with as much of its hash as fits above
    its position. Strings that agree in that much of the hash stand side by side, and each is
    compared in full.

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
        packed, ends = bytearray(), array("q", [0])
        for text in texts:
            packed += text.encode(_ENCODING, _ERRORS)
            ends.append(len(packed))
        self._hold(packed, np.frombuffer(ends, np.int64))

    def _hold(self, packed: bytes | bytearray | memoryview, ends: npt.NDArray[np.int64]) -> None:
        self._packed = memoryview(packed).toreadonly()
        self._ends = ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> Ids:
        """Give `texts` themselves where they are `Ids` already, else a copy of theirs."""
        return texts if isinstance(texts, Ids) else cls(texts)

    @classmethod
    def sort(cls, texts: Iterable[str]) -> Ids:
        """Collect strings in ascending order, without holding them all as Python objects.

        Parameters
        ----------
        texts : iterable of str
            In any order; asked for once.

        Examples
        --------
        >>> Ids.sort(["b", "a", "c"])
        Ids(['a', 'b', 'c'])
        """
        remaining, runs = iter(texts), []
        while some := sorted(islice(remaining, _SORTED_AT_ONCE)):
            runs.append(cls(some))
        return runs[0] if len(runs) == 1 else cls(heapq.merge(*runs))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, key: int) -> str: ...

    @overload
    def __getitem__(self, key: slice) -> Ids: ...

    def __getitem__(self, key: int | slice) -> str | Ids:
        """One of the strings, or a run of them."""
        if isinstance(key, slice):
            return self._slice(*key.indices(len(self)))
        number = operator.index(key)
        number += len(self) if number < 0 else 0
        if not 0 <= number < len(self):
            raise IndexError(f"there are {len(self)} ids; there is no number {key}")
        start, stop = self._ends[number : number + 2].tolist()
        return str(self._packed[start:stop], _ENCODING, _ERRORS)

    def _slice(self, start: int, stop: int, step: int) -> Ids:
        if step != 1:
            return self.take(range(start, stop, step))
        part = Ids.__new__(Ids)
        part._hold(self._packed, self._ends[start : max(start, stop) + 1])
        return part

    def take(self, positions: Iterable[int]) -> Ids:
        """Strings at some positions, in the order of these.

        Parameters
        ----------
        positions : iterable of int, or ndarray of int

        Returns
        -------
        Ids
            With its own text.
        """
        return Ids(self._at(np.fromiter(positions, np.intp)))

    def _at(self, positions: npt.NDArray[np.intp]) -> Iterator[str]:
        """Strings at positions that are not negative, faster than one by one."""
        for start in range(0, len(positions), _RUN):
            numbers = positions[start : start + _RUN]
            begins, ends = self._ends[numbers].tolist(), self._ends[numbers + 1].tolist()
            for begin, end in zip(begins, ends, strict=True):
                yield str(self._packed[begin:end], _ENCODING, _ERRORS)

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _RUN):
            ends = self._ends[start : start + _RUN + 1].tolist()
            text = bytes(self._packed[ends[0] : ends[-1]])
            for begin, end in pairwise(ends):
                yield text[begin - ends[0] : end - ends[0]].decode(_ENCODING, _ERRORS)

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and bool(self.find([text])[0] >= 0)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Ids):
            lengths = np.array_equal(np.diff(self._ends), np.diff(other._ends))
            return lengths and self._text() == other._text()
        if isinstance(other, Sequence) and not isinstance(other, str | bytes):
            return len(self) == len(other) and all(map(operator.eq, self, other))
        return NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        if len(self) <= _SHOWN:
            return f"Ids({list(self)})"
        return f"<Ids: {self[0]!r}, {self[1]!r}, ..., {self[-1]!r}: {len(self):,} in all>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (bytes(self._text()), self._ends - self._ends[0])

    def sha256(self) -> str:
        """Hash of the strings and their order.

        Examples
        --------
        >>> Ids(["a", "bc"]).sha256() == Ids(["ab", "c"]).sha256()
        False
        """
        hasher = hashlib.sha256(self._text())
        hasher.update((self._ends - self._ends[0]).astype("<i8").tobytes())
        return hasher.hexdigest()

    def _text(self) -> memoryview:
        return self._packed[int(self._ends[0]) : int(self._ends[-1])]

    def find(self, texts: Sequence[str]) -> npt.NDArray[np.intp]:
        """Positions of strings.

        Parameters
        ----------
        texts : sequence of str
            In any order.

        Returns
        -------
        ndarray of intp, shape (n_texts,)
            -1 for those that are not here; any one of the places of those that repeat.
        """
        found = np.empty(len(texts), np.intp)
        for start in range(0, len(texts), _FOUND_AT_ONCE):
            run = slice(start, start + _FOUND_AT_ONCE)
            found[run] = self._find(texts[run])
        return found

    def _find(self, texts: Sequence[str]) -> npt.NDArray[np.intp]:
        if not len(self):
            return np.full(len(texts), -1, np.intp)
        hashes = self._hashes(texts)
        ranks = np.searchsorted(self._sorted, hashes)
        entries = self._sorted[np.minimum(ranks, len(self) - 1)]
        found = (entries - hashes).astype(np.intp)  # beyond all positions where hashes differ
        found[entries - hashes >= len(self)] = -1
        known = np.flatnonzero(found >= 0)
        for i, text in zip(known.tolist(), self._at(found[known]), strict=True):
            if text != texts[i]:
                found[i] = self._find_beyond(texts[i], int(hashes[i]), int(ranks[i]) + 1)
        return found

    def _find_beyond(self, text: str, wanted: int, rank: int) -> int:
        """Go on among strings of one hash; there is hardly ever a second."""
        while rank < len(self) and (position := int(self._sorted[rank]) - wanted) < len(self):
            if self[position] == text:
                return position
            rank += 1
        return -1

    def repetition(self) -> tuple[int, int] | None:
        """Positions of the first string that was there before, and of where it was.

        Returns
        -------
        (int, int) or None
            The earlier place and the later one; None where each string is different.

        Examples
        --------
        >>> Ids(["a", "b", "c", "b", "a"]).repetition()
        (1, 3)
        """
        hashes = self._sorted >> np.uint64(self._position_bits)
        alike = np.flatnonzero(hashes[1:] == hashes[:-1])
        entries = self._sorted[np.union1d(alike, alike + 1)]
        positions = np.sort(entries & np.uint64((1 << self._position_bits) - 1))
        seen: dict[str, int] = {}
        for position in map(int, positions):
            first = seen.setdefault(self[position], position)
            if first != position:
                return first, position
        return None

    @cached_property
    def _sorted(self) -> npt.NDArray[np.uint64]:
        """Hashes with the positions below them, in order. Hashes differ between processes."""
        entries = self._hashes(self)
        entries |= np.arange(len(self), dtype=np.uint64)
        entries.sort()
        return entries

    @property
    def _position_bits(self) -> int:
        return len(self).bit_length()

    def _hashes(self, texts: Sequence[str]) -> npt.NDArray[np.uint64]:
        """Hashes with zeros where the position goes."""
        hashes = np.fromiter(map(hash, texts), np.int64, len(texts)).view(np.uint64)
        hashes >>= np.uint64(self._position_bits)
        hashes <<= np.uint64(self._position_bits)
        return hashes


class TextById(Mapping[str, str]):
    """A read-only mapping from ids to texts, such as reasons, without a Python object for each.

    Parameters
    ----------
    pairs : iterable of (str, str)
        Ids, each different, and their texts.

    Examples
    --------
    >>> reasons = TextById([("a.jpg", "it is empty"), ("b.jpg", "it is cut off")])
    >>> reasons["b.jpg"], len(reasons), reasons.get("c.jpg")
    ('it is cut off', 2, None)
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        packed = Ids(chain.from_iterable(pairs))
        self._ids, self._texts = packed[::2], packed[1::2]

    def __getitem__(self, id: str) -> str:
        position = int(self._ids.find([id])[0])
        if position < 0:
            raise KeyError(id)
        return self._texts[position]

    def texts_of(self, ids: Sequence[str]) -> list[str]:
        """Texts of many ids at once, empty for those that have none.

        Parameters
        ----------
        ids : sequence of str
            In any order.

        Examples
        --------
        >>> TextById([("a.jpg", "it is empty")]).texts_of(["b.jpg", "a.jpg"])
        ['', 'it is empty']
        """
        found = self._ids.find(ids).tolist()
        return [self._texts[position] if position >= 0 else "" for position in found]

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} ids)"


def _unpickle(text: bytes, ends: npt.NDArray[np.int64]) -> Ids:
    ids = Ids.__new__(Ids)
    ids._hold(text, ends)
    return ids
