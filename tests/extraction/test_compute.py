"""Batches of views become features: exact ones, of all layers of a pass, in strips where long."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from extraction_cases import NET, SPEC, TORCH, altered, assert_near, net
from image_files import picture

from spptransfer import backbones
from spptransfer.errors import ConfigError
from spptransfer.extraction.compute import FeatureComputer, Strips
from spptransfer.runtimes import ComputeOptions
from spptransfer.specify import feature_spec


def view(height, width, seed=0):
    return np.asarray(picture(height, width, seed))


def compute(views, spec=SPEC, backbone=NET, options=TORCH, **given):
    computer = FeatureComputer([spec], backbone, options, **given)
    with computer.runtime:
        return computer.compute(views)[0]


def test_views_are_those_that_the_backbone_asks_for():
    backbone = net_with(grid=16)
    fitting = altered(SPEC, grid=16, longest=backbone.info.longest)
    assert compute(view(32, 32)[None], fitting, backbone)["high", 3].shape == (1, 16 * 9)
    with pytest.raises(ConfigError, match="net takes images whose sides are multiples of 16"):
        compute(view(32, 32)[None], SPEC, backbone)


# ---- strips ----


@pytest.mark.parametrize(
    "name", ["squeezenet1_1", pytest.param("overfeat-7", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("lying", [True, False])
def test_all_layers_of_all_strips_side_by_side_are_those_of_the_whole(name, lying):
    info = backbones.describe(name)
    layers = [layer.name for layer in info.layers if layer.kind == "map"]
    backbone = backbones.load(name, "random", layer=layers)
    strips = Strips(backbone, layers, 1)
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
        assert_near(joined[layer].numpy(), whole[layer].numpy(), 2e-5)


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])
@pytest.mark.parametrize("layer", ["conv2", "spp", "fc6"])
def test_features_of_long_views_are_those_of_the_whole_with_every_runtime(runtime, layer):
    pytest.importorskip(runtime)
    mini = backbones.load("spp-mini", "embedded", layer=layer)
    spec = feature_spec(mini, layer=layer, levels=[6], scales=[32])
    views = np.stack([view(32, 1500, seed) for seed in range(2)])
    options = ComputeOptions(device="cpu", runtime=runtime, threads=1)
    whole = compute(views, spec, mini)
    for lying in (True, False):
        turned = views if lying else views.transpose(0, 2, 1, 3).copy()
        expected = whole if lying else compute(turned, spec, mini)
        strips = compute(turned, spec, mini, options, strip_pixels=32 * 400)
        for key, values in strips.items():
            assert_near(values, expected[key], 2e-5)


def net_with(**traits):
    backbone = net()
    backbone.info = replace(backbone.info, **traits)
    return backbone


def widths(backbone, strip_pixels):
    seen = []
    watched = net(lambda batch: seen.append(batch.shape[3]))
    watched.info = backbone.info
    spec = altered(SPEC, longest=watched.info.longest)
    compute(view(32, 4000)[None], spec, watched, strip_pixels=strip_pixels)
    return seen


def test_a_strip_never_grows_with_the_image():
    seen = widths(NET, 32 * 400)
    assert len(seen) > 5
    assert max(seen[1:]) < 1000  # the first call measures how far a cell sees


def test_what_is_not_local_never_goes_through_in_strips():
    assert widths(net_with(is_local=False), 32 * 400) == [4000]
