"""Detections as files that other programs read: the VOC devkit, COCO's code, labelling tools.

And the scores that classifiers give images, for the devkit. Every function takes the ids of the
images that were searched, at the positions that the detections (or the rows of the scores) give,
and returns the files it wrote. An image's file lies below the output folder under the image's id,
whose sub-folders are kept; what in an id would lead out of the folder (a root, a drive, ``..``) is
left out. A name that cannot be written in a format is a `ConfigError`, told before anything is
written; a file that cannot be written is a `CacheError`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt

from spptransfer.datasets import IMAGE_SUFFIXES
from spptransfer.detection.detections import Detections
from spptransfer.errors import ConfigError
from spptransfer.files import make_folder, write_text

_RESERVED = re.compile(r'[<>:"|?*\x00-\x1f]+')
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_ANNOTATION = """<annotation>
  <folder>{}</folder>
  <filename>{}</filename>
  <size><width>{}</width><height>{}</height><depth>3</depth></size>
  <segmented>0</segmented>
{}</annotation>
"""
_OBJECT = """  <object>
    <name>{}</name>
    <pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>
    <bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>
    <score>{:.9g}</score>
  </object>
"""

Sizes = Sequence[tuple[int, int]]


def write_voc_results(
    folder: Path, detections: Detections, ids: Sequence[str], classes: Sequence[str], split: str
) -> list[Path]:
    """Write the devkit's results files, ``comp3_det_<split>_<class>.txt`` for each class.

    A line is ``image score xmin ymin xmax ymax``, in pixels from 1 to the image's sides; scores
    fall.
    """
    _check_devkit_names(ids, classes, split)
    make_folder(folder)
    order = np.argsort(-detections.scores, kind="stable")
    written = []
    for label, name in enumerate(classes):
        lines = []
        for image, (x0, y0, x1, y1), _, score in _rows(
            detections, order[detections.labels[order] == label]
        ):
            corners = f"{x0 + 1:.10g} {y0 + 1:.10g} {x1:.10g} {y1:.10g}"
            lines.append(f"{ids[image]} {score:.9g} {corners}\n")
        written.append(folder / f"comp3_det_{split}_{name}.txt")
        write_text(written[-1], "".join(lines))
    return written


def write_voc_scores(
    folder: Path,
    scores: npt.NDArray[np.floating],
    ids: Sequence[str],
    classes: Sequence[str],
    split: str,
) -> list[Path]:
    """Write the devkit's results of classification, ``comp1_cls_<split>_<class>.txt`` for each.

    A line is ``image score``; `scores` are n_images x n_classes.
    """
    _check_devkit_names(ids, classes, split)
    make_folder(folder)
    written = []
    for name, column in zip(classes, scores.T.tolist(), strict=True):
        lines = [f"{id} {score:.9g}\n" for id, score in zip(ids, column, strict=True)]
        written.append(folder / f"comp1_cls_{split}_{name}.txt")
        write_text(written[-1], "".join(lines))
    return written


def _check_devkit_names(ids: Sequence[str], classes: Sequence[str], split: str) -> None:
    for name in (*classes, split):
        if re.search(r"[/\\]", name) or _RESERVED.search(name):
            raise ConfigError(f"{name!r} cannot be part of the devkit's name of a file")
    for id in ids:
        if len(id.split()) != 1:
            raise ConfigError(f"the devkit's lines cannot hold an id with a space: {id!r}")


def write_coco_results(
    path: Path,
    detections: Detections,
    ids: Sequence[str],
    classes: Sequence[str],
    sizes: Sizes,
    *,
    image_ids: Sequence[int] | None = None,
    category_ids: Sequence[int] | None = None,
) -> list[Path]:
    """Write detections as COCO's results: a JSON list of image, category, box and score.

    `sizes` are widths and heights of the images, `image_ids` and `category_ids` COCO's numbers of
    the images and of the classes. Where one is not given the numbers count from 1, and a file
    beside it, ``<name>_images.json``, says whose they are: a COCO dataset without annotations.
    """
    images = list(range(1, 1 + len(ids)) if image_ids is None else image_ids)
    categories = list(range(1, 1 + len(classes)) if category_ids is None else category_ids)
    results = []
    for image, (x0, y0, x1, y1), label, score in _rows(detections):
        numbers = {"image_id": images[image], "category_id": categories[label]}
        results.append({**numbers, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": score})
    contents: dict[Path, Any] = {path: results}
    if image_ids is None or category_ids is None:
        described: list[dict[str, Any]] = []
        for number, id, (width, height) in zip(images, ids, sizes, strict=True):
            described.append({"id": number, "file_name": id, "width": width, "height": height})
        named = [{"id": number, "name": n} for number, n in zip(categories, classes, strict=True)]
        contents[path.with_name(f"{path.stem}_images.json")] = {
            "images": described,
            "annotations": [],
            "categories": named,
        }
    make_folder(path.parent)
    for file, content in contents.items():
        write_text(file, json.dumps(content))
    return list(contents)


def write_yolo(
    folder: Path,
    detections: Detections,
    ids: Sequence[str],
    sizes: Sizes,
    *,
    scores: bool = True,
) -> list[Path]:
    """Write a text for each image: ``class x y width height score``, as shares of its sides.

    `sizes` are widths and heights. Without `scores` the files are labels to train from; those of
    images without detections are empty.
    """
    texts = []
    for (width, height), found in zip(sizes, _by_image(detections, len(ids)), strict=True):
        lines = []
        for _, (x0, y0, x1, y1), label, score in found:
            centre = f"{(x0 + x1) / 2 / width:.8f} {(y0 + y1) / 2 / height:.8f}"
            line = f"{label} {centre} {(x1 - x0) / width:.8f} {(y1 - y0) / height:.8f}"
            lines.append(f"{line} {score:.9g}\n" if scores else f"{line}\n")
        texts.append("".join(lines))
    return _write_each(folder, ids, ".txt", texts)


def write_voc_annotations(
    folder: Path,
    detections: Detections,
    ids: Sequence[str],
    classes: Sequence[str],
    sizes: Sizes,
) -> list[Path]:
    """Write an annotation of VOC's kind for each image, for a labelling tool to begin with.

    `sizes` are widths and heights; boxes are rounded to whole pixels in them. Images without
    detections get files without objects.
    """
    texts = []
    for id, size, found in zip(ids, sizes, _by_image(detections, len(ids)), strict=True):
        objects = [
            _OBJECT.format(_xml(classes[label]), *_whole_pixels(box, size), score)
            for _, box, label, score in found
        ]
        parent, name = _xml(Path(id).parent.name), _xml(Path(id).name)
        texts.append(_ANNOTATION.format(parent, name, *size, "".join(objects)))
    return _write_each(folder, ids, ".xml", texts)


def _xml(text: str) -> str:
    return escape(_NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", text))


def _whole_pixels(box: Sequence[float], size: tuple[int, int]) -> list[int]:
    """Return a box in whole pixels from 1 to the image's sides, at least one of each."""
    low = [min(max(round(box[axis]), 0), size[axis] - 1) for axis in (0, 1)]
    high = [min(max(round(box[axis + 2]), low[axis] + 1), size[axis]) for axis in (0, 1)]
    return [low[0] + 1, low[1] + 1, *high]


def _rows(
    detections: Detections, chosen: npt.NDArray[np.intp] | None = None
) -> Iterator[tuple[int, list[float], int, float]]:
    """Return image, box, label and score of each detection, or of some, as plain numbers."""
    taken = detections if chosen is None else detections.take(chosen)
    return zip(*(column.tolist() for column in taken), strict=True)


def _by_image(detections: Detections, n_images: int) -> Iterator[Iterator[Any]]:
    """Yield each image's detections, the best first."""
    order = np.lexsort((-detections.scores, detections.images))
    starts = np.searchsorted(detections.images[order], np.arange(n_images + 1))
    for image in range(n_images):
        yield _rows(detections, order[starts[image] : starts[image + 1]])


def file_of(folder: Path, id: str, suffix: str) -> Path:
    """Return the path of an image's file below a folder, whatever its id is.

    Examples
    --------
    >>> file_of(Path("out"), "cat/1.jpg", ".txt").as_posix()
    'out/cat/1.txt'
    >>> file_of(Path("out"), "/data/../../2.5", ".xml").as_posix()
    'out/data/2.5.xml'
    """
    parts = [_RESERVED.sub("_", part) for part in re.split(r"[/\\]", id)]
    parts = [part for part in parts if part.strip(". ")]
    if not parts:
        raise ConfigError(f"the id {id!r} cannot name a file")
    stem, dot, ending = parts[-1].rpartition(".")
    name = stem if stem and (dot + ending).lower() in IMAGE_SUFFIXES else parts[-1]
    return folder.joinpath(*parts[:-1], name + suffix)


def _write_each(folder: Path, ids: Sequence[str], suffix: str, texts: Sequence[str]) -> list[Path]:
    """Write each image's text, after a look at all names."""
    owners: dict[Path, str] = {}
    for id in ids:
        path = file_of(folder, id, suffix)
        if path in owners:
            raise ConfigError(f"{owners[path]!r} and {id!r} would share the file '{path}'")
        owners[path] = id
    for path, text in zip(owners, texts, strict=True):
        make_folder(path.parent)
        write_text(path, text)
    return list(owners)
