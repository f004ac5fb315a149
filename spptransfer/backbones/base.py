"""Networks that can be cut after any layer, their batch norms folded, and backbones of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from spptransfer.backbones.info import BackboneInfo, LayerInfo
from spptransfer.pyramid import SpatialPyramidPooling


class Network(nn.Module):
    """A classification network that can be cut after any of its layers.

    The parts that `trunk` and `head` return share their modules with the network, so that
    weights loaded into the network are the parts' weights. A batch normalisation is registered
    right after the convolution that feeds it, which is how `fold_batch_norms` pairs them.
    """

    def trunk(self, layer: str) -> nn.Sequential:
        """Modules from the image to a map layer, activation included."""
        raise NotImplementedError

    def head(self, layer: str) -> nn.Sequential:
        """Modules from the map layer ``"spp"`` to a vector layer, activation included."""
        raise NotImplementedError


def leading(parent: nn.Module, count: int) -> nn.Sequential:
    """Return the first children of a module as a sequence that keeps their names."""
    return nn.Sequential(OrderedDict(islice(parent.named_children(), count)))


def pyramid_head(levels: Sequence[int], modules: Iterable[nn.Module]) -> nn.Sequential:
    """Pool a map with a pyramid and apply the modules; dropout, idle in use, is left out."""
    kept = (module for module in modules if not isinstance(module, nn.Dropout))
    return nn.Sequential(SpatialPyramidPooling(levels), *kept)


def has_numbers(network: nn.Module) -> bool:
    """Tell whether a network's weights can be drawn: on the meta device there are only shapes."""
    # Drawing weights that are not there imports torch's compiler, which takes a second.
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
    """Return the trunk and the head that compute a layer; a map layer has no head."""
    if layer.kind == "map":
        return network.trunk(layer.name), None
    return network.trunk("spp"), network.head(layer.name)


@dataclass(frozen=True)
class Cut:
    """The part of a network that computes some of its layers, each from the one before."""

    trunk: nn.Sequential
    head: nn.Sequential | None
    ends: Mapping[str, tuple[int, int]]


def cut_at(network: Network, layers: Sequence[LayerInfo]) -> Cut:
    """Return the trunk and the head of several layers: each layer's own are prefixes of them."""
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


def fold_batch_norms(network: nn.Module) -> None:
    """Fold batch norms into the convolutions registered right before them, in place.

    The folded parameters are computed in float64 and rounded once; each folded batch norm is
    replaced by an identity. Only the statistics of evaluation are represented, so the network
    cannot be trained any further. Subclasses, which may do more, are left as they are.

    Examples
    --------
    >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> fold_batch_norms(network)
    >>> network[1]
    Identity()
    """
    for parent in list(network.modules()):
        for (_, conv), (name, norm) in pairwise(list(parent.named_children())):
            if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
                _fold(conv, norm)
                setattr(parent, name, nn.Identity())


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    if norm.running_mean is None:
        raise ValueError("a batch norm without running statistics cannot be folded")
    dtype = conv.weight.dtype
    folded = fuse_conv_bn_eval(conv.double().eval(), norm.double().eval()).to(dtype)
    conv.weight, conv.bias = folded.weight, folded.bias


class ConvBackbone(nn.Module):
    """A frozen network of this package up to a layer, or to several.

    Made by `load`: batch norms are folded into the convolutions, no parameter wants a gradient,
    and nothing in it behaves differently in training. It is a `Backbone`.
    """

    channels_last = True

    def __init__(self, info: BackboneInfo, weights_sha256: str, cut: Cut) -> None:
        super().__init__()
        self.info = info
        self.weights_sha256 = weights_sha256
        self.trunk = cut.trunk
        self.head = cut.head
        self._ends = dict(cut.ends)
        self.layers = tuple(sorted(self._ends, key=self._ends.__getitem__))
        self.layer = self.layers[-1]
        self.eval().requires_grad_(False)

    def maps_of(self, images: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        """Compute the maps that some layers are made of, activation included; see `Backbone`.

        What lies beyond the deepest layer is not computed; vector layers have the last map.

        Examples
        --------
        >>> from spptransfer import backbones
        >>> backbone = backbones.load("squeezenet1_1", "random", layer=("fire4", "spp"))
        >>> maps = backbone.maps_of(torch.zeros(1, 3, 65, 97), ("fire4", "spp"))
        >>> {layer: tuple(map.shape[1:]) for layer, map in maps.items()}
        {'fire4': (256, 8, 12), 'spp': (512, 4, 6)}
        """
        return _run(self.trunk, images, {layer: self._ends[layer][0] for layer in layers})

    def vectors_of(
        self, maps: Mapping[str, torch.Tensor], layers: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """Compute vector layers from the last map, in one pass; see `Backbone`."""
        if self.head is None or not layers:
            return {}
        last = maps[layers[0]]  # the same one for all of them
        return _run(self.head, last, {layer: self._ends[layer][1] for layer in layers})

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the deepest layer from N x 3 x H x W images: its maps, or its vectors."""
        maps = self.maps_of(images, [self.layer])
        return (self.vectors_of(maps, [self.layer]) or maps)[self.layer]


def _run(
    modules: nn.Sequential, values: torch.Tensor, ends: Mapping[str, int]
) -> dict[str, torch.Tensor]:
    """Apply modules one after the other and keep what is there after a number of them."""
    # Nothing kept is changed later on: a layer includes its activation, and no module that
    # follows one works in place.
    kept: dict[str, torch.Tensor] = {}
    for count, module in enumerate(islice(modules, max(ends.values())), start=1):
        values = module(values)
        kept |= {name: values for name, end in ends.items() if end == count}
    return {name: kept[name] for name in ends}
