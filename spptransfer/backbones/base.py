"""What all networks of this package have in common: they can be cut after any layer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from torch import nn

from spptransfer.backbones.info import LayerInfo
from spptransfer.pyramid import SpatialPyramidPooling


class Network(nn.Module):
    """A classification network that can be cut after any of its layers.

    The parts that `trunk` and `head` return share their modules with the network, so that
    weights loaded into the network are the parts' weights. A batch normalisation is
    registered right after the convolution that feeds it, which is how `folding` pairs them.
    """

    def trunk(self, layer: str) -> nn.Sequential:
        """Modules from the image to a map layer, activation included."""
        raise NotImplementedError

    def head(self, layer: str) -> nn.Sequential:
        """Modules from the map layer ``"spp"`` to a vector layer, activation included."""
        raise NotImplementedError


def leading(parent: nn.Module, count: int) -> nn.Sequential:
    """First children of a module, as a sequence that keeps their names."""
    return nn.Sequential(OrderedDict(islice(parent.named_children(), count)))


def pyramid_head(levels: Sequence[int], modules: Iterable[nn.Module]) -> nn.Sequential:
    """Pool a map with a pyramid and apply the modules; dropout, idle in use, is left out."""
    kept = (module for module in modules if not isinstance(module, nn.Dropout))
    return nn.Sequential(SpatialPyramidPooling(levels), *kept)


def has_numbers(network: nn.Module) -> bool:
    """Whether a network's weights are there to be drawn, and not their shapes alone.

    Drawing weights that are not there imports torch's compiler, which takes a second.
    """
    return not any(parameter.is_meta for parameter in network.parameters())


def initialize(network: nn.Module) -> None:
    """Draw He's normal weights for convolutions and narrow normal ones for linear layers."""
    if not has_numbers(network):
        return
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)


def cut(network: Network, layer: LayerInfo) -> tuple[nn.Sequential, nn.Sequential | None]:
    """Trunk and head that compute a layer; a map layer has no head."""
    if layer.kind == "map":
        return network.trunk(layer.name), None
    return network.trunk("spp"), network.head(layer.name)


@dataclass(frozen=True)
class Cut:
    """The part of a network that computes some of its layers, each from the one before.

    Attributes
    ----------
    trunk : Sequential
        From the image to the deepest map that a layer needs.
    head : Sequential or None
        From the map ``"spp"`` to the deepest vector; None if all layers are maps.
    ends : mapping of str to (int, int)
        By layer, after how many modules of the trunk and of the head it is there.
    """

    trunk: nn.Sequential
    head: nn.Sequential | None
    ends: Mapping[str, tuple[int, int]]


def cut_at(network: Network, layers: Sequence[LayerInfo]) -> Cut:
    """Trunk and head that compute several layers: each layer's own are prefixes of them."""
    parts = {layer.name: cut(network, layer) for layer in layers}
    heads = [head for _, head in parts.values() if head is not None]
    return Cut(
        trunk=max((trunk for trunk, _ in parts.values()), key=len),
        head=max(heads, key=len, default=None),
        ends={
            name: (len(trunk), 0 if head is None else len(head))
            for name, (trunk, head) in parts.items()
        },
    )
