"""A backbone on a device: what every runtime does with bytes, maps, vectors and threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from runtime_cases import drawn, exact, need, noise, opened, relative_error
from torch import nn

from spptransfer import backbones
from spptransfer.runtimes import RUNTIMES, ComputeOptions
from spptransfer.runtimes.devices import limit_threads
from spptransfer.runtimes.runtime import open_runtime

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def there_and_back(runtime, views, layers):
    """Maps of some layers, or vectors, as numpy has them, computed in a pool's thread."""
    kinds = {one.name: one.kind for one in runtime.backbone.info.layers}
    vectors = [layer for layer in layers if kinds[layer] == "vector"]

    def compute():
        with runtime.session():
            maps = runtime.maps(runtime.upload(views), layers)
            found = {**maps, **runtime.vectors(maps, vectors)}
            return runtime.download([{layer: found[layer].float() for layer in layers}])[0]

    with runtime, ThreadPoolExecutor(1, initializer=limit_threads) as pool:
        return pool.submit(compute).result()


def layout(backbone):
    return {key: (t.data_ptr(), t.dtype, t.stride()) for key, t in backbone.state_dict().items()}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", RUNTIMES)
def test_maps_and_vectors_come_home_and_the_backbone_stays_as_it_is(name, precision):
    need(name)
    if (name, precision) == ("onnxruntime", "bfloat16"):
        pytest.skip("not offered")
    backbone = backbones.load("spp-mini", "embedded", layer=["conv3", "fc6", "fc7"])
    pixels, before = noise(2, 66, 90), layout(backbone)
    runtime = opened(name, backbone, precision=precision)
    found = there_and_back(runtime, pixels.numpy(), ["conv3", "fc6", "fc7"])
    expected = exact(backbone, pixels, ["conv3", "fc6", "fc7"])
    expected |= backbone.vectors_of(expected, ["fc6", "fc7"])
    assert (layout(backbone), runtime.backbone) == (before, backbone)
    assert list(found) == list(expected)
    for layer, values in found.items():
        assert isinstance(values, np.ndarray)
        assert relative_error(values, expected[layer]) < (1e-5 if precision == "float32" else 3e-2)


class _Flattens(nn.Module):
    """Calls `view` on maps, as many networks of users do: channels-last is not for it."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveMaxPool2d(2))
        self.last = nn.Linear(32, 5)

    def forward(self, images):
        maps = self.features(images)
        return self.last(maps.view(len(images), -1))


@pytest.mark.parametrize("name", ["torch", "auto"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_users_module_is_computed_whatever_it_is_made_of(name, precision):
    torch.manual_seed(0)
    backbone = backbones.from_module(
        _Flattens(), ["features.0", "output"], mean=[0.4] * 3, std=[0.2] * 3
    )
    runtime = opened(name, backbone, precision=precision)
    pixels = noise(3, 40, 50)
    found = there_and_back(runtime, pixels.numpy(), ["features.0", "output"])
    expected = exact(backbone, pixels, ["features.0", "output"])
    assert runtime.name == "torch"
    for layer, values in found.items():
        assert relative_error(values, expected[layer]) < (1e-5 if precision == "float32" else 3e-2)


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["alexnet", "resnet18", "squeezenet1_1"])
def test_a_gpu_gives_what_the_cpu_gives(name, precision):
    backbone = backbones.load(name, "random:1")
    pixels = noise(3, 97, 131)
    options = ComputeOptions("cuda", threads=4)
    runtime = open_runtime(backbone, ["spp"], precision=precision, options=options)
    assert (runtime.name, runtime.device, runtime.part_rows) == ("torch", "cuda:0", 256)
    assert (runtime.workers, runtime.computers) == (4, 2)
    tf32 = torch.backends.cudnn.allow_tf32
    found = there_and_back(runtime, pixels.numpy(), ["spp"])["spp"]
    assert torch.backends.cudnn.allow_tf32 == tf32
    tolerance = 1e-4 if precision == "float32" else 5e-2
    assert relative_error(found, exact(backbone, pixels, ["spp"])["spp"]) < tolerance


@pytest.mark.gpu
@GPU
def test_threads_that_share_a_gpu_get_their_own_numbers():
    backbone = drawn("resnet18")
    options = ComputeOptions("cuda", threads=4)
    runtime = open_runtime(backbone, ["spp"], precision="float32", options=options)
    given = [noise(2, 64 + i % 7, 96, seed=i) for i in range(24)]

    def compute(pixels):
        with runtime.session():
            maps = runtime.maps(runtime.upload(pixels.numpy()), ["spp"])
            return runtime.download([maps])[0]["spp"]

    with runtime, ThreadPoolExecutor(4, initializer=limit_threads) as pool:
        found = list(pool.map(compute, given))
    for pixels, values in zip(given, found, strict=True):
        assert relative_error(values, exact(backbone, pixels, ["spp"])["spp"]) < 1e-4


@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="there is no MPS device")
def test_mps_gives_what_the_cpu_gives():
    backbone, pixels = drawn("resnet18"), noise(2, 64, 96)
    options = ComputeOptions("mps")
    runtime = open_runtime(backbone, ["spp"], precision="float32", options=options)
    found = there_and_back(runtime, pixels.numpy(), ["spp"])["spp"]
    assert relative_error(found, exact(backbone, pixels, ["spp"])["spp"]) < 1e-3
