"""Fewer multiplications, the same results: against a plain convolution in float64."""

from __future__ import annotations

import copy
import math
import pickle
import threading

import pytest
import torch
from drawn_weights import draw_weights
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from spptransfer import backbones
from spptransfer.backbones import winograd
from spptransfer.backbones.fused import FusedConvolution
from spptransfer.backbones.fusing import fuse
from spptransfer.backbones.winograd import TILE, MinimalFiltering, transforms

PROBE = nn.Sequential(nn.Conv2d(3, 8, 3)).requires_grad_(False).eval()
needs_onednn = pytest.mark.skipif(
    not isinstance(fuse(PROBE)[0], FusedConvolution)
    or not MinimalFiltering.suits(torch.empty(8, 3, 3, 3), [1, 1]),
    reason="this torch has no fused convolutions or no MKL for this processor",
)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def maps_of(count, channels, height, width, seed=0):
    return drawn(count, height, width, channels, seed=seed).permute(0, 3, 1, 2)


def plain(maps, weight, bias=None, padding=(1, 1)):
    bias = None if bias is None else bias.double()
    return functional.conv2d(maps.double(), weight.double(), bias, padding=tuple(padding))


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


# ---------------------------------------------------------------- the transforms


@pytest.mark.parametrize("side", [3, 5])
def test_the_transforms_filter_exactly_in_one_dimension(side):
    ways = transforms(side)
    filters, neighbours = drawn(side).double(), drawn(TILE + side - 1, seed=1).double()
    found = ways.outputs @ ((ways.filters @ filters) * (ways.inputs @ neighbours))
    expected = [neighbours[k : k + side] @ filters for k in range(TILE)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=1e-12)


def test_the_transforms_are_the_known_ones():
    """Lavin and Gray, CVPR 2016, section 4.1, F(4, 3), up to the signs of rows."""
    known = [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
    assert transforms(3).inputs.tolist() == known
    assert transforms(3).outputs.tolist() == [
        [1, 1, 1, 1, 1, 0],
        [0, 1, -1, 2, -2, 0],
        [0, 1, 1, 4, 4, 0],
        [0, 1, -1, 8, -8, 1],
    ]


# ---------------------------------------------------------------- against a plain convolution


@needs_onednn
@settings(deadline=None, max_examples=60)
@given(
    side=st.sampled_from([3, 5]),
    count=st.integers(1, 5),
    channels=st.integers(1, 40),
    filters=st.integers(1, 40),
    height=st.integers(5, 40),
    width=st.integers(5, 40),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    biased=st.booleans(),
)
@example(3, 1, 16, 16, 5, 2000, (1, 1), True)
@example(3, 1, 16, 16, 2000, 5, (1, 1), True)
@example(5, 3, 1, 1, 5, 5, (0, 0), False)
@example(5, 1, 31, 1, 5, 5, (0, 0), False)
@example(3, 300, 2, 2, 5, 5, (2, 2), True)
def test_results_are_those_of_a_plain_convolution(
    side, count, channels, filters, height, width, padding, biased
):
    maps = maps_of(count, channels, height, width)
    weight = drawn(filters, channels, side, side, seed=1)
    bias = drawn(filters, seed=2) if biased else None
    found = MinimalFiltering(weight, bias, padding)(maps)
    expected = plain(maps, weight, bias, padding)
    assert found.shape == expected.shape
    # A few results may nearly cancel; what they would be with other signs may not.
    typical = plain(maps**2, weight**2, None, padding).sum().sqrt()
    distance = torch.linalg.vector_norm(found - expected)
    limit = {3: 5e-6, 5: 3e-5}[side]
    assert distance < limit * max(typical, torch.linalg.vector_norm(expected))


@needs_onednn
@pytest.mark.parametrize(("side", "times"), [(3, 12), (5, 25)])
def test_over_many_channels_one_digit_is_lost_against_a_plain_convolution_in_float32(side, times):
    maps, weight = maps_of(1, 256, 20, 30).relu(), drawn(64, 256, side, side, seed=1)
    expected = plain(maps, weight)
    error = relative_error(MinimalFiltering(weight, None, (1, 1))(maps), expected)
    assert error < times * relative_error(functional.conv2d(maps, weight, padding=1), expected)
    assert error < 1e-5


@needs_onednn
@pytest.mark.parametrize(
    ("low", "high"), [(0.0, math.inf), (0.0, 6.0), (-math.inf, math.inf), (-1.0, 0.5)]
)
@pytest.mark.parametrize("adds", [False, True])
def test_a_shortcut_is_added_and_then_an_interval_kept(low, high, adds):
    maps, weight, bias = maps_of(2, 8, 11, 13), drawn(6, 8, 3, 3, seed=1), drawn(6, seed=2)
    shortcut = maps_of(2, 6, 11, 13, seed=3) if adds else None
    kept = None if shortcut is None else shortcut.clone()
    found = MinimalFiltering(weight, bias, (1, 1), low, high)(maps, shortcut)
    expected = plain(maps, weight, bias) + (0 if shortcut is None else shortcut)
    assert relative_error(found, expected.clamp(low, high)) < 1e-5
    if shortcut is not None:
        torch.testing.assert_close(shortcut, kept, rtol=0, atol=0)


@needs_onednn
def test_results_lie_as_the_next_convolution_wants_them():
    found = MinimalFiltering(drawn(6, 8, 3, 3), None, (1, 1))(maps_of(2, 8, 11, 13))
    assert found.is_contiguous(memory_format=torch.channels_last)


@needs_onednn
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_maps_may_lie_as_they_like(order):
    maps, weight = maps_of(2, 8, 11, 13).contiguous(memory_format=order), drawn(6, 8, 3, 3)
    cut = maps[:, :, 1:, 2:]
    found = MinimalFiltering(weight, None, (1, 1))(cut)
    assert relative_error(found, plain(cut, weight)) < 1e-5


@needs_onednn
@pytest.mark.parametrize("size", [(9, 9), (13, 18), (40, 52)])
def test_an_images_results_are_the_same_bits_in_every_batch(size):
    """Resumed extractions cut batches otherwise, and promise the same bytes."""
    maps, filtering = maps_of(7, 48, *size), MinimalFiltering(drawn(32, 48, 3, 3), None, (1, 1))
    together = filtering(maps)
    for some in (slice(0, 1), slice(2, 5), slice(6, 7)):
        assert torch.equal(filtering(maps[some]), together[some])


@needs_onednn
def test_what_is_not_a_number_stays_so_and_other_images_are_spared():
    maps, weight = maps_of(2, 8, 9, 9), drawn(6, 8, 3, 3)
    maps[0, 3, 4, 4] = torch.nan
    found = MinimalFiltering(weight, None, (1, 1), 0.0)(maps)
    assert found[0, :, 4, 4].isnan().all()
    assert relative_error(found[1], plain(maps, weight).relu()[1]) < 1e-5


@needs_onednn
def test_threads_share_one_filter():
    weight, maps = drawn(32, 32, 3, 3), [maps_of(1, 32, 40, 20 + 4 * k) for k in range(12)]
    filtering, errors = MinimalFiltering(weight, None, (1, 1)), []

    def work():
        errors.extend(relative_error(filtering(one), plain(one, weight)) for one in maps)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 48
    assert max(errors) < 1e-5


# ---------------------------------------------------------------- where it is used


def filtering_of(filters, channels, side=3):
    return MinimalFiltering(drawn(filters, channels, side, side), None, [side // 2] * 2)


@needs_onednn
def test_it_pays_for_wide_layers_and_not_for_narrow_or_tiny_ones():
    assert filtering_of(256, 256).pays(28, 37)
    assert filtering_of(192, 64, side=5).pays(27, 36)
    assert not filtering_of(32, 32).pays(112, 149)
    assert not filtering_of(256, 256).pays(3, 4)


@needs_onednn
def test_threads_that_ask_at_once_share_one_trial(monkeypatch):
    filtering, together = filtering_of(256, 256), threading.Barrier(4)
    agree, trials, answers = filtering._agree, [], []
    monkeypatch.setattr(filtering, "_agree", lambda maps: trials.append(1) or agree(maps))

    def ask():
        together.wait()
        answers.append(filtering.pays(28, 37))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (trials, answers) == ([1], [True] * 4)


@pytest.mark.parametrize(
    ("shape", "padding", "dtype"),
    [
        ((8, 3, 1, 1), [0, 0], torch.float32),
        ((8, 3, 3, 5), [1, 2], torch.float32),
        ((8, 3, 7, 7), [3, 3], torch.float32),
        ((8, 3, 3, 3), [3, 1], torch.float32),
        ((8, 3, 3, 3), [1, 1], torch.bfloat16),
        ((8, 3, 3, 3), [1, 1], torch.float64),
    ],
)
def test_other_filters_are_left_to_others(shape, padding, dtype):
    assert not MinimalFiltering.suits(torch.empty(shape, dtype=dtype), padding)


def fused_layer(**settings):
    """A convolution with its activation, and without."""
    options = {"padding": 1} | settings
    convolution = nn.Conv2d(16, 16, 3, **options).requires_grad_(False)
    convolution.weight.copy_(drawn(*convolution.weight.shape))
    return FusedConvolution(convolution, "relu"), convolution


@pytest.fixture
def always(monkeypatch):
    """Whatever suits pays."""
    monkeypatch.setattr(winograd, "_WORTHWHILE", 0.0)


@needs_onednn
@torch.inference_mode()
def test_a_fused_convolution_takes_it_where_it_pays(always):
    fused, convolution = fused_layer()
    maps = maps_of(2, 16, 12, 15)
    for _ in range(2):
        assert relative_error(fused(maps), convolution(maps).relu()) < 1e-5
    assert fused._known[maps.shape] == (fused._minimal, ())


@needs_onednn
@pytest.mark.parametrize("settings", [{"stride": 2}, {"dilation": 2}, {"groups": 2}])
@torch.inference_mode()
def test_a_fused_convolution_of_another_kind_does_not(always, settings):
    fused, convolution = fused_layer(**settings)
    maps = maps_of(2, 16, 12, 15)
    assert relative_error(fused(maps), convolution(maps).relu()) < 1e-5
    assert fused._minimal is None


def wrong(self, points):
    return torch.ones(len(points), self._size**2 * self._filters)


def missing(self, points):
    raise NotImplementedError("no such operator")


@needs_onednn
@pytest.mark.parametrize("products", [wrong, missing])
@torch.inference_mode()
def test_where_it_does_not_work_the_plain_way_is_taken(always, monkeypatch, products):
    monkeypatch.setattr(MinimalFiltering, "_products", products)
    fused, convolution = fused_layer()
    maps = maps_of(2, 16, 12, 15)
    assert relative_error(fused(maps), convolution(maps).relu()) < 1e-5
    assert fused._known[maps.shape] != (fused._minimal, ())


@needs_onednn
@torch.inference_mode()
def test_trying_it_draws_nothing_from_torchs_random_numbers(always):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    fused_layer()[0](maps_of(2, 16, 12, 15))
    torch.manual_seed(0)
    fused, _ = fused_layer()
    torch.manual_seed(0)
    fused(maps_of(2, 16, 12, 15))
    assert torch.equal(torch.rand(1), expected)


@needs_onednn
@torch.inference_mode()
def test_a_used_convolution_can_be_copied_and_sent(always):
    fused, convolution = fused_layer()
    maps = maps_of(2, 16, 12, 15)
    expected = fused(maps)
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert torch.equal(other(maps), expected)
    assert (
        relative_error(fused.double()(maps.double()), convolution.double()(maps.double()).relu())
        < 1e-9
    )


@needs_onednn
@pytest.mark.parametrize("name", ["vgg11", "resnet18", "alexnet", "squeezenet1_1", "overfeat-5"])
@torch.inference_mode()
def test_whole_networks_compute_the_same(always, name):
    with torch.device("meta"):
        trunk = backbones.network(name).trunk("spp")
    draw_weights(trunk)
    trunk = trunk.to(memory_format=torch.channels_last)
    fused = fuse(trunk)
    image = maps_of(2, 3, 90, 131)
    assert relative_error(fused(image), trunk(image.clone())) < 2e-5
    used = [m for m in fused.modules() if isinstance(m, FusedConvolution) and m._minimal]
    assert any(module._minimal._agrees for module in used)


@needs_onednn
def test_threads_that_meet_a_layer_at_once_share_one_filter(always):
    fused, convolution = fused_layer()
    together, errors = threading.Barrier(4), []

    @torch.inference_mode()
    def work(number):
        maps = maps_of(1, 16, 12, 15 + number)
        together.wait(timeout=30)
        errors.append(relative_error(fused(maps), convolution(maps).relu()))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 4
    assert max(errors) < 1e-5
    assert {id(call[0]) for call in fused._known.values()} == {id(fused._minimal)}
