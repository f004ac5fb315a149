"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from spptransfer.errors import CacheError


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Offer a temporary name beside `path`; rename it once it is complete and on the disk.

    The caller writes and syncs the temporary file. Whatever happens before the rename leaves
    `path` as it was; the temporary file is removed, and after a kill it is recognised by its
    suffix.

    Raises
    ------
    CacheError
        If the disk is full or the folder cannot be written to.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise CacheError(_explain(error, path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, with a one-line error where that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(_explain(error, folder)) from error


def _explain(error: OSError, path: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return (
            f"the disk is full while writing '{path}'; everything finished is kept: "
            "free some space and run the same command again"
        )
    reason = error.strerror or " ".join(str(error).split())
    return f"cannot write '{path}': {reason}"
