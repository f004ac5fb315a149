"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from spptransfer.errors import CacheError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
# What file systems say that cannot force a folder onto the disk.
_NOT_FOR_FOLDERS = (errno.EINVAL, errno.ENOTSUP)


@contextlib.contextmanager
def appearing(path: Path, needed: int = 0) -> Iterator[Path]:
    """Offer a temporary name beside `path`; rename it once it is complete and on the disk.

    The caller writes and syncs the temporary file. Whatever happens before the rename leaves
    `path` as it was; the temporary file is removed, and after a kill `remove_leftovers` does so.

    Parameters
    ----------
    path : Path
        The final name.
    needed : int, default=0
        Bytes that the file will have, for the message where they do not fit.

    Raises
    ------
    CacheError
        If the disk is full or the folder cannot be written to.
    """
    with explained(path, needed), temporary_name(path) as temporary:
        check_space(path, needed)
        yield temporary
        os.replace(temporary, path)
        sync_folder(path.parent)


@contextlib.contextmanager
def temporary_name(path: Path) -> Iterator[Path]:
    """Offer a name beside `path`; a file of that name is removed, after a kill by the next run."""
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def explained(path: Path, needed: int = 0) -> Iterator[None]:
    """Turn what goes wrong while `path` is written into one line.

    Raises
    ------
    CacheError
        If the disk is full or the folder cannot be written to.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError is HDF5's when it closes a file
        raise CacheError(_explain(error, path, needed)) from error


@contextlib.contextmanager
def scratch_file(folder: Path) -> Iterator[IO[bytes]]:
    """Offer a file without a name, which is gone when it is closed or its process ends.

    Raises
    ------
    CacheError
        If the disk is full or the folder cannot be written to.
    """
    with explained(folder), tempfile.TemporaryFile(dir=folder) as file:
        yield file


def remove_leftovers(folder: Path, pattern: str = "*") -> None:
    """Remove temporary files of processes of this machine that no longer live."""
    for leftover in folder.glob(f"{pattern}.tmp"):
        host, _, process = leftover.name.removesuffix(".tmp").rpartition(".")
        here = host.endswith(f".{socket.gethostname()}")
        if here and process.isdigit() and not is_alive(int(process)):
            leftover.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    """Whether a process of this machine exists."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_FOR_FOLDERS:
            raise
    finally:
        os.close(descriptor)


def is_read_only(error: CacheError) -> bool:
    """Whether the reason is that nobody, or not us, may write there."""
    return getattr(error.__cause__, "errno", None) in _READ_ONLY


def behind_link(path: Path) -> Path:
    """The file itself where a symbolic link stands for it, so that both names are one cache."""
    return path.resolve() if path.is_symlink() else path


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, with a one-line error where that is not possible."""
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)


def human_bytes(count: int) -> str:
    """Show a number of bytes with a unit.

    Examples
    --------
    >>> human_bytes(812), human_bytes(3_456_789)
    ('812 B', '3.5 MB')
    """
    size, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def bytes_held(path: Path) -> int:
    """What a file takes of the disk: room in it that was never written to takes nothing."""
    status = path.stat()
    return min(status.st_size, status.st_blocks * 512)


def check_space(path: Path, needed: int) -> None:
    """Refuse before anything is written; HDF5 recovers badly from a disk that fills up."""
    if shutil.disk_usage(path.parent).free < needed:
        raise OSError(errno.ENOSPC, "No space left on device")


def _explain(error: BaseException, path: Path, needed: int) -> str:
    if _is_full(error):
        size = f" ({human_bytes(needed)} are needed)" if needed else ""
        return (
            f"the disk is full while writing '{path}'{size}; everything finished is kept: "
            "free some space and run the same command again"
        )
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return f"cannot write '{path}': {reason}"


def _is_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error; HDF5 buries that under errors of its own."""
    while error is not None:
        full = any(f"errno = {number}," in str(error) for number in _FULL)
        if full or getattr(error, "errno", None) in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False
