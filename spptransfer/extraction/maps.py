"""Feature maps of one image, from which any window in it can be pooled."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from spptransfer.backbones import Backbone
from spptransfer.backbones.fields import Centres, receptive_centres
from spptransfer.errors import ConfigError, ImageError, suggestion
from spptransfer.extraction.reading import decode_views, read_header
from spptransfer.images import Rendering
from spptransfer.pyramid.windows import cells_of_boxes, centres, pool_windows
from spptransfer.runtimes import ComputeOptions
from spptransfer.runtimes.runtime import open_runtime

Pair = tuple[float, float]


@dataclass(frozen=True, eq=False)
class FeatureMaps:
    """The maps of one image at one scale.

    Attributes
    ----------
    maps : mapping of str to Tensor of shape (C, h, w)
        By layer, of float32.
    stride, offset : mapping of str to (float, float)
        Along rows and columns, in pixels of the image as it is, not resized: from one cell's
        centre to the next, and of the first from the edge. Centres are those of receptive fields,
        or share the image evenly where fields have none that is known, or one outside the image.
    size : (int, int)
        Height and width of the image, in pixels.
    scale : int
        Length of the smaller side that the network saw, in pixels.
    """

    maps: Mapping[str, torch.Tensor]
    stride: Mapping[str, Pair]
    offset: Mapping[str, Pair]
    size: tuple[int, int]
    scale: int

    def pool(
        self,
        boxes: npt.ArrayLike,
        levels: Sequence[int] = (6, 3, 2, 1),
        layer: str | None = None,
    ) -> npt.NDArray[np.float32]:
        """Max-pool windows of the image by a pyramid.

        Parameters
        ----------
        boxes : array-like of shape (n_windows, 4)
            ``x0, y0, x1, y1`` in pixels of the image; ``0, 0, width, height`` is all of it.
        levels : sequence of int, default=(6, 3, 2, 1)
            The pyramid.
        layer : str, optional
            Which of the maps, if there are several.

        Returns
        -------
        ndarray of float32, shape (n_windows, C * bins)
            Level by level in the order given, each channel-major. A window has the cells whose
            centres lie in it, at least one; the window that covers the image has all of them,
            and its features are those of the image.

        Raises
        ------
        ConfigError
            If a box has no extent, the levels are not valid, or the layer is not there.
        """
        name = str(layer) if layer is not None or len(self.maps) > 1 else next(iter(self.maps))
        if name not in self.maps:
            raise ConfigError(f"layer: {layer!r}; {suggestion(name, self.maps)}")
        map = self.maps[name]
        cells = (map.shape[1], map.shape[2])
        windows = cells_of_boxes(boxes, cells, self.stride[name], self.offset[name])
        pooled: npt.NDArray[np.float32] = pool_windows(map, windows, levels).numpy()
        return pooled


class MapExtractor:
    """Compute the maps of many images by one backbone, which is made ready once.

    A context manager; while it is open, any number of threads may ask for maps.

    Parameters
    ----------
    backbone : Backbone
        Such as `backbones.load` or `backbones.from_module` gives it.
    layers : sequence of str
        Map layers that the backbone was loaded for.
    scales : sequence of int
        Lengths of the smaller side that the network sees, in pixels.
    precision : {"float32", "bfloat16", "float16"}, default="float32"
        Arithmetic of the backbone.
    options : ComputeOptions, optional
        Where and by what to compute.

    Raises
    ------
    ConfigError
        If a layer is not a map, or was not loaded, or a scale is too small for it.
    """

    def __init__(
        self,
        backbone: Backbone,
        layers: Sequence[str],
        scales: Sequence[int],
        *,
        precision: str = "float32",
        options: ComputeOptions = ComputeOptions(),
    ) -> None:
        info = backbone.info
        for name in layers:
            if info.layer(name).kind != "map":
                raise ConfigError(f"layer '{name}' is a vector, which has no windows")
        for scale in scales:
            if scale < info.min_side:
                raise ConfigError(
                    f"scale: {scale} is too small for '{info.name}'; "
                    f"at least {info.min_side} pixels"
                )
        self.layers = tuple(layers)
        self._renderings = [Rendering(scale, "full", info.grid, info.longest) for scale in scales]
        self._centres = receptive_centres(backbone, layers)
        self._runtime = open_runtime(backbone, layers, precision=precision, options=options)
        self.workers = self._runtime.workers

    def __enter__(self) -> MapExtractor:
        self._runtime.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._runtime.__exit__(*error)

    def maps_of(self, image: str | os.PathLike[str] | npt.NDArray[np.uint8]) -> list[FeatureMaps]:
        """Compute the maps of an image, at each scale in turn.

        Parameters
        ----------
        image : path-like or ndarray of uint8
            A file, or an array of shape (H, W), (H, W, 3) or (H, W, 4).

        Returns
        -------
        list of FeatureMaps
            In the order of the scales.

        Raises
        ------
        ImageError
            If the image cannot be read.
        """
        source = image if isinstance(image, np.ndarray) else Path(image)
        info = read_header(source)
        views = info.error or decode_views(source, info, self._renderings)
        if isinstance(views, str):
            raise ImageError(views if isinstance(source, np.ndarray) else f"'{source}': {views}")
        found = []
        with self._runtime.session():
            for rendering in self._renderings:
                pixels = self._runtime.upload(views[rendering][None])
                maps = self._runtime.maps(pixels, self.layers)
                maps = {name: maps[name].float() for name in self.layers}
                arrays = self._runtime.download([maps])[0]
                size, seen = (info.height, info.width), views[rendering].shape[:2]
                found.append(_feature_maps(arrays, size, seen, rendering.scale, self._centres))
        return found


def _feature_maps(
    arrays: Mapping[str, npt.NDArray[np.float32]],
    size: tuple[int, int],
    seen: tuple[int, ...],
    scale: int,
    measured: Mapping[str, Centres],
) -> FeatureMaps:
    places = {
        name: [
            _place(side, pixels, cells, measured.get(name))
            for side, pixels, cells in zip(size, seen, map.shape[2:], strict=True)
        ]
        for name, map in arrays.items()
    }
    return FeatureMaps(
        {name: torch.from_numpy(map[0]) for name, map in arrays.items()},
        {name: (rows[0], columns[0]) for name, (rows, columns) in places.items()},
        {name: (rows[1], columns[1]) for name, (rows, columns) in places.items()},
        size,
        scale,
    )


def _place(side: int, pixels: int, cells: int, measured: Centres | None) -> Pair:
    """Return stride and offset along a side of the image, of which the network saw some pixels."""
    if measured is not None:
        stride, offset = measured
        if offset >= 0 and offset + (cells - 1) * stride < pixels:  # all lie in the image
            return stride * side / pixels, offset * side / pixels
    return centres(side, cells)


def feature_maps(
    image: str | os.PathLike[str] | npt.NDArray[np.uint8],
    backbone: Backbone,
    layers: str | Sequence[str] = "spp",
    scale: int = 224,
    *,
    options: ComputeOptions = ComputeOptions(runtime="torch"),
) -> FeatureMaps:
    """Compute the maps of a whole image.

    Parameters
    ----------
    image : path-like or ndarray of uint8
        A file, or an array of shape (H, W), (H, W, 3) or (H, W, 4).
    backbone : Backbone
        Such as `backbones.load` or `backbones.from_module` gives it.
    layers : str or sequence of str, default="spp"
        Map layers that the backbone was loaded for.
    scale : int, default=224
        Length of the smaller side that the network sees, in pixels.
    options : ComputeOptions, optional
        Where and by what to compute, by default by torch on the CPU or a GPU that is there.

    Returns
    -------
    FeatureMaps

    Raises
    ------
    ImageError
        If the image cannot be read.
    ConfigError
        If a layer is not a map, or was not loaded, or the scale is too small for it.

    Examples
    --------
    >>> from spptransfer import backbones
    >>> backbone = backbones.load("squeezenet1_1", "random")
    >>> found = feature_maps(np.zeros((80, 120, 3), np.uint8), backbone, scale=64)
    >>> found.maps["spp"].shape, found.pool([[0, 0, 120, 80], [20, 10, 60, 50]], [2, 1]).shape
    (torch.Size([512, 3, 5]), (2, 2560))
    """
    names = (layers,) if isinstance(layers, str) else tuple(layers)
    with MapExtractor(backbone, names, [scale], options=options) as extractor:
        return extractor.maps_of(image)[0]
