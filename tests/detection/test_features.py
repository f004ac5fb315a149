"""Windows get the features that their scale's maps give them one by one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from detection_cases import boxes
from hypothesis import given, settings
from hypothesis import strategies as st

from spptransfer.detection.features import WindowFeatures, choose_scales
from spptransfer.extraction.maps import FeatureMaps
from spptransfer.normalization import PyramidNormalizer

CHANNELS = {"low": 5, "high": 3}
LEVELS = (3, 1)
FEATURES = WindowFeatures(CHANNELS, LEVELS)
SIZE = (90, 60)  # height and width of the image


def maps_at(scale: int) -> FeatureMaps:
    """Maps of two layers, of random numbers, at one scale."""
    generator = torch.Generator().manual_seed(scale)
    maps, sides = {}, {}
    for layer, stride in (("low", 4), ("high", 8)):
        cells = [max(1, side * scale // min(SIZE) // stride) for side in SIZE]
        maps[layer] = torch.randn(CHANNELS[layer], *cells, generator=generator)
        sides[layer] = tuple(side / count for side, count in zip(SIZE, cells, strict=True))
    halves = {layer: (rows / 2, columns / 2) for layer, (rows, columns) in sides.items()}
    return FeatureMaps(maps, sides, halves, SIZE, scale)


def array(drawn) -> np.ndarray:
    return np.array(drawn, np.float64).reshape(-1, 4) * 6.5


def some_windows(count: int, random: np.random.Generator) -> np.ndarray:
    corners = random.uniform(0, 50, (count, 2))
    return np.hstack([corners, corners + random.uniform(2, 40, (count, 2))])


def closest(maps, window) -> int:
    """The scale at which a window's area is closest to 224 x 224 pixels."""
    x0, y0, x1, y1 = window
    area = [(x1 - x0) * (y1 - y0) * (one.scale / min(one.size)) ** 2 for one in maps]
    return min(range(len(maps)), key=lambda index: abs(area[index] - 224**2))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(boxes(), max_size=8),
    st.lists(st.sampled_from([64, 128, 400, 800]), min_size=1, max_size=3, unique=True),
)
def test_features_are_those_pooled_window_by_window_at_its_scale(drawn, scales):
    windows, maps = array(drawn), [maps_at(scale) for scale in scales]
    found = FEATURES.compute(maps, windows)
    assert found.dtype == np.float32
    assert found.shape == (len(windows), FEATURES.width)
    for row, window in zip(found, windows, strict=True):
        at = maps[closest(maps, window)]
        expected = [at.pool([window], LEVELS, layer)[0] for layer in CHANNELS]
        np.testing.assert_array_equal(row, np.concatenate(expected))


def test_large_windows_take_the_small_scale_and_small_windows_the_large_one():
    maps = [maps_at(800), maps_at(200)]
    windows = np.array([[0.0, 0, 60, 90], [10, 10, 26, 26]])  # at 200: 60,000 and 2,844 pixels
    assert choose_scales(maps, windows).tolist() == [1, 0]
    assert choose_scales(maps[:1], windows).tolist() == [0, 0]
    assert choose_scales([maps[0], maps[0]], windows).tolist() == [0, 0]


def test_layers_come_in_the_order_that_was_asked_for():
    window, maps = np.array([[4.0, 8, 40, 80]]), [maps_at(128)]
    turned = WindowFeatures({"high": 3, "low": 5}, LEVELS)
    assert (FEATURES.block_sizes, turned.block_sizes) == ([50, 30], [30, 50])
    low, high = np.split(FEATURES.compute(maps, window), [50], axis=1)
    np.testing.assert_array_equal(turned.compute(maps, window), np.hstack([high, low]))


@pytest.mark.parametrize("steps", [("l2",), ("signed_sqrt", "l2_block"), ("standardize",), ()])
@pytest.mark.parametrize("count", [0, 1, 700])
def test_decision_values_are_those_of_normalised_features(steps, count):
    random, maps = np.random.default_rng(count), [maps_at(64), maps_at(400)]
    normalizer = PyramidNormalizer(steps, block_sizes=FEATURES.block_sizes)
    normalizer.fit(random.normal(size=(9, FEATURES.width)).astype(np.float32))
    coef, intercept = random.normal(size=(3, FEATURES.width)), random.normal(size=3)
    windows = some_windows(count, random)
    moves, stays = random.normal(size=(3, 4, FEATURES.width)), random.normal(size=(3, 4))
    models = [array.astype(np.float32) for array in (coef, intercept, moves, stays)]
    found, changes = FEATURES.score(maps, windows, normalizer, models[:2], models[2:])
    rows = FEATURES.compute(maps, windows)
    rows = normalizer.transform(rows) if count else rows
    np.testing.assert_allclose(found, rows @ coef.T + intercept, atol=1e-4)
    expected = np.einsum("nf,kcf->nkc", rows, moves) + stays
    np.testing.assert_allclose(changes, expected, atol=1e-4)


def test_a_window_without_any_feature_has_the_intercept_as_its_value():
    dark = dataclasses.replace(maps_at(64), maps={"high": torch.zeros(3, 9, 6)})
    features, window = WindowFeatures({"high": 3}, LEVELS), np.array([[0.0, 0, 9, 9]])
    normalizer = PyramidNormalizer().fit(np.ones((1, features.width), np.float32))
    coef, intercept = np.ones((2, features.width), np.float32), np.array([1, -1], np.float32)
    nothing = np.empty((0, 4, features.width)), np.empty((0, 4))
    values, _ = features.score([dark], window, normalizer, (coef, intercept), nothing)
    assert values.tolist() == [[1, -1]]


def test_what_is_around_a_window_is_pooled_at_level_two_and_at_the_same_scale():
    maps = [maps_at(64), maps_at(400)]
    windows = np.array([[20.0, 20, 30, 40], [0, 0, 60, 90], [50, 80, 60, 90]])
    around = np.array([[15.0, 10, 35, 50], [0, 0, 60, 90], [45, 75, 60, 90]])
    features = dataclasses.replace(FEATURES, context=2.0)
    assert features.block_sizes == [50, 20, 30, 12]
    blocks = np.split(features.compute(maps, windows), [50, 70, 100], axis=1)
    at = [maps[index] for index in choose_scales(maps, windows)]
    for layer, inner, outer in (("low", *blocks[:2]), ("high", *blocks[2:])):
        for row, one in enumerate(at):
            np.testing.assert_array_equal(inner[row], one.pool(windows[[row]], LEVELS, layer)[0])
            np.testing.assert_array_equal(outer[row], one.pool(around[[row]], (2,), layer)[0])


def test_the_features_of_a_window_do_not_depend_on_the_others():
    maps, windows = [maps_at(64), maps_at(400)], array([[0, 0, 3, 4], [2, 2, 4, 9], [0, 0, 3, 4]])
    found = FEATURES.compute(maps, windows)
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(FEATURES.compute(maps, windows[1:2])[0], found[1])
    one_layer = dataclasses.replace(FEATURES, channels={"high": 3})
    np.testing.assert_array_equal(one_layer.compute(maps, windows), found[:, 50:])
