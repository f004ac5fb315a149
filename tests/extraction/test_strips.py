"""Strips of a long view give the maps of the whole, for every layer, and depend on none of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spptransfer import backbones
from spptransfer.extraction.strips import Strips, margin_of

QUICK = ("spp-mini", "squeezenet1_1")
FAMILIES = ("alexnet", "vgg11", "resnet18", "mobilenet_v2", "zf5", "convnet-star-5", "overfeat-7")
NAMES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES)]


def maps_of(name):
    return [layer for layer in backbones.describe(name).layers if layer.kind == "map"]


@pytest.mark.parametrize("name", backbones.names())
def test_the_total_stride_is_a_multiple_of_every_layers(name):
    strips = Strips(backbones.describe(name), 1)
    for layer in maps_of(name):
        assert strips.stride % layer.stride == 0


@pytest.mark.parametrize("name", NAMES)
def test_no_layer_sees_further_than_the_margin(name):
    """With random weights, where the margin is measured without any."""
    info = backbones.describe(name)
    layers = [layer.name for layer in maps_of(name)]
    backbone = backbones.load(name, "random", layer=layers)
    stride, margin = Strips(info, 1).stride, margin_of(name)
    cells = 4 * margin + 1
    middle = cells // 2
    view = torch.randn(1, 3, max(info.min_side, stride), cells * stride)
    for pixel in (middle * stride, middle * stride + stride // 2, (middle + 1) * stride - 1):
        probe = view.clone()
        probe[..., pixel] = torch.nan
        with torch.inference_mode():
            maps = backbone.maps_of(probe, layers)
        for layer in maps_of(name):
            seen = maps[layer.name].isnan().any(dim=1).any(dim=1)[0].nonzero().flatten()
            away = (seen.double() * layer.stride - pixel).abs().max() / stride
            assert away < margin, layer.name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lying", [True, False])
def test_all_layers_of_all_strips_side_by_side_are_those_of_the_whole(name, lying):
    info = backbones.describe(name)
    layers = [layer.name for layer in maps_of(name)]
    backbone = backbones.load(name, "random", layer=layers)
    strips = Strips(info, 1)
    generator = np.random.default_rng(5)
    length = int((6 * strips.margin + 3) * strips.stride * generator.uniform(1, 1.3))
    views = torch.from_numpy(generator.normal(size=(2, 37, length, 3)).astype(np.float32))
    views = views if lying else views.transpose(1, 2)

    def run(pixels):
        return backbone.maps_of(pixels.permute(0, 3, 1, 2), layers)

    with torch.inference_mode():
        whole = run(views)
        assert len(list(strips.cut(views[:1], run))) > 1
        joined = strips.join(views, run)
    for layer in layers:
        assert joined[layer].shape == whole[layer].shape
        largest = float(whole[layer].abs().max())
        np.testing.assert_allclose(joined[layer], whole[layer], rtol=0, atol=2e-5 * largest)


def test_strips_are_cut_alike_whatever_layers_are_asked_for():
    strips = Strips(backbones.describe("spp-mini"), 1)
    views = torch.zeros(1, 24, 60 * strips.margin * strips.stride, 3)
    widths = {}
    for layers in (["conv1"], ["conv4", "spp"]):
        backbone = backbones.load("spp-mini", "random", layer=layers)
        seen = widths.setdefault(layers[0], [])

        def run(pixels, backbone=backbone, layers=layers, seen=seen):
            seen.append(pixels.shape)
            return backbone.maps_of(pixels.permute(0, 3, 1, 2), layers)

        with torch.inference_mode():
            strips.join(views, run)
    assert widths["conv1"] == widths["conv4"]
    assert len(widths["conv1"]) > 5
