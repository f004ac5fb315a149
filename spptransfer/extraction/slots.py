"""Memory that processes of one machine share, for arrays that are too large to be sent."""

from __future__ import annotations

import itertools
import math
import mmap
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_SERIAL = itertools.count()
# Of this process: memory of others, by where it was opened.
_OPENED: dict[str, tuple[Address, mmap.mmap]] = {}


class Address(NamedTuple):
    """Where another process finds a `Slot`; `serial` tells it from an earlier one there."""

    path: str
    size: int
    serial: int


class Slot:
    """Some memory that any process of the same user may write to.

    It has no name and lies in no folder: it is gone with this process, however that ends, and
    the size of a container's ``/dev/shm`` is no limit. Pages that nobody writes to take nothing.

    Parameters
    ----------
    size : int
        In bytes.

    Raises
    ------
    OSError
        If the system has no such memory, as other systems than Linux.

    Examples
    --------
    >>> slot = Slot(1 << 20)
    >>> put(slot.address, [np.arange(6, dtype=np.uint8).reshape(2, 3)])  # by any process
    True
    >>> slot.take([(2, 3)])[0].tolist()
    [[0, 1, 2], [3, 4, 5]]
    >>> slot.close()
    """

    def __init__(self, size: int) -> None:
        if not hasattr(os, "memfd_create"):
            raise OSError("this system has no memory without a name")
        self._descriptor = os.memfd_create("views")
        try:
            os.ftruncate(self._descriptor, size)
            self._map = mmap.mmap(self._descriptor, size)
        except BaseException:
            os.close(self._descriptor)
            raise
        path = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        self.address = Address(path, size, next(_SERIAL))

    def take(self, shapes: Sequence[tuple[int, ...]]) -> list[npt.NDArray[np.uint8]]:
        """Copy out arrays of bytes that were put there."""
        found: list[npt.NDArray[np.uint8]] = []
        start = 0
        for shape in shapes:
            size = math.prod(shape)
            there = np.frombuffer(self._map, np.uint8, size, start)
            found.append(there.reshape(shape).copy())
            start += size
        return found

    def close(self) -> None:
        """Give the memory back."""
        self._map.close()
        os.close(self._descriptor)


def put(address: Address, arrays: Sequence[npt.NDArray[np.uint8]]) -> bool:
    """Write arrays of bytes to a slot one after the other, if they fit and it can be opened."""
    if sum(array.nbytes for array in arrays) > address.size:
        return False
    try:
        memory = _opened(address)
    except OSError:
        return False
    start = 0
    for array in arrays:
        memory[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).data
        start += array.nbytes
    return True


def _opened(address: Address) -> mmap.mmap:
    known = _OPENED.get(address.path)
    if known is None or known[0] != address:
        with open(address.path, "r+b") as file:
            known = address, mmap.mmap(file.fileno(), address.size)
        _OPENED[address.path] = known
    return known[1]
