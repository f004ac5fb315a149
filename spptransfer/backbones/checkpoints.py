"""Weights files: read without running what they carry, and fitted to a network key by key."""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from spptransfer.backbones.base import Network, cut
from spptransfer.backbones.info import BackboneInfo, LayerInfo
from spptransfer.errors import WeightsError
from spptransfer.pyramid import check_levels
from spptransfer.text import listed

Tensors = Mapping[str, torch.Tensor]

# A counter that old files lack and that only training uses.
_OPTIONAL = "num_batches_tracked"


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a ``.safetensors`` file, or a ``.pth`` file with a state dict, onto the CPU."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
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
    if not isinstance(state, dict) or not all(_is_named_tensor(*item) for item in state.items()):
        raise WeightsError(f"weights '{path}' are no state dict, a mapping of names to tensors")
    for key, tensor in state.items():
        if not _has_plain_numbers(tensor):
            raise WeightsError(
                f"weights '{path}' cannot be read: {key} is sparse, quantized, complex or "
                "without values"
            )
    return dict(state)


def trained_levels(path: Path, name: str) -> tuple[int, ...] | None:
    """Return the pyramid that a file of `spptransfer pretrain` says it was trained with, if any."""
    if path.suffix != ".safetensors":
        return None
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get("spptransfer", "{}")
    try:
        about = json.loads(text)
        return check_levels(about["levels"]) if about["network"] == name else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _is_named_tensor(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, torch.Tensor)


def _has_plain_numbers(tensor: torch.Tensor) -> bool:
    dense = tensor.layout is torch.strided and not tensor.is_meta
    return dense and not tensor.is_quantized and not tensor.is_complex()


def load_into(
    network: Network, tensors: Tensors, info: BackboneInfo, layer: LayerInfo, origin: str
) -> None:
    """Give a network, on any device, the tensors that a layer needs, in float32."""
    problems = _problems(network, tensors, layer)
    if problems:
        enough = [other.name for other in info.layers if not _problems(network, tensors, other)]
        raise WeightsError(
            f"weights '{origin}' do not fit '{info.name}' up to layer '{layer.name}': "
            f"{'; '.join(problems)}; they suffice for {', '.join(enough) or 'no layer of it'}"
        )
    needed = {key: tensors[key].float() for key in _needed(network, layer)}
    network.load_state_dict(needed, strict=False, assign=True)


def _needed(network: Network, layer: LayerInfo) -> dict[str, torch.Size]:
    """Shapes, by the network's keys, of all tensors that a layer's trunk and head hold."""
    parts = [part for part in cut(network, layer) if part is not None]
    used = {id(tensor) for part in parts for tensor in part.state_dict(keep_vars=True).values()}
    return {
        key: tensor.shape
        for key, tensor in network.state_dict(keep_vars=True).items()
        if id(tensor) in used and not key.endswith(_OPTIONAL)
    }


def _problems(network: Network, tensors: Tensors, layer: LayerInfo) -> list[str]:
    """Say what keeps the tensors from fitting a layer, as phrases of a message."""
    needed = _needed(network, layer)
    known = network.state_dict(keep_vars=True)
    missing = [key for key in needed if key not in tensors]
    # Names beyond the network betray a bigger relative whose first blocks would seem to fit.
    unexpected = [key for key in tensors if key not in known]
    reshaped = [
        f"{key} is {_shape(tensors[key].shape)} instead of {_shape(shape)}"
        for key, shape in needed.items()
        if key in tensors and tensors[key].shape != shape
    ]
    found = (("missing", missing), ("unexpected", unexpected), ("other shapes", reshaped))
    return [f"{what}: {listed(items, 3)}" for what, items in found if items]


def _shape(shape: Iterable[int]) -> str:
    return "x".join(str(side) for side in shape) or "a scalar"


def digest(tensors: Tensors, name: str = "") -> str:
    """Hash named tensors of the CPU: names, types, shapes and values; in hexadecimal."""
    sha256 = hashlib.sha256(name.encode())
    for key, tensor in tensors.items():
        sha256.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        sha256.update(tensor.detach().contiguous().numpy().tobytes())
    return sha256.hexdigest()
