"""What a method that proposes windows is, and what all of them share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from spptransfer.errors import ConfigError

Windows = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

# Part of every key: to be raised when the same options come to mean other windows.
_VERSION = 1


class Proposer(Protocol):
    """A method that proposes windows.

    Attributes
    ----------
    name : str
        Of the method.
    needs_pixels, needs_maps : bool
        Whether it looks at the image, or at the image's maps; otherwise its size is enough, and
        an array of that shape may hold anything.
    key : str
        Method, parameters and versions: equal keys propose equal windows in equal images.
    """

    name: ClassVar[str]
    needs_pixels: ClassVar[bool]
    needs_maps: ClassVar[bool]

    @property
    def key(self) -> str:
        """Method, parameters and versions, as text."""
        ...

    def propose(self, image: Pixels, maps: Any = None, *, id: str | None = None) -> Windows:
        """Propose the windows of one image.

        Parameters
        ----------
        image : ndarray of uint8, shape (H, W, 3)
            RGB, upright.
        maps : FeatureMaps, optional
            Of the image, where the method needs them.
        id : str, optional
            Of the image, where the method looks windows up.

        Returns
        -------
        ndarray of float32, shape (n, 4)
            ``x0, y0, x1, y1`` in pixels of the image, each once, at most `max_windows`; first the
            whole image, then by falling priority.
        """
        ...


@dataclass(frozen=True)
class Method:
    """A method whose parameters are its fields; those that are whole numbers begin at 1."""

    name: ClassVar[str]
    needs_pixels: ClassVar[bool] = False
    needs_maps: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (type(value) is not int or value < 1):
                raise ConfigError(
                    f"proposals.{field.name}: {value!r} is no whole number of at least 1"
                )

    @property
    def key(self) -> str:
        """Method, parameters and versions, as text."""
        options = dataclasses.asdict(self) | {"version": _VERSION}
        return " ".join([self.name, *(f"{name}={value}" for name, value in options.items())])


def arrange(windows: npt.NDArray[Any], shape: tuple[int, ...], most: int) -> Windows:
    """Put the whole image first, cut off what is outside, and leave out what is there already."""
    height, width = shape[:2]
    limits = np.array([width, height, width, height], np.float64)
    each = np.concatenate([limits[None] * [0, 0, 1, 1], np.clip(windows, 0, limits)])
    each = each.astype(np.float32)
    each = each[(each[:, 0] < each[:, 2]) & (each[:, 1] < each[:, 3])]
    first = np.sort(np.unique(each, axis=0, return_index=True)[1])
    return each[first[:most]]
