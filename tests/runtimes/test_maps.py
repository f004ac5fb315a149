"""What holds of the maps of every runtime besides torch."""

from __future__ import annotations

import dataclasses
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from runtime_cases import (
    FAMILIES,
    PACKAGES,
    awkward_sizes,
    drawn,
    exact,
    need,
    noise,
    opened,
    relative_error,
    worst_error,
)
from torch import nn

from spptransfer.backbones import ConvBackbone
from spptransfer.errors import ConfigError


@pytest.fixture(params=list(PACKAGES))
def runtime(request) -> str:
    """Every runtime besides torch that is installed."""
    need(request.param)
    return request.param


def own(*modules: nn.Module) -> ConvBackbone:
    """A backbone of any modules."""
    info = dataclasses.replace(drawn("spp-mini").info, name="own", min_side=16)
    torch.manual_seed(1)
    return ConvBackbone(info, "00", nn.Sequential(*modules), {"spp": len(modules)})


@pytest.mark.parametrize("name", FAMILIES)
def test_all_layers_of_a_family_are_torchs_at_awkward_sizes(runtime, name):
    backbone = drawn(name)
    assert worst_error(opened(runtime, backbone), backbone, awkward_sizes(backbone)) < 1e-5


def test_any_layers_can_be_asked_for_in_any_order(runtime):
    backbone = drawn("resnet18")
    network = opened(runtime, backbone, ["layer2", "spp"])
    for layers in (["spp", "layer2"], ["conv1"], ["layer3", "conv1", "spp", "layer4"]):
        assert worst_error(network, backbone, [(2, 45, 70)], layers) < 1e-5


def test_several_threads_get_the_maps_of_their_own_pixels(runtime):
    backbone = drawn("spp-mini")
    network = opened(runtime, backbone, ["conv2", "spp"], threads=3)
    given = [noise(1 + i % 3, 64 + i % 5, 70 + i % 4, seed=i) for i in range(40)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda pixels: network.maps(pixels, ["conv2", "spp"]), given))
    # All are looked at only now: nobody's numbers have been written over.
    for pixels, maps in zip(given, found, strict=True):
        expected = exact(backbone, pixels, ["conv2", "spp"])
        assert all(relative_error(maps[name], expected[name]) < 1e-5 for name in expected)


def test_pixels_and_weights_may_lie_in_memory_in_any_way(runtime):
    backbone = own(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2)).to(
        memory_format=torch.channels_last
    )
    network, pixels = opened(runtime, backbone, ["spp"]), noise(2, 64, 90)
    for turned in (pixels.flip(2), pixels.narrow(2, 10, 70), pixels.transpose(1, 2)):
        expected = exact(backbone, turned, ["spp"])["spp"]
        assert relative_error(network.maps(turned, ["spp"])["spp"], expected) < 1e-5


def test_what_becomes_of_the_backbone_does_not_matter(runtime):
    backbone = own(nn.Conv2d(3, 8, 3, bias=True), nn.ReLU())
    pixels = noise(1, 64, 64)
    expected = exact(backbone, pixels, ["spp"])["spp"]
    network = opened(runtime, backbone, ["spp"])
    shapes = [parameter.shape for parameter in backbone.parameters()]
    backbone.to(torch.bfloat16)  # replaces the parameters
    _others = [torch.full(shape, 7.0) for _ in range(200) for shape in shapes]
    assert relative_error(network.maps(pixels, ["spp"])["spp"], expected) < 1e-5


@pytest.mark.parametrize("padding", ["valid", 0, (2, 1)])
def test_convolutions_of_every_geometry_are_torchs(runtime, padding):
    backbone = own(
        nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=padding),
        nn.ReLU6(),
        nn.Conv2d(8, 12, 3, dilation=2, groups=4, bias=False),
        nn.MaxPool2d((3, 2), (2, 1), padding=1, ceil_mode=True),
        nn.AvgPool2d(3, 2, padding=1),
    )
    assert worst_error(opened(runtime, backbone), backbone, [(2, 64, 71), (1, 65, 64)]) < 1e-5


class _Modern(nn.Module):
    """What networks of today are made of: SiLU, squeeze-and-excitation, layer norm, GELU."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 7, padding=3, groups=4)
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid())
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 4)
        self.register_buffer("scale", torch.rand(4), persistent=False)

    def forward(self, maps):
        maps = nn.functional.silu(self.conv(maps))
        last = self.norm((maps * self.squeeze(maps)).permute(0, 2, 3, 1))
        return maps + (self.scale * nn.functional.gelu(self.linear(last))).permute(0, 3, 1, 2)


class _WorksInPlace(nn.Module):
    """Its ReLU changes what is added to its outcome."""

    def forward(self, maps):
        return maps.relu_() + maps


@pytest.mark.parametrize(
    "module",
    [
        _Modern(),
        _WorksInPlace(),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"),
        nn.AvgPool2d(3, padding=1, count_include_pad=False),
        nn.AvgPool2d(2, ceil_mode=True),
        nn.Upsample(scale_factor=2, mode="bilinear"),
    ],
    ids=lambda module: type(module).__name__,
)
def test_operators_of_any_kind_are_torchs(runtime, module):
    torch.manual_seed(2)
    backbone = own(nn.Conv2d(3, 4, 3), module.eval())
    assert worst_error(opened(runtime, backbone), backbone, [(2, 64, 71), (1, 40, 33)]) < 1e-5


@pytest.mark.parametrize("name", ["spp-mini", "squeezenet1_1", "zf5"])
def test_poolings_round_up_as_torchs_do_at_every_size(runtime, name):
    backbone = drawn(name)
    network = opened(runtime, backbone)
    side = backbone.info.min_side
    for more in range(40):
        assert worst_error(network, backbone, [(1, side + more, side + (7 * more) % 40)]) < 1e-5


class _HasNoOperator(nn.Module):
    def forward(self, maps):
        return torch.special.i0e(maps)


class _DependsOnNumbers(nn.Module):
    def forward(self, maps):
        return maps if maps.sum() > 0 else -maps


class _DependsOnTheSize(nn.Module):
    def forward(self, maps):
        return maps * int(maps.shape[2])


class _PoolsToFourCells(nn.Module):
    def forward(self, maps):
        return maps * nn.functional.adaptive_max_pool2d(maps, 2).mean((2, 3), keepdim=True)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (_DependsOnTheSize(), "does not agree with torch on 'own'"),
        (_DependsOnNumbers(), "cannot follow 'own'"),
        (_HasNoOperator(), "cannot compute 'own' .ONNX has no operator for its special_i0e"),
        (_PoolsToFourCells(), "cannot compute 'own' .ONNX has no operator for its adaptive_max_"),
        (nn.MaxPool2d(2, 3, ceil_mode=True), "cannot compute 'own' .MaxPool rounds up"),
        (nn.AvgPool2d(3, 2, 1, ceil_mode=True), "cannot compute 'own' .AveragePool rounds up"),
    ],
    ids=["size", "numbers", "operator", "form", "maxima", "means"],
)
@pytest.mark.filterwarnings("error")
def test_what_is_not_torchs_is_refused_by_name_and_passed_over_by_auto(
    runtime, module, said, caplog, capfd
):
    backbone = own(nn.Conv2d(3, 4, 3), module)
    with pytest.raises(ConfigError, match=f"runtime '{runtime}' {said}") as caught:
        opened(runtime, backbone)
    assert "\n" not in str(caught.value)
    with caplog.at_level("INFO"):
        chosen = opened("auto", backbone)
    assert chosen.name == "torch"
    assert f"runtime '{runtime}' is passed over: {caught.value}" in caplog.text
    assert worst_error(chosen, backbone, [(1, 40, 50)]) < 1e-5
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_numbers_that_may_not_be_finite_are_torchs_alone(runtime, value):
    # Some runtimes make 0 of what is no number, and the image would not fail.
    convolutions = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.MaxPool2d(2)]
    backbone = own(*convolutions)
    backbone.trunk[0].weight[0] = value
    backbone.trunk[2].weight.copy_(torch.where(backbone.trunk[2].weight < 0, -1e20, 1e20))
    with pytest.raises(ConfigError, match=r"too large or not finite .*; use runtime 'torch'"):
        opened(runtime, backbone)
    chosen = opened("auto", backbone)
    assert chosen.name == "torch"
    assert not chosen.maps(noise(1, 40, 50), ["spp"])["spp"].isfinite().all()


def test_what_other_threads_compute_while_a_network_is_exported_is_not_touched(runtime):
    backbone, pixels, stop = drawn("mobilenet_v2"), noise(1, 40, 40), threading.Event()
    expected = exact(backbone, pixels, ["spp"])["spp"]
    before = {key: value.clone() for key, value in backbone.state_dict().items()}

    def compute():
        found = [exact(backbone, pixels, ["spp"])["spp"]]
        while not stop.is_set():
            found.append(exact(backbone, pixels, ["spp"])["spp"])
        return found

    with ThreadPoolExecutor(2) as pool:
        computing = pool.submit(compute)
        networks = list(pool.map(lambda _: opened(runtime, backbone), range(2)))
        stop.set()
    assert all(torch.equal(found, expected) for found in computing.result())
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())
    for network in networks:
        assert worst_error(network, backbone, [(1, 40, 50)]) < 1e-5


class _CannotBeTraced(nn.Module):
    def forward(self, maps):
        if torch.jit.is_tracing():
            raise RuntimeError("not so")
        return maps


def test_an_export_leaves_nothing_of_the_process_changed_even_where_it_fails(runtime):
    def state():
        exporting = torch.onnx.is_in_onnx_export()
        return torch.is_autocast_cache_enabled(), torch.is_grad_enabled(), exporting, threads()

    threads = torch.get_num_threads
    before, filters = state(), list(warnings.filters)
    backbone = own(nn.Conv2d(3, 4, 3), _CannotBeTraced())
    with pytest.raises(ConfigError, match=r"cannot compute .own. .not so."):
        opened(runtime, backbone)
    opened(runtime, drawn("spp-mini"))
    assert (state(), warnings.filters) == (before, filters)


@pytest.mark.filterwarnings("error")
def test_no_file_is_left_and_nothing_is_printed(runtime, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    opened(runtime, drawn("mobilenet_v2")).maps(noise(1, 64, 64), ["spp"])
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_memory_that_does_not_suffice_is_a_memory_error(monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    network = opened("onnxruntime", drawn("spp-mini"), ["spp"])

    def fail(*_):
        raise RuntimeError("[ONNXRuntimeError] : Failed to allocate memory for requested buffer")

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", fail)
    with pytest.raises(MemoryError, match="requested buffer"):
        network.maps(noise(1, 64, 64), ["spp"])
