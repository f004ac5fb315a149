from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spptransfer.errors import ConfigError
from spptransfer.pyramid import (
    bin_bounds,
    check_levels,
    count_bins,
    derive_level,
    determining_levels,
    source_level,
)

SIDES = st.integers(1, 5000)
LEVELS = st.integers(1, 40)


def brute_force_pool(maps, level, reduce):
    """Pool N x C x H x W by the definition, one bin after the other, in exact integers."""
    n, channels, height, width = maps.shape
    out = np.empty((n, channels, level, level), dtype=maps.dtype)
    for i in range(level):
        top, bottom = math.floor(i * height / level), math.ceil((i + 1) * height / level)
        for j in range(level):
            left, right = math.floor(j * width / level), math.ceil((j + 1) * width / level)
            out[:, :, i, j] = reduce(maps[:, :, top:bottom, left:right], axis=(2, 3))
    return out.reshape(n, -1)


@given(side=SIDES, level=LEVELS)
def test_bounds_follow_the_floor_and_ceil_of_exact_fractions(side, level):
    from fractions import Fraction

    expected = [
        (math.floor(Fraction(i * side, level)), math.ceil(Fraction((i + 1) * side, level)))
        for i in range(level)
    ]
    assert bin_bounds(side, level) == expected


@given(side=SIDES, level=LEVELS)
def test_no_bin_is_empty_and_together_they_cover_the_side(side, level):
    bounds = bin_bounds(side, level)
    assert all(0 <= first < last <= side for first, last in bounds)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == side
    assert all(following[0] <= bounds[i][1] for i, following in enumerate(bounds[1:]))


@given(side=SIDES, level=LEVELS)
def test_neighbouring_bins_overlap_by_at_most_one_cell_where_cells_suffice(side, level):
    bounds = bin_bounds(side, level)
    if side >= level:
        overlaps = [bounds[i][1] - bounds[i + 1][0] for i in range(level - 1)]
        assert all(0 <= overlap <= 1 for overlap in overlaps)


@given(side=SIDES, coarse=st.integers(1, 8), factor=st.integers(1, 5))
def test_bounds_of_a_level_nest_in_those_of_its_multiples(side, coarse, factor):
    fine = bin_bounds(side, coarse * factor)
    for i, (first, last) in enumerate(bin_bounds(side, coarse)):
        inside = fine[i * factor : (i + 1) * factor]
        assert (inside[0][0], inside[-1][1]) == (first, last)


def test_the_papers_windows_at_thirteen_cells_come_out():
    # Section 2.2: window ceil(13/n), stride floor(13/n) for n = 3, 2, 1.
    assert bin_bounds(13, 3) == [(0, 5), (4, 9), (8, 13)]
    assert bin_bounds(13, 2) == [(0, 7), (6, 13)]
    assert bin_bounds(13, 1) == [(0, 13)]


def test_ten_cells_give_six_bins_not_nine():
    assert len(bin_bounds(10, 6)) == 6


@pytest.mark.parametrize(
    ("levels", "bins"), [([6, 3, 2, 1], 50), ([4, 3, 2, 1], 30), ([6], 36), ([1], 1)]
)
def test_bins_are_counted(levels, bins):
    assert count_bins(levels) == bins


@given(st.lists(st.integers(1, 24), min_size=1, unique=True))
def test_every_level_follows_from_a_determining_one_and_none_of_those_from_another(levels):
    kept = determining_levels(levels)
    assert set(kept) <= set(levels)
    assert all(source_level(level, kept) is not None for level in levels)
    for level in kept:
        assert source_level(level, [other for other in kept if other != level]) is None


def test_the_mean_of_a_level_follows_only_from_itself():
    assert determining_levels([6, 3, 2, 1], "mean") == (6, 3, 2, 1)
    assert source_level(3, [6], "mean") is None
    assert source_level(3, [6, 3], "mean") == 3


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    coarse=st.integers(1, 4),
    factor=st.integers(1, 4),
)
def test_a_level_that_divides_a_finer_one_is_exactly_its_maximum(height, width, coarse, factor):
    maps = np.random.default_rng(height * 41 + width).normal(size=(2, 3, height, width))
    fine = brute_force_pool(maps, coarse * factor, np.max)
    derived = derive_level(fine, source=coarse * factor, target=coarse)
    np.testing.assert_array_equal(derived, brute_force_pool(maps, coarse, np.max))


def test_deriving_keeps_nan_and_leaves_its_input_alone():
    features = np.array([[1.0, np.nan, 3.0, 4.0], [-5.0, -4.0, -3.0, -2.0]])
    before = features.copy()
    np.testing.assert_array_equal(derive_level(features, 2, 1), [[np.nan], [-2.0]])
    np.testing.assert_array_equal(features, before)


def test_deriving_a_level_that_does_not_follow_is_refused():
    with pytest.raises(ConfigError, match="level 4 does not follow from level 6"):
        derive_level(np.zeros((1, 36)), 6, 4)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([], "at least one level"),
        ([0], "0 is not a whole number"),
        ([-2], "-2 is not a whole number"),
        ([1.5], "1.5 is not a whole number"),
        ([True], "True is not a whole number"),
        (["6"], "'6' is not a whole number"),
        ([3, 3], "holds a level twice"),
    ],
)
def test_levels_that_make_no_sense_are_named(levels, message):
    with pytest.raises(ConfigError, match=message):
        check_levels(levels)


def test_the_order_of_levels_is_kept():
    assert check_levels(np.array([1, 6, 2])) == (1, 6, 2)
