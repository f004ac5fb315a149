"""Propose windows by the maps of the detector's own backbone: a regressor of the overlap."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from spptransfer.datasets.annotations import Objects
from spptransfer.detection.boxes import Boxes, overlaps
from spptransfer.detection.features import WindowFeatures
from spptransfer.detection.proposals import grid_windows
from spptransfer.detection.proposer import Method, Pixels, Windows, arrange
from spptransfer.errors import ConfigError
from spptransfer.extraction.maps import FeatureMaps

_LEVELS = (2, 1)
# Windows at a time.
_CHUNK = 2048
# Windows of a training image: of each tenth of the overlap with an object so many.
_PER_TENTH = 40
# Share of the mean square of a feature that is added to it.
_PENALTY = 0.1

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Objectness(Method):
    """Propose the windows of a dense grid that seem to overlap an object most.

    The overlap is regressed on the bins of 2 x 2 and 1 x 1 of one layer of the maps that are there
    anyway, and on place and shape. It must be fitted first.

    Parameters
    ----------
    scales, smallest, step
        The grid, as of `Grid`; by default one of about 17,000 windows.
    max_windows : int, default=2000
        At most so many.
    coef : ndarray of float32, optional
        What `fit` found before.

    References
    ----------
    Alexe, Deselaers and Ferrari, *What is an object?*, CVPR 2010, for the task.
    """

    scales: int = 8
    smallest: float = 0.08
    step: float = 1 / 3
    max_windows: int = 2000
    coef: Floats | None = field(default=None, repr=False, compare=False)

    name: ClassVar[str] = "objectness"
    needs_maps: ClassVar[bool] = True

    @property
    def key(self) -> str:
        """Method, parameters and what was fitted, as text."""
        fitted = "none" if self.coef is None else hashlib.sha256(self.coef.tobytes()).hexdigest()
        grid = f"scales={self.scales} smallest={self.smallest} step={self.step}"
        return f"{self.name} {grid} max_windows={self.max_windows} coef={fitted[:16]}"

    def fit(self, samples: Iterable[tuple[Sequence[FeatureMaps], Objects]]) -> Objectness:
        """Learn from the objects in training images, one after the other, in bounded memory.

        Parameters
        ----------
        samples : iterable of (sequence of FeatureMaps, Objects)
            Of each image its maps, a scale each, and its objects; difficult ones count too.

        Returns
        -------
        Objectness
            Fitted.

        Raises
        ------
        ConfigError
            If there is no object in any image.
        """
        gram: Any = 0.0
        moment: Any = 0.0
        random = np.random.default_rng(0)
        for maps, objects in samples:
            if not len(objects.boxes):
                continue
            windows = np.concatenate([self._grid(maps), objects.boxes])
            target = overlaps(windows, objects.boxes).max(axis=1)
            tenth = np.minimum((10 * target).astype(int), 9)
            order = random.permutation(len(windows))
            chosen = np.concatenate([order[tenth[order] == k][:_PER_TENTH] for k in range(10)])
            rows = self._rows(maps, windows[chosen]).astype(np.float64)
            gram = gram + rows.T @ rows
            moment = moment + rows.T @ target[chosen]
        if np.isscalar(gram):
            raise ConfigError("proposals: objectness needs training images with objects")
        penalty = _PENALTY * np.diag(gram) + 1e-12 * np.trace(gram)
        penalty[-1] = 0  # the constant
        coef = np.linalg.solve(gram + np.diag(penalty), moment).astype(np.float32)
        return dataclasses.replace(self, coef=coef)

    def propose(self, image: Pixels, maps: Any = None, *, id: str | None = None) -> Windows:
        """Propose the windows of one image by its maps; see `Proposer.propose`."""
        if self.coef is None:
            raise ConfigError("proposals: objectness has not been fitted")
        windows = self._grid(maps)
        scores = np.concatenate(
            [
                self._rows(maps, windows[start : start + _CHUNK]) @ self.coef
                for start in range(0, len(windows), _CHUNK)
            ]
        )
        best = np.argsort(-scores, kind="stable")[: self.max_windows]
        return arrange(windows[best], (*maps[0].size, 3), self.max_windows)

    def _grid(self, maps: Sequence[FeatureMaps]) -> Floats:
        return grid_windows(maps[0].size, self.scales, self.smallest, self.step)

    def _rows(self, maps: Sequence[FeatureMaps], windows: Boxes) -> Floats:
        """Return features of windows, those of the first layer, of place and shape, and 1."""
        layer = next(iter(maps[0].maps))
        channels = maps[0].maps[layer].shape[0]
        pooled = WindowFeatures({layer: channels}, _LEVELS).compute(maps, windows)
        pooled /= np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-6)
        height, width = maps[0].size
        shares = windows / [width, height, width, height]
        sides = shares[:, 2:] - shares[:, :2]
        at_edge = np.column_stack([shares[:, :2] <= 0, shares[:, 2:] >= 1])
        place = [np.log(sides), np.log(sides) ** 2, sides.prod(axis=1), shares, at_edge]
        rest = np.column_stack([*place, np.ones(len(windows))])
        return np.hstack([pooled, rest.astype(np.float32)])
