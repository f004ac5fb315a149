"""Images that exist as feature maps only: objects are painted into channels of their class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from spptransfer.datasets.annotations import Objects
from spptransfer.detection.features import WindowFeatures
from spptransfer.errors import ImageError
from spptransfer.extraction.maps import FeatureMaps

SIDE, CELL = 128, 8  # pixels of an image and of a cell


class PaintedImages:
    """Computes maps, as `MapExtractor` does, of images that were never drawn.

    Each class has a channel that is bright in its objects and one that is bright along their
    edges; two more hold noise.
    """

    workers = 2

    def __init__(self, count: int = 8, n_classes: int = 2, broken=()) -> None:
        self.n_classes, self.broken, self.asked = n_classes, set(broken), 0
        self.paths = [Path(f"{number:03d}.png") for number in range(count)]
        self.objects = [self._draw(number) for number in range(count)]
        self.before = lambda: None  # called for each image that is asked for

    def _draw(self, number: int) -> Objects:
        random = np.random.default_rng([7, number])
        labels = [number % self.n_classes, *random.integers(0, self.n_classes, number % 3)]
        sides = random.integers(3, 7, (len(labels), 2)) * CELL
        corners = (random.random((len(labels), 2)) * (SIDE - sides) // CELL) * CELL
        return Objects.of(np.hstack([corners, corners + sides]), labels)

    @property
    def features(self) -> WindowFeatures:
        return WindowFeatures({"painted": 2 * self.n_classes + 2}, (3, 1))

    def maps_of(self, path: Path) -> list[FeatureMaps]:
        self.asked += 1
        self.before()
        number = self.paths.index(path)
        if number in self.broken:
            raise ImageError(f"'{path}': cannot read the image")
        random = np.random.default_rng([9, number])
        painted = random.random((2 * self.n_classes + 2, SIDE // CELL, SIDE // CELL)) * 0.2
        for box, label, _ in zip(*self.objects[number], strict=True):
            x0, y0, x1, y1 = (box // CELL).astype(int)
            painted[2 * label : 2 * label + 2, y0:y1, x0:x1] += 1
            painted[2 * label + 1, y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] = 0
        maps = {"painted": torch.from_numpy(painted.astype(np.float32))}
        stride, offset = {"painted": (CELL, CELL)}, {"painted": (CELL / 2, CELL / 2)}
        return [FeatureMaps(maps, stride, offset, (SIDE, SIDE), SIDE)]

    def propose(self, position: int, maps: object) -> np.ndarray:
        """Windows by chance, and some near each object."""
        random = np.random.default_rng([11, position])
        corners = random.uniform(0, SIDE - 20, (60, 2))
        anywhere = np.hstack([corners, corners + random.uniform(16, 64, (60, 2))])
        near = np.repeat(self.objects[position].boxes, 12, axis=0)
        near = near + random.normal(0, 5, near.shape)
        drawn = np.clip(np.concatenate([anywhere, near]), 0, SIDE)
        drawn = drawn[(drawn[:, 2:] - drawn[:, :2] > 1).all(axis=1)]
        return drawn.astype(np.float32).astype(np.float64)
