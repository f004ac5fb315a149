"""What is known of a backbone without building it, and what one can do once it is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from spptransfer.errors import ConfigError, suggestion
from spptransfer.images import LONGEST

if TYPE_CHECKING:
    import torch

TIMM = "timm/"  # begins the names of timm's models


@dataclass(frozen=True)
class LayerInfo:
    """A named output of a backbone.

    Parameters
    ----------
    name : str
        Name used in pipeline files.
    kind : {"map", "vector"}
        N x C x h x w for an image of any size, or N x D.
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
        Where the file is fetched from; None if it is shipped inside the package, or on the hub.
    repository : str or None
        Name of its repository on the Hugging Face hub.
    """

    filename: str
    sha256: str
    licence: str
    url: str | None
    repository: str | None = None


@dataclass(frozen=True)
class BackboneInfo:
    """Layers, preprocessing and traits of a backbone.

    Parameters
    ----------
    name : str
        Name used in pipeline files.
    layers : tuple of LayerInfo
        In the order of computation. The last map of a network of this package is listed twice:
        under its own name and as ``"spp"``, the map that the spatial pyramid pools.
    mean, std : tuple of three floats
        What an RGB image in [0, 1] is normalised with, channel by channel.
    min_side : int
        Smallest side of an input for which every map has at least one cell.
    weights : mapping of str to WeightsSource
        Official weights by their name in the catalogue.
    levels : tuple of int
        Pyramid on which the fully connected layers were trained; empty if there are none.
    num_classes : int
        Classes of the classifier that the official weights come with.
    default_scales : tuple of int
        Scales at which features are taken where a user names none.
    grid : int
        What both sides of an input must be multiples of; images are resized to such sides.
    only_side : int or None
        The side of a square input, where the backbone takes no other.
    is_local : bool
        Whether a cell sees a bounded part of the image only, so that strips of an image that
        overlap give the maps of the whole.
    map_numbers : float or None
        Numbers of the largest map inside, for each pixel of the image, where that is not the
        largest of the layers.
    """

    name: str
    layers: tuple[LayerInfo, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    min_side: int
    weights: Mapping[str, WeightsSource] = field(default_factory=dict)
    levels: tuple[int, ...] = ()
    num_classes: int = 1000
    default_scales: tuple[int, ...] = (224,)
    grid: int = 1
    only_side: int | None = None
    is_local: bool = True
    map_numbers: float | None = None

    @property
    def longest(self) -> int:
        """The most that the longer side of an input has, in shorter ones; longer are squashed.

        Where every cell sees the whole image, strips cannot bound the memory.
        """
        return LONGEST if self.is_local else LONGEST // 4

    @property
    def stride(self) -> int:
        """Pixels of the input between neighbouring cells of the last map; 1 without maps."""
        return [1, *(layer.stride for layer in self.layers if layer.stride)][-1]

    @property
    def numbers_per_pixel(self) -> float:
        """Numbers of the largest map, for each pixel of the image; a guess without maps."""
        if self.map_numbers:
            return self.map_numbers
        known = [one.channels / one.stride**2 for one in self.layers if one.stride]
        return max(known, default=16.0)

    def default_levels(self, layers: Sequence[str]) -> tuple[int, ...]:
        """Levels at which maps are pooled where a user names none: fewer of a wide one."""
        maps = [layer.channels for layer in map(self.layer, layers) if layer.kind == "map"]
        return (6, 3, 2, 1) if max(maps, default=0) < 1024 else (3, 2, 1)

    def channels_of(self, layers: Sequence[str]) -> dict[str, int]:
        """Channels of some layers, or the length of a vector, by name."""
        return {name: self.layer(name).channels for name in layers}

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
        for layer in self.layers:
            if layer.name == name:
                return layer
        hint = suggestion(name, [layer.name for layer in self.layers])
        raise ConfigError(f"unknown layer '{name}' of backbone '{self.name}': {hint}")


class Backbone(Protocol):
    """A frozen network that computes named layers: what features are taken from.

    Made by `load` or `from_module`, or a class of one's own with these members, handed over as
    it is or by `register`. It must be a `torch.nn.Module` that evaluates, with parameters that
    want no gradient, since runtimes move it, cast it and copy it; any number of threads call it
    at once.

    Attributes
    ----------
    info : BackboneInfo
        What is known of it.
    weights_sha256 : str
        Identity of its weights: backbones of one name and one identity compute the same.
    layers : tuple of str
        The layers that it computes, in the order of computation.
    """

    info: BackboneInfo
    weights_sha256: str
    layers: tuple[str, ...]

    def maps_of(self, images: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        """Compute some layers from images in one pass.

        Parameters
        ----------
        images : Tensor of shape (N, 3, H, W)
            RGB in [0, 1], normalised with ``info.mean`` and ``info.std``. H and W are at least
            ``info.min_side`` and multiples of ``info.grid``.
        layers : sequence of str
            Some of `layers`.

        Returns
        -------
        dict of str to Tensor
            By layer: N x C x h x w maps; for a vector layer whatever `vectors_of` makes it of.
        """
        ...

    def vectors_of(
        self, maps: Mapping[str, torch.Tensor], layers: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """Compute vector layers from what `maps_of` gave for them.

        Parameters
        ----------
        maps : mapping of str to Tensor
            By layer, as `maps_of` gave it, for these layers at least.
        layers : sequence of str
            Some of `layers`, none of them a map.

        Returns
        -------
        dict of str to Tensor of shape (N, D)
            By layer.
        """
        ...
