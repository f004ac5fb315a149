from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from spptransfer import PyramidNormalizer
from spptransfer.errors import ConfigError

FINITE = st.floats(-1e6, 1e6).map(lambda value: round(value, 3))


@parametrize_with_checks(
    [
        PyramidNormalizer(),
        PyramidNormalizer(["l2_block"]),
        PyramidNormalizer(["signed_sqrt", "standardize", "l2"]),
        PyramidNormalizer([]),
    ]
)
def test_scikit_learns_estimator_checks_pass(estimator, check):
    check(estimator)


@given(arrays(np.float64, (4, 5), elements=FINITE))
def test_l2_is_scikit_learns_normalizer(X):
    expected = Normalizer().fit_transform(X)
    np.testing.assert_allclose(PyramidNormalizer().fit_transform(X), expected, atol=1e-12)


@given(arrays(np.float64, (3, 6), elements=FINITE))
def test_blocks_are_normalised_as_if_each_stood_alone(X):
    normalizer = PyramidNormalizer(["l2_block"], block_sizes=[1, 2, 3])
    parts = [PyramidNormalizer().fit_transform(block) for block in np.split(X, [1, 3], axis=1)]
    np.testing.assert_array_equal(normalizer.fit_transform(X), np.hstack(parts))


@given(arrays(np.float64, (3, 4), elements=FINITE))
def test_the_signed_square_root_keeps_the_sign_and_squares_back(X):
    rooted = PyramidNormalizer(["signed_sqrt"]).fit_transform(X)
    np.testing.assert_allclose(np.sign(rooted) * rooted**2, X, rtol=1e-12)


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_standardising_after_a_root_learns_from_the_rooted_columns(seed):
    generator = np.random.default_rng(seed)
    train, test = generator.normal(3, 2, (20, 4)), generator.normal(3, 2, (5, 4))
    normalizer = PyramidNormalizer(["signed_sqrt", "standardize"]).fit(train)
    scaler = StandardScaler().fit(np.sign(train) * np.sqrt(np.abs(train)))
    expected = scaler.transform(np.sign(test) * np.sqrt(np.abs(test)))
    np.testing.assert_allclose(normalizer.transform(test), expected, atol=1e-10)


def test_constant_columns_become_zero_in_either_precision():
    for dtype in (np.float32, np.float64):
        X = np.full((50, 2), 0.1, dtype=dtype)
        X[:, 1] = np.arange(50)
        Z = PyramidNormalizer(["standardize"]).fit_transform(X)
        assert (Z[:, 0] == 0).all()
        assert Z[:, 1].std() == pytest.approx(1, abs=1e-6)


def test_lengths_do_not_overflow_in_float32():
    X = np.full((1, 4), 1e25, dtype=np.float32)
    np.testing.assert_allclose(PyramidNormalizer().fit_transform(X), 0.5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_type_of_the_data_is_kept_and_the_data_left_alone(dtype):
    X = np.random.default_rng(0).normal(size=(5, 3)).astype(dtype)
    before = X.copy()
    Z = PyramidNormalizer(["signed_sqrt", "standardize", "l2"]).fit_transform(X)
    assert Z.dtype == dtype
    np.testing.assert_array_equal(X, before)


def test_without_copy_the_array_itself_is_normalised():
    X = np.array([[3.0, 4.0]])
    Z = PyramidNormalizer(copy=False).fit(X).transform(X)
    assert Z is X
    np.testing.assert_allclose(X, [[0.6, 0.8]])


def test_feature_names_and_pandas_output_pass_through():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([[3.0, 4.0]], columns=["first", "second"])
    normalizer = PyramidNormalizer().set_output(transform="pandas")
    assert list(normalizer.fit_transform(frame).columns) == ["first", "second"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": ["l3"]}, "unknown step 'l3'; (did you mean .*)?allowed: l2, l2_block"),
        ({"steps": "l2"}, r"must be a list, as \['l2'\]"),
        ({"steps": ["l2", "l2"]}, "holds a step twice"),
        ({"block_sizes": [1, 1]}, r"\[1, 1\] do not fill the 3 columns"),
        ({"block_sizes": [0, 3]}, "do not fill"),
        ({"block_sizes": [1.5, 1.5]}, r"\[1.5, 1.5\] do not fill"),
        ({"block_sizes": 3}, "block_sizes: 3 is no list of whole numbers"),
        ({"steps": iter(["l2"])}, r"iterator object .* must be a list of steps; \[\] for none"),
        ({"block_sizes": iter([1, 2])}, "iterator object .* is no list of whole numbers"),
        ({"steps": None}, r"None must be a list of steps; \[\] for none"),
    ],
)
def test_parameters_that_make_no_sense_are_named_in_fit(options, message):
    normalizer = PyramidNormalizer(**options)
    with pytest.raises(ConfigError, match=message):
        normalizer.fit(np.ones((2, 3)))


def test_mean_length_divides_all_vectors_by_one_number():
    X = np.array([[3.0, 4.0], [0.0, 15.0]])
    normalizer = PyramidNormalizer(["mean_length"]).fit(X)
    np.testing.assert_allclose(normalizer.transform(X), X / 10)
    again = PyramidNormalizer(["mean_length"])
    again.restore(normalizer.learnt(), 2)
    np.testing.assert_array_equal(again.transform(X), normalizer.transform(X))


def test_steps_that_learn_see_what_the_steps_before_them_made():
    X = np.random.default_rng(0).standard_normal((20, 3)) ** 3
    both = PyramidNormalizer(["mean_length", "standardize"]).fit(X)
    np.testing.assert_allclose(
        both.transform(X), PyramidNormalizer(["standardize"]).fit_transform(X)
    )
    roots = np.sign(X) * np.sqrt(np.abs(X))
    found = PyramidNormalizer(["signed_sqrt", "mean_length"]).fit_transform(X)
    np.testing.assert_allclose(found, roots / np.linalg.norm(roots, axis=1).mean())
