"""A folder of class folders, as users keep their own images, and as Caltech-101 is."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import BaseModel, Field

from spptransfer.datasets.base import UNLABELLED, Dataset, class_name, number_labels
from spptransfer.errors import DatasetError
from spptransfer.files import expand_path
from spptransfer.ids import Ids
from spptransfer.images import SUFFIXES
from spptransfer.sections import PathText
from spptransfer.text import counted, listed, plural

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = SUFFIXES

# Notes, labels and what systems and programs leave beside images: nobody misses them.
_COMPANION_SUFFIXES = frozenset(
    {".txt", ".md", ".rst", ".html", ".htm", ".log", ".csv", ".tsv", ".json", ".jsonl", ".xml"}
    | {".yaml", ".yml", ".toml", ".cfg", ".ini", ".md5", ".sha256", ".py", ".ipynb"}
    | {".db", ".lnk", ".url", ".xmp", ".aae"}
)
_COMPANION_NAMES = frozenset({"readme", "license", "makefile", "tmp"})  # Caltech-101 holds a tmp

# Previews, snapshots and what was deleted: network drives', Windows', macOS', Linux' and Jupyter's.
SYSTEM_FOLDER = re.compile(
    r"@eadir|[#@]recycle|[#@](recently-)?snapshot|\$recycle\.bin|system volume information"
    r"|__macosx|\.ipynb_checkpoints|lost\+found|\.trash(es|-\d+)?",
    re.IGNORECASE,
)


# Folders of these names are a dataset's own splits.
_SPLITS = ("train", "val", "valid", "validation", "test")


class FolderOptions(BaseModel):
    """Keys of the section of a ``folder`` dataset."""

    root: PathText = Field(description="a folder that holds one folder of images per class")


@dataclass
class LeftOut:
    """What lies among images and is not read: counted, to be told in a line.

    Examples
    --------
    >>> left_out = LeftOut()
    >>> for name in ("a.HEIC", "b.heic", "photo", "notes.txt"):
    ...     left_out.note_file(name)
    >>> left_out.system_folders["@eaDir"] += 1
    >>> left_out.skipped()
    '3 files by suffix: .heic (2), none (1); 1 folder of a system: @eaDir (1)'
    """

    suffixes: Counter[str] = field(default_factory=Counter)
    system_folders: Counter[str] = field(default_factory=Counter)
    folders: set[str] = field(default_factory=set)  # directly below the root

    def note_file(self, name: str) -> None:
        """Count a file that is not read, unless nobody would take it for an image."""
        stem, suffix = os.path.splitext(name.lower())
        is_companion = suffix in _COMPANION_SUFFIXES if suffix else stem in _COMPANION_NAMES
        if not is_companion:
            self.suffixes[suffix or "none"] += 1

    def skipped(self) -> str:
        """Say how many files and folders were left out; nothing if none was."""
        parts = []
        if number := self.suffixes.total():
            parts.append(f"{plural(number, 'file')} by suffix: {counted(self.suffixes)}")
        if number := self.system_folders.total():
            folders = plural(number, "folder of a system", "folders of systems")
            parts.append(f"{folders}: {counted(self.system_folders)}")
        return "; ".join(parts)

    def tell(self, root: Path, classes: Iterable[str] | None = None, stray: int = 0) -> None:
        """Warn of what is not read: stray images, files by suffix, folders that are no classes."""
        if stray:
            images = plural(stray, "image that lies", "images that lie")
            logger.warning("%s: skipped %s in no class folder", root, images)
        if skipped := self.skipped():
            logger.warning("%s: skipped %s", root, skipped)
        if classes is None:
            return
        if others := set(map(class_name, self.folders)).difference(classes):
            names = listed(sorted(others))
            logger.warning("%s: folders without images are no classes: %s", root, names)


def read_folder(root: str | os.PathLike[str]) -> Dataset:
    """Read a folder whose subfolders are classes and hold images at any depth.

    Hidden files, hidden folders, folders that systems leave behind and files without an image's
    suffix are skipped; a subfolder without images is no class. Except for hidden files, notes
    and the like, a warning says what was left out. Symbolic links are followed, except into a
    folder that contains the link. Ids are the images' paths relative to `root`, with forward
    slashes, in the order of their code points, which is the same on every machine.

    Folders ``train`` and ``val``, ``valid``, ``validation`` or ``test``, and no others, that hold
    the same class folders are the dataset's own splits; without ``test``, the validation images
    are the split ``test``. A folder that holds images but no class folders is read as well,
    without labels: features can be extracted from it, but nothing can be trained on it.

    Parameters
    ----------
    root : path-like
        The folder of class folders.

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
    root = expand_path(root)
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder")
    left_out = LeftOut()
    try:
        ids = Ids.sort(find_images(root, left_out))
    except ValueError as error:  # as Windows allows
        raise DatasetError(f"in {root}, the file name {error}") from error
    if not ids:
        skipped = left_out.skipped()
        raise _no_images(str(root), [f"skipped {skipped}"] if skipped else [])
    in_class = np.char.find(ids.encoded, b"/") > 0
    if not in_class.any():
        logger.warning("%s holds images but no class folders: read without labels", root)
        left_out.tell(root, ())
        return Dataset("folder", root, ids, (), np.full(len(ids), UNLABELLED))
    labelled = ids.take(np.flatnonzero(in_class))
    classes, targets = number_labels(id.partition("/")[0] for id in labelled)
    left_out.tell(root, classes, len(ids) - len(labelled))
    dataset = Dataset("folder", root, labelled, classes, targets)
    return _with_own_splits(dataset) if set(map(str.lower, classes)) <= set(_SPLITS) else dataset


def _with_own_splits(dataset: Dataset) -> Dataset:
    """Read the folders that are called like splits as such, if they hold the same class folders."""
    ids = Ids.of(dataset.ids)
    is_deep = np.char.count(ids.encoded, b"/") > 1
    split = dataset.targets[is_deep]
    inside = ids.take(np.flatnonzero(is_deep))
    classes, targets = number_labels(id.split("/", 2)[1] for id in inside)
    known = {name.lower(): split == k for k, name in enumerate(dataset.classes)}
    of_split = {name: set(targets[members].tolist()) for name, members in known.items()}
    trained = of_split.pop("train", set())
    is_one_of_each = of_split and all(of_split.values()) and len(known) == len(dataset.classes)
    if not is_one_of_each or len(trained) < len(classes):
        return dataset
    if stray := len(ids) - len(inside):
        LeftOut().tell(dataset.root, None, stray)
    names = sorted(known, key=_SPLITS.index)
    splits = {name: inside.take(np.flatnonzero(known[name])) for name in names}
    sizes = ", ".join(f"{name} ({plural(len(ids), 'image')})" for name, ids in splits.items())
    if "test" not in splits and len(splits) == 2:
        sizes += f"; '{names[1]}' is tested on"
        splits["test"] = splits.pop(names[1])
    what = "folders with the same class folders are the splits"
    logger.warning("%s: %s: %s", dataset.root, what, sizes)
    return Dataset("folder", dataset.root, inside, classes, targets, official_splits=splits)


def find_images(root: Path, left_out: LeftOut | None = None) -> Iterator[str]:
    """Yield the images below a folder as paths relative to it, in no particular order.

    Paths have forward slashes; bytes of a name that are no UTF-8 are lone surrogates, as
    everywhere in Python. What is found besides is noted in `left_out`.
    """
    left_out = LeftOut() if left_out is None else left_out
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=_refuse):
        prefix = "" if folder == str(root) else f"{Path(folder).relative_to(root).as_posix()}/"
        subfolders[:] = filter(partial(_is_read, folder, left_out), subfolders)
        if not prefix:
            left_out.folders.update(subfolders)
        for name in files:
            if name.startswith("."):
                continue
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                yield prefix + name
            elif os.path.isfile(os.path.join(folder, name)):  # and no link that leads nowhere
                left_out.note_file(name)


def _is_read(folder: str, left_out: LeftOut, name: str) -> bool:
    path = os.path.join(folder, name)
    if SYSTEM_FOLDER.fullmatch(name):
        left_out.system_folders[name] += 1
        return False
    if name.startswith("."):
        return False
    around = (folder, *Path(folder).parents)
    if os.path.islink(path) and any(map(partial(os.path.samefile, path), around)):
        logger.warning("%s: skipped, since this link leads into a folder that holds it", path)
        return False
    return True


def _refuse(error: OSError) -> None:
    raise DatasetError(f"cannot read the folder {error.filename}: {error.strerror}") from error


def _no_images(where: str, skipped: Iterable[str]) -> DatasetError:
    looked_for = f"looked for {', '.join(sorted(IMAGE_SUFFIXES))} in it and its subfolders"
    return DatasetError("; ".join([f"no images in {where}", looked_for, *skipped]))


def gather_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Collect files as they are, and the images inside folders, sorted within each folder.

    A warning says which files of a folder are no images by their suffix, as for a dataset.
    A path that does not exist, and finding nothing, is a `DatasetError`.
    """
    given = [Path(path) for path in paths]
    found: dict[str, Path] = {}  # by the one place that several paths may lead to
    of_folders = {}
    for path in given:
        if path.is_dir():
            left_out = of_folders[path] = LeftOut()
            images = [path / id for id in sorted(find_images(path, left_out))]
        elif path.exists() or path.is_symlink():
            images = [path]
        else:
            raise DatasetError(f"there is no image or folder '{path}'")
        for image in images:
            found.setdefault(os.path.abspath(image), image)
    if not found:
        told = {path: each.skipped() for path, each in of_folders.items() if each.skipped()}
        skipped = [f"{path}: skipped {text}" for path, text in told.items()]
        raise _no_images(", ".join(map(str, given)), skipped)
    for path, left_out in of_folders.items():
        left_out.tell(path)
    return list(found.values())


FOLDER = "101_ObjectCategories"
BACKGROUND = "BACKGROUND_Google"


def find_caltech101(place: Path) -> Path | None:
    """Find the folder of Caltech-101's categories at or below a place, None where there is none.

    Its official archive also holds a file ``BACKGROUND_Google/tmp`` that is no image.
    """
    for above in (".", "caltech101", "caltech-101"):
        if (place / above / FOLDER).is_dir():
            return place / above / FOLDER
    # A renamed copy is told from any other folder by the category no other dataset has.
    is_itself = place.name == FOLDER or (place / BACKGROUND).is_dir()
    return place if place.is_dir() and is_itself else None
