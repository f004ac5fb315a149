"""Distances between images against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spptransfer import neighbours
from spptransfer.neighbours import isolation, near_copies, typical_distance, unit_rows


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of which even small matrices have several."""
    monkeypatch.setattr(neighbours, "_BLOCK", 7)


def drawn(seed, n, width=6):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, width)).astype(np.float32)


def all_distances(X):
    units = X / np.linalg.norm(X, axis=1, keepdims=True)
    distances = 1 - units.astype(np.float64) @ units.T
    np.fill_diagonal(distances, np.inf)
    return distances


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 100), st.integers(2, 40), st.integers(0, 3), st.integers(1, 300))
def test_near_copies_are_those_of_brute_force_across_splits_first(seed, n, n_splits, most):
    X, generator = drawn(seed, n), np.random.default_rng(seed)
    roles = generator.integers(0, 3, (n_splits, n)).astype(np.int8)
    found = near_copies(unit_rows(X), roles, closer_than=0.7, most=most)
    distances, expected = all_distances(X), []
    for one, other in itertools.combinations(range(n), 2):
        if distances[one, other] < 0.7:
            across = sum({roles[s, one], roles[s, other]} == {1, 2} for s in range(n_splits))
            expected.append((across == 0, distances[one, other], across))
    expected = sorted(expected)[:most]
    np.testing.assert_allclose(found.distance, [each[1] for each in expected], atol=1e-5)
    np.testing.assert_array_equal(found.across, [each[2] for each in expected])
    np.testing.assert_allclose(distances[found.first, found.second], found.distance, atol=1e-5)
    assert (found.first < found.second).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 100), st.integers(1, 40), st.integers(1, 4))
def test_isolation_is_the_mean_distance_to_the_nearest_of_the_class(seed, n, n_classes):
    X, groups = drawn(seed, n), np.random.default_rng(seed).integers(0, n_classes, n)
    distances, ratios = isolation(unit_rows(X), groups, k=3)
    among_all = all_distances(X)
    for row in range(n):
        others = np.flatnonzero((groups == groups[row]) & (np.arange(n) != row))
        if not len(others):
            assert np.isnan([distances[row], ratios[row]]).all()
            continue
        expected = np.sort(among_all[row, others])[:3].mean()
        assert distances[row] == pytest.approx(expected, abs=1e-5)
        of_class = distances[groups == groups[row]]
        assert ratios[row] == pytest.approx(distances[row] / np.median(of_class), rel=1e-4)


def test_the_typical_distance_is_the_median_of_the_fifth_nearest():
    X = drawn(0, 30)
    expected = np.median(np.sort(all_distances(X), axis=1)[:, 4])
    assert typical_distance(unit_rows(X)) == pytest.approx(expected, abs=1e-5)


def test_images_without_any_feature_are_no_copies_of_one_another():
    units = unit_rows(np.zeros((3, 4)))
    assert not units.any()
    assert len(near_copies(units, closer_than=0.9).first) == 0


def test_a_crowd_of_copies_stays_within_the_bound():
    units = unit_rows(np.ones((60, 3)))
    assert len(near_copies(units, closer_than=0.1, most=10).first) == 10
    _, ratios = isolation(units, np.zeros(60, int))
    assert np.isfinite(ratios).all()
