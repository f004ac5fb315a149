"""What every dataset is to the rest of the toolkit: ids, paths, classes, targets, splits."""

from __future__ import annotations

import os
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from spptransfer.datasets.annotations import Annotations
from spptransfer.errors import DatasetError, suggestion
from spptransfer.ids import Ids

UNLABELLED = -1


def class_name(label: str) -> str:
    """Return a label in the form NFC, for the same word in another form is the same class."""
    return unicodedata.normalize("NFC", label)


def number_labels(labels: Iterable[str]) -> tuple[tuple[str, ...], npt.NDArray[np.int32]]:
    r"""Sort the classes that labels name, and number each label.

    Examples
    --------
    >>> number_labels(["dog", "cafe\u0301", "caf\xe9"])
    (('café', 'dog'), array([1, 0, 0], dtype=int32))
    """
    found: dict[str, int] = {}
    seen = array("i")
    for label in labels:
        seen.append(found.setdefault(class_name(label), len(found)))
    classes = sorted(found)
    position = np.argsort(list(map(found.__getitem__, classes))).astype(np.int32)
    return tuple(classes), position[np.asarray(seen, np.int32)]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images by id, with their classes and the splits that come with them.

    Everything about an image is found by its id, never by its position. Ids are kept as
    `spptransfer.ids.Ids`, so that a million of them are no burden.

    Parameters
    ----------
    name : str
        Name of the kind of dataset, such as ``"caltech101"``.
    root : Path
        Folder that the paths are relative to.
    ids : sequence of str
        One per image, each different; kept as `Ids`.
    classes : tuple of str
        Class names; empty where the images carry no labels.
    targets : ndarray
        Either int32 of shape (n_images,) with indices into `classes`, or int8 of shape
        (n_images, n_classes) with 1 = present, -1 = absent and 0 = ignored (VOC: present only
        as *difficult*). Without classes, int32 filled with -1.
    path_template : str, default="{id}"
        The image of an id lies at ``root / path_template.format(id=id)``.
    official_splits : mapping of str to sequence of str, optional
        Ids of each split that the dataset itself defines, in its own order; kept as `Ids`.
    read_boxes : callable, optional
        ``read_boxes(dataset) -> Annotations`` reads the boxes of the objects in the images of a
        dataset, this one or a part of it.

    Raises
    ------
    DatasetError
        If an id occurs twice or is no text, or `targets` are no whole numbers or fit neither
        `ids` nor `classes`.

    Examples
    --------
    >>> dataset = Dataset(
    ...     "folder", Path("photos"), ("cat/1.jpg", "dog/1.jpg"), ("cat", "dog"),
    ...     np.array([0, 1], dtype=np.int32),
    ... )
    >>> dataset
    Dataset('folder', 2 images, 2 classes, root='photos')
    >>> dataset.targets_of(["dog/1.jpg"])
    array([1], dtype=int32)
    >>> dataset.path("cat/1.jpg").as_posix()
    'photos/cat/1.jpg'
    """

    name: str
    root: Path
    ids: Sequence[str]
    classes: tuple[str, ...]
    targets: npt.NDArray[np.int32] | npt.NDArray[np.int8]
    path_template: str = "{id}"
    official_splits: Mapping[str, Sequence[str]] = field(default_factory=dict)
    read_boxes: Callable[[Dataset], Annotations] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        about = f"dataset '{self.name}'"
        try:
            ids = Ids.of(self.ids)
            parts = map(Ids.of, self.official_splits.values())
            splits = dict(zip(self.official_splits, parts, strict=True))
        except ValueError as error:
            raise DatasetError(f"{about}: the id {error}") from error
        if (twice := ids.repetition()) is not None:
            raise DatasetError(f"{about}: the id '{ids[twice[0]]}' occurs more than once")
        given = np.asarray(self.targets)
        wanted = np.dtype(np.int32 if given.ndim < 2 else np.int8)
        if given.shape != (len(ids), len(self.classes))[: max(1, given.ndim)]:
            raise DatasetError(
                f"{about}: targets of shape {given.shape} do not fit {len(ids)} images and "
                f"{len(self.classes)} classes"
            )
        is_whole = given.dtype.kind in "iub"
        targets = given.astype(wanted, copy=False).view() if is_whole else given
        if not is_whole or not np.array_equal(targets, given):
            raise DatasetError(f"{about}: targets of type {given.dtype} are not {wanted} numbers")
        targets.flags.writeable = False  # of our view: the caller's array stays as it was
        checked = {"root": Path(self.root), "ids": ids, "targets": targets}
        vars(self).update(checked, official_splits=splits)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        images, classes = f"{len(self.ids):,} images", f"{len(self.classes)} classes"
        return f"Dataset('{self.name}', {images}, {classes}, root='{self.root}')"

    @property
    def multi_label(self) -> bool:
        """Whether an image may carry several classes."""
        return self.targets.ndim == 2

    @property
    def labelled(self) -> bool:
        """Whether the images carry classes at all."""
        return bool(self.classes)

    def path(self, id: str) -> Path:
        """Return the path of the image file of an id.

        Parameters
        ----------
        id : str
            One of `ids`.

        Returns
        -------
        Path
            Below `root`, unless the id itself is an absolute path.

        Raises
        ------
        DatasetError
            If the dataset has no such id.
        """
        return next(self.iter_paths(self.positions([id])))

    def paths(self) -> list[Path]:
        """Return the paths of all images, in the order of `ids`."""
        return list(self.iter_paths(range(len(self))))

    def iter_paths(self, positions: Iterable[int]) -> Iterator[Path]:
        """Yield the paths of some images by position; see `path`."""
        for id in Ids.of(self.ids).take(positions):
            yield self.root / self.path_template.format(id=id)

    def annotations(self) -> Annotations:
        """Read the objects in the images, with their boxes, in the order of `ids`.

        Raises
        ------
        DatasetError
            If the dataset has no boxes, or what holds them is damaged.
        """
        if self.read_boxes is None:
            raise DatasetError(f"dataset '{self.name}' has no boxes, which a detector needs")
        return self.read_boxes(self)

    def check_images(self) -> None:
        """Raise a `DatasetError` where no image is there at all, as on a disk that is not mounted.

        One that is there is enough, so that as a rule a single file is looked for.
        """
        if len(self) and not any(map(os.path.isfile, self.iter_paths(range(len(self))))):
            raise DatasetError(
                f"dataset '{self.name}': none of its {len(self):,} images is there; the first is "
                f"looked for at '{self.path(self.ids[0])}'; paths are relative to "
                f"{self.root.absolute()}"
            )

    def positions(self, ids: Iterable[str]) -> npt.NDArray[np.intp]:
        """Find the positions of some ids.

        Parameters
        ----------
        ids : iterable of str
            Ids in any order.

        Returns
        -------
        ndarray of intp, shape (n_ids,)
            Positions, in the order of `ids`.

        Raises
        ------
        DatasetError
            If the dataset lacks one of the ids.
        """
        wanted = ids if isinstance(ids, Ids) else list(ids)
        found = Ids.of(self.ids).find(wanted)
        for unknown in np.flatnonzero(found < 0)[:1]:
            raise DatasetError(
                f"dataset '{self.name}' at {self.root} has no image with the id {wanted[unknown]!r}"
            )
        return found

    def targets_of(self, ids: Iterable[str]) -> npt.NDArray[np.int32] | npt.NDArray[np.int8]:
        """Return the targets of some ids, in the order of those ids.

        Parameters
        ----------
        ids : iterable of str
            Ids in any order.

        Returns
        -------
        ndarray
            Rows of `targets`: shape (n_ids,), or (n_ids, n_classes) for several labels.

        Raises
        ------
        DatasetError
            If the dataset lacks one of the ids.
        """
        return self.targets[self.positions(ids)]

    def without_class(self, name: str) -> Dataset:
        """Return the dataset without one class and that class's images.

        Parameters
        ----------
        name : str
            One of `classes`; the dataset must have one label per image.

        Returns
        -------
        Dataset
            With the remaining classes renumbered.

        Raises
        ------
        DatasetError
            If there is no such class, or images carry several labels.
        """
        if self.multi_label or name not in self.classes:
            raise DatasetError(
                f"dataset '{self.name}': cannot drop the class '{name}'; "
                f"{suggestion(name, self.classes)}"
            )
        dropped = self.classes.index(name)
        kept = self.subset(np.flatnonzero(self.targets != dropped))
        classes = tuple(other for other in self.classes if other != name)
        targets = (kept.targets - (kept.targets > dropped)).astype(np.int32)
        return replace(kept, classes=classes, targets=targets)

    def subset(self, positions: Iterable[int]) -> Dataset:
        """Return the dataset with some of its images only.

        Parameters
        ----------
        positions : iterable of int, or ndarray of int
            Positions in `ids`, each at most once.

        Returns
        -------
        Dataset
            With all classes, its images in the order of `positions`, and the official splits
            without the other images.

        Raises
        ------
        DatasetError
            If a position occurs twice.

        Examples
        --------
        >>> dataset = Dataset(
        ...     "folder", Path("photos"), ("a.jpg", "b.jpg", "c.jpg"), ("cat", "dog"),
        ...     np.array([0, 1, 0]), official_splits={"test": ("b.jpg", "c.jpg")},
        ... )
        >>> some = dataset.subset([2, 0])
        >>> some.ids, some.targets, some.official_splits
        (Ids(['c.jpg', 'a.jpg']), array([0, 0], dtype=int32), {'test': Ids(['c.jpg'])})
        """
        kept = np.fromiter(positions, np.intp)
        ids = Ids.of(self.ids).take(kept)
        splits = {
            name: Ids.of(split).take(np.flatnonzero(ids.find(split) >= 0))
            for name, split in self.official_splits.items()
        }
        return replace(self, ids=ids, targets=self.targets[kept], official_splits=splits)
