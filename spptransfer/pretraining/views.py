"""Which views of an image a classification is averaged over: plain arithmetic, free of torch.

A *window* is a square of `size` pixels in the resized image. A scheme either crops its windows
from the image and sends each through the whole network, or computes the feature map of the whole
image once and cuts the windows out of the *map*.

From a window to cells of the map
---------------------------------
Cell j of a map with total stride S looks at pixels around ``c + S j``, where c follows from the
paddings. The paper pads every layer by half its filter, so that c = 0, and takes the cells whose
centres lie inside the window: ``floor(x / S) + 1`` to ``ceil(x / S) - 1``. Networks that keep
other paddings, it says, need "a proper offset". Ours keep the paddings that they are trained
with, which have two consequences.

* The map of a crop at pixel x has centres ``x + c + S j`` for j = 0 ... n - 1, n being the number
  of cells that the network makes of `size` pixels. The whole image's map has them at
  ``c + S (a + j)``. The two are nearest to each other where a is x / S rounded: c drops out.
* Taking exactly those n cells hands the pyramid the grid it has seen in training, such as 13 x 13
  for ZF-5 and 224 pixels. By the paper's rule they are 13 where x is a multiple of 16, else 14.

Where x is a multiple of S the cells differ from the crop's only in that they see the image's
pixels beyond the window, where the crop sees padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from spptransfer.errors import ConfigError, suggestion

Places = Literal["full", "center", "corners", "sides", "line"]
Corner = tuple[int, int]

# Section 3.1.5 of the paper: windows of 224 pixels at six scales.
PAPER_SIZE = 224
PAPER_RESIZE = 256
PAPER_SCALES = (224, 256, 300, 360, 448, 560)

SCHEMES = ("center_crop", "full", "10-crops", "10-maps", "96-maps", "98-maps")

_CORNERS = ((0.5, 0.5), (0, 0), (0, 1), (1, 0), (1, 1))
# Where windows lie from top to bottom and from left to right, from 0 to 1.
_PLACES: dict[Places, tuple[tuple[float, float], ...]] = {
    "center": _CORNERS[:1],
    "corners": _CORNERS,
    "sides": (*_CORNERS, (0, 0.5), (0.5, 0), (0.5, 1), (1, 0.5)),
    "line": (_CORNERS[0], (0, 0), (1, 1)),
}


@dataclass(frozen=True)
class ScaleViews:
    """Views of an image at one scale.

    Parameters
    ----------
    scale : int
        Length of the image's smaller side after the resize, in pixels.
    places : {"full", "center", "corners", "sides", "line"}
        The whole image; the central window; that one and the four at the corners; those five
        and the four at the middles of the sides; or start, centre and end of the longer side.
    flip : bool
        Whether every view is taken of the mirrored image too.
    """

    scale: int
    places: Places
    flip: bool

    @property
    def count(self) -> int:
        """Number of views, those that coincide counted as often as they occur."""
        return (1 if self.places == "full" else len(_PLACES[self.places])) * (1 + self.flip)


@dataclass(frozen=True)
class Scheme:
    """A way to look at an image; the class scores of its views are averaged after the softmax.

    Made by `make_scheme`.

    Parameters
    ----------
    name : str
        One of `SCHEMES`.
    size : int
        Side of a window in pixels.
    scales : tuple of ScaleViews
        What is looked at.
    on_maps : bool
        Whether windows are cut out of feature maps, not out of the image.
    """

    name: str
    size: int
    scales: tuple[ScaleViews, ...]
    on_maps: bool

    @property
    def views(self) -> int:
        """Number of views per image."""
        return sum(views.count for views in self.scales)


def proportional(scale: int, size: int) -> int:
    """Return what a scale of the paper's 224-pixel windows becomes for others.

    Examples
    --------
    >>> [proportional(scale, 64) for scale in PAPER_SCALES]
    [64, 73, 86, 103, 128, 160]
    """
    return (2 * scale * size + PAPER_SIZE) // (2 * PAPER_SIZE)


def make_scheme(
    name: str,
    *,
    size: int = PAPER_SIZE,
    resize: int | None = None,
    scales: Iterable[int] | None = None,
) -> Scheme:
    """Lay out the views of a scheme (section 3.1.5 of the paper).

    Parameters
    ----------
    name : {"center_crop", "full", "10-crops", "10-maps", "96-maps", "98-maps"}
        The central window; the whole image; centre and four corners with their mirror images,
        cropped or taken on the maps; centre, corners and middles of the sides with their mirror
        images on the maps of several scales; those and the whole image with its mirror image.
    size : int, default=224
        Side of a window in pixels.
    resize : int, optional
        Smaller side of the image in every scheme but the many scales of the last two, by default
        256 in proportion to `size`.
    scales : iterable of int, optional
        Smaller sides in the last two schemes, by default the paper's six in proportion to
        `size`. At a scale equal to `size` only windows along the longer side differ, so three
        take the place of nine.

    Raises
    ------
    ConfigError
        If there is no such scheme, or a scale does not hold a window.

    Examples
    --------
    >>> make_scheme("96-maps").views, make_scheme("98-maps", size=64).views
    (96, 98)
    >>> make_scheme("10-crops").scales
    (ScaleViews(scale=256, places='corners', flip=True),)
    """
    if name not in SCHEMES:
        raise ConfigError(f"views: unknown scheme '{name}'; {suggestion(name, SCHEMES)}")
    if size < 1:
        raise ConfigError(f"size: {size} is no side of a window; it must be at least 1 pixel")
    resize = proportional(PAPER_RESIZE, size) if resize is None else resize
    views = _views_of(name, size, resize, scales)
    for at in views:
        key = "resize" if at.scale == resize else "scales"
        if at.scale < (1 if name == "full" else size):
            raise ConfigError(f"{key}: {at.scale} is smaller than the windows of {size} pixels")
    return Scheme(name, size, views, on_maps=name.endswith("-maps"))


def _views_of(
    name: str, size: int, resize: int, scales: Iterable[int] | None
) -> tuple[ScaleViews, ...]:
    if name == "full":
        return (ScaleViews(resize, "full", flip=False),)
    if name == "center_crop":
        return (ScaleViews(resize, "center", flip=False),)
    if name.startswith("10-"):
        return (ScaleViews(resize, "corners", flip=True),)
    chosen = [proportional(s, size) for s in PAPER_SCALES] if scales is None else list(scales)
    if not chosen or len(set(chosen)) < len(chosen):
        raise ConfigError(f"scales: {chosen} must be different numbers of pixels, at least one")
    many = [ScaleViews(s, "line" if s == size else "sides", flip=True) for s in chosen]
    whole = [ScaleViews(resize, "full", flip=True)] if name == "98-maps" else []
    return (*many, *whole)


def window_corners(height: int, width: int, size: int, places: Places) -> list[Corner]:
    """List the top left pixels of the windows of an image, the central one first.

    Windows that coincide are listed as often as they occur. For `places` see `ScaleViews`.

    Examples
    --------
    >>> window_corners(256, 320, 224, "corners")
    [(16, 48), (0, 0), (0, 96), (32, 0), (32, 96)]
    >>> window_corners(224, 320, 224, "line")
    [(0, 48), (0, 0), (0, 96)]
    """
    return [
        (int((height - size) * top), int((width - size) * left)) for top, left in _PLACES[places]
    ]


def mirrored(corners: Sequence[Corner], width: int, size: int) -> list[Corner]:
    """Find the same windows in the mirrored image.

    Examples
    --------
    >>> mirrored([(0, 0), (16, 48)], width=320, size=224)
    [(0, 96), (16, 48)]
    """
    return [(top, width - size - left) for top, left in corners]


def first_cell(pixel: int, stride: int, window_cells: int, map_cells: int) -> int:
    """Find the first cell of a window on the map of the whole image, along one side.

    The window, whose pixels alone would make `window_cells`, covers this cell and the next ones:
    those whose receptive fields lie nearest to those of a crop's cells (see the module's head).
    `pixel` is the window's first one, `stride` the pixels between neighbouring cells.

    Examples
    --------
    ZF-5 makes 13 cells of 224 pixels and 15 of 256:

    >>> [first_cell(pixel, 16, 13, 15) for pixel in (0, 7, 8, 16, 32)]
    [0, 0, 1, 1, 2]
    """
    return min((2 * pixel + stride) // (2 * stride), map_cells - window_cells)
