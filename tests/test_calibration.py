from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import make_classification

from spptransfer.calibration import (
    BINS,
    confidences,
    fit_sigmoid,
    fit_sigmoids,
    probabilities,
    reliability,
)
from spptransfer.protocols.out_of_fold import deal_folds, out_of_fold
from spptransfer.protocols.training import Training
from spptransfer.svm import LinearSVM, gram_matrix


@pytest.fixture(scope="module")
def drawn():
    """Out-of-fold decision values and those of a test set, of five classes that overlap."""
    X, y = make_classification(
        1200, 30, n_informative=6, n_classes=5, n_clusters_per_class=1, random_state=0
    )
    X, y = X.astype(np.float32), y.astype(np.int32)
    train, test = slice(400), slice(400, None)
    values = out_of_fold(
        X[train], y[train], deal_folds(y[train]), C=0.1, training=Training(), n_classes=5
    )
    svm = LinearSVM(0.1).fit(X[train], y[train])
    return values, y[train], svm.decision_function(X[test]), y[test]


def test_the_sigmoid_is_that_of_scikit_learn():
    X, y = make_classification(300, 8, flip_y=0.2, random_state=1)
    folds = [(np.arange(0, 150), np.arange(150, 300))]
    svm = LinearSVM(0.1)
    theirs = CalibratedClassifierCV(svm, cv=folds, ensemble=True).fit(X, y)
    held_out = svm.fit(X[:150], y[:150]).decision_function(X[150:])
    slope, offset = fit_sigmoid(held_out, y[150:] == 1)
    expected = theirs.predict_proba(X)[:, 1]
    found = expit(slope * svm.decision_function(X) + offset)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("positive", [[], [True, True], [False, False], [True, False]])
def test_there_is_no_sigmoid_where_nothing_tells_the_kinds_apart(positive):
    assert fit_sigmoid(np.arange(len(positive), dtype=float), np.array(positive, bool)) is None


def test_values_that_are_parted_perfectly_give_probabilities_short_of_certainty():
    slope, offset = fit_sigmoid(np.array([-1.0] * 9 + [1.0] * 9), np.arange(18) >= 9)
    assert 0.8 < expit(slope + offset) < 1


def test_a_class_without_a_sigmoid_of_its_own_has_that_of_all():
    values = np.array([[1.0, -1, -2], [0.5, -0.5, -1], [-1, 1, -2], [-0.5, 0.4, -1]])
    targets = np.array([0, 0, 1, 1])
    wanted = fit_sigmoid(values.ravel(), (targets[:, None] == np.arange(3)).ravel())
    np.testing.assert_allclose(fit_sigmoids(values, targets)[2], wanted, rtol=1e-6)
    nothing = fit_sigmoids(np.full((4, 3), np.nan), targets)
    assert np.isnan(nothing).all()


def test_values_that_are_ignored_or_unknown_change_nothing():
    random = np.random.default_rng(0)
    targets = random.choice([-1, 1], (60, 2))
    values = targets + random.normal(size=(60, 2))
    alone = fit_sigmoids(values, targets)
    more, unknown = np.vstack([values, [[9, 9]]]), np.vstack([values, [[np.nan, np.nan]]])
    np.testing.assert_array_equal(fit_sigmoids(more, np.vstack([targets, [[0, 0]]])), alone)
    np.testing.assert_array_equal(fit_sigmoids(unknown, np.vstack([targets, [[1, -1]]])), alone)


@settings(max_examples=50)
@given(st.integers(1, 6), st.integers(1, 5), st.booleans(), st.integers(0, 99))
def test_probabilities_are_probabilities(n_images, n_classes, multi_label, seed):
    random = np.random.default_rng(seed)
    values = random.normal(scale=10.0 ** random.integers(0, 6), size=(n_images, n_classes))
    found = probabilities(values, random.normal(size=(n_classes, 2)), multi_label=multi_label)
    assert found.dtype == np.float32
    assert ((found >= 0) & (found <= 1)).all()
    if not multi_label:
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


def test_they_are_nearer_to_the_truth_than_a_softmax(drawn):
    values, targets, scores, truth = drawn
    found = probabilities(scores, fit_sigmoids(values, targets), multi_label=False)
    ours = reliability(*confidences(found, scores, truth)).error
    other = reliability(*confidences(softmax(scores, axis=1), scores, truth)).error
    assert ours < 0.8 * other


def test_the_calibration_error_is_the_weighted_distance_of_the_bins():
    random = np.random.default_rng(0)
    confidence = np.append(random.random(200), [0.0, 1.0, np.nan])
    right = random.random(203) < 0.6
    found, slow = reliability(confidence, right), 0.0
    for number in range(BINS):
        low, high = number / BINS, (number + 1) / BINS
        last = number == BINS - 1
        inside = (confidence >= low) & ((confidence < high) | last & (confidence == 1))
        assert found.counts[number] == inside.sum()
        if inside.any():
            slow += inside.sum() * abs(confidence[inside].mean() - right[inside].mean()) / 202
    assert found.error == pytest.approx(slow)
    assert np.isnan(reliability(np.array([np.nan]), np.array([True])).error)


def test_of_several_labels_each_class_is_a_prediction_but_for_those_ignored():
    probability = np.array([[0.9, 0.2, 0.5]])
    confidence, right = confidences(probability, probability, np.array([[1, -1, 0]]))
    assert confidence.tolist() == [0.9, 0.2]
    assert right.tolist() == [True, False]


@pytest.mark.parametrize("ensemble", [True, False])
def test_folds_of_scikit_learns_calibration_share_a_gram_matrix(ensemble):
    X, y = make_classification(90, 200, n_informative=5, n_classes=3, random_state=0)
    X = X.astype(np.float32)
    given = CalibratedClassifierCV(LinearSVM(0.01), cv=3, ensemble=ensemble)
    alone = given.fit(X, y).predict_proba(X)
    shared = given.fit(X, y, gram=gram_matrix(X, np.float64)).predict_proba(X)
    np.testing.assert_allclose(shared, alone, atol=1e-4)


def test_two_classes_of_one_hyperplane_have_its_sigmoid():
    scores = np.array([[-1.5], [0.25], [2]]) * [-1, 1]
    found = probabilities(scores, np.array([[3, 0.5], [3, -0.5]]), multi_label=False)
    np.testing.assert_allclose(found[:, 1], expit(3 * scores[:, 1] - 0.5), rtol=1e-6)
