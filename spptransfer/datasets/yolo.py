"""Images with boxes in the layout of YOLO: `data.yaml`, folders `images` and `labels`."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, BeforeValidator, Field

from spptransfer.datasets.base import Dataset
from spptransfer.datasets.folder import find_images
from spptransfer.datasets.objects import FoundObjects, ObjectList, dataset_of, read_file
from spptransfer.errors import DatasetError
from spptransfer.files import expand_path
from spptransfer.sections import PathText, parse_yaml
from spptransfer.text import listed, plural

logger = logging.getLogger(__name__)

_MOST_BYTES = 1 << 24
_SPLITS = ("train", "val", "test")
_SHOWN = 3
_Name = str | int | float | bool
_Names = Annotated[
    dict[int, _Name],
    BeforeValidator(lambda given: dict(enumerate(given)) if isinstance(given, list) else given),
]
_Box = tuple[float, float, float, float]


class YoloOptions(BaseModel):
    """Keys of the section of a ``yolo`` dataset."""

    root: PathText = Field(description="a YOLO file data.yaml, or the folder with it")


class _File(BaseModel):
    """What is read of ``data.yaml``; all else in it is ignored."""

    names: _Names
    nc: int | None = None
    path: str | None = None
    train: str | list[str] | None = None
    val: str | list[str] | None = None
    test: str | list[str] | None = None


def read_yolo(place: str | os.PathLike[str]) -> Dataset:
    """Read images and boxes in the layout of YOLO.

    ``data.yaml`` names the classes and, as ``train``, ``val`` and ``test``, folders of images or
    text files that list some; paths are relative to ``path``, if that exists, or to the file
    itself, with or without the ``../`` that Roboflow writes. The objects in
    ``.../images/a.jpg`` are the lines of ``.../labels/a.txt``: a class number and a box (centre,
    width, height) or the corners of a polygon, in widths and heights of the image. An image
    without such a file has no objects. Several labels for each image follow from its boxes.

    Parameters
    ----------
    place : path-like
        The YAML file, or the folder with it.

    Returns
    -------
    Dataset
        With boxes, and with the splits as `official_splits`. Ids are the images' paths relative
        to the folder of the YAML file.

    Raises
    ------
    DatasetError
        If the file or all images or labels are missing, or a line is none of the above.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("images", "labels"):
    ...         Path(folder, name).mkdir()
    ...     _ = Path(folder, "data.yaml").write_text("{names: [cat, dog], train: images}")
    ...     _ = Path(folder, "labels/a.txt").write_text("1 0.5 0.5 1 1")
    ...     Path(folder, "images/a.jpg").touch()
    ...     dataset = read_yolo(folder)
    >>> dataset.ids, dataset.classes, dataset.targets.tolist()
    (Ids(['images/a.jpg']), ('cat', 'dog'), [[-1, 1]])
    """
    path = _find_file(expand_path(place))
    content = read_file(path, _MOST_BYTES, lambda text: _File.model_validate(parse_yaml(text)))
    names = {number: str(name) for number, name in sorted(content.names.items())}
    if content.nc not in (None, len(names)):
        raise DatasetError(f"{path}: nc is {content.nc}, but names has {len(names)}")
    splits = _read_splits(path, content)
    ids = list(dict.fromkeys(id for listed_ids in splits.values() for id in listed_ids))
    objects = _read_labels(path.parent, ids, names)
    classes = list(dict.fromkeys(names.values()))
    found = FoundObjects.of(objects, classes, np.full((len(ids), 2), np.nan), relative=True)
    return dataset_of("yolo", path.parent, ids, classes, found, splits if len(splits) > 1 else {})


def _find_file(place: Path) -> Path:
    """Find the YAML file at a place: itself, ``data.yaml``, or the only one of a folder."""
    if place.is_file():
        return place
    for pattern in ("data.yaml", "*.y*ml"):
        if len(files := sorted(place.glob(pattern))) == 1:
            return files[0]
    raise DatasetError(f"{place}: neither a file data.yaml nor a single other YAML file")


def _read_splits(path: Path, content: _File) -> dict[str, list[str]]:
    """List the ids of the images of each split that is there; warn of one that is not."""
    splits: dict[str, list[str]] = {}
    absent = []
    for split in _SPLITS:
        given = getattr(content, split) or []
        ids: dict[str, None] = {}
        for name in [given] if isinstance(given, str) else given:
            if (place := _find(path.parent, content.path or "", name)) is None:
                absent.append(f"{split}: {name}")
            else:
                ids |= dict.fromkeys(_id(path.parent, image) for image in _images_at(place))
        if ids:
            splits[split] = list(ids)
    if not splits:
        looked = f"; not there: {listed(absent)}" if absent else ""
        raise DatasetError(f"{path} names no images as {', '.join(_SPLITS)}{looked}")
    if absent:
        logger.warning("%s: not there, and left out: %s", path, listed(absent))
    return splits


def _find(folder: Path, start: str, name: str) -> Path | None:
    """Find what a split names; exporters write paths of folders that they think of."""
    name = name.replace("\\", "/")
    tried = (folder / start / name, folder / name, folder / name.removeprefix("../"))
    return next((place for place in tried if place.exists()), None)


def _images_at(place: Path) -> Iterator[Path]:
    """Yield the images in a folder, or those that a text file lists, or the image itself."""
    if place.is_dir():
        yield from (place / name for name in sorted(find_images(place)))
    elif place.suffix != ".txt":
        yield place
    else:
        lines = map(str.strip, read_file(place, _MOST_BYTES, str.splitlines))
        yield from (place.parent / line.replace("\\", "/") for line in lines if line)


def _id(root: Path, image: Path) -> str:
    """Return a path relative to the root, or as a whole outside of it."""
    absolute, around = (Path(os.path.abspath(path)) for path in (image, root))
    inside = absolute.is_relative_to(around)
    return (absolute.relative_to(around) if inside else absolute).as_posix()


def _read_labels(root: Path, ids: Sequence[str], names: dict[int, str]) -> ObjectList:
    """Read the label files of images; warn of images without one, and of one without its image."""
    objects, without = ObjectList(), []
    for position, id in enumerate(ids):
        path = _label_file(root / id)
        if not path.is_file():
            without.append(id)
            continue
        for label, box in read_file(path, _MOST_BYTES, _parse):
            objects.add(position, names.get(label, f"class {label}"), box)
    if without:
        named = listed(without, _SHOWN)
        images = plural(len(without), "image")
        told = f"{images} without a label file ({named}), as {_label_file(root / without[0])}"
        if len(without) == len(ids):
            raise DatasetError(f"{root}: none but {told}")
        logger.warning("%s: taken as without objects: %s", root, told)
    if stray := sorted(_stray_labels({(root / id).parent for id in ids})):
        files = f"{plural(len(stray), 'label file')} without an image"
        logger.warning("%s: %s (%s)", root, files, listed(stray, _SHOWN))
    return objects


def _stray_labels(folders: Iterable[Path]) -> Iterator[str]:
    """Yield the names of label files whose image is missing from these folders."""
    for folder in filter(Path.is_dir, folders):
        stems = {path.stem for path in folder.iterdir()} | {"classes"}
        labels = _label_file(folder / "any").parent.glob("*.txt")
        yield from (path.name for path in labels if path.stem not in stems)


def _label_file(image: Path) -> Path:
    """Return the file of an image's objects: in `labels` where the image is in `images`."""
    path = re.sub(r"^(.*/)?images/", r"\1labels/", image.as_posix(), count=1)
    return Path(path).with_suffix(".txt")


def _parse(text: str) -> list[tuple[int, _Box]]:
    """Parse the lines of a label file: class numbers and boxes."""
    objects = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            if cells := line.split():
                objects.append((int(cells[0]), _box(list(map(float, cells[1:])))))
        except ValueError:
            raise ValueError(
                f"line {number}: '{line.strip()[:80]}' is neither 'class x y width height' nor a "
                "class and the corners of a polygon"
            ) from None
    return objects


def _box(values: Sequence[float]) -> _Box:
    """Return the box that a centre, a width and a height stand for, or that around a polygon."""
    if len(values) < 4 or len(values) % 2 or not all(map(math.isfinite, values)):
        raise ValueError
    if len(values) > 4:
        xs, ys = values[::2], values[1::2]
        return min(xs), min(ys), max(xs), max(ys)
    x, y, width, height = values
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2
