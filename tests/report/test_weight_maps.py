from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spptransfer.report.weight_maps import attention_maps, overlap

sides = st.integers(1, 9)


@given(sides, sides)
def test_a_bin_gives_away_exactly_what_it_holds(finest, level):
    np.testing.assert_allclose(overlap(finest, level).sum(axis=0), 1)


@given(sides, sides)
def test_all_cells_get_the_same_from_even_bins(finest, level):
    np.testing.assert_allclose(overlap(finest, level).sum(axis=1), level / finest)


def test_the_overlap_agrees_with_sampling_the_side_finely():
    finest, level, samples = 6, 4, 12_000
    places = (np.arange(samples) + 0.5) / samples
    expected = np.zeros((finest, level))
    np.add.at(expected, ((places * finest).astype(int), (places * level).astype(int)), 1)
    np.testing.assert_allclose(overlap(finest, level), expected * level / samples, atol=1e-9)


def slow_maps(blocks, finest: int) -> np.ndarray:
    """Every weight by itself, spread over the cells of a grid that all levels divide."""
    fine = np.lcm.reduce([finest, *(level for level, _ in blocks)])
    n_classes = len(blocks[0][1])
    total = np.zeros((n_classes, fine, fine))
    for level, weights in blocks:
        width = fine // level
        for k, row in enumerate(weights):
            for position, weight in enumerate(row):
                i, j = divmod(position % level**2, level)
                cells = total[k, i * width : (i + 1) * width, j * width : (j + 1) * width]
                cells += max(weight, 0) ** 2 / width**2
    cell = fine // finest
    maps = total.reshape(n_classes, finest, cell, finest, cell).sum(axis=(2, 4))
    return maps / maps.mean(axis=(1, 2), keepdims=True)


@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (4, 3, 2, 1), (5,), (2, 2, 1)])
def test_maps_agree_with_spreading_every_weight(levels):
    rng = np.random.default_rng(0)
    blocks = [(level, rng.normal(size=(3, 4 * level**2))) for level in levels]
    np.testing.assert_allclose(attention_maps(blocks, max(levels)), slow_maps(blocks, max(levels)))


def test_even_weights_give_an_even_map():
    blocks = [(level, np.ones((1, 2 * level**2))) for level in (6, 4, 1)]
    np.testing.assert_allclose(attention_maps(blocks, 6), 1)


def test_negative_weights_say_nothing():
    np.testing.assert_array_equal(attention_maps([(2, -np.ones((1, 4)))], 2), np.ones((1, 2, 2)))


def test_blocks_without_a_grid_are_left_out():
    rng = np.random.default_rng(0)
    pyramid = (3, rng.normal(size=(2, 18)))
    with_layer = attention_maps([(None, rng.normal(size=(2, 7))), pyramid], 3)
    np.testing.assert_array_equal(with_layer, attention_maps([pyramid], 3))


def test_a_width_that_is_no_multiple_of_the_bins_is_refused():
    with pytest.raises(ValueError, match="width 10 has no 3×3 bins"):
        attention_maps([(3, np.ones((2, 10)))], 3)


def test_float16_weights_do_not_overflow():
    weights = np.full((1, 4), 60000, np.float16)
    assert np.isfinite(attention_maps([(2, weights)], 2)).all()
