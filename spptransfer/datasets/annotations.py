"""Boxes around the objects in a dataset's images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from spptransfer.errors import DatasetError


class Objects(NamedTuple):
    """The objects in one image.

    Attributes
    ----------
    boxes : ndarray of float64, shape (n, 4)
        ``x0, y0, x1, y1`` in pixels of the upright image, edges of pixels being whole numbers:
        ``0, 0, width, height`` is all of it.
    labels : ndarray of int32, shape (n,)
        Indices into the dataset's classes.
    difficult : ndarray of bool, shape (n,)
        Objects that neither train nor count.
    """

    boxes: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int32]
    difficult: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, boxes: Any = (), labels: Any = (), difficult: Any = None) -> Objects:
        """Return objects as arrays; none of them difficult where that is not said.

        Examples
        --------
        >>> Objects.of([[0, 0, 20, 10]], [3]).difficult
        array([False])
        """
        checked = np.asarray(boxes, np.float64).reshape(-1, 4)
        numbers = np.asarray(labels, np.int32).reshape(-1)
        hard = np.zeros(len(checked), bool) if difficult is None else np.asarray(difficult, bool)
        if not len(checked) == len(numbers) == len(hard):
            lengths = f"{len(checked)} boxes, {len(numbers)} labels, {len(hard)} difficult"
            raise DatasetError(f"objects need one label for each box, got {lengths}")
        return cls(checked, numbers, hard)


@dataclass(frozen=True, eq=False)
class Annotations(Sequence[Objects]):
    """The objects of many images, in the order of those; kept as a few arrays.

    Parameters
    ----------
    objects : Objects
        Of all images, one image after the other.
    starts : ndarray of int, shape (n_images + 1,)
        Where the objects of each image begin, and the number of all.

    Examples
    --------
    >>> found = Annotations.of([Objects.of([[0, 0, 20, 10]], [3]), Objects.of()])
    >>> len(found), found[0].labels, len(found[1].labels)
    (2, array([3], dtype=int32), 0)
    """

    objects: Objects
    starts: npt.NDArray[np.intp]

    @classmethod
    def of(cls, images: Iterable[Objects]) -> Annotations:
        """Return the annotations of images whose objects are given one by one."""
        each = list(images) or [Objects.of()]
        counts = [len(one.labels) for one in each]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.intp)
        boxes, labels, difficult = (np.concatenate(arrays) for arrays in zip(*each, strict=True))
        return cls(Objects.of(boxes, labels, difficult), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            return [self[index] for index in range(*position.indices(len(self)))]
        index = range(len(self))[position]
        part = slice(self.starts[index], self.starts[index + 1])
        boxes, labels, difficult = self.objects
        return Objects(boxes[part], labels[part], difficult[part])
