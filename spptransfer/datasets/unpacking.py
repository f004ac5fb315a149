"""Unpack archives from outside without letting them write anywhere else or fill the disk."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
import zlib
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from spptransfer.errors import DatasetError

MAX_BYTES = 4 << 30
MAX_FILES = 100_000


def unpack(
    archive: Path,
    destination: Path,
    *,
    inner: str | None = None,
    max_bytes: int = MAX_BYTES,
    max_files: int = MAX_FILES,
) -> int:
    """Unpack the files of a tar archive, compressed or not, into a folder.

    Only plain files and folders are accepted: no links, no devices, no absolute paths and none
    that climb out. Permissions and owners are not taken over. What macOS adds to archives is
    skipped.

    Parameters
    ----------
    archive : Path
        A tar archive, or a zip archive that holds one.
    destination : Path
        Folder to unpack into; what was unpacked before an error stays there.
    inner : str, optional
        Name of the tar archive inside the zip archive, without its folder.
    max_bytes, max_files : int, optional
        Limits on what is unpacked.

    Returns
    -------
    int
        Number of files.

    Raises
    ------
    DatasetError
        If the archive is damaged, holds anything but plain files and folders below
        `destination`, holds a file twice, or exceeds a limit.
    """
    try:
        with ExitStack() as stack:
            stream: BinaryIO = stack.enter_context(archive.open("rb"))
            if inner is not None:
                stream = stack.enter_context(_open_inner(zipfile.ZipFile(stream), inner, archive))
            tar = stack.enter_context(tarfile.open(fileobj=stream, mode="r|*"))
            return _unpack_members(tar, destination, max_bytes, max_files)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DatasetError(f"{archive} is damaged: {error}") from error
    except OSError as error:
        raise DatasetError(f"cannot unpack {archive} into {destination}: {error}") from error


def _open_inner(archive: zipfile.ZipFile, inner: str, path: Path) -> BinaryIO:
    """Open the tar archive inside a zip archive."""
    for name in archive.namelist():
        member = PurePosixPath(name)
        if member.name == inner and not _is_clutter(member):
            return cast(BinaryIO, archive.open(name))
    raise DatasetError(f"{path} does not hold {inner}")


def _unpack_members(tar: tarfile.TarFile, destination: Path, max_bytes: int, max_files: int) -> int:
    """Unpack one member after the other, as a stream allows."""
    n_files = n_bytes = 0
    for member in tar:
        relative = _safe_path(member)
        if _is_clutter(relative):
            continue
        target = destination / relative
        if member.isdir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        n_files, n_bytes = n_files + 1, n_bytes + member.size
        if n_files > max_files or n_bytes > max_bytes:
            raise DatasetError(
                f"refused: the archive holds more than {max_files:,} files or {max_bytes:,} bytes"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        content = cast(BinaryIO, tar.extractfile(member))
        with target.open("xb") as copy:
            shutil.copyfileobj(content, copy)
    return n_files


def _safe_path(member: tarfile.TarInfo) -> PurePosixPath:
    """Path of a member, or an error unless it is a plain file or folder that stays inside."""
    path = PurePosixPath(member.name)
    if not (member.isfile() or member.isdir()):
        raise DatasetError(f"refused: '{member.name}' in the archive is a link or a device")
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or "\0" in member.name:
        raise DatasetError(f"refused: '{member.name}' in the archive would lie outside its folder")
    return path


def _is_clutter(path: PurePosixPath) -> bool:
    """Whether macOS put it there."""
    return path.name.startswith("._") or path.name == ".DS_Store" or "__MACOSX" in path.parts
