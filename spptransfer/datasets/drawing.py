"""Textured shapes on cluttered backgrounds, drawn from a random generator.

No array goes through a sine or the like, whose last bit differs between processors: the same
pixels come out on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Array = npt.NDArray[Any]
Size = tuple[int, int]  # width, height

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def draw(texture: str, shape: str, size: Size, rng: np.random.Generator) -> Image.Image:
    """Draw one RGB image, width x height, of a texture on a shape; all else is left to chance."""
    radius = float(rng.uniform(0.40, 0.50)) * min(size)
    # Within the canvas, in the middle half of what is free.
    centre = [side / 2 + float(rng.uniform(-0.5, 0.5)) * (side / 2 - radius) for side in size]
    pixels = background(size, rng)
    paint(pixels, texture, shape, centre, radius, rng)
    return finish(pixels, rng)


def paint(
    pixels: Array,
    texture: str,
    shape: str,
    centre: list[float],
    radius: float,
    rng: np.random.Generator,
) -> Array:
    """Paint a texture on a shape into an image; return the share of each pixel that it covers."""
    size = pixels.shape[1], pixels.shape[0]
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
    return share


def finish(pixels: Array, rng: np.random.Generator) -> Image.Image:
    """Add noise of a random strength, and round to an RGB image."""
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


def background(size: Size, rng: np.random.Generator, polygons: int = 4) -> Array:
    """Paint a colour gradient, soft blotches and fewer plain polygons than that; H x W x 3."""
    first, second = rng.uniform(0, 255, (2, 1, 1, 3)).astype(np.float32)
    pixels = first + gradient(size, rng)[..., None] * (second - first)
    strength = float(rng.uniform(5, 40))
    coarse = strength * rng.standard_normal(rng.integers(2, 9, 2), dtype=np.float32)
    blotches = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    pixels += np.asarray(blotches)[..., None]
    canvas = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(0, polygons)):
        corners = rng.uniform(-0.16, 0.16, (rng.integers(3, 6), 2)) * min(size)
        corners = rng.uniform(0, size) + corners
        pen.polygon(_as_tuples(corners), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return np.asarray(canvas).astype(np.float32)


def gradient(size: Size, rng: np.random.Generator) -> Array:
    """Rise from 0 to 1 across the canvas, H x W, in a random direction."""
    x, y = _pixel_grid(size)
    angle = rng.uniform(0, 2 * math.pi)
    ramp = math.cos(angle) * x + math.sin(angle) * y
    return (ramp - ramp.min()) / max(float(np.ptp(ramp)), 1.0)


def _as_tuples(points: Array) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in points]


def _pixel_grid(size: Size) -> tuple[Array, Array]:
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
# marks.
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
