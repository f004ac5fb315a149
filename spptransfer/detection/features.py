"""From windows of an image to feature vectors: pooled from its maps, at the scale that fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spptransfer.detection.boxes import Boxes, areas
from spptransfer.extraction.maps import FeatureMaps
from spptransfer.normalization import PyramidNormalizer
from spptransfer.pyramid import count_bins

# The side of a window at which networks were trained, in pixels (He et al., section 4.1).
TRAINED_SIDE = 224
# Windows at a time where features are only looked at: of 16,000 numbers they are 128 MB.
_CHUNK = 2048


@dataclass(frozen=True)
class WindowFeatures:
    """Which features windows have.

    Parameters
    ----------
    channels : mapping of str to int
        The layers, with the channels of each.
    levels : tuple of int
        The pyramid.
    """

    channels: Mapping[str, int]
    levels: tuple[int, ...]

    @property
    def block_sizes(self) -> list[int]:
        """Numbers of each layer's part of a vector."""
        return [count * count_bins(self.levels) for count in self.channels.values()]

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return sum(self.block_sizes)

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
            Layer by layer, within each level by level, each channel-major.
        """
        if len(maps) == len(self.channels) == 1:  # without another copy
            return maps[0].pool(boxes, self.levels, *self.channels)
        found = np.empty((len(boxes), self.width), np.float32)
        chosen = choose_scales(maps, boxes)
        for index, at_scale in enumerate(maps):
            rows, start = np.flatnonzero(chosen == index), 0
            for layer, size in zip(self.channels, self.block_sizes, strict=True):
                if len(rows):
                    pooled = at_scale.pool(boxes[rows], self.levels, layer)
                    found[rows, start : start + size] = pooled
                start += size
        return found

    def score(
        self,
        maps: Sequence[FeatureMaps],
        boxes: Boxes,
        normalizer: PyramidNormalizer,
        coef: npt.NDArray[np.float32],
        intercept: npt.NDArray[np.float32],
    ) -> npt.NDArray[np.float32]:
        """Return the decision values of many windows, n x n_models, in bounded memory."""
        scores = np.empty((len(boxes), len(coef)), np.float32)
        for start in range(0, len(boxes), _CHUNK):
            part = slice(start, start + _CHUNK)
            rows = self.compute(maps, boxes[part])
            if tuple(normalizer.steps) == ("l2",):  # products are divided, not all numbers
                lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
                scores[part] = rows @ coef.T / np.maximum(lengths, np.finfo(np.float32).tiny)
            else:
                scores[part] = normalizer.transform(rows) @ coef.T
        scores += intercept
        return scores


def choose_scales(maps: Sequence[FeatureMaps], boxes: Boxes) -> npt.NDArray[np.intp]:
    """Choose for each window the scale at which its area is closest to 224 x 224 pixels."""
    factors = np.array([one.scale / min(one.size) for one in maps])
    scaled = areas(boxes)[:, None] * factors**2
    chosen: npt.NDArray[np.intp] = np.abs(scaled - TRAINED_SIDE**2).argmin(axis=1)
    return chosen
