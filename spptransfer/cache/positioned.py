"""A file that several threads write to, each at places of its own."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

# What goes to the disk is data alone where the system can tell it from the rest.
_sync_data = getattr(os, "fdatasync", os.fsync)


class FileClosedError(Exception):
    """The file was closed meanwhile: its descriptor may be another file's by now."""


class PositionedFile:
    """A file opened for reading and writing at positions.

    Parameters
    ----------
    path : Path
        The file; one that is there is gone on with.
    size : int
        Bytes that it has at least; those never written to are zeros and take nothing on the disk.
    """

    def __init__(self, path: Path, size: int) -> None:
        # Read and written by whoever may so by the process's mask, as any other new file.
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._changed = threading.Condition()
        self._users = 0
        self._closed = False
        self._syncing = threading.Lock()
        self._failed = False
        try:
            if self.size < size:
                self.resize(size)
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        """Keep the file open for a while; whoever closes it waits.

        Raises
        ------
        FileClosedError
            If it is closed.
        """
        with self._changed:
            if self._closed:
                raise FileClosedError("the file was closed")
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Let go of the file as soon as nobody uses it."""
        with self._changed:
            closed, self._closed = self._closed, True
            self._changed.wait_for(lambda: not self._users)
            if not closed:
                os.close(self._descriptor)

    @property
    def descriptor(self) -> int:
        """What the system knows the open file by."""
        return self._descriptor

    @property
    def size(self) -> int:
        """Length in bytes."""
        return os.fstat(self._descriptor).st_size

    def resize(self, size: int) -> None:
        """Cut the file off, or add zeros that take nothing on the disk."""
        os.ftruncate(self._descriptor, size)

    def is_at(self, path: Path) -> bool:
        """Whether the file is still the one that a path names."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), path.stat())
        except FileNotFoundError:
            return False

    def write(self, raw: memoryview, offset: int) -> None:
        """Write bytes, however many calls that takes."""
        while raw:
            written = os.pwrite(self._descriptor, raw, offset)
            raw, offset = raw[written:], offset + written

    def read(self, size: int, offset: int) -> bytes:
        """Read bytes; fewer where the file ends."""
        return os.pread(self._descriptor, size, offset)

    def sync(self, everything: bool = False) -> None:
        """Force what was written onto the disk.

        Once that failed it fails for good, for all threads: the system reports to one of them
        what may have lost the bytes of another.

        Parameters
        ----------
        everything : bool, default=False
            The file's length and times too, not its bytes alone.
        """
        with self._syncing:
            if self._failed:
                raise OSError("an earlier write did not reach the disk")
            try:
                (os.fsync if everything else _sync_data)(self._descriptor)
            except OSError:
                self._failed = True
                raise
