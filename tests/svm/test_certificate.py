"""The certificate holds, and the certified objective is the best there is, on awkward data too."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from spptransfer.svm import LinearSVM, _streaming, gram_matrix
from spptransfer.svm._loss import Iterate
from spptransfer.svm._solver import Solution

COSTS = [1e-6, 1e-3, 1.0, 1e3, 1e6]


def objective(model, X, signs, C, sample_cost=1.0, penalise_bias=True):
    """The definition, in float64, problem by problem."""
    X = np.asarray(X, dtype=np.float64)
    values = []
    for w, b, s in zip(model.coef_, model.intercept_, np.atleast_2d(signs.T), strict=True):
        miss = np.maximum(0, 1 - s * (X @ w + b)) * (s != 0)
        loss = miss**2 if model.loss == "squared_hinge" else miss
        bias = (b / model.intercept_scaling) ** 2 if penalise_bias and model.fit_intercept else 0.0
        values.append(0.5 * (w @ w + bias) + C * np.sum(sample_cost * loss))
    return np.array(values)


def relu_rows(n_rows, n_columns, seed=0):
    rng = np.random.default_rng(seed)
    return np.maximum(0, rng.normal(size=(n_rows, n_columns)))


def labels_for(X, seed=1):
    """Two classes that overlap."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=X.shape[1])
    noisy = X @ direction
    noisy = noisy + noisy.std() * rng.normal(size=len(X))
    return np.where(noisy > np.median(noisy), 1, -1)


def awkward_data():
    wide, tall = relu_rows(40, 90), relu_rows(90, 12)
    unit = wide / np.linalg.norm(wide, axis=1)[:, None]
    return [
        pytest.param(unit, id="unit rows"),
        pytest.param(1000 * wide, id="unnormalised"),
        pytest.param(1e-3 * wide, id="tiny values"),
        pytest.param(np.hstack([wide, np.full((40, 3), 7.0)]), id="constant columns"),
        pytest.param(np.hstack([wide, wide]), id="duplicated columns"),
        pytest.param(np.vstack([unit, unit[:15]]), id="duplicated rows"),
        pytest.param(wide * np.logspace(-4, 4, 90), id="scales eight decades apart"),
        pytest.param(np.vstack([unit[:39], np.zeros(90)]), id="a row of zeros"),
        pytest.param(tall, id="more rows than columns"),
        pytest.param(100 * np.hstack([tall, tall, np.ones((90, 1))]), id="tall and singular"),
    ]


@pytest.mark.parametrize("C", COSTS)
@pytest.mark.parametrize("loss", ["squared_hinge", "hinge"])
@pytest.mark.parametrize("X", awkward_data())
def test_every_problem_is_certified_whatever_the_data(X, loss, C):
    y = labels_for(X)
    model = LinearSVM(C=C, loss=loss).fit(X, y)
    assert model.duality_gap_.max() <= 1e-6
    np.testing.assert_allclose(model.objective_, objective(model, X, y, C), rtol=1e-7)


@pytest.mark.parametrize("C", COSTS)
@pytest.mark.parametrize("X", awkward_data())
def test_a_float32_gram_matrix_is_no_excuse(X, C, monkeypatch):
    monkeypatch.setattr(_streaming, "SMALL", 0)
    X = X.astype(np.float32)
    y = labels_for(X)
    model = LinearSVM(C=C).fit(X, y)
    assert model.duality_gap_.max() <= 1e-6
    np.testing.assert_allclose(model.objective_, objective(model, X, y, C), rtol=1e-6)


@pytest.mark.parametrize("regularize_intercept", [True, False])
@pytest.mark.parametrize("loss", ["squared_hinge", "hinge"])
@pytest.mark.parametrize("shape", [(40, 90), (90, 12)])
def test_one_positive_is_enough(shape, loss, regularize_intercept):
    X = relu_rows(*shape)
    y = np.where(np.arange(len(X)) == 3, 1, 0)
    model = LinearSVM(C=10, loss=loss, regularize_intercept=regularize_intercept).fit(X, y)
    assert model.duality_gap_.max() <= 1e-6


@pytest.mark.parametrize("regularize_intercept", [True, False])
@pytest.mark.parametrize("shape", [(40, 90), (90, 12)])
def test_a_class_without_any_row_is_a_problem_like_others(shape, regularize_intercept):
    X = relu_rows(*shape)
    Y = np.column_stack([labels_for(X), np.full(len(X), -1), np.ones(len(X), dtype=int)])
    model = LinearSVM(regularize_intercept=regularize_intercept).fit(X, Y)
    assert model.duality_gap_.max() <= 1e-6
    assert (model.predict(X)[:, 1] == -1).all()
    assert (model.predict(X)[:, 2] == 1).all()


@pytest.mark.parametrize("loss", ["squared_hinge", "hinge"])
@pytest.mark.parametrize("C", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("X", awkward_data())
def test_no_objective_is_above_liblinear_s(X, C, loss):
    y = labels_for(X)
    ours = LinearSVM(C=C, loss=loss).fit(X, y)
    theirs = LinearSVC(C=C, loss=loss, tol=1e-9, dual=True, max_iter=3000, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs.fit(X, y)
    best = objective(theirs, X, y, C)
    assert objective(ours, X, y, C) <= best * (1 + 1e-6)


@pytest.mark.parametrize("intercept_scaling", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("shape", [(60, 150), (150, 20)])
def test_decision_values_agree_with_liblinear(shape, intercept_scaling):
    X = relu_rows(*shape)
    y = np.random.default_rng(0).integers(0, 4, len(X))
    options = {"C": 0.1, "intercept_scaling": intercept_scaling}
    ours = LinearSVM(**options).fit(X, y)
    theirs = LinearSVC(tol=1e-10, dual=True, max_iter=100_000, **options).fit(X, y)
    np.testing.assert_allclose(
        ours.decision_function(X), theirs.decision_function(X), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("loss", ["squared_hinge", "hinge"])
@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("shape", [(50, 80), (80, 15)])
def test_a_free_bias_is_the_limit_of_a_huge_intercept_scaling(shape, C, loss):
    X = relu_rows(*shape)
    y = labels_for(X)
    free = LinearSVM(C=C, loss=loss, regularize_intercept=False, tol=1e-8).fit(X, y)
    nearly = LinearSVM(C=C, loss=loss, intercept_scaling=300.0, tol=1e-8).fit(X, y)
    value = objective(free, X, y, C, penalise_bias=False)
    assert value <= objective(nearly, X, y, C, penalise_bias=False) * (1 + 1e-6)
    np.testing.assert_allclose(value, nearly.objective_, rtol=1e-3)


def test_both_spaces_find_the_same_weights(monkeypatch):
    X = relu_rows(80, 30)
    y = np.random.default_rng(0).integers(0, 3, 80)
    features = LinearSVM(C=0.5).fit(X, y)
    rows = LinearSVM(C=0.5).fit(X, y, gram=gram_matrix(X, np.float64))
    np.testing.assert_allclose(features.coef_, rows.coef_, atol=1e-6)
    np.testing.assert_allclose(features.intercept_, rows.intercept_, atol=1e-6)


def test_a_free_bias_does_not_swing_around_its_best_for_ever():
    X = np.array([[0, 1, 1, 0, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0.0]])
    model = LinearSVM(C=9.0, loss="hinge", regularize_intercept=False)
    model.fit(X, [0, 1, 1], sample_weight=[3, 1, 0.5])
    assert model.duality_gap_ <= model.tol
    np.testing.assert_allclose(model.coef_, [[0.8, -0.4, -0.4, 0, -1.2]], atol=1e-5)


@pytest.mark.parametrize(
    "X",
    [
        [[1, 2, 1, 2, 1], [0, 1, 2, 2, 3], [0, 1, 3, 0, 2], [3, 3, 2, 3, 0]],
        [[3, 2, 3, 3, 3], [0, 1, 2, 1, 1], [2, 3, 2, 0, 2], [3, 0, 2, 1, 3], [0, 1, 3, 1, 0]],
    ],
)
def test_a_swing_of_a_free_bias_that_dies_out_is_left_alone(X):
    labels = np.arange(len(X)) % 2
    model = LinearSVM(C=1e4, loss="hinge", regularize_intercept=False)
    model.fit(100.0 * np.array(X), labels)
    assert model.duality_gap_ <= model.tol


@pytest.mark.parametrize("loss", ["hinge", "squared_hinge"])
@pytest.mark.parametrize("C", [1e-4, 1.0, 1e4])
def test_rows_on_one_side_only_need_no_more_than_a_free_bias(C, loss):
    X = np.array([[0, 2], [-2, 1], [-1, -2.0]])
    model = LinearSVM(C=C, loss=loss, regularize_intercept=False)
    model.fit(X, [0, 1, 1], sample_weight=[1, 0, 0])
    assert model.intercept_ == -1
    assert model.objective_ == 0
    assert not model.coef_.any()


@pytest.mark.parametrize("loss", ["hinge", "squared_hinge"])
@pytest.mark.parametrize("shape", [(6, 9), (9, 2)])
@pytest.mark.parametrize("C", COSTS)
def test_features_that_are_all_zero_leave_the_bias_to_the_majority(C, shape, loss):
    labels = np.arange(shape[0]) > 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = LinearSVM(C=C, loss=loss, regularize_intercept=False).fit(np.zeros(shape), labels)
    best = {"hinge": 1.0, "squared_hinge": np.mean(2.0 * labels - 1)}[loss]
    np.testing.assert_allclose(model.intercept_, best, atol=1e-3)


def test_no_bias_means_none():
    X = relu_rows(30, 50)
    model = LinearSVM(fit_intercept=False).fit(X, labels_for(X))
    theirs = LinearSVC(fit_intercept=False, tol=1e-10, dual=True, max_iter=10_000)
    theirs.fit(X, labels_for(X))
    assert model.intercept_.tolist() == [0.0]
    np.testing.assert_allclose(model.coef_, theirs.coef_, atol=1e-5)


def test_problems_short_of_the_tolerance_are_counted_in_one_warning():
    X = relu_rows(60, 100)
    y = np.random.default_rng(0).integers(0, 5, 60)
    with pytest.warns(ConvergenceWarning, match=r"of 5 problems did not reach") as caught:
        LinearSVM(tol=1e-200, max_iter=2).fit(X, y)
    assert len(caught) == 1


def test_a_gap_that_is_not_a_number_certifies_nothing():
    points = Iterate(np.zeros((1, 2)), np.zeros((1, 2)), np.zeros(2))
    solution = Solution.unsolved(points, np.ones(2))
    solution.gaps[:] = [np.nan, 0]
    np.testing.assert_array_equal(solution.relative_gaps, [np.nan, 0])


def test_a_given_gram_matrix_changes_nothing():
    X = relu_rows(120, 200).astype(np.float32)
    y = np.random.default_rng(0).integers(0, 3, 120)
    rows = np.arange(0, 120, 2)
    for dtype in (np.float32, np.float64):
        gram = gram_matrix(X, dtype).of(rows)
        shared = LinearSVM(C=10).fit(X[rows], y[rows], gram=gram)
        alone = LinearSVM(C=10).fit(X[rows], y[rows])
        assert shared.duality_gap_.max() <= 1e-6
        np.testing.assert_allclose(shared.coef_, alone.coef_, atol=1e-5)


@pytest.mark.parametrize("shape", [(60, 100), (200, 100), (300, 40)])
def test_weights_do_not_depend_on_the_data_s_precision_beyond_it(shape):
    X = relu_rows(*shape).astype(np.float32)
    y = labels_for(X)
    single = LinearSVM().fit(X, y)
    double = LinearSVM().fit(X.astype(np.float64), y)
    np.testing.assert_allclose(single.coef_, double.coef_, atol=1e-5)
    assert single.coef_.dtype == np.float64


@pytest.mark.slow
@pytest.mark.parametrize("C", [0.01, 100.0])
def test_thousands_of_rows_are_certified_in_float32(C):
    X = relu_rows(2500, 3000).astype(np.float32)
    X /= np.linalg.norm(X, axis=1)[:, None]
    Y = np.column_stack([labels_for(X, seed) for seed in range(4)])
    model = LinearSVM(C=C).fit(X, Y)
    assert model.duality_gap_.max() <= 1e-6
    np.testing.assert_allclose(model.objective_, objective(model, X, Y, C), rtol=1e-6)
