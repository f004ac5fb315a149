from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cache_files import make_spec
from extraction_cases import LAYER, SPEC, backbone, fully_connected
from image_files import picture

from spptransfer import backbones, images
from spptransfer.errors import ConfigError
from spptransfer.extraction.compute import FeatureComputer, choose_device
from spptransfer.extraction.strips import Strips
from spptransfer.pyramid import bin_bounds
from spptransfer.specify import feature_spec

FAMILIES = [
    "alexnet",
    "vgg11",
    "resnet18",
    "squeezenet1_1",
    "mobilenet_v2",
    "zf5",
    "convnet-star-5",
    "overfeat-5",
    "spp-mini",
]
QUICK = ("spp-mini",)


def view(height, width, seed=0):
    return images.render(picture(height, width, seed), min(height, width))


def brute_force(network, pixels, spec):
    """In float64, bin by bin."""
    network = copy.deepcopy(network).double()
    mean, std = (np.array(spec.preprocessing[name]) for name in ("mean", "std"))
    normal = ((pixels / 255.0 - mean) / std).transpose(2, 0, 1)
    maps = network.maps(torch.from_numpy(normal)[None]).numpy()[0]
    vectors = {}
    for level in spec.levels:
        rows, columns = (bin_bounds(side, level) for side in maps.shape[1:])
        pool = np.max if spec.pooling == "max" else np.mean
        bins = [
            [pool(maps[:, top:bottom, left:right], axis=(1, 2)) for left, right in columns]
            for top, bottom in rows
        ]
        vectors[level] = np.array(bins).transpose(2, 0, 1).ravel()
    return vectors


def assert_close(found, expected, tolerance=1e-5):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("size", [(48, 48), (48, 131), (97, 50), (48, 640)])
@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_features_are_those_of_a_float64_network_and_bins_cut_by_hand(size, pooling):
    spec = dataclasses.replace(SPEC, levels=(4, 3, 1), pooling=pooling)
    pixels = view(*size)
    found = FeatureComputer(backbone(), spec)(pixels[None])
    expected = brute_force(backbone(), pixels, spec)
    assert list(found) == list(spec.levels)
    for level, values in found.items():
        assert values.dtype == np.float32
        assert_close(values[0], expected[level])


def test_features_are_those_of_the_plain_network_which_stays_as_it_is():
    network = backbones.load("squeezenet1_1", "random", layer=LAYER)
    before = [type(module) for module in network.modules()]
    pixels = view(50, 70)
    found = FeatureComputer(network, SPEC)(pixels[None])[3]
    assert [type(module) for module in network.modules()] == before
    network.fused = lambda: network
    assert_close(found, FeatureComputer(network, SPEC)(pixels[None])[3])


def test_flipped_features_are_the_mean_of_both_mirror_images_at_all_levels():
    spec = dataclasses.replace(SPEC, levels=(4, 2, 1), flip=True)
    assert spec.levels == (4, 2, 1)
    pixels = view(50, 70)
    found = FeatureComputer(backbone(), spec)(pixels[None])
    one, other = (brute_force(backbone(), p, spec) for p in (pixels, pixels[:, ::-1].copy()))
    for level in spec.levels:
        assert_close(found[level][0], (one[level] + other[level]) / 2)


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def test_strips_give_the_whole_map_for_every_family(name):
    network = backbones.load(name, "random")
    spec = make_spec(backbone=name, levels=(6,), scales=(64,))
    computer = FeatureComputer(network, spec)
    generator = np.random.default_rng(7)
    cutter = Strips(network.info, 1)
    shortest = (6 * cutter.margin + 3) * cutter.stride
    side = int(generator.integers(31, 60))
    length = int(shortest * generator.uniform(1, 1.5))
    pixels = generator.integers(0, 256, (1, side, length, 3), dtype=np.uint8)
    for views in (pixels, pixels.transpose(0, 2, 1, 3).copy()):
        batch = torch.from_numpy(views)
        computer.strip_pixels = 1 << 30
        whole = computer._maps(batch, ["spp"])["spp"]
        computer.strip_pixels = 1
        strips = computer._maps(batch, ["spp"])["spp"]
        assert strips.shape == whole.shape
        assert_close(strips.numpy(), whole.numpy(), 2e-5)


def test_a_strip_never_grows_with_the_image():
    computer = FeatureComputer(backbone(), SPEC)
    computer.strip_pixels = 48 * 400
    seen = []
    network = computer._backbone
    original = network.maps_of
    network.maps_of = lambda pixels, layers: (
        seen.append(pixels.shape[3]) or original(pixels, layers)
    )
    try:
        computer(view(48, 4000)[None])
    finally:
        del network.maps_of
    assert len(seen) > 5
    assert max(seen) < 1000


def test_images_of_a_batch_do_not_see_each_other():
    computer = FeatureComputer(backbone(), SPEC)
    views = np.stack([view(48, 70, seed) for seed in range(5)])
    together = computer(views)[3]
    for i in (0, 4):
        assert_close(computer(views[i : i + 1])[3][0], together[i], 1e-6)
    np.testing.assert_array_equal(computer(views)[3], together)


def test_a_long_view_in_a_batch_is_computed_like_alone():
    computer = FeatureComputer(backbone(), SPEC)
    views = np.stack([view(48, 1500, seed) for seed in range(2)])
    whole = computer(views)[3]
    computer.strip_pixels = 48 * 500
    assert_close(computer(views)[3], whole, 1e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_is_near_and_still_float32_outside(precision):
    spec = dataclasses.replace(SPEC, precision=precision)
    found = FeatureComputer(copy.deepcopy(backbone()), spec)(view(48, 60)[None])[3]
    exact = FeatureComputer(backbone(), SPEC)(view(48, 60)[None])[3]
    assert found.dtype == np.float32
    assert_close(found, exact, 0.05)
    assert not np.array_equal(found, exact)


@pytest.mark.parametrize(
    ("device", "precision", "exact"),
    [("cuda", "float32", True), ("cuda", "bfloat16", False), ("cpu", "float32", False)],
)
def test_on_a_gpu_convolutions_in_float32_are_not_rounded_to_tf32(device, precision, exact):
    computer = FeatureComputer(backbone(), dataclasses.replace(SPEC, precision=precision))
    computer.device = torch.device(device)  # there need not be one
    allowed, maps = [], computer._network.maps
    computer._network = SimpleNamespace(
        maps=lambda *given: allowed.append(torch.backends.cudnn.allow_tf32) or maps(*given)
    )
    before = torch.backends.cudnn.allow_tf32
    computer(view(48, 60)[None])
    assert allowed == [before and not exact]
    assert torch.backends.cudnn.allow_tf32 is before


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
@pytest.mark.parametrize("layer", ["spp", "fc6"])
def test_a_backbone_that_computed_in_bfloat16_still_has_its_own_numbers(runtime, layer):
    pytest.importorskip(runtime)
    network = backbones.load("spp-mini", "embedded", layer=layer)
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    levels = (4, 2, 1) if layer == "spp" else ()
    spec = dataclasses.replace(
        feature_spec(backbone="spp-mini", weights="embedded", layer=layer), levels=levels
    )
    exact = FeatureComputer(network, spec, runtime=runtime)(view(64, 90)[None])
    low = dataclasses.replace(spec, precision="bfloat16")
    rounded = FeatureComputer(network, low, runtime=runtime)(view(64, 90)[None])
    again = FeatureComputer(network, spec, runtime=runtime)(view(64, 90)[None])
    for key, expected in exact.items():
        assert not np.array_equal(rounded[key], expected)
        np.testing.assert_array_equal(again[key], expected)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def test_a_fully_connected_layer_is_what_a_plain_forward_gives():
    network = fully_connected()
    spec = make_spec(backbone="alexnet", layer="fc6", levels=(), scales=(64,))
    pixels = view(64, 90)
    found = FeatureComputer(network, spec)(pixels[None])
    mean, std = (torch.tensor(spec.preprocessing[name]) for name in ("mean", "std"))
    normal = (torch.from_numpy(pixels) / 255 - mean) / std
    expected = network(normal.permute(2, 0, 1)[None])
    assert list(found) == [None]
    assert found[None].shape == (1, 4096)
    assert_close(found[None], expected.numpy(), 1e-4)


@pytest.fixture
def gpus(monkeypatch):
    """Three of them, of which the last is current once torch is at work on them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)


@pytest.mark.usefixtures("gpus")
def test_a_gpu_is_known_by_its_number_whichever_is_current_where_it_is_used(monkeypatch):
    assert [str(choose_device(name)) for name in ("auto", "cuda", "cuda:1", "cpu")] == [
        "cuda:2",
        "cuda:2",
        "cuda:1",
        "cpu",
    ]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert str(choose_device("auto")) == "cuda:0"


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    "name",
    ["cuda:", "cpu:", "cuda:-1", "cuda:x", "cuda:01", "cuda:²", "cuda:1:1", "gpu", " cuda", ""],
)
def test_a_malformed_device_is_refused(name):
    with pytest.raises(ConfigError, match=f"device: '{name}' is unknown; allowed: auto, cpu, cuda"):
        choose_device(name)


@pytest.mark.usefixtures("gpus")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="'cuda:3' is not on this machine"):
        choose_device("cuda:3")


def images_per_batch(name, device, runtime, precision="float32"):
    computer = SimpleNamespace(
        device=torch.device(device),
        runtime=runtime,
        info=backbones.describe(name),
        _dtype=getattr(torch, precision),
    )
    return FeatureComputer.batch_pixels.fget(computer) // (224 * 300)


@pytest.mark.parametrize(
    ("name", "runtime", "images"),
    [
        ("alexnet", "torch", 4),
        ("resnet50", "torch", 4),
        ("vgg16", "torch", 1),
        ("zf5", "torch", 2),
        ("alexnet", "openvino", 1),
    ],
)
def test_the_larger_a_networks_maps_the_fewer_images_share_a_batch(name, runtime, images):
    assert images_per_batch(name, "cpu", runtime) == images


GIGABYTE = 1 << 30


@pytest.mark.parametrize(
    ("name", "memory", "precision", "images"),
    [
        ("alexnet", 80 * GIGABYTE, "float32", 128),
        ("vgg16", 80 * GIGABYTE, "float32", 128),
        ("vgg16", 8 * GIGABYTE, "float32", 31),
        ("vgg16", 8 * GIGABYTE, "bfloat16", 62),
        ("vgg16", GIGABYTE // 100, "float32", 1),
    ],
)
def test_a_gpus_memory_bounds_its_batches(monkeypatch, name, memory, precision, images):
    asked = []
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda device: asked.append(str(device)) or SimpleNamespace(total_memory=memory),
    )
    assert images_per_batch(name, "cuda:1", "torch", precision) == images
    assert asked == ["cuda:1"]


def test_a_scale_too_small_for_the_backbone_is_refused_before_any_work():
    with pytest.raises(
        ConfigError, match=r"scales: 16 is too small for squeezenet1_1.*at least 17"
    ):
        FeatureComputer(backbone(), dataclasses.replace(SPEC, scales=(16, 64)))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(3, 4000), (4000, 3)])
def test_extreme_shapes_equal_the_whole_map_in_every_cell(size):
    network = backbones.load("alexnet", "random")
    computer = FeatureComputer(network, make_spec(backbone="alexnet", levels=(6,), scales=(64,)))
    pixels = torch.from_numpy(images.render(picture(*size), 64)[None])
    assert max(pixels.shape[1:3]) > 85_000
    computer.strip_pixels = 1 << 18
    assert max(pixels.shape[1:3]) * 64 > 10 * computer.strip_pixels
    strips = computer._maps(pixels, ["spp"])["spp"]
    computer.strip_pixels = 1 << 30
    whole = computer._maps(pixels, ["spp"])["spp"]
    assert strips.shape == whole.shape
    assert_close(strips.numpy(), whole.numpy(), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(3, 4000), (4000, 3)])
def test_extreme_shapes_at_full_scale_equal_what_pieces_of_them_give(size):
    """A whole map takes gigabytes here, so both ends and a place between them are compared."""
    network = backbones.load("alexnet", "random")
    computer = FeatureComputer(network, make_spec(backbone="alexnet", levels=(6,), scales=(224,)))
    pixels = torch.from_numpy(images.render(picture(*size), 224)[None])
    axis = 2 if size[0] == 3 else 1
    length = pixels.shape[axis]
    assert length > 290_000
    maps = computer._maps(pixels, ["spp"])["spp"]
    cutter, cells = Strips(network.info, computer.strip_pixels), 300
    stride, margin = cutter.stride, cutter.margin
    last = (length - cells * stride) // stride
    computer.strip_pixels = 1 << 30
    for first in (0, 7777, last):
        end = length if first == last else (first + cells) * stride
        piece = pixels.narrow(axis, first * stride, end - first * stride)
        whole = computer._maps(piece, ["spp"])["spp"]
        inner = slice(margin if first else 0, whole.shape[axis + 1] - (first < last) * margin)
        found = maps.narrow(axis + 1, first, whole.shape[axis + 1])
        expected, found = (
            m.transpose(2, 3).numpy()[:, :, inner] if axis == 2 else m.numpy()[:, :, inner]
            for m in (whole, found)
        )
        assert_close(found, expected, 1e-5)
