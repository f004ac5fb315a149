"""One writer per cache: a lock that dies with its process and says who holds it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from spptransfer.cache.files import is_alive
from spptransfer.errors import CacheError

logger = logging.getLogger(__name__)

# A holder elsewhere that has not shown itself for so long is taken for dead.
STALE_SECONDS = 600
_HELD = (errno.EWOULDBLOCK, errno.EACCES)


class Lock:
    """The right to write one cache.

    The system releases the lock when its process ends, however it ends. Where a shared folder
    knows no locks across machines, the holder's name and the file's time of change stand in:
    see `refresh`.

    Parameters
    ----------
    path : Path
        The lock file.
    cache : Path
        What it protects, for messages.
    """

    def __init__(self, path: Path, cache: Path) -> None:
        self._path = path
        self._cache = cache
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises
        ------
        CacheError
            If somebody else has it; the message says who and since when.
        """
        while self._file is None:
            try:
                file = open(self._path, "a+", encoding="utf-8")  # noqa: SIM115 - until release
            except OSError as error:
                raise CacheError(f"cannot write '{self._path}': {error.strerror}") from error
            try:
                self._take(file)
            except BaseException:
                file.close()
                raise
            # Its last holder may have removed the file between our opening and locking it.
            if self._is_in_place(file):
                self._file = file
            else:
                file.close()
        self._sign()

    def _take(self, file: IO[str]) -> None:
        file.seek(0)
        holder = _parse(file.read())
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                raise self._refusal(holder) from error
            logger.warning("'%s' knows no locks; going by who wrote there last", self._path.parent)
            if holder.get("host") == socket.gethostname() and is_alive(int(holder["process"])):
                raise self._refusal(holder) from error
        if holder.get("host", socket.gethostname()) != socket.gethostname():
            if time.time() - os.fstat(file.fileno()).st_mtime < STALE_SECONDS:
                raise self._refusal(holder)
            logger.warning("took over '%s' from %s, which is gone", self._cache, _show(holder))

    def _refusal(self, holder: dict[str, Any]) -> CacheError:
        return CacheError(f"the cache '{self._cache}' is being written by {_show(holder)}")

    def _is_in_place(self, file: IO[str]) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False

    def _sign(self) -> None:
        assert self._file is not None
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._file.truncate(0)
        json.dump({"process": os.getpid(), "host": socket.gethostname(), "since": now}, self._file)
        self._file.flush()

    def refresh(self) -> None:
        """Show that the holder lives, for those whose file system knows no locks."""
        with contextlib.suppress(OSError):
            os.utime(self._path)

    def release(self) -> None:
        """Give the lock back."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.truncate(0)
            self._file.close()
            self._file = None


def _parse(text: str) -> dict[str, Any]:
    """Holder that a lock file names, empty where it names none."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        holder = json.loads(text)
        return {name: holder[name] for name in ("process", "host", "since")}
    return {}


def _show(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    return f"process {holder['process']} on {holder['host']} since {holder['since']}"
