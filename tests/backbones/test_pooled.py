"""The maximum of non-negative numbers by their bits is torch's, for every window and every size."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spptransfer.backbones.pooled import NonNegativeMaxPool

TYPES = [torch.float32, torch.bfloat16]


def drawn(shape, dtype=torch.float32, seed=0):
    """Numbers as an activation leaves them: half of them zero, some huge, tiny or infinite."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(shape, generator=generator).relu()
    choice = torch.randint(0, 40, shape, generator=generator)
    for number, value in enumerate([float("inf"), 3e38, 1e-40, -0.0]):
        maps[choice == number] = value
    return maps.to(dtype).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def assert_same(pool, maps):
    before = maps.clone()
    found, expected = NonNegativeMaxPool(pool)(maps), pool(maps)
    assert torch.equal(found, expected)
    assert found.dtype == expected.dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(maps, before)


@given(
    kernel=st.integers(1, 5),
    stride=st.integers(1, 6),
    padding=st.integers(0, 2),
    size=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 19), st.integers(1, 19)),
    dtype=st.sampled_from(TYPES),
)
def test_every_window_has_torchs_maximum(kernel, stride, padding, size, dtype):
    pool = nn.MaxPool2d(kernel, stride, min(padding, kernel // 2))
    if not NonNegativeMaxPool.suits(pool):
        assert 2 * pool.padding >= kernel
        return
    if min(size[2:]) + 2 * pool.padding >= kernel:
        assert_same(pool, drawn(size, dtype))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("pool", [(2, 2, 0), (3, 2, 0), (3, 2, 1), (3, 3, 0)], ids=str)
@pytest.mark.parametrize("size", [(1, 64, 112, 149), (4, 7, 27, 36), (1, 3, 3, 500)], ids=str)
def test_the_pools_of_the_known_networks_are_torchs(dtype, pool, size):
    assert_same(nn.MaxPool2d(*pool), drawn(size, dtype))


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.MaxPool2d(3, 2, return_indices=True),
        nn.MaxPool2d(3, 2, dilation=2),
        nn.MaxPool2d((3, 2)),
        nn.MaxPool2d(3, (2, 1)),
        nn.MaxPool2d(3, padding=(0, 1)),
        nn.MaxPool2d(2, padding=1),
        nn.AvgPool2d(2),
        nn.AdaptiveMaxPool2d(2),
    ],
    ids=str,
)
def test_other_windows_do_not_suit(pool):
    assert not NonNegativeMaxPool.suits(pool)


@pytest.mark.parametrize("pool", [nn.MaxPool2d((3, 3), (2, 2), (1, 1)), nn.MaxPool2d(2)], ids=str)
def test_sides_may_be_given_twice(pool):
    assert NonNegativeMaxPool.suits(pool)
    assert_same(pool, drawn((2, 3, 9, 10)))


@torch.inference_mode()
def test_other_layouts_and_types_are_left_to_torch():
    pool = nn.MaxPool2d(3, 2)
    negative = -1 - drawn((2, 3, 9, 10)).clamp(max=9)  # of which bits know nothing
    for maps in (negative.contiguous(), negative.double()):
        assert torch.equal(NonNegativeMaxPool(pool)(maps), pool(maps))


def test_gradients_are_torchs():
    maps = drawn((1, 2, 8, 8)).clamp(max=9).requires_grad_(True)
    NonNegativeMaxPool(nn.MaxPool2d(2))(maps).sum().backward()
    assert maps.grad.sum() == 1 * 2 * 4 * 4


@torch.inference_mode()
def test_a_map_smaller_than_the_window_is_torchs_affair():
    maps = drawn((1, 2, 2, 9))
    with pytest.raises(RuntimeError, match="too small"):
        NonNegativeMaxPool(nn.MaxPool2d(3, 2))(maps)
    assert_same(nn.MaxPool2d(3, 2, 1), maps)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_copy_pools_the_same(copied):
    maps, pool = drawn((1, 4, 9, 9)), NonNegativeMaxPool(nn.MaxPool2d(3, 2, 1))
    with torch.inference_mode():
        assert torch.equal(copied(pool)(maps), pool(maps))
