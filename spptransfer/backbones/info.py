"""What is known of a backbone without building it: layers, preprocessing, official weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from spptransfer.errors import ConfigError, suggestion


@dataclass(frozen=True)
class LayerInfo:
    """A layer that features can be taken from.

    Parameters
    ----------
    name : str
        Name used in pipeline files.
    kind : {"map", "vector"}
        A feature map of any size, or a vector of a fixed length.
    channels : int
        Channels of the map, or length of the vector.
    stride : int or None
        Pixels of the input between neighbouring cells of the map; None for a vector.
    """

    name: str
    kind: Literal["map", "vector"]
    channels: int
    stride: int | None


@dataclass(frozen=True)
class WeightsSource:
    """A file of official weights and how to recognise it.

    Parameters
    ----------
    filename : str
        Name under which the file is kept.
    sha256 : str
        SHA-256 of the file in hexadecimal, or the first digits of it.
    licence : str
        SPDX identifier of the weights' licence.
    url : str or None
        Where the file is fetched from; None if it is shipped inside the package.
    """

    filename: str
    sha256: str
    licence: str
    url: str | None


@dataclass(frozen=True)
class BackboneInfo:
    """One backbone of the catalogue.

    Parameters
    ----------
    name : str
        Name used in pipeline files.
    family : str
        Module of this package that builds the network.
    layers : tuple of LayerInfo
        In the order of computation. The last map is listed twice: under its own name and as
        ``"spp"``, the map that the spatial pyramid pools.
    weights : mapping of str to WeightsSource
        Official weights by their name in the catalogue.
    mean, std : tuple of three floats
        What an RGB image in [0, 1] is normalised with, channel by channel.
    min_side : int
        Smallest side of an input for which every map has at least one cell.
    levels : tuple of int
        Pyramid on which the fully connected layers were trained; empty if there are none.
    num_classes : int
        Classes of the classifier that the official weights come with.

    Examples
    --------
    >>> from spptransfer import backbones
    >>> info = backbones.describe("vgg16")
    >>> info.layer("conv5_3")
    LayerInfo(name='conv5_3', kind='map', channels=512, stride=16)
    >>> info.min_side, info.levels, info.numbers_per_pixel
    (16, (7,), 64.0)
    """

    name: str
    family: str
    layers: tuple[LayerInfo, ...]
    weights: Mapping[str, WeightsSource]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    min_side: int
    levels: tuple[int, ...] = ()
    num_classes: int = 1000

    @property
    def numbers_per_pixel(self) -> float:
        """Numbers of the largest of the layers' maps, for each pixel of the image."""
        return max(one.channels / one.stride**2 for one in self.layers if one.stride)

    def layer(self, name: str) -> LayerInfo:
        """Look a layer up by its name.

        Parameters
        ----------
        name : str
            One of the names in ``layers``.

        Returns
        -------
        LayerInfo

        Raises
        ------
        ConfigError
            If the backbone has no such layer.
        """
        by_name = {layer.name: layer for layer in self.layers}
        try:
            return by_name[name]
        except (KeyError, TypeError):
            hint = suggestion(name, by_name)
            raise ConfigError(f"unknown layer '{name}' of backbone '{self.name}': {hint}") from None
