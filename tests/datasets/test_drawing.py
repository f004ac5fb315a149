from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spptransfer.datasets import drawing
from spptransfer.datasets.drawing import SHAPES, TEXTURES, draw, gradient


def rng(seed=0):
    return np.random.default_rng(seed)


def area(corners):
    """Area of a simple polygon by the shoelace formula."""
    x, y = corners.T
    return abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def pixels(texture, shape, size=(90, 70), seed=0):
    return np.asarray(draw(texture, shape, size, rng(seed))).astype(int)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("texture", TEXTURES)
def test_every_texture_can_be_drawn_on_every_shape(texture, shape):
    image = draw(texture, shape, (80, 61), rng())
    assert image.mode == "RGB"
    assert image.size == (80, 61)


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 7), (300, 3), (3, 300)])
def test_awkward_sizes_can_be_drawn(size):
    assert draw("striped", "disc", size, rng()).size == size


def test_the_same_generator_state_draws_the_same_pixels():
    np.testing.assert_array_equal(pixels("dotted", "star"), pixels("dotted", "star"))
    assert (pixels("dotted", "star") != pixels("dotted", "star", seed=1)).any()


@pytest.mark.parametrize("seed", range(5))
def test_classes_differ_on_the_object_only(seed):
    # Whatever else is drawn cannot tell the class, since it does not depend on it.
    first = pixels("striped", "square", seed=seed)
    others = [pixels("dotted", "square", seed=seed), pixels("striped", "triangle", seed=seed)]
    for other in others:
        changed = (first != other).any(axis=2)
        assert changed.any()
        rows, columns = np.nonzero(changed)
        assert np.ptp(rows) <= 2 * 0.50 * 70
        assert np.ptp(columns) <= 2 * 0.50 * 70


@settings(max_examples=50, deadline=None)
@given(length=st.integers(2, 500), share=st.floats(0, 0.5), seed=st.integers(0, 99))
def test_the_object_lies_wholly_inside_the_image(length, share, seed):
    middle = drawing._near_the_middle(length, share * length, rng(seed))
    assert middle - share * length >= 0
    assert middle + share * length <= length + 1e-9


def test_a_mask_covers_the_area_of_its_shape():
    centre, radius = (100.0, 100.0), 80.0
    for name, corners in SHAPES.items():
        mask = drawing._shape_mask(corners, (200, 200), centre, radius, rng(3))
        squeeze = np.prod(rng(3).uniform(0.85, 1.0, 2))
        assert mask.sum() == pytest.approx(area(corners) * squeeze * radius**2, rel=0.04), name
        assert mask.min() == 0
        assert mask.max() == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_fill_much_of_the_unit_circle_and_stay_inside_it(shape):
    corners = SHAPES[shape]
    assert np.linalg.norm(corners, axis=1).max() == pytest.approx(1)
    assert 0.8 <= area(corners) <= np.pi


@pytest.mark.parametrize("texture", TEXTURES)
def test_a_texture_has_marks_and_gaps_in_fair_shares(texture):
    u, v = np.meshgrid(*2 * [np.linspace(-4, 4, 161, dtype=np.float32)])
    marked = (TEXTURES[texture](u, v) > 0).mean()
    assert 0.2 <= marked <= 0.8


@pytest.mark.parametrize("texture", set(TEXTURES) - {"ringed"})
@settings(max_examples=25, deadline=None)
@given(u=st.integers(-3, 3), v=st.integers(-3, 3))
def test_a_texture_repeats_after_four_periods(texture, u, v):
    x, y = np.meshgrid(*2 * [np.linspace(0, 1, 33, dtype=np.float64)])
    expected = TEXTURES[texture](x, y)
    np.testing.assert_allclose(TEXTURES[texture](x + 4 * u, y + 4 * v), expected, atol=1e-9)


@pytest.mark.parametrize("texture", set(TEXTURES) - {"woven"})
def test_a_texture_is_about_the_distance_to_its_edges(texture):
    # Edges come out smooth only if the value does not jump; woven bands end abruptly.
    line = np.linspace(-3, 3, 6001)
    for u, v in ((line, line * 0 + 0.3), (line * 0 - 0.4, line), (line, line)):
        steps = np.abs(np.diff(TEXTURES[texture](u, v)))
        assert steps.max() <= 3 * 0.001


def test_textures_differ_from_each_other():
    u, v = np.meshgrid(*2 * [np.linspace(-4, 4, 161, dtype=np.float32)])
    marks = [TEXTURES[name](u, v) > 0 for name in TEXTURES]
    for i, first in enumerate(marks):
        for second in marks[:i]:
            assert (first != second).mean() > 0.05


def test_dots_match_their_definition():
    u, v = rng().uniform(-3, 3, (2, 200))
    cells = [(i, j) for i in range(-4, 5) for j in range(-4, 5)]
    nearest = np.min([np.hypot(u - i, v - j) for i, j in cells], axis=0)
    np.testing.assert_allclose(TEXTURES["dotted"](u, v), 0.34 - nearest)


def test_checks_alternate_like_a_chessboard():
    i, j = np.meshgrid(np.arange(8), np.arange(8))
    value = TEXTURES["checked"](i / 2, j / 2)
    np.testing.assert_array_equal(value > 0, (i + j) % 2 == 0)


def test_the_two_colours_of_a_texture_stay_apart_in_grey():
    generator = rng()
    for _ in range(200):
        first, second = drawing._contrasting_colours(generator) @ drawing._LUMA
        assert abs(first - second) > drawing._LEAST_CONTRAST


def test_a_gradient_runs_from_0_to_1():
    for seed in range(10):
        ramp = gradient((40, 30), rng(seed))
        assert ramp.shape == (30, 40)
        assert ramp.min() == 0
        assert ramp.max() == pytest.approx(1)
    assert gradient((1, 1), rng()).tolist() == [[0.0]]
