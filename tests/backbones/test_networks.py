"""The networks against facts written down independently of the code: torchvision's, the paper's."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from spptransfer import backbones
from spptransfer.errors import ConfigError

# As torchvision's documentation prints them.
PARAMETERS = {
    "alexnet": 61_100_840,
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg11_bn": 132_868_840,
    "vgg13_bn": 133_053_736,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "squeezenet1_0": 1_248_424,
    "squeezenet1_1": 1_235_496,
    "mobilenet_v2": 3_504_872,
}


def linear(prefix):
    return [f"{prefix}.weight", f"{prefix}.bias"]


def norm(prefix):
    statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return [f"{prefix}.{statistic}" for statistic in statistics]


def alexnet_keys():
    convolutions = [key for i in (0, 3, 6, 8, 10) for key in linear(f"features.{i}")]
    return convolutions + [key for i in (1, 4, 6) for key in linear(f"classifier.{i}")]


def vgg_keys(name):
    depths = {"11": (1, 1, 2, 2, 2), "13": (2,) * 5, "16": (2, 2, 3, 3, 3), "19": (2, 2, 4, 4, 4)}
    number, _, batch_norm = name.removeprefix("vgg").partition("_")
    keys, index = [], 0
    for depth in depths[number]:
        for _ in range(depth):
            keys += linear(f"features.{index}")
            keys += norm(f"features.{index + 1}") if batch_norm else []
            index += 3 if batch_norm else 2
        index += 1
    return keys + [key for i in (0, 3, 6) for key in linear(f"classifier.{i}")]


def resnet_keys(name):
    depths = {
        "resnet18": (2, 2, 2, 2),
        "resnet34": (3, 4, 6, 3),
        "resnet50": (3, 4, 6, 3),
        "resnet101": (3, 4, 23, 3),
        "resnet152": (3, 8, 36, 3),
    }
    basic = name in ("resnet18", "resnet34")
    keys = ["conv1.weight", *norm("bn1")]
    for stage, depth in enumerate(depths[name], start=1):
        for block in range(depth):
            prefix = f"layer{stage}.{block}"
            for i in (1, 2) if basic else (1, 2, 3):
                keys += [f"{prefix}.conv{i}.weight", *norm(f"{prefix}.bn{i}")]
            if block == 0 and not (basic and stage == 1):
                keys += [f"{prefix}.downsample.0.weight", *norm(f"{prefix}.downsample.1")]
    return keys + linear("fc")


def squeezenet_keys(name):
    fires = {
        "squeezenet1_0": (3, 4, 5, 7, 8, 9, 10, 12),
        "squeezenet1_1": (3, 4, 6, 7, 9, 10, 11, 12),
    }
    keys = linear("features.0")
    for i in fires[name]:
        for part in ("squeeze", "expand1x1", "expand3x3"):
            keys += linear(f"features.{i}.{part}")
    return keys + linear("classifier.1")


def mobilenet_keys():
    keys = ["features.0.0.weight", *norm("features.0.1")]
    for i in range(1, 18):
        units = 1 if i == 1 else 2
        for unit in range(units):
            keys += [f"features.{i}.conv.{unit}.0.weight", *norm(f"features.{i}.conv.{unit}.1")]
        keys += [f"features.{i}.conv.{units}.weight", *norm(f"features.{i}.conv.{units + 1}")]
    return [*keys, "features.18.0.weight", *norm("features.18.1"), *linear("classifier.1")]


def expected_keys(name):
    rules = {
        "alexnet": lambda _: alexnet_keys(),
        "vgg": vgg_keys,
        "resnet": resnet_keys,
        "squeezenet": squeezenet_keys,
        "mobilenet": lambda _: mobilenet_keys(),
    }
    return next(rule(name) for family, rule in rules.items() if name.startswith(family))


@pytest.mark.parametrize("name", PARAMETERS)
def test_keys_are_torchvisions_and_parameters_as_many(name, on_meta):
    assert sum(tensor.numel() for tensor in on_meta(name).parameters()) == PARAMETERS[name]
    assert sorted(on_meta(name).state_dict()) == sorted(expected_keys(name))


@pytest.mark.parametrize("name", backbones.names())
def test_scores_are_as_many_as_the_classes(name):
    with torch.device("meta"):
        network = backbones.network(name, num_classes=7)
        assert network(torch.empty(2, 3, 224, 224)).shape == (2, 7)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1"])
def test_a_whole_network_can_be_trained(name):
    torch.manual_seed(0)
    network = backbones.network(name, num_classes=5).train()
    network(torch.randn(2, 3, 40, 40)).logsumexp(1).sum().backward()
    gradients = [tensor.grad for tensor in network.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", ["alexnet", "zf5-no-spp", "resnet18"])
def test_a_pyramid_cannot_be_chosen_where_there_is_none_to_choose(name):
    with pytest.raises(ConfigError, match=f"pyramid of '{name}' cannot be chosen"):
        backbones.network(name, levels=(4, 3, 2, 1))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_0"])
def test_layers_end_in_their_activation_but_for_mobilenets_linear_bottlenecks(name):
    torch.manual_seed(0)
    network = backbones.network(name, num_classes=5).eval()
    for layer in backbones.describe(name).layers:
        maps = network.trunk(layer.name)(torch.randn(1, 3, 32, 32))
        assert (maps.min() < 0) == layer.name.startswith("stage"), layer.name


@pytest.mark.parametrize(
    ("name", "shape", "window"),
    [("alexnet", (256, 13, 13), (3, 2)), ("vgg11", (512, 14, 14), (2, 2))],
)
def test_the_pyramid_is_the_last_max_pooling_at_224(name, shape, window, on_meta):
    maps = torch.randn(2, *shape)
    pooled = functional.max_pool2d(maps, *window).flatten(1)
    assert on_meta(name).pyramid(maps).equal(pooled)


PAPER = ("zf5", "convnet-star-5", "overfeat-5", "overfeat-7")


def side_after(network, last, side):
    """Side of the map that comes out of a module."""
    maps = torch.empty(1, 3, side, side, device="meta")
    for name, module in network.named_children():
        maps = module(maps)
        if name == last:
            return maps.shape[-1]
    raise AssertionError(last)


@pytest.mark.parametrize(
    ("name", "last", "cells"),
    [
        ("zf5", "pool1", 55),
        ("zf5", "pool2", 13),
        ("zf5", "relu5", 13),
        ("convnet-star-5", "norm1", 55),
        ("convnet-star-5", "pool2", 27),
        ("convnet-star-5", "pool3", 13),
        ("convnet-star-5", "relu5", 13),
        ("overfeat-5", "pool1", 36),
        ("overfeat-5", "pool2", 18),
        ("overfeat-5", "relu5", 18),
        ("overfeat-7", "pool1", 36),
        ("overfeat-7", "pool2", 18),
        ("overfeat-7", "relu7", 18),
    ],
)
def test_maps_have_the_printed_sides_at_224(name, last, cells, on_meta):
    assert side_after(on_meta(name), last, 224) == cells


@pytest.mark.parametrize(
    ("name", "side", "cells"),
    [
        # As the authors' code has them.
        *(("zf5", side, cells) for side, cells in ((180, 10), (224, 13), (256, 15), (392, 23))),
        # Small images keep eight cells.
        *(("zf5-64", side, cells) for side, cells in ((64, 8), (48, 6), (96, 12))),
    ],
)
def test_zf5_has_maps_of_these_sides_at_other_sizes(name, side, cells, on_meta):
    assert side_after(on_meta(name), "relu5", side) == cells


@pytest.mark.parametrize(
    ("name", "filters"),
    [
        ("zf5", [(96, 7), (256, 5), (384, 3), (384, 3), (256, 3)]),
        ("convnet-star-5", [(96, 11), (256, 5), (384, 3), (384, 3), (256, 3)]),
        ("overfeat-5", [(96, 7), (256, 5), (512, 3), (512, 3), (512, 3)]),
        ("overfeat-7", [(96, 7), (256, 5), *[(512, 3)] * 5]),
    ],
)
def test_filters_are_those_of_table_1(name, filters, on_meta):
    convolutions = [m for m in on_meta(name).children() if isinstance(m, nn.Conv2d)]
    assert [(conv.out_channels, conv.kernel_size[0]) for conv in convolutions] == filters


@pytest.mark.parametrize(("name", "channels"), [("zf5", 256), ("overfeat-7", 512)])
def test_the_first_fully_connected_layer_sees_50_bins_or_36(name, channels, on_meta):
    first = "fc6" if name == "zf5" else "fc8"
    assert getattr(on_meta(name), first).in_features == channels * 50
    assert getattr(on_meta(f"{name}-no-spp"), first).in_features == channels * 36


def test_another_pyramid_can_be_trained_with():
    with torch.device("meta"):
        network = backbones.network("zf5", num_classes=10, levels=(4, 3, 2, 1))
        assert network(torch.empty(2, 3, 180, 224)).shape == (2, 10)
    assert network.fc6.in_features == 256 * 30


def test_weights_start_narrow_and_biases_at_0_or_1():
    torch.manual_seed(0)
    network = backbones.network("zf5", num_classes=10, levels=(1,))
    for name, module in network.named_children():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.05)
            assert abs(module.weight.mean().item()) < 1e-3
            assert set(module.bias.tolist()) == {0.0 if name in ("conv1", "conv3") else 1.0}


def test_the_zf5_for_small_images_is_small(on_meta):
    assert 1e6 < sum(p.numel() for p in on_meta("zf5-64").trunk("spp").parameters()) < 3e6


@pytest.mark.parametrize("name", PAPER)
def test_fully_connected_layers_are_numbered_on_from_the_convolutions(name, on_meta):
    children = list(on_meta(name).named_children())[-7:]
    first = int(name[-1]) + 1
    words = [f"{word}{n}" for n in (first, first + 1) for word in ("fc", "relu", "drop")]
    assert [key for key, _ in children] == [*words, f"fc{first + 2}"]
    assert {module.p for key, module in children if key.startswith("drop")} == {0.5}


@pytest.mark.parametrize(("name", "within"), [("zf5", True), ("overfeat-5", False)])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 5), (7, 4)])
def test_responses_are_normalised_as_defined(name, within, height, width, on_meta):
    # The authors' constants, and AlexNet's.
    norm = on_meta(name).norm1
    generator = torch.Generator().manual_seed(3)
    maps = 50 * torch.randn(2, 9, height, width, generator=generator, dtype=torch.float64)
    padded = functional.pad(maps.square(), (1,) * 4 if within else (0, 0, 0, 0, 2, 2))
    windows = padded.unfold(2, 3, 1).unfold(3, 3, 1) if within else padded.unfold(1, 5, 1)
    mean = windows.flatten(4).mean(4)
    expected = maps / (1 + (5e-5 if within else 1e-4) * mean) ** 0.75
    torch.testing.assert_close(norm(maps), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["zf5", "overfeat-5"])
@pytest.mark.parametrize("largest", [2.0, 300.0, 60_000.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_short_types_no_number_is_too_large_to_be_normalised(name, largest, dtype, on_meta):
    norm = on_meta(name).norm1
    generator = torch.Generator().manual_seed(3)
    maps = (largest * torch.rand(2, 9, 5, 6, generator=generator)).to(dtype)
    found = norm(maps)
    assert found.dtype == dtype
    torch.testing.assert_close(found, norm(maps.float()).to(dtype), rtol=2e-2, atol=0)
