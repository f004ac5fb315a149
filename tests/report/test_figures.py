from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from spptransfer.report import figures

HOSTILE = "<img src=x onerror=alert(1)>\"'&"
fractions = st.floats(0, 1)


def parsed(markup) -> ElementTree.Element:
    return ElementTree.fromstring(str(markup))


def rectangles(markup) -> list[ElementTree.Element]:
    return parsed(markup).findall(".//rect")


def painted(markup, prefix: str) -> dict[tuple[int, int], int]:
    """Cell to shade, read back from the paths of `cells`."""
    found = {}
    for shade, path in re.findall(rf'class="{prefix}-(\d+)" d="([^"]*)"', str(markup)):
        for x, y, width in re.findall(r"M(\d+) (\d+)h(\d+)v1h-\d+z", path):
            for column in range(int(x), int(x) + int(width)):
                assert (int(y), column) not in found
                found[int(y), column] = int(shade)
    return found


@given(fractions, fractions)
def test_ticks_lie_inside_and_are_evenly_spaced(a, b):
    low, high = min(a, b), max(a, b)
    if high - low < 1e-6:
        return
    found = figures.ticks(low, high)
    assert 2 <= len(found) <= 12
    assert found[0] >= low - 1e-9
    assert found[-1] <= high + 1e-9
    np.testing.assert_allclose(np.diff(found), found[1] - found[0], rtol=1e-4)


@given(st.lists(fractions))
def test_the_padded_domain_is_a_true_interval_that_holds_the_values(values):
    low, high = figures.padded(values)
    assert 0 <= low < high <= 1
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in values)


@given(fractions)
def test_a_bar_is_as_long_as_its_value(value):
    fill = rectangles(figures.bar(value, math.nan, math.nan))[1]
    assert float(fill.get("width").rstrip("%")) == pytest.approx(100 * value, abs=0.006)


def test_a_class_without_a_value_has_an_empty_track():
    assert len(rectangles(figures.bar(math.nan, math.nan, math.nan))) == 1


def test_the_whisker_spans_the_splits():
    line = parsed(figures.bar(0.5, 0.25, 0.75)).find("line")
    assert (line.get("x1"), line.get("x2")) == ("25.0%", "75.0%")


def test_a_strip_has_one_dot_per_split_in_its_place():
    strip = parsed(figures.dot_strip([0.2, 0.3, 0.4], 0.3, 0.1, (0.2, 0.4)))
    assert [dot.get("cx") for dot in strip.findall("circle")] == ["0.0%", "50.0%", "100.0%"]
    assert strip.find("rect").get("width") == "100.0%"


@given(
    arrays(np.int64, st.tuples(st.integers(1, 8), st.integers(1, 8)), elements=st.integers(-1, 4))
)
def test_cells_paint_every_cell_once_in_its_shade(shades):
    expected = {place: shade for place, shade in np.ndenumerate(shades) if shade >= 0}
    assert painted(figures.cells(shades, "heat"), "heat") == expected


def test_heat_maps_clip_to_their_domain():
    markup = figures.heat_map(np.array([[-5.0, 0.5], [1.0, 9.0]]), (0, 1))
    assert painted(markup, "heat") == {(0, 0): 0, (0, 1): 4, (1, 0): 8, (1, 1): 8}


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=5))
def test_stacked_parts_follow_one_another(parts):
    shares = [part / sum(parts) for part in parts]
    edge = 0.0
    for part in rectangles(figures.stacked_bar([("read", 1.0, share) for share in shares])):
        assert float(part.get("x").rstrip("%")) == pytest.approx(edge, abs=0.05)
        edge += float(part.get("width").rstrip("%"))
    assert edge == pytest.approx(100, abs=0.1)


def test_the_area_of_a_choice_dot_is_its_share():
    dots = parsed(figures.choice_strip({0.1: 1, 10: 4}, [0.1, 1, 10])).findall("circle")
    assert [dot.get("class") for dot in dots] == ["dot", "stop", "dot"]
    assert float(dots[0].get("r")) == pytest.approx(float(dots[2].get("r")) / 2, abs=0.01)


def test_precision_recall_without_a_curve_is_an_empty_frame():
    markup = figures.precision_recall([], [], 0.0)
    assert "area" not in markup
    parsed(markup)


def test_the_area_steps_down_after_each_recall():
    points = np.array([[0.0, 1.0], [0.5, 1.0], [1.0, 0.25]])
    path = re.search(r'class="area" d="M([^"]*)"', figures.precision_recall([], [points], 0.1))[1]
    corners = [tuple(map(float, corner.split())) for corner in path.split("L")]
    assert [*dict.fromkeys(corners)] == [(0, 100), (0, 0), (50, 0), (50, 75), (100, 75), (100, 100)]


def test_the_pyramid_draws_the_lines_of_every_level():
    path = parsed(figures.pyramid([3, 1])).find("path").get("d")
    assert path.count("v36") == path.count("h36") == 4 + 2


@pytest.mark.parametrize("n_classes", [1, 2, 8, 9, 20, 26, 102, 200])
def test_the_matrix_paints_every_pair_that_occurs(n_classes):
    counts = np.random.default_rng(0).poisson(0.3, (n_classes, n_classes))
    markup = figures.confusion_matrix(counts, [str(n) for n in range(n_classes)])
    parsed(markup)
    both = {**painted(markup, "wrong"), **painted(markup, "right")}
    assert set(both) == {(int(row), int(column)) for row, column in np.argwhere(counts)}
    assert all(row == column for row, column in painted(markup, "right"))


def test_shades_follow_the_share_of_the_true_class():
    counts = np.diag([100, 100, 100])
    counts[0] = [60, 39, 1]
    counts[1] = [6, 94, 0]
    assert figures.shade(counts).tolist() == [[1, 5, 0], [3, 4, -1], [-1, -1, 5]]


def test_small_matrices_show_their_counts_and_large_ones_do_not():
    assert ">17</text>" in figures.confusion_matrix(np.diag([17] * 20), ["x"] * 20)
    assert ">17</text>" not in figures.confusion_matrix(np.diag([17] * 60), ["x"] * 60)


def test_labels_are_escaped_and_cut_before_that():
    markup = figures.confusion_matrix(np.eye(2, dtype=int), [HOSTILE, "x" * 300])
    texts = [text.text for text in parsed(markup).iter("text")]
    assert HOSTILE[:21] + "…" in texts
    assert "x" * 21 + "…" in texts
    assert "<img" not in markup


@pytest.mark.parametrize(
    "curves",
    [
        [[(0.01, 0.5), (0.1, 0.6), (1.0, 0.55)]],
        [[(1.0, 0.5)]],
        [[(0.01, 0.5), (1.0, 0.7)], [(0.1, 0.5), (1.0, 0.6)]],
        [[(10.0**power, 0.5) for power in range(-10, 11)]],
    ],
)
def test_validation_curves_mark_every_candidate_on_the_mean(curves):
    plot = parsed(figures.validation_curves(curves, {1.0: 2}))
    dots = plot.findall("circle")
    assert len(dots) == len({C for curve in curves for C, _ in curve})
    assert [dot.get("class") for dot in dots].count("dot") == 1
    width, height = map(float, plot.get("viewBox").split()[2:])
    for dot in dots:
        assert 0 <= float(dot.get("cx")) <= width
        assert 0 <= float(dot.get("cy")) <= height


def test_C_is_spaced_logarithmically():
    plot = parsed(figures.validation_curves([[(0.01, 0.1), (0.1, 0.2), (1.0, 0.3)]], {}))
    left, middle, right = (float(dot.get("cx")) for dot in plot.findall("circle"))
    assert middle - left == pytest.approx(right - middle, abs=0.11)
