from __future__ import annotations

import pickle
import re
from dataclasses import FrozenInstanceError

import pytest
import torch

from spptransfer import backbones
from spptransfer.backbones.catalogue import IMAGENET_MEAN, IMAGENET_STD
from spptransfer.errors import ConfigError
from spptransfer.pyramid import count_bins

PAPER = [name for name in backbones.names() if name.startswith(("zf", "conv", "over", "spp"))]


def maps_of(name):
    return [layer for layer in backbones.describe(name).layers if layer.kind == "map"]


def map_shapes(network, name, side):
    """Shape of every map that an input of a side gives; the list ends where torch refuses."""
    maps, shapes = torch.empty(1, 3, side, side, device="meta"), {}
    names = {len(network.trunk(layer.name)): layer.name for layer in maps_of(name)[:-1]}
    for count, module in enumerate(network.trunk("spp"), start=1):
        try:
            maps = module(maps)
        except RuntimeError:
            break
        if count in names:
            shapes[names[count]] = tuple(maps.shape[1:])
    return shapes


def test_an_unknown_layer_is_named_with_its_nearest_neighbour():
    with pytest.raises(ConfigError, match=r"'conv5_4' of backbone 'vgg16': did you mean 'conv5_"):
        backbones.describe("vgg16").layer("conv5_4")


def test_an_entry_can_be_pickled_but_not_changed():
    info = backbones.describe("alexnet")
    assert pickle.loads(pickle.dumps(info)) == info
    with pytest.raises(FrozenInstanceError):
        info.min_side = 3


@pytest.mark.parametrize("name", backbones.names())
def test_channels_and_strides_are_those_of_the_network(name, on_meta):
    # One more stride of pixels is exactly one more cell, whichever way poolings round.
    network = on_meta(name)
    shapes = map_shapes(network, name, 97)
    for stride in {layer.stride for layer in maps_of(name)}:
        grown = map_shapes(network, name, 97 + stride)
        for layer in maps_of(name)[:-1]:
            assert shapes[layer.name][0] == layer.channels
            if layer.stride == stride:
                assert grown[layer.name][1] == shapes[layer.name][1] + 1


@pytest.mark.parametrize("name", backbones.names())
def test_the_smallest_side_is_the_smallest_that_gives_every_layer_a_cell(name, on_meta):
    smallest = backbones.describe(name).min_side
    layers = len(maps_of(name)) - 1
    for side in (smallest, smallest + 1, smallest + 5):
        shapes = map_shapes(on_meta(name), name, side)
        assert len(shapes) == layers
        assert all(min(shape[1:]) >= 1 for shape in shapes.values())
    if smallest > 1:
        assert len(map_shapes(on_meta(name), name, smallest - 1)) < layers


@pytest.mark.parametrize("name", backbones.names())
def test_vectors_have_their_length_at_any_size_of_the_map(name, on_meta):
    network, info = on_meta(name), backbones.describe(name)
    channels = info.layer("spp").channels
    for layer in info.layers:
        for side in (1, 5, 13, 18) if layer.kind == "vector" else ():
            maps = torch.empty(2, channels, side, side + 1, device="meta")
            assert network.head(layer.name)(maps).shape == (2, layer.channels)


@pytest.mark.parametrize("name", [n for n in backbones.names() if backbones.describe(n).levels])
def test_the_pyramid_is_that_of_the_network(name, on_meta):
    network, info = on_meta(name), backbones.describe(name)
    assert network.pyramid.levels == info.levels
    first = next(module for module in network.head(info.layers[-1].name) if hasattr(module, "bias"))
    assert first.in_features == info.layer("spp").channels * count_bins(info.levels)


@pytest.mark.parametrize("name", backbones.names())
def test_what_is_said_of_a_network_holds_together(name):
    info = backbones.describe(name)
    names = [layer.name for layer in info.layers]
    vectors = [layer.kind == "vector" for layer in info.layers]
    *_, last, spp = maps_of(name)
    assert len(set(names)) == len(names)
    assert (spp.name, spp.channels, spp.stride) == ("spp", last.channels, last.stride)
    assert any(vectors) == bool(info.levels)
    assert info.num_classes == (200 if name == "spp-mini" else 1000)
    # The paper's networks take bytes less 128, the others ImageNet's mean and deviation.
    mean, std = (
        ((128 / 255,) * 3, (1 / 255,) * 3) if name in PAPER else (IMAGENET_MEAN, IMAGENET_STD)
    )
    assert (info.mean, info.std) == (mean, std)
    assert ("imagenet" in info.weights) == (name not in PAPER)
    for source in info.weights.values() if name not in PAPER else ():
        assert re.fullmatch(rf"{name}-.*\b{source.sha256}\.pth", source.filename)
        assert source.url == f"https://download.pytorch.org/models/{source.filename}"
        assert (len(source.sha256), source.licence) == (8, "BSD-3-Clause")
