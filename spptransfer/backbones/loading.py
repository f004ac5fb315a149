"""Backbones of this package: networks with weights that are read safely, cut, frozen and folded."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import pickle
import warnings
from collections.abc import Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file as load_safetensors
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from spptransfer.backbones.catalogue import describe_network
from spptransfer.backbones.info import BackboneInfo, LayerInfo
from spptransfer.backbones.networks import Network, network
from spptransfer.errors import WeightsError
from spptransfer.pyramid import check_levels
from spptransfer.text import listed

logger = logging.getLogger(__name__)


@torch.no_grad()
def fold_batch_norms(network: nn.Module) -> None:
    """Fold batch norms into the convolutions registered right before them, in place.

    The folded parameters are computed in float64 and rounded once; each folded batch norm is
    replaced by an identity, so that the network cannot be trained any further. Subclasses, which
    may do more, are left as they are.
    """
    for parent in list(network.modules()):
        for (_, conv), (name, norm) in pairwise(list(parent.named_children())):
            if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
                if norm.running_mean is None:
                    raise ValueError("a batch norm without running statistics cannot be folded")
                dtype = conv.weight.dtype
                folded = fuse_conv_bn_eval(conv.double().eval(), norm.double().eval()).to(dtype)
                conv.weight, conv.bias = folded.weight, folded.bias
                setattr(parent, name, nn.Identity())


class ConvBackbone(nn.Module):
    """A frozen network of this package up to a layer, or to several; a `Backbone`.

    Batch norms are folded into the convolutions, no parameter wants a gradient, and nothing in it
    behaves differently in training. `ends` says, by layer and in the order of computation, how many
    modules of trunk and head make it.
    """

    channels_last = True

    def __init__(
        self,
        info: BackboneInfo,
        weights_sha256: str,
        trunk: nn.Sequential,
        ends: Mapping[str, int],
        head: nn.Sequential | None = None,
    ) -> None:
        super().__init__()
        fold_batch_norms(trunk)
        self.info = info
        self.weights_sha256 = weights_sha256
        self.trunk = trunk
        self.head = head or None
        self._ends = dict(ends)
        self.layers = tuple(ends)
        self.layer = self.layers[-1]
        self.eval().requires_grad_(False)

    def maps_of(self, images: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        """Compute the maps that some layers are made of, activation included; see `Backbone`.

        What lies beyond the deepest layer is not computed; vector layers have the last map.
        """
        last = len(self.trunk)
        return _run(self.trunk, images, {layer: min(self._ends[layer], last) for layer in layers})

    def vectors_of(
        self, maps: Mapping[str, torch.Tensor], layers: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """Compute vector layers from the last map, in one pass; see `Backbone`."""
        if not layers or self.head is None:
            return {}
        ends = {layer: self._ends[layer] - len(self.trunk) for layer in layers}
        return _run(self.head, maps[layers[0]], ends)  # the same map for all of them

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the deepest layer from N x 3 x H x W images: its maps, or its vectors."""
        found = self.maps_of(images, [self.layer])
        return (self.vectors_of(found, [self.layer]) if self.head else found)[self.layer]


def _run(
    modules: nn.Sequential, values: torch.Tensor, ends: Mapping[str, int]
) -> dict[str, torch.Tensor]:
    """Apply modules one after the other and keep what is there after a number of them."""
    # Nothing kept is changed later on: a layer includes its activation, and no module that
    # follows one works in place.
    kept: dict[str, torch.Tensor] = {}
    for count, module in enumerate(islice(modules, max(ends.values())), start=1):
        values = module(values)
        for name, end in ends.items():
            if end == count:
                kept[name] = values
    return {name: kept[name] for name in ends}


def cut_at(
    network: Network, info: BackboneInfo, layers: Sequence[LayerInfo], weights_sha256: str
) -> ConvBackbone:
    """Cut a network at some layers: each layer's modules are the first ones of the deepest's."""
    ends = {}
    for layer in sorted(layers, key=info.layers.index):
        trunk, head = network.trunk(layer.name), network.head(layer.name)
        ends[layer.name] = len(trunk) + len(head)
    return ConvBackbone(info, weights_sha256, trunk, ends, head)


def random_network(name: str, seed: int) -> tuple[Network, str]:
    """Build a network from a seed; return it with the SHA-256 of its tensors."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        built = network(name, num_classes=describe_network(name).num_classes)
    return built, digest(built.state_dict())


def load_random(info: BackboneInfo, layers: Sequence[LayerInfo], seed: int) -> ConvBackbone:
    """Cut a network with weights from a seed at some layers."""
    built, sha256 = random_network(info.name, seed)
    return cut_at(built, info, layers, sha256)


def sketch(info: BackboneInfo, layer: str) -> ConvBackbone:
    """Cut a network at a layer that has shapes and no numbers."""
    with torch.device("meta"):
        return cut_at(network(info.name), info, [info.layer(layer)], "")


def load_file(
    info: BackboneInfo, layers: Sequence[LayerInfo], path: Path, sha256: str
) -> ConvBackbone:
    """Cut a network with the weights of a file at some layers."""
    tensors, built = read_tensors(path), _shaped_as(info, path)
    deepest = max(layers, key=info.layers.index)  # what it needs, all of them need together
    load_into(built, tensors, info, deepest, origin=str(path))
    logger.info("loaded '%s' up to layer '%s' from '%s'", info.name, deepest.name, path)
    return cut_at(built, info, layers, sha256)


def _shaped_as(info: BackboneInfo, path: Path) -> Network:
    """Build a network, without weights, with the pyramid that a file says it was trained with."""
    levels = None
    if path.suffix == ".safetensors":
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("spptransfer", "{}")
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
            about = json.loads(text)
            if about["network"] == info.name and check_levels(about["levels"]) != info.levels:
                levels = tuple(about["levels"])
    with torch.device("meta"):
        return network(info.name, num_classes=info.num_classes, levels=levels)


def layers_fitting(info: BackboneInfo, path: Path) -> tuple[str, ...]:
    """List the layers of a network that the weights of a file suffice for; at least one."""
    tensors, built = read_tensors(path), _shaped_as(info, path)
    fitting = [layer.name for layer in info.layers if not _problems(built, tensors, layer)]
    if not fitting:
        load_into(built, tensors, info, info.layers[-1], origin=str(path))  # says why
    return tuple(fitting)


def load_into(
    network: Network,
    tensors: Mapping[str, torch.Tensor],
    info: BackboneInfo,
    layer: LayerInfo | None,
    origin: str,
) -> None:
    """Give a network the tensors that a layer needs, or with None all of them, in float32."""
    problems = _problems(network, tensors, layer)
    if problems:
        enough = [other.name for other in info.layers if not _problems(network, tensors, other)]
        up_to = f" up to layer '{layer.name}'" if layer else ""
        raise WeightsError(
            f"weights '{origin}' do not fit '{info.name}'{up_to}: "
            f"{'; '.join(problems)}; they suffice for {', '.join(enough) or 'no layer of it'}"
        )
    needed = {key: tensors[key].float() for key in _shapes(network, layer)}
    network.load_state_dict(needed, strict=False, assign=True)


def _shapes(network: Network, layer: LayerInfo | None) -> dict[str, torch.Size]:
    """Shapes of the tensors that a layer, or the whole network, is computed with."""
    tensors = {} if layer else network.state_dict()
    for step in network.steps(layer.name) if layer else ():
        tensors |= network.get_submodule(step).state_dict(prefix=f"{step}.")
    # Old files lack the counter, which only training uses.
    return {k: t.shape for k, t in tensors.items() if not k.endswith("num_batches_tracked")}


def _problems(
    network: Network, tensors: Mapping[str, torch.Tensor], layer: LayerInfo | None
) -> list[str]:
    """Say what keeps the tensors from fitting a layer, as phrases of a message."""
    needed, known = _shapes(network, layer), network.state_dict()
    # Names beyond the network betray a bigger relative whose first blocks would seem to fit.
    found: dict[str, list[str]] = {
        "missing": [],
        "unexpected": [key for key in tensors if key not in known],
        "other shapes": [],
    }
    for key, shape in needed.items():
        if key not in tensors:
            found["missing"].append(key)
        elif tensors[key].shape != shape:
            sides = ["x".join(map(str, at)) or "a scalar" for at in (tensors[key].shape, shape)]
            found["other shapes"].append(f"{key} is {sides[0]} instead of {sides[1]}")
    return [f"{what}: {listed(items, 3)}" for what, items in found.items() if items]


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a ``.safetensors`` file, or a ``.pth`` file with a state dict, onto the CPU."""
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(path)
        with warnings.catch_warnings():
            # Such a file is read all the same, or refused by ourselves.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"weights '{path}' are damaged or hold more than tensors, which is refused because "
            "reading it could run code; save a plain state dict"
        ) from error
    except Exception as error:  # The parsers of foreign bytes raise whatever they stumble upon.
        reason = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0].rstrip(".")
        raise WeightsError(f"weights '{path}' cannot be read: {reason}") from error
    for key, tensor in state.items() if isinstance(state, dict) else [(None, None)]:
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            raise WeightsError(f"weights '{path}' are no state dict, a mapping of names to tensors")
        dense = tensor.layout is torch.strided and not tensor.is_meta
        if not dense or tensor.is_quantized or tensor.is_complex():
            raise WeightsError(
                f"weights '{path}' cannot be read: {key} is sparse, quantized, complex or "
                "without values"
            )
    return dict(state)


def digest(tensors: Mapping[str, torch.Tensor], name: str = "") -> str:
    """Hash named tensors of the CPU: names, types, shapes and values; in hexadecimal."""
    sha256 = hashlib.sha256(name.encode())
    for key, tensor in tensors.items():
        sha256.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        sha256.update(tensor.detach().contiguous().numpy().tobytes())
    return sha256.hexdigest()
