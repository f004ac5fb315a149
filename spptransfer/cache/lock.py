"""One writer per cache: a lock that dies with its process and says who holds it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import threading
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from spptransfer.cache.files import explained, is_alive, scratch_file
from spptransfer.errors import CacheError

logger = logging.getLogger(__name__)

# A holder shows itself this often; one elsewhere that was silent for so long is taken for dead.
HEARTBEAT_SECONDS = 60
STALE_SECONDS = 600
_NOTE_BYTES = 1 << 12
_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Holder:
    """Who writes a cache, as the lock file notes it.

    `boot` names one run of one system's kernel: containers on a machine have host names of
    their own and yet share its locks. It is empty where the system does not tell.
    """

    process: int
    host: str
    since: str
    boot: str = ""

    @classmethod
    def here(cls) -> Holder:
        """Note of ourselves."""
        since = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(os.getpid(), socket.gethostname(), since, _boot_id())

    @classmethod
    def parse(cls, text: str) -> Holder | None:
        """Read a note; None where it names nobody."""
        try:
            note = json.loads(text)
            holder = cls(note["process"], note["host"], note["since"], note.get("boot", ""))
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        texts = (holder.host, holder.since, holder.boot)
        right = type(holder.process) is int and all(isinstance(text, str) for text in texts)
        return holder if right else None

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.since}"

    @property
    def on_this_host(self) -> bool:
        """Whether its process can be looked for here."""
        return self.host == socket.gethostname()

    @property
    def shares_our_locks(self) -> bool:
        """Whether its lock, as long as it lives, would keep us from taking ours."""
        return self.on_this_host or (self.boot != "" and self.boot == _boot_id())


class Lock:
    """The right to write one cache.

    The system releases the lock when its process ends, however it ends. A folder that several
    machines share may know no locks, or only among the processes of one machine. There the note
    in the lock file and the file's time of change stand in, which the holder renews every
    minute.

    Parameters
    ----------
    path : Path
        The lock file.
    cache : Path
        What it protects, for messages.
    kind : str, default="cache"
        What messages call it.
    """

    def __init__(self, path: Path, cache: Path, kind: str = "cache") -> None:
        self._path = path
        self._cache = cache
        self._kind = kind
        self._file: IO[str] | None = None
        self._holder: Holder | None = None
        self._released = threading.Event()

    def acquire(self) -> None:
        """Take the lock.

        Raises
        ------
        CacheError
            If somebody else has it; the message says who and since when.
        """
        while self._file is None:
            try:
                file = open(self._path, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115
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
        try:
            with explained(self._path):
                self._sign(self._file)
        except CacheError:
            with contextlib.suppress(OSError):  # what could not be written is still in its buffer
                self._file.close()
            self._file = None
            raise
        self._released.clear()
        self._heart = threading.Thread(target=self._beat, args=(self._file,), daemon=True)
        self._heart.start()

    def _take(self, file: IO[str]) -> None:
        file.seek(0)
        holder = Holder.parse(file.read())
        locks_work = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                raise self._refusal(str(holder or "another process")) from error
            logger.warning("'%s' knows no locks; going by who wrote there last", self._path.parent)
            locks_work = False
        if holder is not None:
            self._check_gone(holder, file, locks_work)

    def _check_gone(self, holder: Holder, file: IO[str], locks_work: bool) -> None:
        """Refuse unless the last holder, who left a note, lives no more."""
        if locks_work and holder.shares_our_locks:
            return
        # A living process of that number may be another one, as after a restart.
        may_live = not holder.on_this_host or is_alive(holder.process)
        if may_live and (silence := self._silence(file)) < STALE_SECONDS:
            raise self._refusal(
                f"{holder}, last seen {silence:.0f} s ago; it counts as gone after "
                f"{STALE_SECONDS} s of silence, or once '{self._path}' is deleted"
            )
        logger.warning("took over '%s' from %s, which is gone", self._cache, holder)

    def _refusal(self, holder: str) -> CacheError:
        return CacheError(f"the {self._kind} '{self._cache}' is being written by {holder}")

    def _silence(self, file: IO[str]) -> float:
        """Seconds since a holder showed itself, by the clock that stamps files in that folder."""
        with scratch_file(self._path.parent) as fresh:
            now = os.fstat(fresh.fileno()).st_mtime
        return max(0.0, now - os.fstat(file.fileno()).st_mtime)

    def _is_in_place(self, file: IO[str]) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False

    def _sign(self, file: IO[str]) -> None:
        self._holder = Holder.here()
        file.truncate(0)
        json.dump(asdict(self._holder), file)
        file.flush()

    def is_ours(self) -> bool:
        """Whether `check` finds nothing amiss."""
        try:
            self.check()
        except CacheError:
            return False
        return True

    def check(self) -> None:
        """Make sure that we still have it: who was silent for long may have been taken for dead.

        Raises
        ------
        CacheError
            If the lock file is gone or names somebody else.
        """
        try:
            holder = Holder.parse(self._path.read_text("utf-8", "replace"))
        except OSError as error:
            what = f"its lock '{self._path}' cannot be read: {error.strerror}"
            raise CacheError(f"cannot go on writing '{self._cache}': {what}") from error
        if self._file is None or holder != self._holder:
            other = holder or "another process"
            raise CacheError(f"the {self._kind} '{self._cache}' was taken over by {other}")

    def _beat(self, file: IO[str]) -> None:
        """Show that the holder lives, for those whom the lock itself cannot tell."""
        while not self._released.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                if self._names_us(file):
                    os.utime(file.fileno())

    def _names_us(self, file: IO[str]) -> bool:
        """Whether the file that we opened, wherever it is now, has our note still."""
        note = os.pread(file.fileno(), _NOTE_BYTES, 0).decode("utf-8", "replace")
        return Holder.parse(note) == self._holder

    def release(self) -> None:
        """Give the lock back."""
        if self._file is not None:
            self._released.set()
            self._heart.join()
            with contextlib.suppress(OSError):
                if self._names_us(self._file):
                    self._file.truncate(0)
            self._file.close()
            self._file = None


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return _BOOT_ID.read_text().strip()
    return ""
