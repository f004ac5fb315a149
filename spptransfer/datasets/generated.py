"""A small image set drawn from a seed: textured shapes on cluttered backgrounds.

A class is a texture on a shape, ``striped_disc`` for one. Every shape and every texture occurs
in several classes, and colours, sizes, positions, rotations and backgrounds are drawn alike for
all of them, so that only shape and texture together tell the class. The files are as awkward as
a user's own: JPEG and PNG, portrait and landscape, grey, palette, transparent, EXIF-rotated.
"""

from __future__ import annotations

import json
import logging
import tempfile
import zlib
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spptransfer.datasets.drawing import SHAPES, TEXTURES, draw, gradient
from spptransfer.errors import ConfigError, DatasetError, suggestion

logger = logging.getLogger(__name__)

DEMO_CLASSES = (
    "striped_disc",
    "dotted_disc",
    "dotted_star",
    "checked_star",
    "checked_cross",
    "ringed_cross",
    "ringed_heart",
    "brick_heart",
    "brick_triangle",
    "striped_triangle",
)

_MANIFEST = ".generated.json"
_FORMAT_VERSION = 2
_SHORTEST_SIDE, _LONGEST_SIDE = 60, 500
_FORMS = ("jpeg", "png", "grey", "jpeg", "rotated", "palette", "jpeg", "alpha", "rotated", "jpeg")
_EXIF_ORIENTATION = 0x0112
_STORED_AS = {
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}


def generate(
    root: Path,
    seed: int = 0,
    images_per_class: int = 30,
    classes: Sequence[str] = DEMO_CLASSES,
) -> None:
    """Draw an image set into class folders, unless it is there already.

    The set appears under its name only when it is complete: it is drawn into a hidden folder
    beside `root`, which is renamed at the end. The pixels of an image depend only on the seed,
    its class and its index, so that a larger set begins with the smaller one.

    Parameters
    ----------
    root : Path
        The folder to make: ``root/<class>/<index>.jpg`` or ``.png``.
    seed : int, default=0
        Non-negative seed of all images.
    images_per_class : int, default=30
        Number of images in each class folder.
    classes : sequence of str, default=DEMO_CLASSES
        Names of the form ``<texture>_<shape>``.

    Raises
    ------
    ConfigError
        A class is unknown or a number out of range.
    DatasetError
        `root` exists and holds something else than this set, or a part of it.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     root = Path(folder) / "images"
    ...     generate(root, images_per_class=2, classes=["striped_disc", "dotted_star"])
    ...     sorted(path.relative_to(root).as_posix() for path in root.glob("*/*"))
    ['dotted_star/000.jpg', 'dotted_star/001.png', 'striped_disc/000.jpg', 'striped_disc/001.png']
    """
    root = Path(root)
    manifest = _manifest(seed, images_per_class, classes)
    if _is_complete(root, manifest):
        logger.info("reusing the generated images in %s", root)
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as temporary:
        drawn = Path(temporary) / root.name
        _draw_set(drawn, manifest)
        try:
            drawn.replace(root)
        except OSError:
            # Another process may have finished the same set in the meantime.
            if not _is_complete(root, manifest):
                raise
    logger.info("drew %d images of %d classes in %s", images_per_class, len(classes), root)


def _generator(seed: int, name: str, index: int) -> np.random.Generator:
    """Random numbers of one image, the same whatever else is drawn before it."""
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode()), index]))


def _parse(name: str) -> tuple[str, str]:
    """Texture and shape of a class name."""
    texture, _, shape = name.partition("_")
    for kind, part, known in (("texture", texture, TEXTURES), ("shape", shape, SHAPES)):
        if part not in known:
            raise ConfigError(f"class '{name}': unknown {kind} '{part}'; {suggestion(part, known)}")
    return texture, shape


def _random_size(rng: np.random.Generator) -> tuple[int, int]:
    """Width and height of a portrait or landscape image."""
    shorter = int(rng.integers(_SHORTEST_SIDE, 320))
    longer = min(_LONGEST_SIDE, round(shorter * rng.uniform(1.05, 1.6)))
    return (shorter, longer) if rng.random() < 0.5 else (longer, shorter)


def _manifest(seed: int, images_per_class: int, classes: Sequence[str]) -> dict[str, Any]:
    """All that determines the set, as it is written beside the class folders."""
    for name in classes:
        _parse(name)
    if len(set(classes)) != len(classes) or not classes:
        raise ConfigError(f"classes must be different names, at least one; got {list(classes)}")
    if seed < 0 or images_per_class < 1:
        raise ConfigError(
            f"seed must be at least 0 and images_per_class at least 1; "
            f"got {seed} and {images_per_class}"
        )
    return {
        "format_version": _FORMAT_VERSION,
        "seed": int(seed),
        "images_per_class": int(images_per_class),
        "classes": list(classes),
    }


def _files(manifest: dict[str, Any]) -> list[tuple[str, int, str, str]]:
    """Class, index, form and relative path of every image."""
    files = []
    for name, index in product(manifest["classes"], range(manifest["images_per_class"])):
        form = _FORMS[index % len(_FORMS)]
        suffix = ".png" if form in ("png", "palette", "alpha") else ".jpg"
        files.append((name, index, form, f"{name}/{index:03d}{suffix}"))
    return files


def _is_complete(root: Path, manifest: dict[str, Any]) -> bool:
    """Whether `root` holds this set; an error where it holds something else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DatasetError(f"{root} exists and is not a generated image set; move it") from None
    if found != manifest:
        raise DatasetError(f"{root} holds a set generated with other settings; delete or move it")
    missing = [path for *_, path in _files(manifest) if not (root / path).is_file()]
    if missing:
        raise DatasetError(
            f"{root} lacks {len(missing)} of its images, {missing[0]} for one; "
            f"delete the folder to draw the set again"
        )
    return True


def _draw_set(root: Path, manifest: dict[str, Any]) -> None:
    """Draw every image of a set, and its manifest."""
    for name in manifest["classes"]:
        (root / name).mkdir(parents=True)
    for name, index, form, path in _files(manifest):
        rng = _generator(manifest["seed"], name, index)
        image = draw(*_parse(name), _random_size(rng), rng)
        _save(image, root / path, form, rng)
    (root / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _save(image: Image.Image, path: Path, form: str, rng: np.random.Generator) -> None:
    """Write an upright RGB image in one of the forms that users' files come in."""
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
    if path.suffix == ".jpg":
        image.save(path, quality=int(rng.integers(75, 96)), exif=exif)
    else:
        image.save(path, compress_level=1)
