"""Labelled images in a folder or a ZIP file, which is read without unpacking."""

from __future__ import annotations

import hashlib
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from spptransfer.datasets.base import class_name, number_labels
from spptransfer.datasets.folder import IMAGE_SUFFIXES, SYSTEM_FOLDER, LeftOut, find_images
from spptransfer.errors import DatasetError, ImageError
from spptransfer.files import expand_path
from spptransfer.images import MAX_FILE_BYTES, Rendering, decode, read_bytes, views
from spptransfer.pretraining.config import ImageFilesSection

RGBImage = npt.NDArray[np.uint8]


class FolderSource:
    """Image files below a folder, by names relative to it, with forward slashes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self, folder: str, left_out: LeftOut) -> list[str]:
        """List the images below a folder of the root, none where it is absent, and what else is."""
        where, prefix = self.root / folder, f"{folder}/" if folder else ""
        return [prefix + name for name in find_images(where, left_out)] if where.is_dir() else []

    def size(self, name: str) -> int:
        """Return the bytes of a file; -1 behind a link that leads nowhere."""
        path = self.root / name
        try:
            return path.stat().st_size
        except FileNotFoundError:
            return -1
        except OSError as error:  # images are recognised by their sizes
            raise DatasetError(f"cannot read '{path}': {error.strerror}") from error

    def read(self, name: str) -> bytes:
        """Read a file; an `ImageError` where it cannot be."""
        return read_bytes(self.root / name)


class ZipSource:
    """The same of image files inside a ZIP file; threads and processes may read at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            self._archive = zipfile.ZipFile(cast(IO[bytes], _ReopenedFile(root)))
        except Exception as error:  # A damaged directory makes zipfile raise nearly anything.
            reason = getattr(error, "strerror", None) or error
            raise DatasetError(f"cannot read the ZIP file '{root}': {reason}") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return ZipSource, (self.root,)

    def names(self, folder: str, left_out: LeftOut) -> list[str]:
        """List the images as `find_images` does."""
        prefix = f"{folder}/" if folder else ""
        found, system_folders = [], set()
        for name in self._archive.namelist():
            parts = PurePosixPath(name.removeprefix(prefix)).parts
            if not name.startswith(prefix) or not parts:
                continue
            system = [SYSTEM_FOLDER.fullmatch(part) is not None for part in parts]
            if any(system):
                system_folders.add(parts[: system.index(True) + 1])
            elif not any(part.startswith(".") for part in parts):
                is_folder = name.endswith("/")
                left_out.folders.update(parts[: len(parts) > 1 or is_folder])
                if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES and not is_folder:
                    found.append(name)
                elif not is_folder:
                    left_out.note_file(parts[-1])
        left_out.system_folders.update(parts[-1] for parts in system_folders)
        return found

    def size(self, name: str) -> int:
        """Return the bytes of a file, unpacked."""
        return self._archive.getinfo(name).file_size

    def read(self, name: str) -> bytes:
        """Read a file; an `ImageError` where it cannot be."""
        if self.size(name) > MAX_FILE_BYTES:
            raise ImageError(f"the file has {self.size(name):,} bytes; too many to be read")
        try:
            return self._archive.read(name)
        except Exception as error:  # As the decompressors do on damaged data.
            raise ImageError(f"cannot read the image: {error}") from error


class _ReopenedFile:
    """A file that every process opens for itself: forked ones would share its position."""

    def __init__(self, path: Path) -> None:
        self._path, self._process, self._file = path, os.getpid(), path.open("rb")

    def __getattr__(self, name: str) -> Any:
        if self._process != os.getpid():
            self._process, self._file = os.getpid(), self._path.open("rb")
        return getattr(self._file, name)

    def __del__(self) -> None:
        if "_file" in self.__dict__:  # else it could not be opened
            self._file.close()


ImageSource = FolderSource | ZipSource


def open_source(root: str, data_root: Path | None = None) -> ImageSource:
    """Open a folder or a ZIP file, a relative one in `data_root` (``data``) or else here.

    A `DatasetError` if there is none, or the file is no ZIP file.
    """
    given = expand_path(root)
    candidates = [(data_root or Path("data")) / given, given]
    found = [path for path in candidates if os.path.exists(path)]  # of any length
    if not found:
        looked = " and ".join(f"'{path}'" for path in dict.fromkeys(candidates))
        raise DatasetError(f"no folder or ZIP file '{root}': looked for {looked}")
    return FolderSource(found[0]) if found[0].is_dir() else ZipSource(found[0])


@dataclass(frozen=True, eq=False)
class LabelledFiles:
    """Images in class folders, decoded whenever they are asked for.

    Parameters
    ----------
    source : FolderSource or ZipSource
        Where the files lie.
    names : tuple of str
        Files of the source.
    labels : ndarray of int64, shape (n_images,)
        Class numbers.
    classes : tuple of str
        Names of the classes, sorted.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name in ("ant", "bee"):
    ...         (Path(root) / "val" / name).mkdir(parents=True)
    ...         Image.new("RGB", (8, 6)).save(Path(root) / "val" / name / "1.png")
    ...     files = LabelledFiles.open(root, "val")
    ...     image, label = files[1]
    >>> files.classes, image.shape, label
    (('ant', 'bee'), (6, 8, 3), 1)
    """

    source: ImageSource
    names: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]

    @classmethod
    def open(cls, root: str, split: str, data_root: Path | None = None) -> LabelledFiles:
        """Open a split of a folder or ZIP file: a folder in it with a folder per class, or ``""``.

        Raises
        ------
        DatasetError
            If there are no images in class folders.
        """
        return cls.within(open_source(root, data_root), split)

    @classmethod
    def within(cls, source: ImageSource, folder: str) -> LabelledFiles:
        """List the images in class folders, and warn of what is left out as a dataset does."""
        steps = PurePosixPath(folder.strip("/")).parts
        left_out = LeftOut()
        found = sorted(source.names("/".join(steps), left_out))
        names = [name for name in found if name.count("/") > len(steps)]
        if not names:
            skipped = f"; skipped {left_out.skipped()}" if left_out.skipped() else ""
            raise DatasetError(
                f"'{source.root}': no images in class folders of '{folder or '.'}'{skipped}"
            )
        labels = [class_name(name.split("/")[len(steps)]) for name in names]
        left_out.tell(source.root.joinpath(*steps), labels, len(found) - len(names))
        classes, numbers = number_labels(labels)
        return cls(source, tuple(names), numbers.astype(np.int64), classes)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, position: int) -> tuple[RGBImage, int]:
        """Return the upright RGB image, uint8 of shape (H, W, 3), and the number of its class.

        Raises
        ------
        ImageError
            If the file cannot be read or decoded.
        """
        image = decode(self.source.read(self.names[position]))
        return np.asarray(image), int(self.labels[position])

    def view(self, position: int, *rendering: Any) -> RGBImage:
        """Return an image as a feature's view shows it; see `spptransfer.images.Rendering`."""
        return views(self.source.read(self.names[position]), [Rendering(*rendering)])[0]

    def subset(self, positions: npt.NDArray[np.intp]) -> LabelledFiles:
        """Return the images at some positions."""
        names = tuple(self.names[i] for i in positions)
        return LabelledFiles(self.source, names, self.labels[positions], self.classes)

    def digest(self) -> str:
        """Hash names, sizes in bytes and classes, by which other images are recognised."""
        sha256 = hashlib.sha256()
        for name, label in zip(self.names, self.labels, strict=True):
            line = f"{name}\t{self.source.size(name)}\t{label}\n"
            sha256.update(line.encode("utf-8", "surrogateescape"))
        return sha256.hexdigest()


def open_splits(
    source: ImageSource, section: ImageFilesSection
) -> tuple[LabelledFiles, LabelledFiles]:
    """List the training and the validation images.

    Raises
    ------
    DatasetError
        If a folder holds no class folders with images, there is one class only, the validation
        images have a class that the training images lack, or none can be held out.
    """
    train = LabelledFiles.within(source, section.train)
    if len(train.classes) < 2:
        raise DatasetError(
            f"'{source.root}': training needs two classes, found {len(train.classes)}"
        )
    if section.val is None:
        return _held_out(train, section.holdout)
    val = LabelledFiles.within(source, section.val)
    if unknown := sorted(set(val.classes) - set(train.classes)):
        raise DatasetError(
            f"'{source.root}': '{section.val}' holds the class '{unknown[0]}', "
            f"which '{section.train}' lacks"
        )
    number = np.array([train.classes.index(name) for name in val.classes])
    return train, LabelledFiles(source, val.names, number[val.labels], train.classes)


def _held_out(files: LabelledFiles, share: float) -> tuple[LabelledFiles, LabelledFiles]:
    """Set a share of every class aside, at least one image where there are two."""
    generator = np.random.default_rng(0)
    aside = np.zeros(len(files), dtype=bool)
    for label in range(len(files.classes)):
        members = generator.permutation(np.flatnonzero(files.labels == label))
        count = min(max(1, round(share * len(members))), len(members) - 1)
        aside[members[:count]] = True
    if not aside.any():
        raise DatasetError("dataset.val: no class has two images, one of which could be held out")
    return files.subset(np.flatnonzero(~aside)), files.subset(np.flatnonzero(aside))
