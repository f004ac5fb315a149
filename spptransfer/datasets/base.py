"""What every dataset is to the rest of the toolkit: ids, paths, classes, targets, splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from spptransfer.errors import DatasetError, suggestion

UNLABELLED = -1


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images by id, with their classes and the splits that come with them.

    Everything about an image is found by its id, never by its position.

    Parameters
    ----------
    name : str
        Name of the kind of dataset, such as ``"caltech101"``.
    root : Path
        Folder that the paths are relative to.
    ids : tuple of str
        One per image, each different.
    classes : tuple of str
        Class names; empty where the images carry no labels.
    targets : ndarray
        Either int32 of shape (n_images,) with indices into `classes`, or int8 of shape
        (n_images, n_classes) with 1 = present, -1 = absent and 0 = ignored (VOC: present only
        as *difficult*). Without classes, int32 filled with -1.
    path_template : str, default="{id}"
        The image of an id lies at ``root / path_template.format(id=id)``.
    official_splits : mapping of str to tuple of str, optional
        Ids of each split that the dataset itself defines, in its own order.

    Raises
    ------
    DatasetError
        If an id occurs twice, or `targets` fit neither `ids` nor `classes`.

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
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    targets: npt.NDArray[np.int32] | npt.NDArray[np.int8]
    path_template: str = "{id}"
    official_splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(set(self.ids)) < len(self.ids):
            twice = Counter(self.ids).most_common(1)[0][0]
            raise DatasetError(f"dataset '{self.name}': the id '{twice}' occurs more than once")
        expected = (len(self.ids), len(self.classes)) if self.multi_label else (len(self.ids),)
        if self.targets.shape != expected:
            raise DatasetError(
                f"dataset '{self.name}': targets of shape {self.targets.shape} do not fit "
                f"{len(self.ids)} images and {len(self.classes)} classes"
            )
        self.targets.flags.writeable = False

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
        """Path of the image file of an id.

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
        self.positions([id])
        return self.root / self.path_template.format(id=id)

    def paths(self) -> list[Path]:
        """Paths of all images, in the order of `ids`."""
        return [self.root / self.path_template.format(id=id) for id in self.ids]

    def positions(self, ids: Iterable[str]) -> npt.NDArray[np.intp]:
        """Row numbers in `targets` of some ids.

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
        try:
            return np.array([self._position[id] for id in ids], dtype=np.intp)
        except KeyError as error:
            raise DatasetError(
                f"dataset '{self.name}' at {self.root} has no image with the id {error}"
            ) from None

    def targets_of(self, ids: Iterable[str]) -> npt.NDArray[np.int32] | npt.NDArray[np.int8]:
        """Targets of some ids, in the order of those ids.

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
        """Give the same dataset without one class and that class's images.

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
        kept = np.flatnonzero(self.targets != dropped)
        targets = self.targets[kept]
        ids = tuple(self.ids[position] for position in kept)
        return replace(
            self,
            ids=ids,
            classes=tuple(other for other in self.classes if other != name),
            targets=(targets - (targets > dropped)).astype(np.int32),
            official_splits=_restricted(self.official_splits, set(ids)),
        )

    @cached_property
    def _position(self) -> dict[str, int]:
        """Position of each id."""
        return {id: position for position, id in enumerate(self.ids)}


def _restricted(
    splits: Mapping[str, tuple[str, ...]], kept: set[str]
) -> dict[str, tuple[str, ...]]:
    """Reduce the splits to the ids that are kept."""
    return {name: tuple(id for id in ids if id in kept) for name, ids in splits.items()}
