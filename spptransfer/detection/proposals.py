"""Propose windows without a look at the image: a grid of them, or those of a file."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from spptransfer.detection.proposer import Method, Pixels, Windows, arrange
from spptransfer.errors import ConfigError, DatasetError
from spptransfer.files import expand_path, read_text, sha256_of

# Width by height of a grid's windows, relative to those of the image.
_ASPECTS = (1 / 3, 1 / 2, 2 / 3, 1, 3 / 2, 2, 3)


@dataclass(frozen=True)
class Grid(Method):
    """Propose windows of fixed scales, aspects and steps, whatever the image shows.

    Parameters
    ----------
    scales : int, default=6
        Number of scales, in equal ratios down from the whole image.
    smallest : float, default=0.15
        The last of them: the root of the share of the image's area that a window has, 0.05 to 1.
    step : float, default=0.5
        From one window to the next, in sides of the window, at most; 0.1 to 1.
    max_windows : int, default=2000
        At most so many, the largest scales first, of one scale by chance with a fixed seed.
    """

    scales: int = 6
    smallest: float = 0.15
    step: float = 0.5
    max_windows: int = 2000

    name: ClassVar[str] = "grid"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("smallest", 0.05), ("step", 0.1)):
            if not least <= getattr(self, name) <= 1:
                value = getattr(self, name)
                raise ConfigError(f"proposals.{name}: {value!r} is not between {least} and 1")

    def propose(self, image: Pixels, maps: Any = None, *, id: str | None = None) -> Windows:
        """Propose the windows of one image; see `Proposer.propose`."""
        found = grid_windows(image.shape[:2], self.scales, self.smallest, self.step)
        return arrange(found, image.shape, self.max_windows)


@dataclass(frozen=True)
class File(Method):
    """Take the windows of each image from a file of the user's.

    Parameters
    ----------
    path : path-like
        JSON, ``{image id: [[x0, y0, x1, y1], ...]}``, or an ``.npz`` with an array of shape (n, 4)
        for each image id; in pixels of the upright image, edges of pixels being whole numbers.
    max_windows : int, default=2000
        At most so many of an image, the first of the file.

    Raises
    ------
    ConfigError
        If the file is not there, or holds something else.
    """

    path: Path
    max_windows: int = 2000

    name: ClassVar[str] = "file"

    def __post_init__(self) -> None:
        super().__post_init__()
        vars(self).update(path=expand_path(self.path))
        _ = self._windows  # read now, so that what is wrong with it is said at once

    @property
    def key(self) -> str:
        """What determines the windows: the file's content."""
        return f"{self.name} sha256={sha256_of(self.path)} max_windows={self.max_windows}"

    def lacking(self, ids: Iterable[str]) -> list[str]:
        """Return the images of which the file says nothing."""
        return [id for id in ids if id not in self._windows]

    def propose(self, image: Pixels, maps: Any = None, *, id: str | None = None) -> Windows:
        """Return the windows of the image with an id; see `Proposer.propose`."""
        if id not in self._windows:
            raise DatasetError(f"proposals: '{self.path}' says nothing of the image {id!r}")
        return arrange(self._windows[id], image.shape, self.max_windows)

    @cached_property
    def _windows(self) -> dict[str, npt.NDArray[np.float64]]:
        try:
            if self.path.suffix.lower() == ".npz":
                with np.load(self.path, allow_pickle=False) as arrays:
                    given: Mapping[str, Any] = dict(arrays)
            else:
                given = dict(json.loads(read_text(self.path)))
        except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
            reason = getattr(error, "strerror", None) or "neither JSON with boxes by image nor .npz"
            raise ConfigError(f"proposals: cannot read '{self.path}': {reason}") from error
        found = {}
        for id, boxes in given.items():
            with contextlib.suppress(ValueError, TypeError):
                checked = np.asarray(boxes, np.float64)
                found[id] = checked.reshape(-1, 4) if not checked.size else checked
            if id not in found or found[id].ndim != 2 or found[id].shape[1] != 4:
                raise ConfigError(
                    f"proposals: '{self.path}': {id!r} needs boxes [x0, y0, x1, y1], all numbers"
                )
            if not np.isfinite(found[id]).all():
                raise ConfigError(f"proposals: '{self.path}': {id!r} has boxes that are not finite")
        return found


def grid_windows(
    size: tuple[int, ...], scales: int, smallest: float, step: float
) -> npt.NDArray[np.float64]:
    """Return the windows of a grid, (n, 4), scale by scale, in each by chance with a fixed seed.

    Parameters
    ----------
    size : (int, int)
        Height and width of the image in pixels.
    scales, smallest, step
        Those of `Grid`.
    """
    height, width = size
    random = np.random.default_rng(0)
    found = []
    for scale in np.geomspace(1, smallest, scales):
        of_scale = []
        for aspect in _ASPECTS:
            x, w = _steps(width, scale * aspect**0.5, step)
            y, h = _steps(height, scale / aspect**0.5, step)
            left, top = (grid.ravel() for grid in np.meshgrid(x, y))
            of_scale.append(np.stack([left, top, left + w, top + h], axis=1))
        found.append(random.permutation(np.concatenate(of_scale)))
    return np.concatenate(found)


def _steps(side: int, share: float, step: float) -> tuple[npt.NDArray[np.float64], float]:
    """Return where windows begin along a side that they cover evenly, and their length."""
    length = side * min(1.0, share)
    count = int(np.ceil((side - length) / (step * length) - 1e-9)) + 1
    return np.linspace(0, side - length, count), length
