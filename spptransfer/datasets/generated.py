"""A small image set drawn from a seed: textured shapes on cluttered backgrounds.

A class is a texture on a shape, ``striped_disc`` for one. Every shape and every texture occurs
in two classes, and all else is drawn alike for all of them, so that only shape and texture
together tell the class. The files are as awkward as a user's own: JPEG and PNG, portrait and
landscape, grey, palette, transparent, EXIF-rotated.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from spptransfer.errors import ConfigError, DatasetError

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

DEMO_CLASSES = (
    *("striped_disc", "dotted_disc", "dotted_star", "checked_star", "checked_cross"),
    *("ringed_cross", "ringed_heart", "brick_heart", "brick_triangle", "striped_triangle"),
)
_MANIFEST = ".generated.json"
_FORMS = ("jpeg", "png", "grey", "jpeg", "rotated", "palette", "jpeg", "alpha", "rotated", "jpeg")
_IN_PNG = ("png", "palette", "alpha")
_EXIF_ORIENTATION = 0x0112
_TURNS = (Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270)
_STORED_AS = dict(zip((3, 6, 8), _TURNS, strict=True))
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


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
    root = Path(root)
    if seed < 0 or images_per_class < 1:
        given = f"got {seed} and {images_per_class}"
        raise ConfigError(f"seed must be at least 0 and images_per_class at least 1; {given}")
    settings: dict[str, Any] = {"format_version": 2, "seed": int(seed)}
    settings |= {"images_per_class": int(images_per_class), "classes": list(DEMO_CLASSES)}
    if _is_complete(root, settings):
        logger.info("reusing the generated images in %s", root)
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as temporary:
        drawn = Path(temporary) / root.name
        for name in DEMO_CLASSES:
            texture, shape = name.split("_")
            (drawn / name).mkdir(parents=True)
            for index in range(images_per_class):
                rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode()), index]))
                image = draw(texture, shape, _random_size(rng), rng)
                _save(image, drawn / name / f"{index:03d}", _FORMS[index % len(_FORMS)], rng)
        (drawn / _MANIFEST).write_text(json.dumps(settings, indent=1), encoding="utf-8")
        try:
            drawn.replace(root)
        except OSError:  # Another process may have finished the same set in the meantime.
            if not _is_complete(root, settings):
                raise
    logger.info("drew %d images of each class in %s", images_per_class, root)


def _is_complete(root: Path, settings: dict[str, Any]) -> bool:
    """Whether `root` holds this set; an error where it holds something else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DatasetError(f"{root} exists and is not a generated image set; move it") from None
    if found != settings:
        raise DatasetError(f"{root} holds a set generated with other settings; delete or move it")
    for name in DEMO_CLASSES:
        n_missing = settings["images_per_class"] - len(list(root.glob(f"{name}/[0-9]*.*")))
        if n_missing > 0:
            raise DatasetError(f"{root}/{name} lacks {n_missing} of its images; delete {root}")
    return True


def _random_size(rng: np.random.Generator) -> tuple[int, int]:
    """Draw width and height of a portrait or landscape image."""
    shorter = int(rng.integers(60, 320))
    longer = min(500, round(shorter * rng.uniform(1.05, 1.6)))
    return (shorter, longer) if rng.random() < 0.5 else (longer, shorter)


def _save(image: Image.Image, stem: Path, form: str, rng: np.random.Generator) -> None:
    """Write an upright RGB image in one of the forms that users' files come in."""
    exif = Image.Exif()
    if form == "grey":
        image = image.convert("L")
    elif form == "palette":
        image = image.quantize(128, Image.Quantize.FASTOCTREE)
    elif form == "alpha":
        opacity = 255 - 150 * _gradient(image.size, rng)
        image.putalpha(Image.fromarray(opacity.astype(np.uint8)))
    elif form == "rotated":
        orientation = int(rng.choice(list(_STORED_AS)))
        exif[_EXIF_ORIENTATION] = orientation
        image = image.transpose(_STORED_AS[orientation])
    if form in _IN_PNG:
        image.save(stem.with_suffix(".png"), compress_level=1)
    else:
        image.save(stem.with_suffix(".jpg"), quality=int(rng.integers(75, 96)), exif=exif)


def draw(texture: str, shape: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Draw one RGB image, width x height, of a texture on a shape; all else is left to chance."""
    radius = float(rng.uniform(0.40, 0.50)) * min(size)
    # Within the canvas, in the middle half of what is free.
    centre = [side / 2 + float(rng.uniform(-0.5, 0.5)) * (side / 2 - radius) for side in size]
    pixels = _background(size, rng)
    corners = (SHAPES[shape] * rng.uniform(0.85, 1.0, 2)) @ _rotation(rng) * radius + centre
    # Drawn at twice the size and averaged, since ImageDraw has no smooth edges.
    mask = Image.new("L", (2 * size[0], 2 * size[1]))
    ImageDraw.Draw(mask).polygon(_as_tuples(2 * corners), fill=255)
    share = np.asarray(mask.resize(size, Image.Resampling.BOX), dtype=np.float32) / 255
    period = radius * float(rng.uniform(0.20, 0.30))
    left, top = (centre + rng.uniform(-0.4, 0.4, 2) * radius).tolist()
    x, y = _pixel_grid(size)
    x, y = (x - left) / period, (y - top) / period
    (a, b), (c, d) = _rotation(rng).tolist()
    marks = np.clip(0.5 + period * TEXTURES[texture](a * x + b * y, c * x + d * y), 0, 1)
    first, second = _contrasting_colours(rng)
    pixels += share[..., None] * (first + marks[..., None] * (second - first) - pixels)
    pixels += float(rng.uniform(0, 12)) * rng.standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _contrasting_colours(rng: np.random.Generator) -> Array:
    """Draw two RGB colours that stay apart in a grey image too."""
    while True:
        colours = rng.uniform(0, 255, (2, 3)).astype(np.float32)
        if abs(float(np.diff(colours @ _LUMA)[0])) > 110:
            return colours


def _rotation(rng: np.random.Generator) -> Array:
    """Draw a rotation of at most 15 degrees: things mostly keep their orientation."""
    angle = rng.uniform(-1, 1) * math.radians(15)
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([[cosine, sine], [-sine, cosine]])


def _background(size: tuple[int, int], rng: np.random.Generator) -> Array:
    """Paint a colour gradient, soft blotches and plain polygons; H x W x 3."""
    first, second = rng.uniform(0, 255, (2, 1, 1, 3)).astype(np.float32)
    pixels = first + _gradient(size, rng)[..., None] * (second - first)
    strength = float(rng.uniform(5, 40))
    coarse = strength * rng.standard_normal(rng.integers(2, 9, 2), dtype=np.float32)
    blotches = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    pixels += np.asarray(blotches)[..., None]
    canvas = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(0, 4)):
        corners = rng.uniform(-0.16, 0.16, (rng.integers(3, 6), 2)) * min(size)
        corners = rng.uniform(0, size) + corners
        pen.polygon(_as_tuples(corners), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return np.asarray(canvas).astype(np.float32)


def _gradient(size: tuple[int, int], rng: np.random.Generator) -> Array:
    """Rise from 0 to 1 across the canvas, H x W, in a random direction."""
    x, y = _pixel_grid(size)
    angle = rng.uniform(0, 2 * math.pi)
    ramp = math.cos(angle) * x + math.sin(angle) * y
    return (ramp - ramp.min()) / max(float(np.ptp(ramp)), 1.0)


def _as_tuples(points: Array) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in points]


def _pixel_grid(size: tuple[int, int]) -> tuple[Array, Array]:
    """Return the pixels' x, of shape 1 x W, and y, of shape H x 1."""
    x = np.arange(size[0], dtype=np.float32)
    return x[None, :], np.arange(size[1], dtype=np.float32)[:, None]


def _off(u: Array) -> Array:
    """Return the distance to the nearest whole number, 0 to 0.5."""
    return np.abs(u - np.rint(u))


def _stripes(u: Array) -> Array:
    return _off(u) - 0.25


def _checked(u: Array, v: Array) -> Array:
    across, along = _stripes(u), _stripes(v)
    return np.sign(across * along) * np.minimum(np.abs(across), np.abs(along))


def _brick(u: Array, v: Array) -> Array:
    shifted = u / 2 + _off(np.rint(v) / 2)
    return np.maximum(2 * _off(shifted) - 0.86, _off(v) - 0.36)


def _length(u: Array, v: Array) -> Array:
    return np.sqrt(u * u + v * v)


# Coordinates in periods -> about the distance to the nearest edge in periods, positive inside the
# marks. No array goes through a sine or the like, whose last bit differs between processors.
TEXTURES: dict[str, Callable[[Array, Array], Array]] = {
    "striped": lambda u, v: _stripes(u),
    "dotted": lambda u, v: 0.34 - _length(_off(u), _off(v)),
    "checked": _checked,
    "ringed": lambda u, v: _stripes(_length(u, v)),
    "brick": _brick,
    "zigzag": lambda u, v: _stripes(u + _off(v / 2) * 2),
}


def _arc(start: float, stop: float, corners: int = 33) -> Array:
    """Return points of the unit circle between two angles, which are given in turns."""
    angles = 2 * math.pi * np.linspace(start, stop, corners)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _radial(*radii: float, count: int) -> Array:
    """Return corners at equal angles, `count` times at the distances `radii` from the centre."""
    corners = count * len(radii)
    return np.tile(radii, count)[:, None] * _arc(0, 1 - 1 / corners, corners)


def _mirrored(*right: Any) -> Array:
    """Return corners of the right half from top to bottom, then of its mirror image."""
    half = np.array(right)
    return np.concatenate([half, half[::-1] * [-1, 1]])


_OUTLINES = {
    "disc": _radial(1, count=48),
    "triangle": _radial(1, count=3),
    "star": _radial(1, 0.45, count=5),
    "cross": _mirrored((0.3, 1), (0.3, 0.3), (1, 0.3), (1, -0.3), (0.3, -0.3), (0.3, -1)),
    "heart": _mirrored(*(0.47 * _arc(0.5, -0.08) + [0.44, 0.4]), (0, -0.95)),
}
# Corners around the origin, the farthest on the unit circle.
SHAPES = {name: line / np.linalg.norm(line, axis=1).max() for name, line in _OUTLINES.items()}
