"""A cache file opened for reading: its datasets as arrays that stay on the disk."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spptransfer.cache.layout import Header
from spptransfer.errors import CacheError

_RELEASE_BYTES = 1 << 26


class MappedFile:
    """The datasets of a sealed file by name.

    Neither the map nor positioned reads share a file position, so nothing goes wrong where a
    process forks with the file open.

    Raises
    ------
    CacheError
        If the file is missing, foreign, of another version, truncated or damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = open(path, "rb")  # noqa: SIM115 - open as long as its arrays are used
        except OSError as error:
            raise CacheError(f"cannot open the cache '{path}': {error.strerror}") from error
        self.path = path
        self.header = Header.read(self._file, path)
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        self._unreleased = 0

    def array(self, name: str) -> npt.NDArray[Any]:
        """Map a dataset; nothing is read until its numbers are looked at.

        Raises
        ------
        CacheError
            If the file has no such dataset.
        """
        extent = self.header.extents.get(name)
        if extent is None:
            raise CacheError(f"'{self.path}' is damaged: '{name}' is missing")
        dtype = np.dtype(extent.dtype)
        flat = np.frombuffer(self._map, dtype, extent.nbytes // dtype.itemsize, extent.offset)
        return flat.reshape(extent.shape)

    def read_into(self, name: str, start: int, out: npt.NDArray[Any]) -> None:
        """Read consecutive rows of a dataset into a contiguous array of its type.

        Faster than through the map, and it leaves no pages of the file behind in the process.
        """
        extent = self.header.extents[name]
        row_bytes = out.nbytes // max(1, len(out))
        buffer, offset = out.data.cast("B"), extent.offset + start * row_bytes
        while buffer:
            count = os.preadv(self._file.fileno(), [buffer], offset)
            if not count:
                raise CacheError(f"'{self.path}' was truncated while it was read")
            buffer, offset = buffer[count:], offset + count

    def release(self, read: int) -> None:
        """Give back mapped pages after so many bytes were looked at in passing.

        The system would do so anyhow when memory is short; until then they count as ours.
        """
        self._unreleased += read
        if self._unreleased >= _RELEASE_BYTES:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._unreleased = 0
