"""PASCAL VOC 2007, read as the classification task sees it: image-level labels of 20 classes.

The labels are those of ``ImageSets/Main/<class>_<split>.txt``: 1 where an object of the class
is in the image, 0 where all of them are marked *difficult*, -1 where there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from spptransfer.datasets.base import Dataset
from spptransfer.errors import DatasetError

_MAIN = Path("ImageSets", "Main")
_TREES = ("VOCdevkit/VOC2007", "voc2007/VOCdevkit/VOC2007", "VOC2007", ".")
_OFFICIAL_ORDER = ("train", "val", "trainval", "test")
_LABELS = {"1": 1, "0": 0, "-1": -1}

_Labels = dict[str, int]


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
    classes = sorted({name for name, _ in files})
    splits: dict[str, tuple[str, ...]] = {}
    targets: dict[str, npt.NDArray[np.int8]] = {}
    for split in _ordered({split for _, split in files}):
        labels = {name: _read_labels(files, tree, name, split) for name in classes}
        splits[split] = _common_ids(tree, split, labels)
        columns = np.array([list(labels[name].values()) for name in classes], dtype=np.int8)
        _merge(targets, splits[split], columns.T, classes, split)
    ids = tuple(sorted(targets))
    root, template = _root_and_template(tree)
    return Dataset(
        name="voc2007",
        root=root,
        ids=ids,
        classes=tuple(classes),
        targets=np.array([targets[id] for id in ids], dtype=np.int8).reshape(-1, len(classes)),
        path_template=template,
        official_splits=splits,
    )


def _label_files(folder: Path) -> dict[tuple[str, str], Path]:
    """List the label files by class and split.

    A class may be called like a split: ``train.txt`` lists images, ``train_train.txt`` labels
    those with trains.
    """
    files = {}
    for path in sorted(folder.glob("*_*.txt")):
        name, _, split = path.stem.partition("_")
        if name and split and not path.name.startswith("."):
            files[name, split] = path
    if not files:
        raise DatasetError(f"no label files <class>_<split>.txt in {folder}")
    return files


def _ordered(splits: Iterable[str]) -> list[str]:
    """Sort the official splits in their usual order, then any others by name."""
    known = {name: position for position, name in enumerate(_OFFICIAL_ORDER)}
    return sorted(splits, key=lambda name: (known.get(name, len(known)), name))


def _read_labels(
    files: Mapping[tuple[str, str], Path], tree: Path, name: str, split: str
) -> _Labels:
    """Read the labels of one class in one split, by id, in the order of the file."""
    path = files.get((name, split))
    if path is None:
        raise DatasetError(f"{tree / _MAIN}: class '{name}' lacks the split '{split}'")
    labels: _Labels = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
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


def _common_ids(tree: Path, split: str, labels: Mapping[str, _Labels]) -> tuple[str, ...]:
    """Return the ids of a split, which every class must list in the same order."""
    (first, reference), *others = ((name, tuple(labels[name])) for name in labels)
    for name, ids in others:
        if ids != reference:
            raise DatasetError(
                f"{tree / _MAIN}: '{first}_{split}.txt' and '{name}_{split}.txt' "
                f"do not list the same images in the same order"
            )
    return reference


def _merge(
    targets: dict[str, npt.NDArray[np.int8]],
    ids: Iterable[str],
    rows: npt.NDArray[np.int8],
    classes: list[str],
    split: str,
) -> None:
    """Add the labels of a split to those of the splits before it."""
    for id, row in zip(ids, rows, strict=True):
        known = targets.setdefault(id, row)
        if not np.array_equal(known, row):
            name = classes[int(np.flatnonzero(known != row)[0])]
            raise DatasetError(
                f"voc2007: image {id} has another label of '{name}' in split '{split}' "
                f"than in a split before it"
            )


def _root_and_template(tree: Path) -> tuple[Path, str]:
    """Give the root around the folder ``VOC2007``, and where images lie below it."""
    official = tree.parts[-2:] == ("VOCdevkit", "VOC2007")
    root = tree.parent.parent if official else tree
    images = (tree / "JPEGImages").relative_to(root)
    return root, f"{images.as_posix()}/{{id}}.jpg"
