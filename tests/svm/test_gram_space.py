"""What the space of rows saves itself changes neither certificates nor results."""

from __future__ import annotations

import numpy as np
import pytest

from spptransfer.svm import LinearSVM, LinearSVMCV, _gram_space, _streaming, gram_matrix
from spptransfer.svm._gram_matrix import dense_gram
from spptransfer.svm._gram_space import GramSpace
from spptransfer.svm._loss import Iterate, Losses
from spptransfer.svm._newton import objectives
from spptransfer.svm._rows import Rows
from spptransfer.svm._solver import warm_start
from spptransfer.svm._systems import Woodbury


def data(shape=(120, 200), n_classes=3, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    X = np.maximum(0, rng.normal(size=shape)).astype(np.float32)
    X *= scale / np.linalg.norm(X, axis=1)[:, None]
    return X, np.arange(shape[0]) % n_classes


def space_of(X, bias_square=1.0, exact=False):
    rows = Rows(X)
    exact_gram = dense_gram(rows, np.float64) if exact else None
    return GramSpace(rows, dense_gram(rows, np.float32), bias_square, exact_gram)


def true_distances(X, apart, bias_square):
    combined = X.astype(float).T @ apart
    return 0.5 * ((combined**2).sum(axis=0) + bias_square * apart.sum(axis=0) ** 2)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("seed", range(5))
def test_a_float32_distance_is_never_below_the_true_one(seed, scale, exact):
    rng = np.random.default_rng(seed)
    X, _ = data(seed=seed, scale=scale)
    X[60:] = X[:60]
    apart = rng.normal(size=(120, 4)) * 10.0 ** rng.integers(-9, 3, 4)
    # Weights that cancel: all that float32 leaves of them is rounding.
    apart[60:, 1:] = -apart[:60, 1:]
    found = space_of(X, exact=exact)._distances(apart, np.full(4, 1e300))
    assert (found >= true_distances(X, apart, 1.0) * (1 - 1e-12)).all()


@pytest.mark.parametrize("exact", [False, True])
def test_a_distance_that_rounding_could_hide_is_computed_in_float64(exact):
    X, _ = data()
    apart = np.random.default_rng(1).normal(size=(120, 3))
    found = space_of(X, exact=exact)._distances(apart, np.zeros(3))
    np.testing.assert_allclose(found, true_distances(X, apart, 1.0), rtol=1e-12)


def test_a_float64_gram_matrix_certifies_without_reading_rows(monkeypatch):
    monkeypatch.setattr(_streaming, "SMALL", 0)
    X, y = data()
    passes = []
    for dtype in (np.float32, np.float64):
        search = LinearSVMCV((0.1, 1.0, 10.0)).fit(X, y, gram=gram_matrix(X, dtype))
        model = LinearSVM(10.0).fit(X, y, gram=gram_matrix(X, dtype))
        assert search.cv_results_["max_duality_gap"].max() <= 1e-6
        assert model.duality_gap_.max() <= 1e-6
        passes.append(model.n_passes_)
    # One to check that they are finite, one for the weights.
    assert passes[1] == 2 < passes[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_float64_gram_matrix_at_hand_is_not_computed_again(dtype, monkeypatch):
    monkeypatch.setattr(_streaming, "SMALL", 0)
    X, y = data(scale=1e3)
    gram = np.asarray(gram_matrix(X, dtype))
    computed = []
    monkeypatch.setattr(
        _gram_space, "dense_gram", lambda *args: computed.append(args[1]) or dense_gram(*args)
    )
    space = _streaming._gram_space(Rows(X), gram, 1.0, "cpu")
    assert space.needs_float64
    space.to_float64()
    assert not space.needs_float64
    assert computed == ([] if dtype == np.float64 else [np.float64])
    assert LinearSVM(1e6).fit(X, y, gram=gram).duality_gap_.max() <= 1e-6


@pytest.mark.parametrize("make", [Losses.squared_hinge, Losses.hinge])
@pytest.mark.parametrize("cost", [1e-4, 1e-2, 1.0])
def test_lengthening_weights_never_raises_the_objective(make, cost):
    X, y = data()
    space = space_of(X)
    signs = np.asfortranarray(np.where(y[:, None] == np.arange(3), 1.0, -1.0))
    rng = np.random.default_rng(0)
    state = np.asfortranarray(signs * rng.uniform(0, 1e-3, signs.shape))
    offset = np.array([0.0, 0.3, -0.2])
    points = Iterate(state, space.product(state) + offset, offset)
    losses = make(signs, np.full(signs.shape, cost))
    longer = warm_start(space, losses, points)
    factor = longer.state / state
    assert (factor >= 1 - 1e-9).all()
    assert (factor <= 10 + 1e-9).all()
    np.testing.assert_allclose(
        longer.scores - offset, space.product(longer.state), rtol=1e-4, atol=1e-6
    )
    slack = 1e-9 if make is Losses.squared_hinge else 1e-2
    before, after = (objectives(space, p, losses) for p in (points, longer))
    assert (after <= before * (1 + slack)).all()


def test_the_preconditioner_follows_as_systems_are_finished():
    rng = np.random.default_rng(0)
    factor, inverse = rng.normal(size=(30, 4)), rng.uniform(0.1, 1, (30, 6))
    inverse[rng.random(inverse.shape) < 0.3] = 0
    residual = rng.normal(size=(30, 6))
    whole = Woodbury(factor, inverse)(residual, np.arange(6))
    shrinking = Woodbury(factor, inverse)
    for columns in ([0, 1, 3, 4, 5], [1, 3, 5], [3]):
        chosen = np.array(columns)
        np.testing.assert_allclose(shrinking(residual[:, chosen], chosen), whole[:, chosen])
