"""From images to class probabilities, averaged over the views of a scheme."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from spptransfer import images
from spptransfer.errors import ConfigError, ImageError
from spptransfer.pretraining.evaluation_network import NetworkClassifier
from spptransfer.pretraining.source import RGBImage
from spptransfer.pretraining.views import (
    ScaleViews,
    Scheme,
    first_cell,
    mirrored,
    window_corners,
)
from spptransfer.runtimes import ComputeOptions
from spptransfer.runtimes.runtime import open_runtime

# A longer view would need gigabytes for its first maps.
MOST_VIEW_PIXELS = 1 << 24


class ViewAverager:
    """Average a network's class probabilities over views of images.

    Maps are computed by a runtime in some precision, float32 or bfloat16; pooling and fully
    connected layers are torch's, and probabilities are averaged in float32.

    Notes
    -----
    The trunk sees every image once per scale, and its mirror image once more; all views on the
    maps are pooled from those, and the fully connected layers see the views of all scales
    together. Views that coincide are computed once and counted as often as they occur.

    Examples
    --------
    >>> from spptransfer.pretraining.evaluation_network import load_classifier
    >>> from spptransfer.pretraining.views import make_scheme
    >>> averager = ViewAverager(load_classifier("spp-mini", "embedded"))
    >>> scheme = make_scheme("96-maps", size=64, scales=[64, 80])
    >>> image = np.zeros((80, 100, 3), dtype=np.uint8)
    >>> averager.probabilities(render_scales([image], scheme), scheme).shape
    (1, 200)
    """

    def __init__(
        self,
        classifier: NetworkClassifier,
        *,
        precision: str = "float32",
        options: ComputeOptions = ComputeOptions(),
    ) -> None:
        self.classifier = classifier
        self.runtime = open_runtime(
            classifier.backbone(), ["spp"], precision=precision, options=options
        )
        self._dtype: torch.dtype = getattr(torch, precision)
        head = copy.deepcopy(nn.ModuleList([classifier.pool, classifier.score]))
        self._pool, self._score = head.to(self.runtime.device, self._dtype)

    def probabilities(self, views: Sequence[RGBImage], scheme: Scheme) -> npt.NDArray[np.float32]:
        """Average the softmax of the class scores over the views: float32 (N, n_classes).

        `views` are the images of a batch at every scale of the scheme; see `render_scales`.
        """
        rows, weights = [], []
        with self.runtime.session():
            for pixels, at in zip(views, scheme.scales, strict=True):
                for row, weight in self._rows(self.runtime.upload(pixels), at, scheme):
                    rows.append(row)
                    weights.append(weight)
            scores = self._score(torch.cat(rows)).float()
            chances = scores.softmax(dim=1).reshape(len(rows), -1, scores.shape[1])
            shares = torch.tensor(weights, device=chances.device, dtype=chances.dtype)
            means = torch.einsum("v,vnk->nk", shares / scheme.views, chances)
            return self.runtime.download([{"means": means}])[0]["means"]

    def _rows(
        self, pixels: torch.Tensor, at: ScaleViews, scheme: Scheme
    ) -> Iterator[tuple[torch.Tensor, int]]:
        """Yield the pyramid's row of each different view, and how often it occurs."""
        size, (height, width) = scheme.size, pixels.shape[1:3]
        for flipped in (False, True) if at.flip else (False,):
            seen = pixels.flip(2) if flipped else pixels
            if at.places == "full":
                yield self._pool(self._maps(seen)), 1
                continue
            corners = window_corners(height, width, size, at.places)
            corners = mirrored(corners, width, size) if flipped else corners
            yield from (self._on_maps if scheme.on_maps else self._on_crops)(seen, corners, size)

    def _on_crops(
        self, pixels: torch.Tensor, corners: Sequence[tuple[int, int]], size: int
    ) -> Iterator[tuple[torch.Tensor, int]]:
        for (top, left), times in Counter(corners).items():
            crop = pixels[:, top : top + size, left : left + size]
            yield self._pool(self._maps(crop)), times

    def _on_maps(
        self, pixels: torch.Tensor, corners: Sequence[tuple[int, int]], size: int
    ) -> Iterator[tuple[torch.Tensor, int]]:
        maps = self._maps(pixels)
        cells, stride = self.classifier.cells(size), self.classifier.stride
        height, width = maps.shape[2:]
        regions = Counter(
            (first_cell(top, stride, cells, height), first_cell(left, stride, cells, width))
            for top, left in corners
        )
        for (row, column), times in regions.items():
            region = maps[:, :, row : row + cells, column : column + cells]
            yield self._pool(region), times

    def _maps(self, pixels: torch.Tensor) -> torch.Tensor:
        """Compute the maps of N x H x W x 3 bytes in the head's precision."""
        return self.runtime.maps(pixels.contiguous(), ["spp"])["spp"].to(self._dtype)


def check_scheme(scheme: Scheme, classifier: NetworkClassifier) -> None:
    """Refuse windows or images that the network's map has no cell for, by a `ConfigError`."""
    least = classifier.info.min_side
    whole = [at.scale for at in scheme.scales if at.places == "full"]
    windows = [scheme.size] if len(whole) < len(scheme.scales) else []
    for key, side in [*(("resize", s) for s in whole), *(("size", s) for s in windows)]:
        if side < least:
            raise ConfigError(
                f"{key}: {side} pixels are too few for {classifier.info.name}; at least {least}"
            )


def scheme_sizes(height: int, width: int, scheme: Scheme) -> tuple[tuple[int, int], ...]:
    """Return height and width of an image at every scale of a scheme.

    An `ImageError` if it is so elongated that a view would have more than `MOST_VIEW_PIXELS`.

    Examples
    --------
    >>> from spptransfer.pretraining.views import make_scheme
    >>> scheme_sizes(375, 500, make_scheme("10-maps"))
    ((256, 341),)
    """
    sizes = tuple(images.view_size(height, width, at.scale) for at in scheme.scales)
    for tall, wide in sizes:
        if tall * wide > MOST_VIEW_PIXELS:
            raise ImageError(
                f"{height} x {width} pixels become {tall} x {wide}; "
                f"at most {MOST_VIEW_PIXELS:,} pixels are evaluated"
            )
    return sizes


def render_scales(originals: Sequence[RGBImage], scheme: Scheme) -> list[RGBImage]:
    """Resize images, whose views have one size at every scale, to every scale of a scheme.

    Returns one array of uint8 (N, height, width, 3) per scale.

    Examples
    --------
    >>> from spptransfer.pretraining.views import make_scheme
    >>> image = np.zeros((375, 500, 3), dtype=np.uint8)
    >>> [views.shape for views in render_scales([image, image], make_scheme("full"))]
    [(2, 256, 341, 3)]
    """
    opened = [images.from_array(original) for original in originals]
    return [np.stack([images.render(image, at.scale) for image in opened]) for at in scheme.scales]
