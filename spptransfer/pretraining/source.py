"""Where training images lie: a folder or a ZIP file, read without unpacking."""

from __future__ import annotations

import errno
import hashlib
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from spptransfer.datasets.base import class_name
from spptransfer.datasets.folder import IMAGE_SUFFIXES, SYSTEM_FOLDER, LeftOut, find_images
from spptransfer.errors import DatasetError, ImageError
from spptransfer.files import expand_path
from spptransfer.images import MAX_FILE_BYTES, read_bytes
from spptransfer.pretraining.config import DatasetSection

Labels = npt.NDArray[np.int64]

# Of a file whose name is there: it is not, or not for us, and will not be the next time.
_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM)


class Source:
    """Image files by name, relative to a root, with forward slashes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self, folder: str, left_out: LeftOut | None = None) -> list[str]:
        """Images below a folder of the root, sorted by code points; none where it is absent.

        What is found besides images is noted.
        """
        raise NotImplementedError

    def size(self, name: str) -> int:
        """Bytes of a file; -1 where there is none behind its name.

        Raises
        ------
        DatasetError
            If the disk does not say: images are recognised by their sizes.
        """
        raise NotImplementedError

    def read(self, name: str) -> bytes:
        """Content of a file; an `ImageError` where it cannot be read."""
        raise NotImplementedError


class FolderSource(Source):
    """Image files below a folder."""

    def names(self, folder: str, left_out: LeftOut | None = None) -> list[str]:
        """Images below a folder of the root."""
        where = self.root / folder
        prefix = f"{folder}/" if folder else ""
        found = find_images(where, left_out) if where.is_dir() else ()
        return sorted(f"{prefix}{name}" for name in found)

    def size(self, name: str) -> int:
        """Bytes of a file; -1 where a link leads nowhere."""
        path = self.root / name
        try:
            return path.stat().st_size
        except OSError as error:
            if error.errno in _NOWHERE:
                return -1
            raise DatasetError(f"cannot read '{path}': {error.strerror}") from error

    def read(self, name: str) -> bytes:
        """Content of a file."""
        return read_bytes(self.root / name)


class ZipSource(Source):
    """Image files inside a ZIP file; several threads may read at once."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        try:
            self._archive = zipfile.ZipFile(root)
        except Exception as error:  # A damaged directory makes zipfile raise nearly anything.
            reason = getattr(error, "strerror", None) or error
            raise DatasetError(f"cannot read the ZIP file '{root}': {reason}") from error
        members = self._archive.infolist()
        self._system_folders = set(filter(None, (_system_folder(at.filename) for at in members)))
        visible = [at for at in members if not _is_hidden(at.filename)]
        self._members = {at.filename: at for at in visible if _is_image(at.filename)}
        self._others = [at.filename for at in visible if not _is_image(at.filename)]

    def names(self, folder: str, left_out: LeftOut | None = None) -> list[str]:
        """Images below a folder of the archive."""
        prefix = f"{folder}/" if folder else ""
        if left_out is not None:
            self._note(prefix, left_out)
        return sorted(name for name in self._members if name.startswith(prefix))

    def _note(self, prefix: str, left_out: LeftOut) -> None:
        """Note what is no image, and the folders directly below a prefix, as `find_images` does."""
        for name in (*self._members, *self._others):
            if name.startswith(prefix):
                first, slash, _ = name.removeprefix(prefix).partition("/")
                left_out.folders.update([first] if slash else [])
        for name in self._others:
            if name.startswith(prefix) and not name.endswith("/"):
                left_out.note_file(PurePosixPath(name).name)
        for name in self._system_folders:
            if name.startswith(prefix):
                left_out.system_folders[PurePosixPath(name).name] += 1

    def size(self, name: str) -> int:
        """Bytes of a file, unpacked."""
        return self._members[name].file_size

    def read(self, name: str) -> bytes:
        """Content of a file."""
        if self.size(name) > MAX_FILE_BYTES:
            raise ImageError(f"the file has {self.size(name):,} bytes; too many to be read")
        try:
            return self._archive.read(self._members[name])
        except Exception as error:  # As the decompressors do on damaged data.
            raise ImageError(f"cannot read the image: {error}") from error


def _is_hidden(name: str) -> bool:
    hidden = any(part.startswith(".") for part in PurePosixPath(name).parts)
    return hidden or _system_folder(name) is not None


def _system_folder(name: str) -> str | None:
    """Return the folder that a system left behind and that a member is or lies in."""
    parts = PurePosixPath(name).parts
    depths = (n for n, part in enumerate(parts, 1) if SYSTEM_FOLDER.fullmatch(part))
    depth = next(depths, None)
    return None if depth is None else "/".join(parts[:depth])


def _is_image(name: str) -> bool:
    return not name.endswith("/") and PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def open_source(root: str, data_root: Path | None = None) -> Source:
    """Open a folder or a ZIP file.

    Parameters
    ----------
    root : str
        As the pipeline file names it.
    data_root : Path, optional
        Folder in which a relative root is looked for first; by default ``data``.

    Returns
    -------
    Source

    Raises
    ------
    DatasetError
        If there is none, or the file is no ZIP file.
    """
    given = expand_path(root)
    candidates = [(data_root or Path("data")) / given, given]
    found = [path for path in candidates if os.path.exists(path)]  # of any length
    if not found:
        raise DatasetError(f"no folder or ZIP file '{root}': looked for {_listed(candidates)}")
    return FolderSource(found[0]) if found[0].is_dir() else ZipSource(found[0])


def _listed(paths: Sequence[Path]) -> str:
    return " and ".join(f"'{path}'" for path in dict.fromkeys(paths))


@dataclass(frozen=True, eq=False)
class Split:
    """Images that are used alike.

    Parameters
    ----------
    names : tuple of str
        Files of the source.
    labels : ndarray of int64, shape (n_images,)
        Class numbers.
    """

    names: tuple[str, ...]
    labels: Labels

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, positions: npt.NDArray[np.intp]) -> Split:
        """The images at some positions."""
        return Split(tuple(self.names[i] for i in positions), self.labels[positions])


def read_splits(source: Source, section: DatasetSection) -> tuple[tuple[str, ...], Split, Split]:
    """List the classes, the training and the validation images.

    Parameters
    ----------
    source : Source
        Where the images lie.
    section : DatasetSection
        Which folders of it are which.

    Returns
    -------
    (tuple of str, Split, Split)
        Class names, sorted; training; validation.

    Raises
    ------
    DatasetError
        If a folder holds no class folders with images, there is one class only, the validation
        images have a class that the training images lack, or none can be held out.
    """
    names, of_class = labelled(source, section.train)
    classes = tuple(sorted(set(of_class)))
    if len(classes) < 2:
        raise DatasetError(f"'{source.root}': training needs two classes, found {len(classes)}")
    train = Split(tuple(names), _numbered(of_class, classes))
    if section.val is None:
        return classes, *_held_out(train, section.holdout)
    names, of_class = labelled(source, section.val)
    unknown = sorted(set(of_class) - set(classes))
    if unknown:
        raise DatasetError(
            f"'{source.root}': '{section.val}' holds the class '{unknown[0]}', "
            f"which '{section.train}' lacks"
        )
    return classes, train, Split(tuple(names), _numbered(of_class, classes))


def labelled(source: Source, folder: str) -> tuple[list[str], list[str]]:
    """List the images in class folders, and warn of what is left out as a dataset does.

    Parameters
    ----------
    source : Source
        Where the images lie.
    folder : str
        Folder of it that holds a folder per class, spelled in any way; ``""`` is the root.

    Returns
    -------
    (list of str, list of str)
        Names of the images, sorted, and their classes.

    Raises
    ------
    DatasetError
        If there are none.
    """
    steps = PurePosixPath(folder.strip("/")).parts
    left_out, where = LeftOut(), source.root.joinpath(*steps)
    found = [(name, name.split("/")) for name in source.names("/".join(steps), left_out)]
    kept = [
        (name, class_name(parts[len(steps)]))
        for name, parts in found
        if len(parts) > len(steps) + 1
    ]
    if not kept:
        skipped = f"; skipped {left_out.skipped()}" if left_out.skipped() else ""
        raise DatasetError(
            f"'{source.root}': no images in class folders of '{folder or '.'}'{skipped}"
        )
    labels = [label for _, label in kept]
    left_out.tell(where, labels, len(found) - len(kept))
    return [name for name, _ in kept], labels


def _numbered(of_class: Sequence[str], classes: Sequence[str]) -> Labels:
    number = {name: position for position, name in enumerate(classes)}
    return np.array([number[name] for name in of_class], dtype=np.int64)


def _held_out(split: Split, share: float) -> tuple[Split, Split]:
    """Set a share of every class aside, at least one image where there are two."""
    generator = np.random.default_rng(0)
    aside = np.zeros(len(split), dtype=bool)
    for label in np.unique(split.labels):
        members = generator.permutation(np.flatnonzero(split.labels == label))
        count = min(max(1, round(share * len(members))), len(members) - 1)
        aside[members[:count]] = True
    if not aside.any():
        raise DatasetError("dataset.val: no class has two images, one of which could be held out")
    return split.subset(np.flatnonzero(~aside)), split.subset(np.flatnonzero(aside))


def digest(source: Source, splits: Sequence[Split]) -> str:
    """Hash names, sizes in bytes and classes of the images, by which other data are recognised.

    Returns
    -------
    str
        SHA-256 in hexadecimal.
    """
    sha256 = hashlib.sha256()
    for split in splits:
        for name, label in zip(split.names, split.labels, strict=True):
            line = f"{name}\t{source.size(name)}\t{label}\n"
            sha256.update(line.encode("utf-8", "surrogateescape"))
        sha256.update(b"\n")
    return sha256.hexdigest()
