"""The paper's networks against table 1 and the facts around it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from spptransfer import backbones
from spptransfer.backbones.paper import AcrossChannelsNorm, WithinChannelNorm
from spptransfer.errors import ConfigError

PAPER = ("zf5", "convnet-star-5", "overfeat-5", "overfeat-7")


def side_after(network, last, side):
    """Side of the map that comes out of a module."""
    maps = torch.empty(1, 3, side, side, device="meta")
    for name, module in network.named_children():
        maps = module(maps)
        if name == last:
            return maps.shape[-1]
    raise AssertionError(last)


@pytest.mark.parametrize(("side", "cells"), [(224, 13), (180, 10), (256, 15), (392, 23)])
@pytest.mark.parametrize("name", ["zf5", "zf5-no-spp"])
def test_zf5_has_the_map_sides_of_the_authors_code(name, side, cells, on_meta):
    assert side_after(on_meta(name), "relu5", side) == cells


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


def test_no_padding_of_zf5s_second_convolution_gives_all_printed_sides():
    # 27 cells at 224 pixels want a padding of 1, 23 cells on conv5 at 392 pixels one of 0.
    def sides(padding, side):
        after_pool1 = {224: 55, 392: 97}[side]
        after_conv2 = (after_pool1 + 2 * padding - 5) // 2 + 1
        return after_conv2, -(-(after_conv2 - 3) // 2) + 1

    assert sides(0, 224) == (26, 13)
    assert sides(1, 224) == (27, 13)
    assert sides(0, 392)[1] == 23
    assert sides(1, 392)[1] == 24


@pytest.mark.parametrize(
    ("name", "stride"),
    [("zf5", 16), ("convnet-star-5", 16), ("overfeat-5", 12), ("overfeat-7", 12)],
)
def test_total_strides_are_the_papers(name, stride):
    assert backbones.describe(name).layer("spp").stride == stride


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


@pytest.mark.parametrize("name", PAPER)
def test_fully_connected_layers_are_numbered_on_from_the_convolutions(name, on_meta):
    numbers = [int(key[2:]) for key, _ in on_meta(name).named_children() if key.startswith("fc")]
    convolutions = int(name[-1])
    assert numbers == [convolutions + 1, convolutions + 2, convolutions + 3]
    vectors = [layer.name for layer in backbones.describe(name).layers if layer.kind == "vector"]
    assert vectors == [f"fc{number}" for number in numbers[:2]]


@pytest.mark.parametrize(("name", "channels"), [("zf5", 256), ("overfeat-7", 512)])
def test_the_first_fully_connected_layer_sees_50_bins_or_36(name, channels, on_meta):
    first = "fc6" if name == "zf5" else "fc8"
    assert getattr(on_meta(name), first).in_features == channels * 50
    assert getattr(on_meta(f"{name}-no-spp"), first).in_features == channels * 36


@pytest.mark.parametrize(("side", "kernel", "stride"), [(13, 3, 2), (18, 3, 3)])
def test_without_spp_the_bins_are_a_plain_pooling(side, kernel, stride, on_meta):
    maps = torch.randn(1, 4, side, side)
    pooled = nn.functional.max_pool2d(maps, kernel, stride).flatten(1)
    assert on_meta("zf5-no-spp").pyramid(maps).equal(pooled)


def test_another_pyramid_can_be_trained_with():
    with torch.device("meta"):
        network = backbones.network("zf5", num_classes=10, levels=(4, 3, 2, 1))
        assert network(torch.empty(2, 3, 180, 224)).shape == (2, 10)
    assert network.fc6.in_features == 256 * 30


def test_a_pyramid_must_have_levels():
    with pytest.raises(ConfigError, match="levels"):
        backbones.network("zf5", levels=())


@pytest.mark.parametrize("name", PAPER)
def test_dropout_follows_both_fully_connected_layers(name, on_meta):
    children = list(on_meta(name).named_children())
    kinds = [type(module) for _, module in children[-7:]]
    assert kinds == [nn.Linear, nn.ReLU, nn.Dropout] * 2 + [nn.Linear]
    assert {m.p for _, m in children if isinstance(m, nn.Dropout)} == {0.5}


def test_weights_start_narrow_and_biases_at_0_or_1():
    torch.manual_seed(0)
    network = backbones.network("zf5", num_classes=10, levels=(1,))
    for name, module in network.named_children():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.05)
            assert abs(module.weight.mean().item()) < 1e-3
            assert set(module.bias.tolist()) == {0.0 if name in ("conv1", "conv3") else 1.0}


def test_zf5_normalises_within_channels_with_the_authors_constants(on_meta):
    norms = [m for m in on_meta("zf5").children() if isinstance(m, WithinChannelNorm)]
    assert [(m.alpha, m.beta, m.mean.kernel_size) for m in norms] == [(5e-5, 0.75, 3)] * 2


@pytest.mark.parametrize("name", PAPER[1:])
def test_the_others_normalise_across_channels_with_alexnets_constants(name, on_meta):
    norms = [m for m in on_meta(name).modules() if isinstance(m, nn.LocalResponseNorm)]
    assert norms
    assert {(m.size, m.alpha, m.beta, m.k) for m in norms} == {(5, 1e-4, 0.75, 1.0)}


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 5), (7, 4)])
def test_normalisation_within_a_channel_equals_its_definition(height, width):
    generator = torch.Generator().manual_seed(3)
    maps = 50 * torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64)
    expected = torch.empty_like(maps)
    for i, j in itertools.product(range(height), range(width)):
        window = maps[:, :, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
        mean = window.square().sum((2, 3)) / 9
        expected[:, :, i, j] = maps[:, :, i, j] / (1 + 0.1 * mean) ** 0.75
    assert torch.allclose(WithinChannelNorm(3, alpha=0.1, beta=0.75)(maps), expected, atol=1e-12)


@pytest.mark.parametrize("norm", [WithinChannelNorm(3, 5e-5, 0.75), AcrossChannelsNorm(1e-4, 0.75)])
@pytest.mark.parametrize("largest", [2.0, 300.0, 60_000.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_short_types_no_number_is_too_large_to_be_normalised(norm, largest, dtype):
    generator = torch.Generator().manual_seed(3)
    maps = (largest * torch.rand(2, 9, 5, 6, generator=generator)).to(dtype)
    found = norm(maps)
    assert found.dtype == dtype
    torch.testing.assert_close(found, norm(maps.float()).to(dtype), rtol=2e-2, atol=0)


def test_the_spp_layer_lets_zf5_learn_from_two_sizes():
    torch.manual_seed(0)
    network = backbones.network("zf5", num_classes=3, levels=(2, 1))
    for side in (48, 57):
        network.zero_grad()
        network(torch.randn(2, 3, side, side)).logsumexp(1).sum().backward()
        assert network.conv1.weight.grad.abs().sum() > 0


def test_the_zf5_for_small_images_keeps_eight_cells_at_64_pixels(on_meta):
    for side, cells in ((64, 8), (48, 6), (96, 12)):
        assert side_after(on_meta("zf5-64"), "relu5", side) == cells
    assert 1e6 < sum(p.numel() for p in on_meta("zf5-64").trunk("spp").parameters()) < 3e6


def test_the_zf5_for_small_images_has_the_shape_of_zf5(on_meta):
    small, large = (
        [(m.kernel_size, m.stride) for m in on_meta(name).children() if isinstance(m, nn.Conv2d)]
        for name in ("zf5-64", "zf5")
    )
    assert small == large
