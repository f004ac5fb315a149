"""Objects as annotation files name them, checked against the images before anything is computed.

Every reader of boxes hands what its files say to `FoundObjects`, unchecked; `check_objects` is
the one place that compares it with the images.
"""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from spptransfer.datasets.annotations import Annotations, Objects
from spptransfer.datasets.base import Dataset, class_name
from spptransfer.errors import DatasetError, ImageError
from spptransfer.files import read_text
from spptransfer.ids import Ids
from spptransfer.images import sizes_of_file
from spptransfer.text import counted, listed, plural

logger = logging.getLogger(__name__)

_Floats = npt.NDArray[np.float64]
_Flags = npt.NDArray[np.bool_]
_Parsed = TypeVar("_Parsed")
_SHOWN = 3
_ROUNDING = 0.5  # pixels that a box may be beyond the image by rounding


@dataclass
class ObjectList:
    """Objects of images, collected one by one; an image is its position in the dataset.

    Boxes are ``x0, y0, x1, y1`` as in `spptransfer.datasets.annotations.Objects`.
    """

    images: array[int] = field(default_factory=lambda: array("q"))
    boxes: array[float] = field(default_factory=lambda: array("d"))
    labels: list[str] = field(default_factory=list)
    difficult: array[int] = field(default_factory=lambda: array("b"))

    def add(self, image: int, label: str, box: Iterable[float], difficult: bool = False) -> None:
        """Add an object; its label need not be one of the dataset's classes."""
        self.images.append(image)
        self.labels.append(label)
        self.boxes.extend(box)
        self.difficult.append(difficult)


@dataclass(frozen=True, eq=False)
class FoundObjects:
    """What annotation files say of the objects in images.

    Parameters
    ----------
    annotations : Annotations
        The objects of each image, their labels being indices into `names`.
    names : tuple of str
        The dataset's classes, then what else objects are called.
    sizes : ndarray of float64, shape (n_images, 2)
        Width and height of each image, NaN where the files do not say so.
    relative : bool, default=False
        Whether boxes are in widths and heights of their image, not in pixels.
    """

    annotations: Annotations
    names: tuple[str, ...]
    sizes: _Floats
    relative: bool = False

    @classmethod
    def of(
        cls,
        objects: ObjectList,
        classes: Sequence[str],
        sizes: npt.ArrayLike,
        relative: bool = False,
    ) -> FoundObjects:
        """Sort objects by image; a size of less than one pixel is one that is not said."""
        known = {class_name(name): number for number, name in enumerate(classes)}
        labels = [known.setdefault(class_name(name), len(known)) for name in objects.labels]
        images = np.asarray(objects.images, np.intp)
        order = np.argsort(images, kind="stable")
        boxes, numbers, difficult = Objects.of(objects.boxes, labels, objects.difficult)
        every = np.asarray(sizes, np.float64).reshape(-1, 2)
        stated = np.where((every >= 1).all(axis=1, keepdims=True), every, np.nan)
        counts = np.bincount(images, minlength=len(every))
        each = Objects(boxes[order], numbers[order], difficult[order])
        return cls(_by_image(each, counts), tuple(known), stated, relative)

    def take(self, positions: npt.NDArray[np.intp]) -> FoundObjects:
        """Return what is said of some images."""
        some = Annotations.of(map(self.annotations.__getitem__, positions.tolist()))
        return replace(self, annotations=some, sizes=self.sizes[positions])

    def targets(self, n_classes: int) -> npt.NDArray[np.int8]:
        """Return the labels of images: 1 present, 0 only as difficult, -1 absent.

        An object counts as in `check_objects`, as far as that can be told without the images.
        """
        unknown = 1.0 if self.relative else np.inf
        boxes, labels, difficult = self.annotations.objects
        images = _images_of(self.annotations)
        limits = np.where(np.isnan(self.sizes), unknown, self.sizes)[images]
        _, reasons = _sift(self, boxes, limits, n_classes)
        usable = ~np.any(list(reasons.values()), axis=0)
        if len(labels) == 0 or not usable.any():
            counts = {reason: int(flags.sum()) for reason, flags in reasons.items() if flags.any()}
            why = f": {counted(counts)}" if counts else ""
            raise DatasetError(f"none of {plural(len(labels), 'object')} can be used{why}")
        targets = np.full((len(self.sizes), n_classes), -1, np.int8)
        for value, chosen in ((0, usable & difficult), (1, usable & ~difficult)):
            targets[images[chosen], labels[chosen]] = value
        return targets


def check_objects(dataset: Dataset, found: FoundObjects) -> Annotations:
    """Return the objects in a dataset's images, each within its image.

    Objects that reach outside their image are clipped; those of which nothing remains, those of
    no class of the dataset, and those in images that cannot be read are left out. One warning
    counts and names them. Images without objects are kept. Of image files the header is read. A
    `DatasetError` says that no image is there, or has another size than its annotation says.
    """
    sizes, told = _read_sizes(dataset, found)
    boxes, labels, difficult = found.annotations.objects
    images = _images_of(found.annotations)
    limits = sizes[images]
    if found.relative:
        boxes = boxes * np.tile(limits, 2)
    clipped, reasons = _sift(found, boxes, limits, len(dataset.classes))
    kept = ~np.any(list(reasons.values()), axis=0)
    lost = {reason: images[flags] for reason, flags in reasons.items() if flags.any()}
    if lost:
        each = [f"{len(of):,} {reason} (in {_named(dataset, of)})" for reason, of in lost.items()]
        told.append(f"dropped of {plural(len(labels), 'object')}: {', '.join(each)}")
    moved = kept & (np.abs(clipped - boxes) > _ROUNDING).any(axis=1)
    if moved.any():
        number = plural(int(moved.sum()), "box that reaches", "boxes that reach")
        told.append(f"clipped {number} outside the image (in {_named(dataset, images[moved])})")
    if told:
        logger.warning("%s: %s", dataset.root, "; ".join(told))
    counts = np.bincount(images[kept], minlength=len(dataset))
    objects, empty = plural(int(kept.sum()), "object"), int((counts == 0).sum())
    logger.info("%s: %s, %s without any", dataset.root, objects, plural(empty, "image"))
    return _by_image(Objects(clipped[kept], labels[kept], difficult[kept]), counts)


def dataset_of(
    name: str,
    root: Path,
    ids: Sequence[str],
    classes: Sequence[str],
    found: FoundObjects,
    splits: dict[str, list[str]],
) -> Dataset:
    """Make a dataset whose labels and boxes are what annotation files say."""
    labels = tuple(map(class_name, classes))
    try:
        targets = found.targets(len(labels))
    except DatasetError as error:
        raise DatasetError(f"{root}: {error}") from None
    dataset = Dataset(name, root, ids, labels, targets, official_splits=splits)
    return replace(dataset, read_boxes=partial(_check_some, Ids.of(dataset.ids), found))


def _check_some(ids: Ids, found: FoundObjects, dataset: Dataset) -> Annotations:
    """Check the objects in some of the images with those ids."""
    return check_objects(dataset, found.take(ids.find(dataset.ids)))


def read_file(path: Path, most: int, parse: Callable[[str], _Parsed]) -> _Parsed:
    """Parse a text file of a bounded number of bytes, with a one-line error that names it."""
    try:
        if (size := path.stat().st_size) > most:
            raise ValueError(f"it has {size:,} bytes; at most {most:,} are read")
        return parse(read_text(path))
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise DatasetError(f"{path}: {where}{': ' if where else ''}{first['msg']}") from error
    except (ValueError, SyntaxError, RecursionError) as error:
        raise DatasetError(f"{path}: {' '.join(str(error).split())}") from error


def _images_of(annotations: Annotations) -> npt.NDArray[np.intp]:
    """Return the position of each object's image."""
    return np.repeat(np.arange(len(annotations)), np.diff(annotations.starts))


def _by_image(objects: Objects, counts: npt.NDArray[np.intp]) -> Annotations:
    return Annotations(objects, np.concatenate([[0], np.cumsum(counts)]).astype(np.intp))


def _sift(
    found: FoundObjects, boxes: _Floats, limits: _Floats, n_classes: int
) -> tuple[_Floats, dict[str, _Flags]]:
    """Clip boxes to their images; tell which objects cannot be used, by the first reason."""
    labels = found.annotations.objects.labels
    clipped = np.clip(boxes, 0, np.tile(limits, 2))
    is_unknown = labels >= n_classes
    names = counted(Counter(f"'{found.names[label]}'" for label in labels[is_unknown].tolist()))
    reasons = {
        "in images that cannot be read": np.isnan(limits[:, 0]),
        "with empty boxes": _is_empty(boxes),
        "outside their images": _is_empty(clipped),
        f"of unknown classes, {names}": is_unknown,
    }
    seen = np.zeros(len(labels), bool)
    for reason, flags in reasons.items():
        reasons[reason] = flags & ~seen
        seen |= flags
    return clipped, reasons


def _is_empty(boxes: _Floats) -> _Flags:
    left, top, right, bottom = boxes.T
    flags: _Flags = (right <= left) | (bottom <= top)
    return flags


def _read_sizes(dataset: Dataset, found: FoundObjects) -> tuple[_Floats, list[str]]:
    """Read the images' widths and heights, NaN where they cannot be; say which those are."""
    sizes = np.full((len(dataset), 2), np.nan)
    failed, wrong = {}, []
    for position, path in enumerate(dataset.iter_paths(range(len(dataset)))):
        try:
            upright, stored = (size[::-1] for size in sizes_of_file(path))
        except ImageError as error:
            failed[dataset.ids[position]] = str(error)
            continue
        sizes[position] = upright
        stated = found.sizes[position]
        if not np.isnan(stated).any() and tuple(stated) != upright:
            why = _why_not(stated, upright, stored)
            of_file, of_note = (f"{w:.0f} x {h:.0f}" for w, h in (upright, stated))
            id = dataset.ids[position]
            wrong.append(
                f"'{id}' is {of_file} pixels upright, its annotation says {of_note}: {why}"
            )
    if wrong:
        others = f" (as have {plural(len(wrong) - 1, 'other image')})" if wrong[1:] else ""
        raise DatasetError(f"{dataset.root}: {wrong[0]}{others}")
    if failed and len(failed) == len(dataset):
        dataset.check_images()
    named = listed([f"{id}: {why}" for id, why in failed.items()], _SHOWN)
    return sizes, [f"{plural(len(failed), 'image')} cannot be read ({named})"] if failed else []


def _why_not(stated: _Floats, upright: tuple[int, int], stored: tuple[int, int]) -> str:
    """Guess why an annotation says another size than the image has."""
    if tuple(stated) == stored:
        return "its size before the EXIF orientation turns it; annotate it upright, or remove that"
    if tuple(stated) == upright[::-1]:
        return "width and height are exchanged; an EXIF orientation that was removed may be why"
    return "another version of the file was annotated; an EXIF orientation may be why"


def _named(dataset: Dataset, positions: npt.NDArray[np.intp]) -> str:
    """List the first of some images, each once."""
    return listed(Ids.of(dataset.ids).take(np.unique(positions)), _SHOWN)
