"""Small networks and awkward sizes, for the tests of all runtimes."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn

from spptransfer import backbones
from spptransfer.backbones import ConvBackbone
from spptransfer.runtimes import ComputeOptions
from spptransfer.runtimes.runtime import open_runtime

FAMILIES = [
    "alexnet",
    "resnet50",
    "squeezenet1_0",
    "mobilenet_v2",
    "zf5",
    "convnet-star-5",
    "overfeat-5",
    "spp-mini",
]
PACKAGES = {"openvino": ["openvino"], "onnxruntime": ["onnxruntime", "onnx"]}


def need(runtime: str) -> None:
    """Skip unless a runtime is installed."""
    for package in PACKAGES.get(runtime, []):
        pytest.importorskip(package, reason=f"runtime '{runtime}' is not installed")


def draw_weights(trunk: nn.Sequential) -> None:
    """Weights that keep the size of the numbers from layer to layer."""
    trunk.to_empty(device="cpu").eval().requires_grad_(False)
    torch.manual_seed(0)
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.uniform_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(1.5, 3.0)


@functools.cache
def drawn(name: str) -> ConvBackbone:
    """A trunk with all its map layers and weights that keep the size of the numbers."""
    info = backbones.describe(name)
    with torch.device("meta"):
        network = backbones.network(name)
    maps = [layer.name for layer in info.layers if layer.kind == "map"]
    trunk = network.trunk("spp")
    draw_weights(trunk)
    return ConvBackbone(info, "00", trunk, {name: len(network.trunk(name)) for name in maps})


def opened(runtime: str, backbone, layers=None, precision="float32", **options):
    """The backbone as a runtime computes it on the CPU."""
    options = ComputeOptions("cpu", runtime, **{"threads": 1, **options})
    layers = backbone.layers if layers is None else layers
    return open_runtime(backbone, layers, precision=precision, options=options)


def exact(backbone, pixels: torch.Tensor, layers) -> dict[str, torch.Tensor]:
    """What plain torch makes of them."""
    mean, std = torch.tensor([backbone.info.mean, backbone.info.std])[:, :, None, None]
    images = ((pixels.permute(0, 3, 1, 2) / 255 - mean) / std).contiguous()
    with torch.inference_mode():
        return backbone.maps_of(images, layers)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8))


def awkward_sizes(backbone) -> list[tuple[int, int, int]]:
    """The smallest side, a pixel more, and extreme shapes; batches of one and of three."""
    side = backbone.info.min_side
    return [
        (1, side, side),
        (3, side + 1, side + 1),
        (1, side, 12 * side + 5),
        (1, 9 * side + 1, side + 2),
        (3, side + 6, side + 15),
    ]


def worst_error(network, backbone, sizes, layers=None) -> float:
    """Largest relative l2 distance from torch's maps, of all layers and sizes."""
    layers = backbone.layers if layers is None else layers
    errors = []
    for size in sizes:
        pixels = noise(*size)
        expected, found = exact(backbone, pixels, layers), network.maps(pixels, layers)
        assert list(found) == list(layers)
        for layer in layers:
            assert found[layer].shape == expected[layer].shape
            assert found[layer].dtype in (torch.float32, torch.bfloat16)
            errors.append(relative_error(found[layer], expected[layer]))
    return float(np.max(errors))


def relative_error(found, expected) -> float:
    found, expected = (torch.as_tensor(values).double() for values in (found, expected))
    return float((found - expected).norm() / expected.norm())
