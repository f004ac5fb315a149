"""Two small image sets drawn from a seed: one shape in an image, and scenes of several with boxes.

A class is a texture on a shape, ``striped_disc`` for one. In the first set every shape and every
texture occurs in two classes, and all else is drawn alike for all of them, so that only shape and
texture together tell the class. The files are as awkward as a user's own: JPEG and PNG, portrait
and landscape, grey, palette, transparent, EXIF-rotated.
"""

from __future__ import annotations

import json
import logging
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spptransfer.datasets.drawing import Array, Size, background, draw, finish, gradient, paint
from spptransfer.errors import ConfigError, DatasetError

logger = logging.getLogger(__name__)

DEMO_CLASSES = (
    *("striped_disc", "dotted_disc", "dotted_star", "checked_star", "checked_cross"),
    *("ringed_cross", "ringed_heart", "brick_heart", "brick_triangle", "striped_triangle"),
)
SCENE_CLASSES = ("striped_disc", "dotted_star", "ringed_cross", "brick_triangle")
_MANIFEST = ".generated.json"
_BOXES = "_annotations.coco.json"
_FORMS = ("jpeg", "png", "grey", "jpeg", "rotated", "palette", "jpeg", "alpha", "rotated", "jpeg")
_SCENE_FORMS = ("jpeg", "png", "jpeg", "rotated", "grey")
_IN_PNG = ("png", "palette", "alpha")
_WITHOUT_OBJECTS = 20  # of so many scenes one has none
_MOST_OBJECTS = 4
_OVERLAP = 8  # pixels, of squares whose corners shapes do not fill
_EXIF_ORIENTATION = 0x0112
_TURNS = (Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270)
_STORED_AS = dict(zip((3, 6, 8), _TURNS, strict=True))

Settings = dict[str, Any]
_Scene = tuple[Image.Image, list[tuple[int, list[int]]]]


def generate(root: Path, seed: int = 0, images_per_class: int = 30) -> None:
    """Draw the image set into class folders, unless it is there already.

    It appears under its name only when it is complete. The pixels of an image depend only on
    the seed, its class and its index, so that a larger set begins with the smaller one.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     generate(Path(folder) / "images", images_per_class=1)
    ...     len(list(Path(folder).glob("images/*/000.jpg")))
    10
    """
    settings = {"format_version": 2, "seed": int(seed), "images_per_class": int(images_per_class)}

    def fill(folder: Path, index: int) -> None:
        rng = _generator(seed, folder.name, index)
        texture, shape = folder.name.split("_")
        image = draw(texture, shape, _random_size(rng), rng)
        _save(image, folder / f"{index:03d}", _FORMS[index % len(_FORMS)], rng)

    if seed < 0 or images_per_class < 1:
        given = f"got {seed} and {images_per_class}"
        raise ConfigError(f"seed must be at least 0 and images_per_class at least 1; {given}")
    folders = dict.fromkeys(DEMO_CLASSES, images_per_class)
    _make_once(Path(root), {**settings, "classes": list(DEMO_CLASSES)}, folders, fill)


def generate_scenes(root: Path, seed: int = 0, train: int = 80, val: int = 40) -> None:
    """Draw scenes of up to four shapes, with their boxes, unless they are there already.

    Folders ``train`` and ``val`` hold images of about 240 x 320 pixels and, in a file
    ``_annotations.coco.json`` each, boxes around what of each shape lies in the image; one image
    in twenty shows no shape. The set appears only when it is complete, and an image depends only
    on the seed, its split and its index.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     generate_scenes(Path(folder) / "scenes", train=2, val=1)
    ...     sorted(path.name for path in Path(folder).glob("scenes/train/*"))
    ['000.jpg', '001.png', '_annotations.coco.json']
    """
    settings = {"format_version": 1, "seed": int(seed), "train": int(train), "val": int(val)}
    written: dict[str, Any] = {}

    def fill(folder: Path, index: int) -> None:
        rng = _generator(seed, folder.name, index)
        image, objects = _scene(rng, is_empty=index % _WITHOUT_OBJECTS == _WITHOUT_OBJECTS - 1)
        width, height = image.size
        form = _SCENE_FORMS[index % len(_SCENE_FORMS)]
        name = _save(image, folder / f"{index:03d}", form, rng)
        content = written.setdefault(folder.name, _empty_file())
        shown = {"id": index + 1, "file_name": name, "width": width, "height": height}
        content["images"].append(shown)
        for label, box in objects:
            number, area = len(content["annotations"]) + 1, box[2] * box[3]
            entry = {"id": number, "image_id": index + 1, "category_id": label + 1}
            content["annotations"].append({**entry, "bbox": box, "area": area, "iscrowd": 0})
        (folder / _BOXES).write_text(json.dumps(content), encoding="utf-8")

    if min(seed, train - 1, val - 1) < 0:
        given = f"got {seed}, {train} and {val}"
        raise ConfigError(f"seed must be at least 0, train and val at least 1; {given}")
    folders = {"train": train, "val": val}
    _make_once(Path(root), {**settings, "classes": list(SCENE_CLASSES)}, folders, fill)


def _make_once(
    root: Path, settings: Settings, folders: Mapping[str, int], fill: Callable[[Path, int], None]
) -> None:
    """Make a set whole or not at all: `fill` writes the image of an index into a folder."""
    if _is_complete(root, settings, folders):
        logger.info("reusing the generated images in %s", root)
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as temporary:
        drawn = Path(temporary) / root.name
        for name, number in folders.items():
            (drawn / name).mkdir(parents=True)
            for index in range(number):
                fill(drawn / name, index)
        (drawn / _MANIFEST).write_text(json.dumps(settings, indent=1), encoding="utf-8")
        try:
            drawn.replace(root)
        except OSError:  # Another process may have finished the same set in the meantime.
            if not _is_complete(root, settings, folders):
                raise
    logger.info("drew %d images in %s", sum(folders.values()), root)


def _is_complete(root: Path, settings: Settings, folders: Mapping[str, int]) -> bool:
    """Whether `root` holds this set; an error where it holds something else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DatasetError(f"{root} exists and is not a generated image set; move it") from None
    if found != settings:
        raise DatasetError(f"{root} holds a set generated with other settings; delete or move it")
    for name, number in folders.items():
        n_missing = number - len(list(root.glob(f"{name}/[0-9]*.*")))
        if n_missing > 0:
            raise DatasetError(f"{root}/{name} lacks {n_missing} of its images; delete {root}")
    return True


def _generator(seed: int, folder: str, index: int) -> np.random.Generator:
    """Return the source of chance of one image."""
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(folder.encode()), index]))


def _random_size(rng: np.random.Generator) -> Size:
    """Draw width and height of a portrait or landscape image."""
    shorter = int(rng.integers(60, 320))
    longer = min(500, round(shorter * rng.uniform(1.05, 1.6)))
    return (shorter, longer) if rng.random() < 0.5 else (longer, shorter)


def _save(image: Image.Image, stem: Path, form: str, rng: np.random.Generator) -> str:
    """Write an upright RGB image in one of the forms of users' files; return the file's name."""
    exif = Image.Exif()
    if form == "grey":
        image = image.convert("L")
    elif form == "palette":
        image = image.quantize(128, Image.Quantize.FASTOCTREE)
    elif form == "alpha":
        opacity = 255 - 150 * gradient(image.size, rng)
        image.putalpha(Image.fromarray(opacity.astype(np.uint8)))
    elif form == "rotated":
        orientation = int(rng.choice(list(_STORED_AS)))
        exif[_EXIF_ORIENTATION] = orientation
        image = image.transpose(_STORED_AS[orientation])
    path = stem.with_suffix(".png" if form in _IN_PNG else ".jpg")
    if form in _IN_PNG:
        image.save(path, compress_level=1)
    else:
        image.save(path, quality=int(rng.integers(75, 96)), exif=exif)
    return path.name


def _empty_file() -> dict[str, list[Any]]:
    """Return a file in COCO's format without images."""
    names = enumerate(SCENE_CLASSES, start=1)
    categories = [{"id": number, "name": name} for number, name in names]
    return {"images": [], "annotations": [], "categories": categories}


def _scene(rng: np.random.Generator, is_empty: bool) -> _Scene:
    """Draw shapes of several classes into one image; return it, their labels and their boxes."""
    shorter = int(rng.integers(224, 257))
    longer = round(shorter * rng.uniform(1.25, 1.4))
    size = (shorter, longer) if rng.random() < 0.4 else (longer, shorter)
    pixels = background(size, rng, polygons=9)
    placed: list[Array] = []
    objects = []
    for _ in range(0 if is_empty else int(rng.integers(1, _MOST_OBJECTS + 1))):
        if (square := _free_place(size, placed, rng)) is None:
            continue
        placed.append(square)
        label = int(rng.integers(len(SCENE_CLASSES)))
        texture, shape = SCENE_CLASSES[label].split("_")
        centre, radius = (square[:2] + square[2:]) / 2, float(square[2] - square[0]) / 2
        share = paint(pixels, texture, shape, centre.tolist(), radius, rng)
        rows, columns = np.nonzero(share >= 0.5)
        left, top = int(columns.min()), int(rows.min())
        objects.append((label, [left, top, int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]))
    return finish(pixels, rng), objects


def _free_place(size: Size, placed: list[Array], rng: np.random.Generator) -> Array | None:
    """Draw a square that hardly overlaps those before it; None if there is no room left."""
    for _ in range(40):
        radius = float(rng.uniform(0.15, 0.32)) * min(size)
        centre = rng.uniform(radius, np.array(size) - radius)
        square = np.concatenate([centre - radius, centre + radius])
        sides = [
            np.minimum(square[2:], other[2:]) - np.maximum(square[:2], other[:2])
            for other in placed
        ]
        if all(side.min() <= _OVERLAP for side in sides):
            return square
    return None
