"""Files that appear whole or not at all, locks between processes, and downloads."""

from __future__ import annotations

import codecs
import contextlib
import errno
import hashlib
import io
import logging
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import psutil

from spptransfer.errors import CacheError

logger = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
# What file systems say that cannot force a folder onto the disk.
_NOT_FOR_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM)
# The first byte of a lock file is what Windows locks; the holder's note comes behind it.
_NOTE_OFFSET = 1
_DOWNLOAD_SECONDS = 60


@contextlib.contextmanager
def atomic_write(path: Path, needed: int = 0) -> Iterator[Path]:
    """Offer a temporary name beside `path`; rename it once it is complete and on the disk.

    Whatever happens before the rename leaves `path` as it was; the temporary file is removed, and
    after a kill `remove_leftovers` does so.
    """
    with os_errors_as_cache_error(path, needed), temporary_name(path) as temporary:
        check_space(path, needed)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)


def expand_path(path: str | os.PathLike[str]) -> Path:
    """Put the home folder and environment variables into a path that a user wrote."""
    return Path(os.path.expandvars(os.path.expanduser(path)))


def open_text(path: Path, newline: str | None = None, errors: str = "strict") -> TextIO:
    """Open a text in UTF-8, or in what its byte order mark says, which is skipped."""
    file = io.BufferedReader(io.FileIO(path))
    is_utf16 = file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    encoding = "utf-16" if is_utf16 else "utf-8-sig"
    return io.TextIOWrapper(file, encoding, errors=errors, newline=newline)


def read_text(path: Path, errors: str = "strict") -> str:
    """Read a whole text as `open_text` does."""
    with open_text(path, errors=errors) as text:
        return text.read()


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


@contextlib.contextmanager
def temporary_name(path: Path) -> Iterator[Path]:
    """Offer a name beside `path`; a file of that name is removed, after a kill by the next run."""
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, pattern: str = "*") -> None:
    """Remove temporary files of processes of this machine that no longer live."""
    for leftover in folder.glob(f"{pattern}.tmp"):
        host, _, process = leftover.name.removesuffix(".tmp").rpartition(".")
        here = host.endswith(f".{socket.gethostname()}")
        if here and process.isdecimal() and not psutil.pid_exists(int(process)):
            leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def os_errors_as_cache_error(path: Path, needed: int = 0) -> Iterator[None]:
    """Turn what the system says while `path` is written into a one-line `CacheError`."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError is HDF5's when it closes a file
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        message = f"cannot write '{path}': {reason}"
        if is_disk_full(error):
            size = f" ({human_bytes(needed)} are needed)" if needed else ""
            message = (
                f"the disk is full while writing '{path}'{size}; everything finished is kept: "
                "free some space and run the same command again"
            )
        raise CacheError(message) from error


def is_disk_full(error: BaseException | None) -> bool:
    """Tell whether a full disk is behind an error; HDF5 buries that under errors of its own."""
    while error is not None:
        full = any(f"errno = {number}," in str(error) for number in _FULL)
        if full or getattr(error, "errno", None) in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


def is_read_only(error: CacheError) -> bool:
    """Tell whether the reason of an error is that nobody, or not us, may write there."""
    return getattr(error.__cause__, "errno", None) in _READ_ONLY


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the system can be told to."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)  # Windows opens no folders
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_FOR_FOLDERS:
            raise
    finally:
        os.close(descriptor)


def resolve_symlink(path: Path) -> Path:
    """Return the file that a symbolic link stands for, so that both names are one cache."""
    return path.resolve() if path.is_symlink() else path


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, with a one-line error where that is not possible."""
    with os_errors_as_cache_error(folder):
        folder.mkdir(parents=True, exist_ok=True)


def human_bytes(count: int) -> str:
    """Format a number of bytes with a unit."""
    size, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def bytes_held(path: Path) -> int:
    """Return what a file takes of the disk: room never written to takes nothing, where known."""
    status = path.stat()
    blocks = getattr(status, "st_blocks", None)  # absent from Windows
    return status.st_size if blocks is None else min(status.st_size, blocks * 512)


def check_space(path: Path, needed: int) -> None:
    """Refuse before anything is written; HDF5 recovers badly from a disk that fills up."""
    if shutil.disk_usage(path.parent).free < needed:
        raise OSError(errno.ENOSPC, "No space left on device")


@contextlib.contextmanager
def exclusive_lock(path: Path, what: str) -> Iterator[None]:
    """Acquire the writer lock of a file or folder; it is released however the process ends."""
    import filelock

    lock = filelock.FileLock(path, is_singleton=False, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise CacheError(f"{what} is being written by {_read_note(path)}") from error
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CacheError(f"cannot lock {what}: '{path}': {reason}") from error
    # Where the system knows no locks, filelock writes and removes a file of its own kind.
    is_native = isinstance(lock, filelock.FileLock)
    try:
        if is_native:
            since = datetime.now(UTC).isoformat(timespec="seconds")
            note = f"process {os.getpid()} on {socket.gethostname()} since {since}"
            with os_errors_as_cache_error(path), open(path, "rb+") as file:
                file.seek(_NOTE_OFFSET)
                file.write(note.encode("utf-8", "backslashreplace"))
                file.truncate()
        yield
    finally:
        if is_native:
            # Who waits for a file that is gone by then begins again; Windows refuses this.
            with contextlib.suppress(OSError):
                path.unlink()
        lock.release()


def _read_note(path: Path) -> str:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(_NOTE_OFFSET)
        note = file.read(1 << 10).decode("utf-8", "replace")
        if note.startswith("process ") and note.isprintable():
            return note
    return "another process"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(urls: Sequence[str], sha256: str, path: Path, *, progress: bool = False) -> None:
    """Fetch a file from the first address that gives it; it appears only whole and checked."""
    import pooch

    pooch.get_logger().setLevel(logging.WARNING)
    fetch = pooch.HTTPDownloader(progressbar=progress, timeout=_DOWNLOAD_SECONDS)
    path.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    for url in urls:
        logger.info("fetching %s to '%s'", url, path)
        with temporary_name(path) as temporary:
            try:
                fetch(url, str(temporary), None)
            except (OSError, ValueError) as error:  # requests' errors are OSErrors
                failures.append(f"{url} ({_reason(error)})")
                continue
            found = sha256_of(temporary)
            if found.startswith(sha256):
                os.replace(temporary, path)
                return
            failures.append(
                f"{url} (damaged or another file: its SHA-256 starts with "
                f"{found[: len(sha256)][:12]} instead of {sha256[:12]})"
            )
    raise OSError("; ".join(failures))


def _reason(error: Exception) -> str:
    """Say in one short line why a download failed."""
    # What requests wraps in its own errors is the readable part.
    wrapped = error.args[0] if error.args else error
    text = " ".join(str(getattr(wrapped, "reason", wrapped)).split())
    return text if len(text) <= 200 else f"{text[:197]}..."
