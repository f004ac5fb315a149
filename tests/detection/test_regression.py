"""What is encoded is decoded, and a regression finds what turns windows into objects."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spptransfer.detection.regression import decode_boxes, encode_boxes, fit_regressors

SIZE = (640.0, 480.0)


@st.composite
def boxes(draw, count):
    """Boxes in an image, no side of which is more than 16 times that of another."""
    found = []
    for _ in range(count):
        x0, y0 = draw(st.floats(0, 540)), draw(st.floats(0, 380))
        found.append([x0, y0, x0 + draw(st.floats(7, 100)), y0 + draw(st.floats(7, 100))])
    return np.array(found)


@settings(deadline=None, max_examples=50)
@given(boxes(4), boxes(4))
def test_what_is_encoded_is_decoded(windows, objects):
    changes = encode_boxes(windows, objects)
    np.testing.assert_allclose(decode_boxes(windows, changes, SIZE), objects, atol=1e-9)


@settings(deadline=None, max_examples=50)
@given(boxes(3))
def test_windows_without_changes_stay_where_they_are(windows):
    assert not encode_boxes(windows, windows).any()
    still = decode_boxes(windows, np.zeros((3, 4)), SIZE)
    np.testing.assert_allclose(still, windows, atol=1e-9)


@settings(deadline=None, max_examples=50)
@given(boxes(3), boxes(3), st.floats(0.1, 10), st.floats(-50, 50))
def test_changes_know_neither_place_nor_size_of_the_image(windows, objects, factor, shift):
    moved = encode_boxes(windows * factor + shift, objects * factor + shift)
    np.testing.assert_allclose(moved, encode_boxes(windows, objects), atol=1e-7)


@settings(deadline=None, max_examples=50)
@given(boxes(2), st.lists(st.floats(-1e6, 1e6), min_size=8, max_size=8))
def test_what_is_decoded_lies_in_the_image_however_far_off_the_prediction(windows, changes):
    found = decode_boxes(windows, np.array(changes).reshape(2, 4), SIZE)
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    assert (found <= [*SIZE, *SIZE]).all()
    assert (found[:, :2] <= found[:, 2:]).all()


def test_a_window_becomes_at_most_sixteen_times_as_large():
    window = np.array([[300.0, 200, 310, 210]])
    found = decode_boxes(window, np.array([[0, 0, 50.0, -50]]), SIZE)
    np.testing.assert_allclose(found, [[225, 205 - 5 / 16, 385, 205 + 5 / 16]])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_regression_finds_a_linear_map_of_each_class(dtype):
    random = np.random.default_rng(0)
    features = random.normal(size=(200, 6)).astype(dtype)
    maps, offsets = random.normal(size=(3, 4, 6)), random.normal(size=(3, 4))
    labels = np.arange(200) % 2 * 2  # of the second there are none
    changes = np.einsum("nf,nkf->nk", features, maps[labels]) + offsets[labels]
    coef, intercept = fit_regressors(features, changes, labels, 3, 1e-6)
    assert (coef.dtype, intercept.dtype) == (np.float32, np.float32)
    for label in (0, 2):
        np.testing.assert_allclose(coef[label], maps[label], atol=1e-3)
        np.testing.assert_allclose(intercept[label], offsets[label], atol=1e-3)
    assert not coef[1].any()
    assert not intercept[1].any()


def test_a_penalty_shrinks_the_coefficients_and_not_the_mean():
    random = np.random.default_rng(0)
    features, changes = random.normal(size=(50, 3)), random.normal(size=(50, 4)) + 2
    none = np.zeros(50, int)
    loose, _ = fit_regressors(features, changes, none, 1, 1e-6)
    tight, mean = fit_regressors(features, changes, none, 1, 1e9)
    assert np.abs(tight).max() < 1e-3 < np.abs(loose).max()
    np.testing.assert_allclose(mean[0], changes.mean(axis=0), atol=1e-3)
