"""Draw a textured shape on a cluttered background, everything else left to chance."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Array = npt.NDArray[np.floating[Any]]
Points = npt.NDArray[np.float64]
Texture = Callable[[Array, Array], Array]

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_LEAST_CONTRAST = 110
_LARGEST_ANGLE = math.radians(15)


def draw(texture: str, shape: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Draw one image of a texture on a shape.

    Parameters
    ----------
    texture : str
        A key of `TEXTURES`.
    shape : str
        A key of `SHAPES`.
    size : (int, int)
        Width and height in pixels.
    rng : numpy.random.Generator
        Source of everything that does not tell the class: colours, place, size, rotation,
        background and noise.

    Returns
    -------
    PIL.Image.Image
        An image of mode ``RGB``.

    Examples
    --------
    >>> draw("dotted", "star", (80, 60), np.random.default_rng(0)).size
    (80, 60)
    """
    width, height = size
    radius = float(rng.uniform(0.40, 0.50)) * min(size)
    centre = _near_the_middle(width, radius, rng), _near_the_middle(height, radius, rng)
    pixels = _background(size, rng)
    mask = _shape_mask(SHAPES[shape], size, centre, radius, rng)[..., None]
    pixels += mask * (_textured(TEXTURES[texture], size, centre, radius, rng) - pixels)
    pixels += float(rng.uniform(0, 12)) * rng.standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


# The object --------------------------------------------------------------------------------


def _near_the_middle(length: int, radius: float, rng: np.random.Generator) -> float:
    """One coordinate of the centre: within the canvas, in the middle half of what is free."""
    return length / 2 + float(rng.uniform(-0.5, 0.5)) * (length / 2 - radius)


def _shape_mask(
    corners: Points,
    size: tuple[int, int],
    centre: tuple[float, float],
    radius: float,
    rng: np.random.Generator,
) -> Array:
    """Share of every pixel, H x W, that the turned and slightly squeezed shape covers."""
    placed = (corners * rng.uniform(0.85, 1.0, 2)) @ _rotation(rng) * radius + centre
    # Drawn at twice the size and averaged, since ImageDraw has no smooth edges.
    mask = Image.new("L", (2 * size[0], 2 * size[1]))
    ImageDraw.Draw(mask).polygon(_as_tuples(2 * placed), fill=255)
    return np.asarray(mask.resize(size, Image.Resampling.BOX), dtype=np.float32) / 255


def _textured(
    texture: Texture,
    size: tuple[int, int],
    centre: tuple[float, float],
    radius: float,
    rng: np.random.Generator,
) -> Array:
    """Fill the whole canvas, H x W x 3, in two colours of clearly different brightness."""
    period = radius * float(rng.uniform(0.20, 0.30))
    left, top = (centre + rng.uniform(-0.4, 0.4, 2) * radius).tolist()
    x, y = _pixel_grid(size)
    x, y = (x - left) / period, (y - top) / period
    (a, b), (c, d) = _rotation(rng).tolist()
    marks = np.clip(0.5 + period * texture(a * x + b * y, c * x + d * y), 0, 1)
    first, second = _contrasting_colours(rng)
    return first + marks[..., None] * (second - first)


def _rotation(rng: np.random.Generator) -> Points:
    """Rotation matrix of a small random angle: things mostly keep their orientation."""
    angle = rng.uniform(-1, 1) * _LARGEST_ANGLE
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([[cosine, sine], [-sine, cosine]])


def _contrasting_colours(rng: np.random.Generator) -> Array:
    """Two RGB colours that stay apart in a grey image too."""
    while True:
        colours = rng.uniform(0, 255, (2, 3)).astype(np.float32)
        if abs(float(np.diff(colours @ _LUMA)[0])) > _LEAST_CONTRAST:
            return colours


# The background ----------------------------------------------------------------------------


def _background(size: tuple[int, int], rng: np.random.Generator) -> Array:
    """Paint a colour gradient, soft blotches and plain polygons; H x W x 3."""
    first, second = rng.uniform(0, 255, (2, 1, 1, 3)).astype(np.float32)
    pixels = first + gradient(size, rng)[..., None] * (second - first)
    pixels += _blotches(size, rng)[..., None]
    canvas = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    _scatter_clutter(canvas, rng)
    return np.asarray(canvas).astype(np.float32)


def gradient(size: tuple[int, int], rng: np.random.Generator) -> Array:
    """Rise from 0 to 1 across the canvas, H x W, in a random direction."""
    x, y = _pixel_grid(size)
    angle = rng.uniform(0, 2 * math.pi)
    ramp = math.cos(angle) * x + math.sin(angle) * y
    return (ramp - ramp.min()) / max(float(np.ptp(ramp)), 1.0)


def _blotches(size: tuple[int, int], rng: np.random.Generator) -> Array:
    """Smooth random variation of the brightness, H x W."""
    strength = float(rng.uniform(5, 40))
    coarse = strength * rng.standard_normal(rng.integers(2, 9, 2), dtype=np.float32)
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


def _scatter_clutter(canvas: Image.Image, rng: np.random.Generator) -> None:
    """Draw a few plain polygons of any colour, smaller than the object."""
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(0, 4)):
        corners = rng.uniform(-0.16, 0.16, (rng.integers(3, 6), 2)) * min(canvas.size)
        pen.polygon(_as_tuples(rng.uniform(0, canvas.size) + corners), fill=_any_colour(rng))


def _any_colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3).tolist()
    return red, green, blue


def _as_tuples(points: Points) -> list[tuple[float, float]]:
    """Corners in the form that ImageDraw takes."""
    return [(float(x), float(y)) for x, y in points]


def _pixel_grid(size: tuple[int, int]) -> tuple[Array, Array]:
    """Give the pixels' x, of shape 1 x W, and y, of shape H x 1."""
    x = np.arange(size[0], dtype=np.float32)
    return x[None, :], np.arange(size[1], dtype=np.float32)[:, None]


# Textures: coordinates in periods -> about the distance to the nearest edge in periods, positive
# inside the marks. No array goes through a sine or the like, whose last bit differs between
# processors.


def _off_centre(u: Array) -> Array:
    """Distance to the nearest whole number, 0 to 0.5."""
    return np.abs(u - np.rint(u))


def _stripes(u: Array) -> Array:
    """Bands half a period wide."""
    return _off_centre(u) - 0.25


def _length(u: Array, v: Array) -> Array:
    return np.sqrt(u * u + v * v)


def _striped(u: Array, v: Array) -> Array:
    return _stripes(u)


def _dotted(u: Array, v: Array) -> Array:
    return 0.34 - _length(_off_centre(u), _off_centre(v))


def _checked(u: Array, v: Array) -> Array:
    across, along = _stripes(u), _stripes(v)
    return np.sign(across * along) * np.minimum(np.abs(across), np.abs(along))


def _zigzag(u: Array, v: Array) -> Array:
    return _stripes(u + _off_centre(v / 2) * 2)


def _grid(u: Array, v: Array) -> Array:
    return np.maximum(_off_centre(u), _off_centre(v)) - 0.36


def _ringed(u: Array, v: Array) -> Array:
    return _stripes(_length(u, v))


def _brick(u: Array, v: Array) -> Array:
    shifted = u / 2 + _off_centre(np.rint(v) / 2)
    return np.maximum(2 * _off_centre(shifted) - 0.86, _off_centre(v) - 0.36)


def _woven(u: Array, v: Array) -> Array:
    return np.where(_stripes(u / 2) * _stripes(v / 2) > 0, _stripes(2 * u), _stripes(2 * v)) / 2


def _plussed(u: Array, v: Array) -> Array:
    across, along = _off_centre(u), _off_centre(v)
    return np.minimum(0.13 - np.minimum(across, along), 0.38 - np.maximum(across, along))


TEXTURES: dict[str, Texture] = {
    "striped": _striped,
    "dotted": _dotted,
    "checked": _checked,
    "zigzag": _zigzag,
    "grid": _grid,
    "ringed": _ringed,
    "brick": _brick,
    "woven": _woven,
    "plussed": _plussed,
}


# Shapes: corners around the origin -----------------------------------------------------------


def _arc(start: float, stop: float, corners: int = 33) -> Points:
    """Points of the unit circle between two angles, which are given in turns."""
    angles = 2 * math.pi * np.linspace(start, stop, corners)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _radial(*radii: float, count: int) -> Points:
    """Corners at equal angles; their distances from the centre are `radii`, `count` times."""
    corners = count * len(radii)
    return np.tile(radii, count)[:, None] * _arc(0, 1 - 1 / corners, corners)


def _mirrored(*right: tuple[float, float]) -> Points:
    """Corners of the right half from top to bottom, then of its mirror image."""
    half = np.array(right)
    return np.concatenate([half, half[::-1] * [-1, 1]])


def _fitted(**outlines: Points) -> dict[str, Points]:
    """Outlines scaled so that each touches the unit circle from inside."""
    return {name: line / np.linalg.norm(line, axis=1).max() for name, line in outlines.items()}


SHAPES = _fitted(
    disc=_radial(1, count=48),
    square=_radial(1, count=4),
    triangle=_radial(1, count=3),
    star=_radial(1, 0.45, count=5),
    cross=_mirrored((0.3, 1), (0.3, 0.3), (1, 0.3), (1, -0.3), (0.3, -0.3), (0.3, -1)),
    hexagon=_radial(1, count=6),
    kite=_mirrored((0, 1), (0.65, 0.35), (0, -1)),
    arrow=_mirrored((0, 1), (0.8, 0.1), (0.3, 0.1), (0.3, -0.9)),
    crescent=np.concatenate([_arc(0.15, 0.85), 0.83 * _arc(0.80, 0.20) + [0.46, 0]]),
    tee=_mirrored((0.85, 0.7), (0.85, 0.2), (0.28, 0.2), (0.28, -0.9)),
    heart=_mirrored(*(0.47 * _arc(0.5, -0.08) + [0.44, 0.4]), (0, -0.95)),
    dome=_arc(0, 0.5) - [0, 0.47],
    gear=_radial(1, 1, 0.68, 0.68, count=7),
)
