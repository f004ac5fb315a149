"""What a detector finds, and the file that keeps it beside what was to be found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from spptransfer.datasets.annotations import Annotations, Objects
from spptransfer.files import atomic_write


class Detections(NamedTuple):
    """Objects that a detector found in some images, in any order.

    Attributes
    ----------
    images : ndarray of int, shape (n,)
        Positions in the list of images that was searched.
    boxes : ndarray of float64, shape (n, 4)
        ``x0, y0, x1, y1`` in pixels of the upright image, edges of pixels being whole numbers.
    labels : ndarray of int32, shape (n,)
        Indices into the detector's classes.
    scores : ndarray of float32, shape (n,)
        Decision values of the class's linear SVM.
    """

    images: npt.NDArray[np.intp]
    boxes: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]

    def take(self, chosen: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> Detections:
        """Return some of the detections, by index or mask."""
        images, boxes, labels, scores = self
        return Detections(images[chosen], boxes[chosen], labels[chosen], scores[chosen])

    @classmethod
    def empty(cls) -> Detections:
        """Return no detections."""
        return cls(
            np.empty(0, np.intp),
            np.empty((0, 4)),
            np.empty(0, np.int32),
            np.empty(0, np.float32),
        )


class TestedImages(NamedTuple):
    """The ids of images that a detector was tested on, what it found, and the objects in them."""

    ids: npt.NDArray[np.str_]
    detections: Detections
    objects: Annotations


def save_detections(
    path: Path, ids: Sequence[str], detections: Detections, objects: Sequence[Objects]
) -> None:
    """Write what was found in test images, and what is in them, as one ``.npz`` file.

    Its arrays are ``ids``, ``detections/images``, ``boxes``, ``labels`` and ``scores``, and
    ``objects/images``, ``boxes``, ``labels`` and ``difficult``.
    """
    truth = objects if isinstance(objects, Annotations) else Annotations.of(objects)
    images = np.repeat(np.arange(len(truth)), np.diff(truth.starts))
    arrays = {"ids": np.array(list(ids), np.str_), "objects/images": images}
    arrays |= {f"detections/{name}": part for name, part in detections._asdict().items()}
    arrays |= {f"objects/{name}": part for name, part in truth.objects._asdict().items()}
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_detections(path: Path) -> TestedImages:
    """Read what `save_detections` wrote.

    Raises
    ------
    OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile
        If the file is absent or damaged.

    Examples
    --------
    >>> import tempfile
    >>> path, objects = Path(tempfile.mkdtemp()) / "found.npz", [Objects.of([[0, 0, 2, 1]], [0])]
    >>> save_detections(path, ["a.jpg"], Detections.empty(), objects)
    >>> tested = load_detections(path)
    >>> tested.ids[0].item(), tested.objects[0].boxes.tolist()
    ('a.jpg', [[0.0, 0.0, 2.0, 1.0]])
    """
    with np.load(path, allow_pickle=False) as arrays:
        ids, images = arrays["ids"], arrays["objects/images"]
        truth = Objects.of(*(arrays[f"objects/{name}"] for name in Objects._fields))
        found = Detections(*(arrays[f"detections/{name}"] for name in Detections._fields))
    if not len(images) == len(truth.labels) or np.any(np.diff(images, prepend=0) < 0):
        raise ValueError("the images of the objects are not sorted, or not one for each")
    if len({len(part) for part in found}) > 1 or found.boxes.shape[1:] != (4,):
        raise ValueError("the detections are not of one length")
    starts = np.searchsorted(images, np.arange(len(ids) + 1))
    return TestedImages(ids, found, Annotations(truth, starts))
