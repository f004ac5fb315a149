"""Windows are pooled as if each had been cut out, and boxes find the cells that lie in them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spptransfer.errors import ConfigError
from spptransfer.pyramid import SpatialPyramidPooling
from spptransfer.pyramid.windows import cells_of_boxes, centres, pool_windows


def random_map(height, width, channels=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(height * 61 + width)
    return torch.randn(channels, height, width, generator=generator).to(dtype)


def cut_and_pooled(map, windows, levels):
    """Every window cut out and pooled on its own."""
    pool = SpatialPyramidPooling(levels)
    rows = [pool(map[None, :, top:bottom, left:right]) for top, left, bottom, right in windows]
    return torch.cat(rows)


@st.composite
def windows_in_maps(draw):
    """Sides of a map, and windows of cells in it."""
    sides = draw(st.integers(1, 30)), draw(st.integers(1, 30))
    spans = [
        st.tuples(st.integers(0, side - 1), st.integers(1, side)).map(
            lambda pair: (min(pair[0], pair[1] - 1), max(pair[0] + 1, pair[1]))
        )
        for side in sides
    ]
    pairs = draw(st.lists(st.tuples(*spans), min_size=1, max_size=80))
    windows = [(rows[0], columns[0], rows[1], columns[1]) for rows, columns in pairs]
    return sides, windows * draw(st.sampled_from([1, 1, 3]))


@settings(deadline=None)
@given(
    given=windows_in_maps(),
    levels=st.lists(st.integers(1, 8), min_size=1, max_size=5, unique=True),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_windows_equal_those_cut_out_to_the_bit_at_all_levels(given, levels, dtype):
    sides, windows = given
    map = random_map(*sides, dtype=dtype)
    found = pool_windows(map, windows, levels)
    assert found.dtype == dtype
    assert found.equal(cut_and_pooled(map, windows, levels))


def test_the_whole_map_is_a_window():
    map = random_map(13, 17, channels=256)
    whole = SpatialPyramidPooling()(map[None])
    assert pool_windows(map, [[0, 0, 13, 17]]).equal(whole)


def test_the_layout_of_a_map_in_memory_does_not_matter():
    map = random_map(9, 11, channels=8)
    windows = [[1, 2, 8, 9], [0, 0, 9, 1]]
    expected = cut_and_pooled(map, windows, [3, 1])
    channels_last = map[None].contiguous(memory_format=torch.channels_last)[0]
    turned = map.mT.contiguous().mT
    for same in (channels_last, turned, map[:, :, :]):
        assert pool_windows(same, windows, [3, 1]).equal(expected)


@settings(deadline=None, max_examples=25)
@given(given=windows_in_maps(), seed=st.integers(0, 99), share=st.floats(0, 0.3))
def test_nan_and_infinity_are_pooled_as_by_torch(given, seed, share):
    sides, windows = given
    map, random = random_map(*sides), np.random.default_rng(seed)
    for value in (float("nan"), float("inf"), -float("inf")):
        map[torch.from_numpy(random.random(tuple(map.shape)) < share)] = value
    found, expected = pool_windows(map, windows, [4, 3, 2]), cut_and_pooled(map, windows, [4, 3, 2])
    assert torch.allclose(found, expected, 0, 0, equal_nan=True)


def test_no_window_depends_on_the_others():
    map = random_map(21, 19, channels=5, dtype=torch.float16)
    random = np.random.default_rng(0)
    corners = random.integers(0, 19, (700, 2))
    windows = np.concatenate(
        [corners, np.minimum(corners + random.integers(1, 21, (700, 2)), 19)], 1
    )
    together = pool_windows(map, windows)
    apart = [pool_windows(map, windows[start : start + 97]) for start in range(0, 700, 97)]
    assert torch.cat(apart).equal(together)
    assert pool_windows(map, windows[:50], [1]).equal(together[:50, -5:])


def test_nan_reaches_the_windows_that_hold_it_and_no_others():
    map = torch.zeros(1, 5, 5)
    map[0, 2, 2] = float("nan")
    found = pool_windows(map, [[0, 0, 2, 5], [2, 2, 3, 3], [0, 0, 5, 5]], [1])
    assert found.isnan().ravel().tolist() == [False, True, True]


def test_no_windows_give_no_rows():
    assert pool_windows(random_map(4, 5), np.empty((0, 4), int), [2]).shape == (0, 12)


@pytest.mark.parametrize(
    "window", [[0, 0, 0, 3], [2, 2, 2, 3], [0, 0, 5, 3], [-1, 0, 2, 2], [0, 3, 2, 2]]
)
def test_windows_without_cells_or_beyond_the_map_are_refused(window):
    with pytest.raises(ConfigError, match=r"lie within a map of \(4, 5\)"):
        pool_windows(random_map(4, 5), [window], [1])


def test_what_is_no_map_is_refused():
    with pytest.raises(ConfigError, match=r"shape \(C, h, w\), not \(4, 5\)"):
        pool_windows(torch.zeros(4, 5), [[0, 0, 1, 1]])


def nearest_and_inside(low, high, count, stride, offset):
    """The definition along one axis: cells whose centres lie inside, else the nearest one."""
    at = offset + stride * np.arange(count)
    inside = np.flatnonzero((low <= at) & (at <= high))
    if len(inside):
        return inside[0], inside[-1] + 1
    return None


@given(
    cells=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    size=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    corners=st.lists(st.floats(-0.3, 1.3), min_size=4, max_size=4),
)
def test_a_box_has_the_cells_whose_centres_lie_in_it_and_never_none(cells, size, corners):
    (height, width), (a, b, c, d) = size, corners
    x0, x1 = sorted([a * width, b * width + 0.5])
    y0, y1 = sorted([c * height, d * height + 0.5])
    if x0 >= x1 or y0 >= y1:
        return
    pairs = [centres(side, count) for side, count in zip(size, cells, strict=True)]
    strides, offsets = zip(*pairs, strict=True)
    (found,) = cells_of_boxes([[x0, y0, x1, y1]], cells, strides, offsets).tolist()
    for axis, (low, high) in enumerate([(y0, y1), (x0, x1)]):
        first, stop = found[axis], found[axis + 2]
        assert 0 <= first < stop <= cells[axis]
        expected = nearest_and_inside(low, high, cells[axis], strides[axis], offsets[axis])
        if expected is None:
            at = offsets[axis] + strides[axis] * np.arange(cells[axis])
            away = np.abs(at - (low + high) / 2)
            assert stop == first + 1
            assert away[first] <= away.min() + 1e-9 * size[axis]
        elif abs(expected[0] - first) + abs(expected[1] - stop):
            # A centre on the edge of a box may fall on either side of it, by rounding.
            at = offsets[axis] + strides[axis] * np.arange(cells[axis])
            assert min(np.abs(at - low).min(), np.abs(at - high).min()) < 1e-9 * size[axis]


def test_the_box_of_the_whole_image_has_all_cells_whatever_the_sides():
    for height in range(1, 60, 7):
        for width in (1, 3, 100, 333):
            for cells in ((1, 1), (2, 5), (13, 17), (height, width)):
                (rows, y), (columns, x) = centres(height, cells[0]), centres(width, cells[1])
                found = cells_of_boxes([[0, 0, width, height]], cells, (rows, columns), (y, x))
                assert found.tolist() == [[0, 0, *cells]]


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[0, 0, 4]], r"shape \(n, 4\)"),
        ([0, 0, 4, 4], r"shape \(n, 4\)"),
        ([[0, 0, np.nan, 4]], "finite"),
        ([[0, 0, np.inf, 4]], "finite"),
        ([[4, 0, 4, 4]], "x0 < x1"),
        ([[0, 5, 4, 4]], "y0 < y1"),
    ],
)
def test_what_are_no_boxes_is_refused(boxes, message):
    with pytest.raises(ConfigError, match=message):
        cells_of_boxes(boxes, (4, 4), (16, 16), (8, 8))
