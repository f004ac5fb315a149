from __future__ import annotations

import itertools
import math

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spptransfer.errors import ConfigError
from spptransfer.pyramid import SpatialPyramidPooling, derive_level, determining_levels
from spptransfer.runtimes.graph import Graph


def brute_force(maps, levels, reduce):
    """The definition: for every level and bin, reduce the cells between floor and ceil."""
    n, channels, height, width = maps.shape
    parts = []
    for level in levels:
        grid = np.empty((n, channels, level, level))
        for i in range(level):
            rows = slice(math.floor(i * height / level), math.ceil((i + 1) * height / level))
            for j in range(level):
                columns = slice(math.floor(j * width / level), math.ceil((j + 1) * width / level))
                grid[:, :, i, j] = reduce(maps[:, :, rows, columns], axis=(2, 3))
        parts.append(grid.reshape(n, -1))
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("level", range(1, 9))
def test_every_side_up_to_forty_equals_the_definition(level):
    generator = np.random.default_rng(level)
    for height in range(1, 41):
        for width in {1, height, 41 - height, 7 * height % 40 + 1, 40}:
            maps = generator.integers(-99, 99, size=(1, 2, height, width)).astype(np.float32)
            pooled = SpatialPyramidPooling([level])(torch.from_numpy(maps)).numpy()
            expected = brute_force(maps, [level], np.max)
            assert (pooled == expected).all(), (level, height, width)


@settings(deadline=None)
@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    levels=st.lists(st.integers(1, 8), min_size=1, max_size=5, unique=True),
    channels_last=st.booleans(),
)
def test_a_pyramid_equals_the_definition_level_by_level(height, width, levels, channels_last):
    generator = torch.Generator().manual_seed(height * 31 + width)
    maps = torch.randn(2, 3, height, width, generator=generator)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for pooling, reduce in (("max", np.max), ("mean", np.mean)):
        pooled = SpatialPyramidPooling(levels, pooling)(maps.contiguous(memory_format=layout))
        expected = brute_force(maps.double().numpy(), levels, reduce)
        if pooling == "max":
            np.testing.assert_array_equal(pooled.numpy(), expected.astype(np.float32))
        else:
            np.testing.assert_allclose(pooled.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3), (13, 18667)])
def test_extreme_maps_are_pooled_too(size):
    maps = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(0))
    pooled = SpatialPyramidPooling([6, 3, 2, 1])(maps).numpy()
    np.testing.assert_array_equal(pooled, brute_force(maps.numpy(), [6, 3, 2, 1], np.max))


def test_the_thirteen_cell_map_of_the_paper_matches_its_sliding_windows():
    # At 13 cells the appendix's rule equals windows of ceil(13/n) moved by floor(13/n).
    maps = torch.randn(2, 4, 13, 13, generator=torch.Generator().manual_seed(1))
    for level, window, stride in ((6, 3, 2), (4, 4, 3), (3, 5, 4), (2, 7, 6), (1, 13, 13)):
        sliding = torch.nn.functional.max_pool2d(maps, window, stride).flatten(1)
        assert torch.equal(SpatialPyramidPooling([level])(maps), sliding)


def test_fifty_bins_of_256_channels_are_12800_numbers():
    assert SpatialPyramidPooling()(torch.zeros(1, 256, 13, 18)).shape == (1, 12800)


def test_determining_levels_give_the_others_by_numpy_too():
    maps = torch.randn(3, 5, 11, 7, generator=torch.Generator().manual_seed(2))
    (finest,) = determining_levels([6, 3, 2, 1])
    stored = SpatialPyramidPooling([finest])(maps).numpy()
    whole = SpatialPyramidPooling([6, 3, 2, 1])(maps).numpy()
    derived = np.concatenate([derive_level(stored, 6, level) for level in (6, 3, 2, 1)], axis=1)
    np.testing.assert_array_equal(derived, whole)


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_gradients_agree_with_finite_differences(pooling):
    generator = torch.Generator().manual_seed(3)
    # Distinct values far apart keep the maximum differentiable at the probe.
    maps = torch.randperm(2 * 5 * 7, generator=generator).double().reshape(1, 2, 5, 7)
    maps.requires_grad_()
    assert torch.autograd.gradcheck(SpatialPyramidPooling([4, 2, 1, 3], pooling), (maps,))


def test_nan_reaches_every_bin_that_holds_it_and_no_other():
    maps = torch.zeros(1, 1, 4, 4)
    maps[0, 0, 0, 0] = float("nan")
    pooled = SpatialPyramidPooling([2, 1])(maps)
    assert torch.isnan(pooled).tolist() == [[True, False, False, False, True]]


def test_a_map_without_cells_or_batch_axis_is_refused():
    with pytest.raises(ValueError, match="N x C x H x W"):
        SpatialPyramidPooling()(torch.zeros(1, 3, 0, 5))
    with pytest.raises(ValueError, match="N x C x H x W"):
        SpatialPyramidPooling()(torch.zeros(3, 5, 5))


def test_unknown_pooling_names_the_allowed_ones():
    with pytest.raises(ConfigError, match="'median' is unknown; allowed: max, mean"):
        SpatialPyramidPooling([1], pooling="median")


def test_repr_shows_the_pyramid():
    assert repr(SpatialPyramidPooling([2, 1])) == (
        "SpatialPyramidPooling(levels=[2, 1], pooling='max')"
    )


def test_the_layer_scripts_into_a_state_dict_without_parameters():
    assert SpatialPyramidPooling().state_dict() == {}


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_an_exported_pyramid_pools_maps_of_any_size(pooling):
    layer = SpatialPyramidPooling([4, 6, 3, 1], pooling).eval()
    free = {"maps": {0: "n", 2: "rows", 3: "columns"}, "vectors": {0: "n"}}
    content = Graph(layer, {"maps": torch.zeros(2, 3, 9, 12)}, free).model(embedded=True)
    session = onnxruntime.InferenceSession(content)
    for n, height, width in itertools.product((1, 2), (1, 2, 5, 13, 36), (1, 4, 7, 24)):
        maps = torch.randn(n, 3, height, width)
        (found,) = session.run(None, {"maps": maps.numpy()})
        tolerance = 0 if pooling == "max" else 1e-6  # a maximum is exact
        np.testing.assert_allclose(found, layer(maps).numpy(), atol=tolerance, rtol=0)
