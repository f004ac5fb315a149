"""Images with boxes in the JSON format of COCO, as labelling tools and Roboflow export them."""

from __future__ import annotations

import os
import posixpath
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, FiniteFloat
from pydantic.dataclasses import dataclass as slotted

from spptransfer.datasets.base import Dataset, class_name
from spptransfer.datasets.objects import FoundObjects, ObjectList, dataset_of, read_file
from spptransfer.errors import DatasetError
from spptransfer.files import expand_path
from spptransfer.sections import PathText

_MOST_BYTES = 1 << 30
_IN_SPLIT = "_annotations.coco.json"  # Roboflow's name
_INSTANCES = "instances_"  # how names begin in COCO's own folder `annotations`

Id = int | str


class CocoOptions(BaseModel):
    """Keys of the section of a ``coco`` dataset."""

    root: PathText = Field(description="a JSON file in COCO's format, or the folder around it")


class _Category(BaseModel):
    id: Id
    name: str
    supercategory: str | None = None


@slotted(slots=True)
class _Image:
    id: Id
    file_name: Annotated[str, Field(min_length=1)]
    width: float | None = None
    height: float | None = None


@slotted(slots=True)  # there are many
class _Object:
    image_id: Id
    category_id: Id
    bbox: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
    id: Id | None = None
    iscrowd: bool | None = False


class _File(BaseModel):
    """What is read of a file; all else in it is ignored."""

    images: list[_Image]
    annotations: list[_Object]
    categories: list[_Category]


@dataclass
class _Read:
    """What all files say together."""

    ids: dict[str, Path] = field(default_factory=dict)  # by image, the file that lists it
    sizes: array[float] = field(default_factory=lambda: array("d"))
    objects: ObjectList = field(default_factory=ObjectList)
    classes: dict[str, None] = field(default_factory=dict)
    headings: set[str] = field(default_factory=set)


def read_coco(place: str | os.PathLike[str]) -> Dataset:
    """Read images and boxes from files in COCO's format.

    In a folder, files ``*/_annotations.coco.json`` (Roboflow's ``train``, ``valid``, ``test``) or
    ``annotations/instances_*.json`` are the splits, named by the folder or by what is in place
    of the star; else its only JSON file, or that of its folder ``annotations``, is read. Images
    are looked for beside their file, in a folder ``images`` there, and in folders called like
    the split.

    Crowds are difficult objects. Classes are told apart by their names, whatever numbers the
    files give them; a category that no object has and that is only the heading of others, as in
    Roboflow's files, is no class. Several labels for each image follow from its boxes.

    Parameters
    ----------
    place : path-like
        A JSON file, or a folder.

    Returns
    -------
    Dataset
        With boxes, and with the splits as `official_splits` where there are several files. Ids
        are the images' paths relative to the folder.

    Raises
    ------
    DatasetError
        If there is no such file, one is damaged, an id occurs twice in it, an object belongs to
        no image, or two files list one image.

    Examples
    --------
    >>> import json, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     images = [{"id": 7, "file_name": "a.jpg", "width": 40, "height": 30}]
    ...     objects = [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [0, 0, 40, 30]}]
    ...     content = {"images": images, "annotations": objects}
    ...     content["categories"] = [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}]
    ...     _ = Path(folder, "boxes.json").write_text(json.dumps(content))
    ...     dataset = read_coco(folder)
    >>> dataset.ids, dataset.classes, dataset.targets.tolist()
    (Ids(['a.jpg']), ('cat', 'dog'), [[1, -1]])
    """
    root, files = _find_files(expand_path(place))
    read, splits = _Read(), {}
    for split, path in files:
        splits[split] = _add_file(read, root, split, path)
    if not read.ids:
        raise DatasetError(f"{root}: no images are listed in {files[0][1].name}")
    used = set(map(class_name, read.objects.labels))
    classes = [name for name in read.classes if name in used or name not in read.headings]
    found = FoundObjects.of(read.objects, classes, read.sizes)
    return dataset_of("coco", root, list(read.ids), classes, found, splits if files[1:] else {})


def _find_files(place: Path) -> tuple[Path, list[tuple[str, Path]]]:
    """Find the files at a place by split, and the folder that ids are relative to."""
    if place.is_file():
        above = place.parent.parent if place.parent.name == "annotations" else place.parent
        return above, [("", place)]
    if files := sorted(place.glob(f"*/{_IN_SPLIT}")):
        return place, [(path.parent.name, path) for path in files]
    if files := sorted(place.glob(f"annotations/{_INSTANCES}*.json")):
        return place, [(path.stem.removeprefix(_INSTANCES), path) for path in files]
    for folder in (place, place / "annotations"):
        if len(files := sorted(folder.glob("*.json"))) == 1:
            return place, [("", files[0])]
    raise DatasetError(
        f"{place}: no annotations in COCO's format; looked for */{_IN_SPLIT}, "
        f"annotations/{_INSTANCES}*.json and a single JSON file"
    )


def _add_file(read: _Read, root: Path, split: str, path: Path) -> list[str]:
    """Add what one file says; return the ids of its images."""
    content = read_file(path, _MOST_BYTES, _File.model_validate_json)
    _check_different(path, "image", (each.id for each in content.images))
    _check_different(path, "category", (each.id for each in content.categories))
    _check_different(path, "annotation", (each.id for each in content.annotations))
    names = {each.id: class_name(each.name) for each in content.categories}
    read.classes |= dict.fromkeys(names.values())
    read.headings |= {class_name(each.supercategory or "") for each in content.categories}
    positions, ids = {}, []
    files = [image.file_name.replace("\\", "/") for image in content.images]
    folder = _folder_of(root, path, split, files)
    for image, file in zip(content.images, files, strict=True):
        id = posixpath.normpath(posixpath.join(folder, file))
        if id in read.ids:
            raise DatasetError(f"{path}: image '{id}' is listed already, in {read.ids[id]}")
        positions[image.id] = len(read.ids)
        read.ids[id] = path
        read.sizes.extend([image.width or 0, image.height or 0])
        ids.append(id)
    for number, each in enumerate(content.annotations):
        if each.image_id not in positions:
            raise DatasetError(
                f"{path}: annotations.{number}: no image has the id {each.image_id!r}"
            )
        x, y, width, height = each.bbox
        label = names.get(each.category_id, f"category {each.category_id}")
        box = (x, y, x + width, y + height)
        read.objects.add(positions[each.image_id], label, box, bool(each.iscrowd))
    return ids


def _check_different(path: Path, kind: str, ids: Iterable[Id | None]) -> None:
    """Refuse ids that occur twice; None is no id."""
    for id, times in Counter(ids).items():
        if times > 1 and id is not None:
            raise DatasetError(f"{path}: the {kind} id {id!r} occurs {times} times")


def _folder_of(root: Path, path: Path, split: str, files: Iterable[str]) -> str:
    """Find the folder that the images of a file lie in, relative to the root."""
    places = [path.parent, path.parent / "images", root / split, root / "images" / split]
    places += [root / "images", root]
    there = (place for file in files for place in places if (place / file).is_file())
    return next(there, path.parent).relative_to(root).as_posix()
