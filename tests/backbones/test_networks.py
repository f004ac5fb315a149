"""The torchvision families against facts written down independently of the code."""

from __future__ import annotations

import pytest
import torch
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
def test_parameters_are_as_many_as_torchvisions(name, on_meta):
    assert sum(tensor.numel() for tensor in on_meta(name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_keys_are_torchvisions(name, on_meta):
    assert sorted(on_meta(name).state_dict()) == sorted(expected_keys(name))


@pytest.mark.parametrize("name", backbones.names())
def test_scores_are_as_many_as_the_classes(name):
    with torch.device("meta"):
        network = backbones.network(name, num_classes=7)
        assert network(torch.empty(2, 3, 224, 224)).shape == (2, 7)


@pytest.mark.parametrize("name", backbones.names())
def test_a_trunk_holds_a_layers_modules_and_no_others(name, on_meta):
    network, info = on_meta(name), backbones.describe(name)
    trunks = [network.trunk(layer.name) for layer in info.layers if layer.kind == "map"]
    sizes = [len(list(trunk.modules())) for trunk in trunks]
    *_, last, spp = sizes
    assert sizes[:-1] == sorted(set(sizes[:-1]))
    assert spp == last
    assert not any(isinstance(module, torch.nn.Dropout) for module in trunks[-1].modules())


@pytest.mark.parametrize("name", ["alexnet", "vgg16"])
def test_heads_are_idle_in_training_too(name, on_meta):
    head = on_meta(name).head("fc7")
    assert not any(isinstance(module, torch.nn.Dropout) for module in head)


def test_alexnets_level_6_is_its_last_max_pooling_at_224():
    maps = torch.randn(2, 256, 13, 13)
    with torch.device("meta"):
        pyramid = backbones.network("alexnet").pyramid
    assert pyramid(maps).equal(functional.max_pool2d(maps, 3, 2).flatten(1))


def test_vggs_level_7_is_its_last_max_pooling_at_224():
    maps = torch.randn(2, 512, 14, 14)
    with torch.device("meta"):
        pyramid = backbones.network("vgg11").pyramid
    assert pyramid(maps).equal(functional.max_pool2d(maps, 2).flatten(1))


def test_alexnets_fc_layers_follow_its_formula(trained):
    tensors = trained("alexnet")
    network = backbones.network("alexnet", num_classes=10)
    network.load_state_dict(tensors)
    maps = torch.randn(3, 256, 13, 13)
    pooled = functional.max_pool2d(maps, 3, 2).flatten(1)
    fc6 = (pooled @ tensors["classifier.1.weight"].T + tensors["classifier.1.bias"]).relu()
    fc7 = (fc6 @ tensors["classifier.4.weight"].T + tensors["classifier.4.bias"]).relu()
    assert torch.allclose(network.head("fc6")(maps), fc6, atol=1e-5)
    assert torch.allclose(network.head("fc7")(maps), fc7, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1"])
def test_a_whole_network_can_be_trained(name):
    torch.manual_seed(0)
    network = backbones.network(name, num_classes=5).train()
    network(torch.randn(2, 3, 40, 40)).logsumexp(1).sum().backward()
    gradients = [tensor.grad for tensor in network.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_mobilenets_stages_end_without_an_activation():
    torch.manual_seed(0)
    network = backbones.network("mobilenet_v2", num_classes=5).eval()
    images = torch.randn(1, 3, 32, 32)
    for layer in backbones.describe("mobilenet_v2").layers:
        maps = network.trunk(layer.name)(images)
        assert (maps.min() < 0) == layer.name.startswith("stage"), layer.name


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_0"])
def test_maps_of_other_families_are_taken_after_the_relu(name):
    torch.manual_seed(0)
    network = backbones.network(name, num_classes=5).eval()
    for layer in backbones.describe(name).layers:
        maps = network.trunk(layer.name)(torch.randn(1, 3, 32, 32))
        assert maps.min() >= 0, layer.name


def test_resnets_bottlenecks_stride_in_their_second_convolution(on_meta):
    block = on_meta("resnet50").layer2[0]
    assert (block.conv1.stride, block.conv2.stride, block.conv3.stride) == ((1, 1), (2, 2), (1, 1))


@pytest.mark.parametrize("name", ["alexnet", "zf5-no-spp", "resnet18"])
def test_a_pyramid_cannot_be_chosen_where_there_is_none_to_choose(name):
    with pytest.raises(ConfigError, match=f"pyramid of '{name}' cannot be chosen"):
        backbones.network(name, levels=(4, 3, 2, 1))
