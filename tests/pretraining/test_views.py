from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spptransfer.errors import ConfigError
from spptransfer.pretraining.views import (
    PAPER_SCALES,
    SCHEMES,
    first_cell,
    make_scheme,
    mirrored,
    proportional,
    window_corners,
)

WINDOWED = ("center", "corners", "sides", "line")


@st.composite
def windows(draw):
    """Size of an image, side of its windows and a kind of places."""
    size = draw(st.integers(1, 300))
    height, width = (size + draw(st.integers(0, 300)) for _ in range(2))
    return height, width, size, draw(st.sampled_from(WINDOWED))


# Schemes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "views"),
    [
        ("center_crop", 1),
        ("full", 1),
        ("10-crops", 10),
        ("10-maps", 10),
        ("96-maps", 96),
        ("98-maps", 98),
    ],
)
@pytest.mark.parametrize("size", [224, 64, 48])
def test_a_scheme_has_the_views_it_is_named_after(name, views, size):
    assert make_scheme(name, size=size).views == views


def test_the_paper_takes_18_views_per_scale_and_6_at_the_smallest():
    scheme = make_scheme("96-maps")
    assert [(at.scale, at.count) for at in scheme.scales] == [
        (224, 6),
        (256, 18),
        (300, 18),
        (360, 18),
        (448, 18),
        (560, 18),
    ]


def test_98_views_are_the_96_and_the_whole_image_with_its_mirror_image():
    more, fewer = make_scheme("98-maps"), make_scheme("96-maps")
    assert more.scales[:-1] == fewer.scales
    assert (more.scales[-1].scale, more.scales[-1].places, more.scales[-1].flip) == (
        256,
        "full",
        True,
    )


def test_sizes_of_smaller_networks_keep_the_papers_proportions():
    assert [proportional(scale, 224) for scale in PAPER_SCALES] == list(PAPER_SCALES)
    assert [at.scale for at in make_scheme("96-maps", size=112).scales] == [
        112,
        128,
        150,
        180,
        224,
        280,
    ]
    assert make_scheme("full", size=112).scales[0].scale == 128


def test_only_schemes_on_maps_are_taken_on_maps():
    assert {name for name in SCHEMES if make_scheme(name).on_maps} == {
        "10-maps",
        "96-maps",
        "98-maps",
    }


def test_the_whole_image_may_be_smaller_than_a_window():
    assert make_scheme("full", size=64, resize=48).scales[0].scale == 48


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "96-map"}, "views: unknown scheme '96-map'; did you mean '96-maps'? allowed: "),
        ({"name": "10-crops", "size": 64, "resize": 60}, "resize: 60 is smaller than the windows"),
        ({"name": "96-maps", "scales": [256, 200]}, "scales: 200 is smaller than the windows"),
        ({"name": "96-maps", "scales": [256, 256]}, "scales: [256, 256] must be different"),
        ({"name": "96-maps", "scales": []}, "scales: [] must be different"),
        ({"name": "full", "size": 0}, "size: 0 is no side of a window"),
        ({"name": "full", "resize": 0}, "resize: 0"),
    ],
)
def test_what_makes_no_scheme_is_refused_in_one_line(arguments, message):
    name = arguments.pop("name")
    with pytest.raises(ConfigError, match=re.escape(message)) as refused:
        make_scheme(name, **arguments)
    assert "\n" not in str(refused.value)


# Windows -----------------------------------------------------------------------------------


@given(windows())
def test_windows_lie_inside_the_image(case):
    height, width, size, places = case
    for top, left in window_corners(height, width, size, places):
        assert 0 <= top <= height - size
        assert 0 <= left <= width - size


@given(windows())
def test_a_mirrored_window_shows_the_same_pixels_and_mirrored_twice_itself(case):
    height, width, size, places = case
    corners = window_corners(height, width, size, places)
    again = mirrored(corners, width, size)
    assert mirrored(again, width, size) == corners
    for (top, left), (other_top, other_left) in zip(corners, again, strict=True):
        columns = {width - 1 - column for column in range(left, left + size)}
        assert columns == set(range(other_left, other_left + size))
        assert top == other_top


def test_the_five_windows_are_the_centre_and_the_corners():
    assert set(window_corners(10, 12, 4, "corners")) == {(3, 4), (0, 0), (0, 8), (6, 0), (6, 8)}


def test_the_nine_windows_are_those_and_the_middles_of_the_sides():
    sides = {(0, 4), (3, 0), (3, 8), (6, 4)}
    five = set(window_corners(10, 12, 4, "corners"))
    assert set(window_corners(10, 12, 4, "sides")) == five | sides


@pytest.mark.parametrize(("height", "width"), [(4, 12), (12, 4)])
def test_where_the_smaller_side_is_the_windows_three_of_nine_differ(height, width):
    nine = window_corners(height, width, 4, "sides")
    assert set(nine) == set(window_corners(height, width, 4, "line"))
    assert len(set(nine)) == 3


# Cells -------------------------------------------------------------------------------------


@given(
    st.integers(1, 32),
    st.integers(1, 20),
    st.integers(0, 20),
    st.data(),
)
def test_a_window_covers_the_cells_nearest_to_a_crops_own(stride, cells, more, data):
    """Cell j of a crop at pixel x looks at x + c + S j, cell a of the map at c + S a."""
    map_cells = cells + more
    pixel = data.draw(st.integers(0, more * stride))
    first = first_cell(pixel, stride, cells, map_cells)
    distances = [abs(stride * start - pixel) for start in range(more + 1)]
    assert distances[first] == min(distances)


@given(st.integers(0, 30), st.integers(1, 32), st.integers(1, 20), st.integers(0, 20))
def test_a_window_at_a_multiple_of_the_stride_keeps_its_place(start, stride, cells, more):
    assert first_cell(start * stride, stride, cells, cells + start + more) == start


def test_a_window_never_reaches_beyond_the_map():
    assert first_cell(1000, 16, 13, 15) == 2


def test_aligned_windows_of_zf5_hold_as_many_cells_as_the_papers_rule_gives():
    """The paper pads so that cell j looks at 16 j, and takes the cells strictly inside."""
    for pixel in range(0, 160, 16):
        left, right = pixel // 16 + 1, -(-(pixel + 224) // 16) - 1
        assert right - left + 1 == 13
