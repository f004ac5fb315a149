"""Boxes with names drawn into an image, to be looked at."""

from __future__ import annotations

import colorsys
import math
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from spptransfer.images import from_array

_SMALLEST_FONT = 10
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_TRIES, _APART = 24, 90

Colour = tuple[int, int, int]


def class_colours(classes: Iterable[str]) -> dict[str, Colour]:
    """Choose a colour for each class by its name, another one where two would look alike.

    Examples
    --------
    >>> class_colours(["dog", "cat"])["cat"] == class_colours(["cat"])["cat"]
    True
    """
    chosen: dict[str, Colour] = {}
    for name in sorted(set(classes)):
        tried = [_hashed_colour(name, number) for number in range(_TRIES)]
        apart = [min((math.dist(one, c) for c in chosen.values()), default=_APART) for one in tried]
        far = [colour for colour, least in zip(tried, apart, strict=True) if least >= _APART]
        chosen[name] = far[0] if far else tried[apart.index(max(apart))]
    return chosen


def _hashed_colour(name: str, number: int) -> Colour:
    code = zlib.crc32(f"{number} {name}".encode("utf-8", "surrogateescape"))
    hue, light = code % 360 / 360, (0.36, 0.5, 0.66)[code // 360 % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, light, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(
    image: Image.Image | npt.NDArray[np.uint8],
    boxes: npt.ArrayLike,
    names: Sequence[str],
    scores: npt.ArrayLike | None = None,
    truth: npt.ArrayLike | None = None,
    *,
    classes: Iterable[str] | None = None,
) -> Image.Image:
    """Draw boxes with the names of their classes, readable at any size of image.

    Parameters
    ----------
    image : Image or ndarray of uint8
        Upright; it stays as it is.
    boxes : array-like of shape (n, 4)
        ``x0, y0, x1, y1`` in its pixels; what lies outside is cut off.
    names : sequence of str
        Of each box's class, which chooses the colour.
    scores : array-like of shape (n,), optional
        Written behind the names; the best are drawn last. Without them boxes have no labels.
    truth : array-like of shape (m, 4), optional
        Boxes of objects, drawn in white and black below the others.
    classes : iterable of str, optional
        All names that may occur, so that a class has one colour in all images; else those of
        `names`. Pillow's own font writes them, which knows Latin letters.

    Returns
    -------
    Image
        A new RGB image of the same size.

    Examples
    --------
    >>> drawn = draw_detections(Image.new("RGB", (80, 60)), [[8, 8, 40, 40]], ["cat"], [1.5])
    >>> drawn.size, drawn.getpixel((8, 20)) == class_colours(["cat"])["cat"]
    ((80, 60), True)
    """
    canvas = image.convert("RGB") if isinstance(image, Image.Image) else from_array(image)
    canvas = canvas.copy() if canvas is image else canvas
    pen, width = ImageDraw.Draw(canvas), max(1, round(math.hypot(*canvas.size) / 150))
    thin = max(1, width // 2)
    for x0, y0, x1, y1 in _visible(truth, canvas):
        pen.rectangle((x0, y0, x1, y1), outline=_WHITE, width=2 * thin)
        pen.rectangle((x0, y0, x1, y1), outline=_BLACK, width=thin)
    colours = class_colours(names if classes is None else classes)
    values = np.zeros(len(names)) if scores is None else np.asarray(scores, float)
    drawn, order = _visible(boxes, canvas), np.argsort(values, kind="stable").tolist()
    for index in order:
        pen.rectangle(drawn[index], outline=colours[names[index]], width=width)
    for index in order if scores is not None else ():
        _label(pen, drawn[index], f"{names[index]} {values[index]:.2f}", colours[names[index]])
    return canvas


def _visible(boxes: npt.ArrayLike | None, canvas: Image.Image) -> list[tuple[int, ...]]:
    """Return boxes as first and last pixels within the image, at least one pixel each."""
    given = np.asarray([] if boxes is None else boxes, float).reshape(-1, 4)
    sides = np.array(canvas.size)
    low = np.clip(np.nan_to_num(given[:, :2]).round(), 0, sides - 1)
    high = np.clip(np.nan_to_num(given[:, 2:]).round(), low + 1, sides) - 1
    return [tuple(box) for box in np.concatenate([low, high], axis=1).astype(int).tolist()]


def _label(pen: ImageDraw.ImageDraw, box: tuple[int, ...], text: str, colour: Colour) -> None:
    """Write a text on its colour: above the box, or in it where there is no room above."""
    # Pillow writes one line, of characters that UTF-8 can say.
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    sides = pen.im.size
    size = max(_SMALLEST_FONT, round(math.hypot(*sides) / 45))
    font = ImageFont.load_default(size=size)
    margin = max(1, size // 6)
    while pen.textlength(text, font=font) + 2 * margin > sides[0]:
        if len(text) < 3:
            return  # nothing could be read in an image that narrow
        text = text[:-2] + "…"
    across, down = (
        round(pen.textlength(text, font=font)) + 2 * margin,
        round(font.getbbox("Ág")[3]) + margin,
    )
    x = min(box[0], sides[0] - across)
    y = max(0, min(box[1] - down if box[1] >= down else box[1], sides[1] - down))
    pen.rectangle((x, y, x + across - 1, y + down - 1), fill=colour)
    luma = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    pen.text((x + margin, y), text, fill=_BLACK if luma > 140 else _WHITE, font=font)
