"""A folder of class folders, as users keep their own images."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from spptransfer.datasets.base import UNLABELLED, Dataset
from spptransfer.datasets.left_out import LeftOut
from spptransfer.errors import DatasetError
from spptransfer.ids import Ids
from spptransfer.sections import PathText
from spptransfer.text import plural

logger = logging.getLogger(__name__)

# Those of `spptransfer.images.FORMATS`.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif"}
    | {".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
)


class FolderOptions(BaseModel):
    """Keys of the section of a ``folder`` dataset."""

    root: PathText = Field(description="a folder that holds one folder of images per class")


def read_folder(root: str | os.PathLike[str], *, name: str = "folder") -> Dataset:
    """Read a folder whose subfolders are classes and hold images at any depth.

    Hidden files, hidden folders and files without an image's suffix are skipped; a subfolder
    without images is no class. Except for hidden files, notes and the like, a warning says what
    was left out. Symbolic links are followed, except into a folder that contains the link. Ids
    are the images' paths relative to `root`, with forward slashes, in the order of their code
    points, which is the same on every machine.

    A folder that holds images but no class folders is read as well, without labels: features
    can be extracted from it, but nothing can be trained on it.

    Parameters
    ----------
    root : path-like
        The folder of class folders.
    name : str, default="folder"
        What the dataset calls itself.

    Returns
    -------
    Dataset
        With one label per image, or none.

    Raises
    ------
    DatasetError
        If `root` is no folder, holds no images, or a folder cannot be listed.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for id in ("cat/b.JPG", "cat/kittens/a.png", "dog/a.jpg", "dog/notes.txt"):
    ...         path = Path(folder, id)
    ...         path.parent.mkdir(parents=True, exist_ok=True)
    ...         path.touch()
    ...     dataset = read_folder(folder)
    >>> dataset.ids
    Ids(['cat/b.JPG', 'cat/kittens/a.png', 'dog/a.jpg'])
    >>> dataset.classes
    ('cat', 'dog')
    """
    root = Path(root)
    if not root.is_dir():
        raise DatasetError(f"dataset '{name}': {root} is not a folder")
    left_out = LeftOut()
    try:
        ids = Ids.sort(find_images(root, left_out))
    except ValueError as error:  # as Windows allows
        raise DatasetError(f"dataset '{name}': in {root}, the file name {error}") from error
    if not ids:
        skipped = f"; skipped {left_out.files()}" if left_out.files() else ""
        raise DatasetError(
            f"dataset '{name}': no images in {root}; "
            f"looked for {_looked_for()} in it and its subfolders{skipped}"
        )
    in_class = np.fromiter(("/" in id for id in ids), bool, len(ids))
    if not in_class.any():
        logger.warning("%s holds images but no class folders: read without labels", root)
        tell_left_out(root, left_out, ())
        targets = np.full(len(ids), UNLABELLED, dtype=np.int32)
        return Dataset(name, root, ids, (), targets)
    if not in_class.all():
        tell_stray(root, len(ids) - int(np.count_nonzero(in_class)))
        ids = ids.take(np.flatnonzero(in_class))
    classes, targets = _classes_of(ids)
    tell_left_out(root, left_out, classes)
    return Dataset(name, root, ids, classes, targets)


def tell_stray(root: Path, number: int) -> None:
    """Say how many images lie in no class folder."""
    images = plural(number, "image that lies", "images that lie")
    logger.warning("%s: skipped %s in no class folder", root, images)


def tell_left_out(root: Path, left_out: LeftOut, classes: Container[str]) -> None:
    """Say which files are no images by their names, and which folders are no classes."""
    if files := left_out.files():
        logger.warning("%s: skipped %s", root, files)
    if folders := left_out.folders_without(classes):
        logger.warning("%s: folders without images are no classes: %s", root, folders)


def _looked_for() -> str:
    return ", ".join(sorted(IMAGE_SUFFIXES))


def _classes_of(ids: Ids) -> tuple[tuple[str, ...], npt.NDArray[np.int32]]:
    """Return the names of the class folders, and the number of each image's."""
    found: dict[str, int] = {}
    numbers = (found.setdefault(id.partition("/")[0], len(found)) for id in ids)
    seen = np.fromiter(numbers, np.int32, len(ids))
    classes = sorted(found)
    in_order = {label: position for position, label in enumerate(classes)}
    return tuple(classes), np.array([in_order[label] for label in found], np.int32)[seen]


def find_images(root: Path, left_out: LeftOut | None = None) -> Iterator[str]:
    """Yield the images below a folder as paths relative to it, in no particular order.

    Paths have forward slashes; bytes of a name that are no UTF-8 are lone surrogates, as
    everywhere in Python. What is found besides is noted in `left_out`.
    """
    pending: list[tuple[str, str, frozenset[tuple[int, int]]]] = [(str(root), "", frozenset())]
    while pending:
        folder, prefix, ancestors = pending.pop()
        key = _identity(folder)
        if key in ancestors:
            logger.warning("%s: skipped, since this link leads into a folder that holds it", folder)
            continue
        if left_out is not None and prefix.count("/") == 1:
            left_out.note_folder(prefix[:-1])
        for entry in _visible(folder):
            if _is(entry.is_dir):
                pending.append((entry.path, f"{prefix}{entry.name}/", ancestors | {key}))
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                yield f"{prefix}{entry.name}"
            elif left_out is not None and _is(entry.is_file):
                left_out.note_file(entry.name)


def _identity(folder: str) -> tuple[int, int]:
    """What tells a folder from all others, whatever path leads to it."""
    try:
        found = os.stat(folder)
    except OSError as error:
        raise DatasetError(f"cannot read the folder {folder}: {error.strerror}") from error
    return found.st_dev, found.st_ino


def _visible(folder: str) -> Iterator[os.DirEntry[str]]:
    """Entries of a folder but the hidden ones, as they are found: there may be millions."""
    try:
        with os.scandir(folder) as listing:
            yield from (entry for entry in listing if not entry.name.startswith("."))
    except OSError as error:
        raise DatasetError(f"cannot read the folder {folder}: {error.strerror}") from error


def _is(kind: Callable[[], bool]) -> bool:
    """Whether an entry, or what it links to, is of a kind; a link to itself is of none."""
    try:
        return kind()
    except OSError:
        return False


def gather_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Collect files as they are, and the images inside folders, sorted within each folder.

    A warning says which files of a folder are no images by their suffix, as for a dataset.
    A path that does not exist, and finding nothing, is a `DatasetError`.
    """
    given = [Path(path) for path in paths]
    found: dict[Path, None] = {}
    skipped = []
    for path in given:
        if path.is_dir():
            left_out = LeftOut()
            found |= dict.fromkeys(path / id for id in sorted(find_images(path, left_out)))
            if files := left_out.files():
                skipped.append(f"{path}: skipped {files}")
        elif path.exists() or path.is_symlink():
            found[path] = None
        else:
            raise DatasetError(f"there is no image or folder '{path}'")
    if not found:
        raise DatasetError(
            f"no images in {', '.join(map(str, given))}; looked for {_looked_for()} in it and "
            f"its subfolders{''.join(f'; {line}' for line in skipped)}"
        )
    for line in skipped:
        logger.warning("%s", line)
    return list(found)
