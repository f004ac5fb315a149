"""PASCAL VOC 2007: image-level labels of 20 classes, and boxes where they are asked for.

The labels are those of ``ImageSets/Main/<class>_<split>.txt``: 1 where an object of the class
is in the image, 0 where all of them are marked *difficult*, -1 where there is none. The boxes are
those of ``Annotations/<id>.xml``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

import numpy as np

from spptransfer.datasets.annotations import Annotations
from spptransfer.datasets.base import Dataset, class_name
from spptransfer.datasets.objects import FoundObjects, ObjectList, check_objects, read_file
from spptransfer.errors import DatasetError
from spptransfer.files import read_text
from spptransfer.text import listed, plural

_MAIN = Path("ImageSets", "Main")
_TREES = ("VOCdevkit/VOC2007", "voc2007/VOCdevkit/VOC2007", "VOC2007", ".")
_OFFICIAL_ORDER = ("train", "val", "trainval", "test")
_LABELS = {"1": 1, "0": 0, "-1": -1}
_MOST_BYTES = 1 << 22
_SIDES = ("xmin", "ymin", "xmax", "ymax")


def find_voc2007(place: Path) -> Path | None:
    """Find the folder ``VOC2007`` at or below a place, None where there is none."""
    candidates = (place / tree for tree in _TREES)
    return next((tree for tree in candidates if (tree / _MAIN).is_dir()), None)


def read_voc2007(tree: Path) -> Dataset:
    """Read every split that is there, from ``ImageSets/Main`` of the folder ``VOC2007``.

    Several labels per image, ids such as ``000041``, and a split for each
    ``<class>_<split>.txt`` with the ids in the devkit's order. A class that lacks a split,
    classes that list other images, and splits that contradict each other are refused.
    """
    files = _label_files(tree / _MAIN)
    classes = tuple(sorted({name for name, _ in files}))
    splits: dict[str, tuple[str, ...]] = {}
    known: dict[str, tuple[int, ...]] = {}
    usual = {name: position for position, name in enumerate(_OFFICIAL_ORDER)}
    for split in sorted({split for _, split in files}, key=lambda name: (usual.get(name, 9), name)):
        columns = []
        for name in classes:
            if (name, split) not in files:
                raise DatasetError(f"{tree / _MAIN}: class '{name}' lacks the split '{split}'")
            labels = _read_labels(files[name, split])
            if tuple(labels) != splits.setdefault(split, tuple(labels)):
                raise DatasetError(
                    f"{tree / _MAIN}: '{classes[0]}_{split}.txt' and '{name}_{split}.txt' "
                    f"do not list the same images in the same order"
                )
            columns.append(labels.values())
        for id, row in zip(splits[split], zip(*columns, strict=True), strict=True):
            for name, old, new in zip(classes, known.setdefault(id, row), row, strict=True):
                if old != new:
                    raise DatasetError(
                        f"voc2007: image {id} has another label of '{name}' in split '{split}' "
                        f"than in a split before it"
                    )
    ids = tuple(sorted(known))
    # The official tree's ids lie below the folder around it, a renamed one's in itself.
    root = tree.parent.parent if tree.parts[-2:] == ("VOCdevkit", "VOC2007") else tree
    return Dataset(
        name="voc2007",
        root=root,
        ids=ids,
        classes=classes,
        targets=np.array([known[id] for id in ids], dtype=np.int8).reshape(-1, len(classes)),
        path_template=f"{(tree / 'JPEGImages').relative_to(root).as_posix()}/{{id}}.jpg",
        official_splits=splits,
        read_boxes=read_boxes,
    )


def _label_files(folder: Path) -> dict[tuple[str, str], Path]:
    """List the label files by class and split.

    A class may be called like a split: ``train.txt`` lists images, ``train_train.txt`` labels
    those with trains.
    """
    files = {}
    for path in sorted(folder.glob("*_*.txt")):
        name, _, split = class_name(path.stem).partition("_")
        if name and split and not path.name.startswith("."):
            files[name, split] = path
    if not files:
        raise DatasetError(f"no label files <class>_<split>.txt in {folder}")
    return files


def _read_labels(path: Path) -> dict[str, int]:
    """Read the labels of one class in one split, by id, in the order of the file."""
    labels: dict[str, int] = {}
    try:
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        cells = line.split()
        if not cells:
            continue
        if len(cells) != 2 or cells[1] not in _LABELS:
            raise DatasetError(f"{path}, line {number}: '{line.strip()}' is not '<id> 1|0|-1'")
        if cells[0] in labels:
            raise DatasetError(f"{path}, line {number}: image {cells[0]} is listed twice")
        labels[cells[0]] = _LABELS[cells[1]]
    return labels


def read_boxes(dataset: Dataset) -> Annotations:
    """Read the boxes of images whose folder lies beside one of XML files, ``Annotations``.

    A `DatasetError` says which image's file is missing or damaged, or does not fit the image.
    """
    objects, missing = ObjectList(), []
    sizes = np.zeros((len(dataset), 2))
    for position, image in enumerate(dataset.iter_paths(range(len(dataset)))):
        path = image.parent.parent / "Annotations" / f"{image.stem}.xml"
        if path.is_file():
            sizes[position] = _read_objects(path, position, objects)
        else:
            missing.append(str(path))
    if missing:
        files = f"{plural(len(missing), 'annotation file')} of {len(dataset):,}"
        raise DatasetError(f"{dataset.root} lacks {files}: {listed(missing, 3)}")
    return check_objects(dataset, FoundObjects.of(objects, dataset.classes, sizes))


class _Builder(ElementTree.TreeBuilder):
    def doctype(self, *_: str | None) -> NoReturn:
        raise ValueError("a DOCTYPE is not read")


def _read_objects(path: Path, image: int, objects: ObjectList) -> tuple[float, float]:
    """Add the objects of one file; return the width and height that it gives, or 0."""
    root = read_file(path, _MOST_BYTES, _parse)
    try:
        for each in root.findall("object"):
            left, top, right, bottom = (_number(each, f"bndbox/{side}") for side in _SIDES)
            # Pixels are counted from 1, the last one included.
            box = (left - 1, top - 1, right, bottom)
            label = (each.findtext("name") or "").strip()
            objects.add(image, label, box, bool(_number(each, "difficult", "0")))
        return _number(root, "size/width", "0"), _number(root, "size/height", "0")
    except ValueError as error:
        raise DatasetError(f"{path}: {error}") from None


def _parse(text: str) -> ElementTree.Element:
    """Parse an annotation, refusing what may define entities that expand without bound."""
    root = ElementTree.fromstring(text, ElementTree.XMLParser(target=_Builder()))
    if root.tag != "annotation":
        raise ValueError(f"it holds <{root.tag}>, not <annotation>")
    return root


def _number(element: ElementTree.Element, tag: str, absent: str = "") -> float:
    """Read a finite number from what is below an element."""
    text = (element.findtext(tag) or absent).strip()
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"<{tag}> is '{text[:80]}', which is no number")
    return number
