"""LinearSVM as a scikit-learn classifier: labels, weights, row sources, refusals."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import DataConversionWarning
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks
from threadpoolctl import threadpool_limits

from spptransfer.errors import ConfigError
from spptransfer.svm import LinearSVM, LinearSVMCV, gram_matrix

SHAPES = [(40, 90), (90, 12)]


@parametrize_with_checks(
    [
        LinearSVM(),
        LinearSVMCV(Cs=(0.1, 1.0), cv=2),
    ]
)
def test_scikit_learn_accepts_the_estimator(estimator, check):
    check(estimator)


def data(shape, n_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    X = np.maximum(0, rng.normal(size=shape))
    return X, rng.integers(0, n_classes, shape[0])


def ternary(shape, n_classes=4, seed=0):
    X, _ = data(shape)
    return X, np.random.default_rng(seed).choice([-1, 0, 1], (shape[0], n_classes))


@pytest.mark.parametrize("shape", SHAPES)
def test_ignored_labels_are_as_if_the_rows_were_not_there(shape):
    X, Y = ternary(shape)
    model = LinearSVM(C=0.5).fit(X, Y)
    for k in range(Y.shape[1]):
        kept = Y[:, k] != 0
        alone = LinearSVM(C=0.5).fit(X[kept], Y[kept, k])
        np.testing.assert_allclose(model.coef_[k], alone.coef_[0], atol=1e-6)
        np.testing.assert_allclose(model.intercept_[k], alone.intercept_[0], atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_several_classes_are_one_versus_rest(shape):
    X, y = data(shape)
    model = LinearSVM().fit(X, y)
    for k, label in enumerate(model.classes_):
        alone = LinearSVM().fit(X, y == label)
        np.testing.assert_allclose(model.coef_[k], alone.coef_[0], atol=1e-6)


def test_a_minus_one_anywhere_makes_zero_mean_ignored():
    X, Y = ternary((40, 90))
    two_valued = (Y == 1).astype(int)
    plain, signed = LinearSVM().fit(X, two_valued), LinearSVM().fit(X, 2 * two_valued - 1)
    np.testing.assert_allclose(plain.coef_, signed.coef_, atol=1e-9)
    assert set(np.unique(plain.predict(X))) <= {0, 1}
    assert set(np.unique(signed.predict(X))) <= {-1, 1}


@pytest.mark.parametrize("pair", [(0, 1), (-1, 1), ("ant", "bee")])
def test_a_column_of_labels_is_ravelled_with_a_warning_as_in_scikit_learn(pair):
    X, y = data((40, 90), 2)
    y = np.array(pair)[y]
    with pytest.warns(DataConversionWarning):
        column = LinearSVM().fit(X, y[:, None])
    flat = LinearSVM().fit(X, y)
    np.testing.assert_array_equal(column.predict(X), flat.predict(X))
    np.testing.assert_array_equal(column.classes_, np.unique(y))
    with pytest.warns(DataConversionWarning):
        search = LinearSVMCV((0.1, 1.0)).fit(X, y[:, None])
    assert search.best_score_ == LinearSVMCV((0.1, 1.0)).fit(X, y).best_score_


def test_shapes_are_those_of_linear_svc():
    X, _ = data((60, 20))
    for n_classes in (2, 3):
        y = np.arange(60) % n_classes
        ours, theirs = LinearSVM().fit(X, y), LinearSVC().fit(X, y)
        assert ours.coef_.shape == theirs.coef_.shape
        assert ours.intercept_.shape == theirs.intercept_.shape
        assert ours.decision_function(X).shape == theirs.decision_function(X).shape
        np.testing.assert_array_equal(ours.classes_, theirs.classes_)


@pytest.mark.parametrize("weight", ["balanced", {0: 5.0, 2: 0.1}, {1: 0.0}])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_class_weights_mean_what_they_mean_in_liblinear(weight, n_classes):
    X, y = data((90, 12), n_classes)
    if weight != "balanced":
        weight = {k: v for k, v in weight.items() if k < n_classes}
    ours = LinearSVM(C=0.3, class_weight=weight).fit(X, y)
    theirs = LinearSVC(C=0.3, class_weight=weight, tol=1e-10, max_iter=100_000).fit(X, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-4)


@pytest.mark.parametrize("weight", [{1: 2, -1: 1}, "balanced"])
def test_an_indicator_matrix_weighs_every_class_for_itself(weight):
    X, Y = ternary((90, 12))
    model = LinearSVM(class_weight=weight).fit(X, Y)
    for k in range(Y.shape[1]):
        kept = Y[:, k] != 0
        alone = LinearSVC(class_weight=weight, tol=1e-10, max_iter=100_000)
        alone.fit(X[kept], Y[kept, k])
        np.testing.assert_allclose(model.coef_[k], alone.coef_[0], atol=1e-4)


def test_zero_and_minus_one_both_name_the_negatives_of_a_plain_indicator():
    X, Y = ternary((40, 90))
    Y = (Y == 1).astype(int)
    zero = LinearSVM(class_weight={1: 3, 0: 2}).fit(X, Y)
    minus = LinearSVM(class_weight={1: 3, -1: 2}).fit(X, Y)
    np.testing.assert_array_equal(zero.coef_, minus.coef_)


@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [2, 3, "ternary"])
def test_sample_weights_count_rows(kind, shape, class_weight):
    X, y = ternary(shape) if kind == "ternary" else data(shape, kind)
    weight = np.random.default_rng(0).integers(0, 4, len(X))
    model = LinearSVM(class_weight=class_weight)
    weighted = clone(model).fit(X, y, sample_weight=weight)
    repeated = model.fit(np.repeat(X, weight, axis=0), np.repeat(y, weight, axis=0))
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, atol=1e-6)


@pytest.mark.parametrize("kind", [2, 3, "ternary"])
def test_balanced_weights_do_not_count_rows_of_weight_zero(kind):
    X, y = ternary((90, 12)) if kind == "ternary" else data((90, 12), kind)
    left_out = np.arange(len(X)) < 40
    model = LinearSVM(class_weight="balanced")
    weighted = clone(model).fit(X, y, sample_weight=np.where(left_out, 0, 2.5))
    alone = model.set_params(C=2.5).fit(X[~left_out], y[~left_out])
    np.testing.assert_allclose(weighted.coef_, alone.coef_, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 17, 39])
def test_the_row_that_is_not_finite_is_named(row, bad):
    X, y = data((40, 90))
    X[row, 5] = bad
    with pytest.raises(ConfigError, match=f"row {row} of X contains NaN or inf"):
        LinearSVM().fit(X, y)
    with pytest.raises(ConfigError, match=f"row {row} of X contains NaN or inf"):
        gram_matrix(X)


def test_large_finite_values_are_not_taken_for_infinities():
    X = np.full((4, 4), 3e38, dtype=np.float32)
    X[0] = 0
    with np.errstate(all="ignore"):
        LinearSVM(max_iter=1, tol=1e300).fit(X, [0, 1, 1, 1])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"C": 0.0}, r"C is 0.0; allowed: finite numbers > 0"),
        ({"C": 1e100}, r"C is 1e\+100; allowed: numbers > 0, at most 1e\+20"),
        ({"C": "1"}, r"C is '1'"),
        ({"loss": "hing"}, r"did you mean 'hinge'\? allowed: squared_hinge, hinge"),
        ({"tol": -1}, r"tol is -1"),
        ({"intercept_scaling": 0}, r"intercept_scaling is 0"),
        ({"class_weight": "balance"}, r"class_weight is 'balance'"),
        ({"class_weight": {"cat": 2}}, r"class_weight names \['cat'\]"),
        ({"class_weight": {0: -2}}, r"class_weight\[0\] is -2"),
        ({"class_weight": {0: None}}, r"class_weight\[0\] is None; allowed: finite numbers >= 0"),
        ({"class_weight": [1, 2]}, r"class_weight is \[1, 2\]; allowed: None, 'balanced' or"),
        ({"max_iter": 1.5}, r"max_iter is 1.5; allowed: whole numbers > 0"),
    ],
)
def test_wrong_parameters_are_named(parameters, message):
    X, y = data((30, 40), 2)
    with pytest.raises(ConfigError, match=message):
        LinearSVM(**parameters).fit(X, y)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.zeros(30), r"y has 1 class \(0.0\); at least 2 are needed"),
        (np.zeros(29), r"at least 2|29"),
        (np.arange(29) % 2, r"X has 30 rows but y has 29"),
        (np.full((30, 2), 7), r"allowed values in an indicator matrix: 1, 0, -1"),
        (None, r"requires y"),
    ],
)
def test_wrong_labels_are_named(y, message):
    X, _ = data((30, 40))
    with pytest.raises(ConfigError, match=message):
        LinearSVM().fit(X, y)


def test_a_gram_matrix_of_other_rows_is_refused():
    X, y = data((30, 40))
    with pytest.raises(ConfigError, match=r"gram has shape \(29, 29\); 30 rows need \(30, 30\)"):
        LinearSVM().fit(X, y, gram=gram_matrix(X[:29]))


def test_a_gram_matrix_that_is_not_finite_is_refused():
    X, y = data((30, 40))
    gram = np.asarray(gram_matrix(X, np.float64))
    gram[3, 5] = gram[5, 3] = np.nan
    with pytest.raises(ConfigError, match="gram contains NaN or infinity"):
        LinearSVM().fit(X, y, gram=gram)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(
    ("shape", "size"), [((40, 90), 1e200), ((90, 12), 1e200), ((1010, 1020), np.float32(1e30))]
)
def test_rows_whose_squares_overflow_are_refused(shape, size):
    X = size * np.ones(shape, dtype=np.asarray(size).dtype)
    with pytest.raises(ConfigError, match=r"X is so large that its squares overflow.*; scale"):
        LinearSVM().fit(X, np.arange(len(X)) % 2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_row_sources_give_what_arrays_give(shape, dtype, tmp_path):
    X, y = data(shape)
    X = X.astype(dtype)
    np.save(tmp_path / "X.npy", X)
    expected = LinearSVM().fit(X.astype(np.float32), y)
    with h5py.File(tmp_path / "X.h5", "w") as file:
        file["X"] = X
        for source in (file["X"], np.load(tmp_path / "X.npy", mmap_mode="r"), X):
            model = LinearSVM().fit(source, y)
            np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e-6)
            np.testing.assert_array_equal(model.predict(source), expected.predict(X))


def test_frames_lists_and_pipelines_work():
    X, y = load_iris(return_X_y=True, as_frame=True)
    model = LinearSVM(C=10).fit(X, y)
    assert list(model.feature_names_in_) == list(X.columns)
    pipeline = clone(make_pipeline(StandardScaler(), LinearSVM(C=10))).fit(X, y)
    assert pipeline.score(X, y) > 0.9
    assert LinearSVM().fit(X.to_numpy().tolist(), y.tolist()).score(X.to_numpy(), y) > 0.8
    wrapped = OneVsRestClassifier(LinearSVM(C=10)).fit(X, y)
    np.testing.assert_allclose(wrapped.decision_function(X), model.decision_function(X), atol=1e-6)
    assert isinstance(pd.Series(model.predict(X)), pd.Series)


def test_names_of_features_do_not_stay_when_rows_without_names_are_fitted():
    X, y = data((40, 90))
    model = LinearSVM().fit(pd.DataFrame(X).add_prefix("f"), y).fit(X.astype(np.float16), y)
    assert not hasattr(model, "feature_names_in_")


def test_string_labels_come_back():
    X, y = data((60, 90), 3)
    names = np.array(["ant", "bee", "cow"])[y]
    model = LinearSVM(C=100).fit(X, names)
    np.testing.assert_array_equal(model.predict(X), names)


def test_results_do_not_depend_on_the_number_of_threads():
    X, y = data((120, 200))
    weights = []
    for n_threads in (1, 2):
        with threadpool_limits(n_threads, "blas"):
            weights.append(LinearSVM().fit(X, y).coef_)
    np.testing.assert_allclose(*weights, atol=1e-7)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("loss", ["squared_hinge", "hinge"])
@pytest.mark.parametrize("shape", [(60, 500), (500, 20)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_largest_C_overflows_nowhere(loss, shape, scale):
    generator = np.random.default_rng(5)
    X = scale * generator.normal(size=shape).astype(np.float32)
    y = generator.integers(0, 3, shape[0])
    with np.errstate(all="raise", under="ignore"):
        model = LinearSVM(C=1e20, loss=loss, max_iter=30).fit(X, y)
    assert np.isfinite(model.coef_).all()
