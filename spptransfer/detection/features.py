"""From windows of an image to feature vectors: pooled from its maps, at the scale that fits."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spptransfer.detection.boxes import Boxes, areas
from spptransfer.extraction.maps import FeatureMaps
from spptransfer.normalization import PyramidNormalizer
from spptransfer.pyramid import count_bins

Linear = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]

# The side of a window at which networks were trained, in pixels (He et al., section 4.1).
TRAINED_SIDE = 224
# Windows at a time where features are only looked at: of 16,000 numbers they are 128 MB.
_CHUNK = 2048
# Levels of what lies around a window.
_CONTEXT = (2,)


@dataclass(frozen=True)
class WindowFeatures:
    """Which features windows have.

    Parameters
    ----------
    channels : mapping of str to int
        The layers, with the channels of each.
    levels : tuple of int
        The pyramid.
    context : float, optional
        By how much a window is enlarged to be pooled once more, at level 2: what lies around it.
    """

    channels: Mapping[str, int]
    levels: tuple[int, ...]
    context: float | None = None

    @property
    def block_sizes(self) -> list[int]:
        """Numbers of each layer's parts of a vector: the window's, then what is around it."""
        bins = [count_bins(levels) for levels, _ in self._parts]
        return [count * each for count in self.channels.values() for each in bins]

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return sum(self.block_sizes)

    @property
    def _parts(self) -> list[tuple[tuple[int, ...], float]]:
        """Levels, and by how much windows are enlarged."""
        return [(self.levels, 1.0), *([(_CONTEXT, self.context)] if self.context else [])]

    def compute(self, maps: Sequence[FeatureMaps], boxes: Boxes) -> npt.NDArray[np.float32]:
        """Pool windows, each from the maps of the scale that suits it.

        Parameters
        ----------
        maps : sequence of FeatureMaps
            Of one image, a scale each.
        boxes : ndarray of shape (n, 4)
            Windows in pixels of the image.

        Returns
        -------
        ndarray of float32, shape (n, width)
            Block by block, within each level by level, each channel-major.
        """
        if len(maps) == len(self.block_sizes) == 1:  # without another copy
            return maps[0].pool(boxes, self.levels, *self.channels)
        found = np.empty((len(boxes), self.width), np.float32)
        chosen = choose_scales(maps, boxes)
        for index, at_scale in enumerate(maps):
            rows, start = np.flatnonzero(chosen == index), 0
            for layer, (levels, factor) in itertools.product(self.channels, self._parts):
                stop = start + self.channels[layer] * count_bins(levels)
                if len(rows):
                    windows = enlarge(boxes[rows], factor, at_scale.size)
                    found[rows, start:stop] = at_scale.pool(windows, levels, layer)
                start = stop
        return found

    def score(
        self,
        maps: Sequence[FeatureMaps],
        boxes: Boxes,
        normalizer: PyramidNormalizer,
        svms: Linear,
        regression: Linear,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Compute decision values and box regression of many windows, in bounded memory.

        Parameters
        ----------
        maps, boxes
            As in `compute`.
        normalizer : PyramidNormalizer
            Fitted.
        svms : (ndarray of shape (n_models, width), ndarray of shape (n_models,))
            Weights and biases.
        regression : (ndarray of shape (n_classes, 4, width), ndarray of shape (n_classes, 4))
            Weights and biases; of no class where nothing is regressed.

        Returns
        -------
        ndarray of float32, shape (n, n_models)
            Decision values.
        ndarray of float32, shape (n, n_classes, 4)
            What `decode_boxes` takes.
        """
        coef = np.concatenate([svms[0], regression[0].reshape(-1, self.width)])
        intercept = np.concatenate([svms[1], regression[1].ravel()])
        values = np.empty((len(boxes), len(coef)), np.float32)
        for start in range(0, len(boxes), _CHUNK):
            part = slice(start, start + _CHUNK)
            rows = self.compute(maps, boxes[part])
            if tuple(normalizer.steps) == ("l2",):  # products are divided, not all numbers
                lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
                values[part] = rows @ coef.T / np.maximum(lengths, np.finfo(np.float32).tiny)
            else:
                values[part] = normalizer.transform(rows) @ coef.T
        values += intercept
        scores, changes = np.split(values, [len(svms[0])], axis=1)
        return scores, changes.reshape(len(boxes), len(regression[0]), 4)


def enlarge(boxes: Boxes, factor: float, size: tuple[int, int]) -> Boxes:
    """Enlarge windows around their centres, within an image of a height and width.

    Examples
    --------
    >>> enlarge(np.array([[10.0, 10, 20, 30]]), 2, (35, 100))
    array([[ 5.,  0., 25., 35.]])
    """
    margins = (boxes[:, 2:] - boxes[:, :2]) * (factor - 1) / 2
    low, high = boxes[:, :2] - margins, boxes[:, 2:] + margins
    return np.clip(np.hstack([low, high]), 0, [*size[::-1], *size[::-1]])


def choose_scales(maps: Sequence[FeatureMaps], boxes: Boxes) -> npt.NDArray[np.intp]:
    """Choose for each window the scale at which its area is closest to 224 x 224 pixels."""
    factors = np.array([one.scale / min(one.size) for one in maps])
    scaled = areas(boxes)[:, None] * factors**2
    chosen: npt.NDArray[np.intp] = np.abs(scaled - TRAINED_SIDE**2).argmin(axis=1)
    return chosen
