from __future__ import annotations

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from spptransfer.errors import ConfigError
from spptransfer.protocols.out_of_fold import contradiction, out_of_fold
from spptransfer.protocols.training import Training
from spptransfer.svm import gram_matrix


@pytest.fixture
def rows():
    """Sixty rows of three classes, and three folds."""
    generator = np.random.default_rng(0)
    y = np.repeat(np.arange(3), 20).astype(np.int32)
    X = generator.normal(size=(3, 80))[y] + 1.5 * generator.normal(size=(60, 80))
    return X.astype(np.float32), y, [np.arange(start, 60, 3) for start in range(3)]


def indicator_of(y):
    Y = np.where(np.arange(3) == y[:, None], 1, -1).astype(np.int8)
    Y[::7, 0] = 0
    Y[np.arange(0, 60, 5), (y[::5] + 1) % 3] = 1
    return Y


def brute_force(X, y, folds, C, **given):
    values = np.full((len(y), 3), np.nan)
    for fold in folds:
        inside = np.setdiff1d(np.arange(len(y)), fold)
        svc = LinearSVC(C=C, tol=1e-9, max_iter=100_000, **given).fit(X[inside], y[inside])
        values[fold] = svc.decision_function(X[fold])
    return values


@pytest.mark.parametrize("columns", [80, 10])  # with a Gram matrix and without
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_a_row_is_scored_by_what_was_trained_without_its_fold(rows, columns, class_weight):
    X, y, folds = rows
    X = X[:, :columns]
    training = Training(class_weight=class_weight)
    values = out_of_fold(X, y, folds, C=0.1, training=training, n_classes=3)
    expected = brute_force(X, y, folds, 0.1, class_weight=class_weight)
    np.testing.assert_allclose(values, expected, atol=1e-3)
    assert values.dtype == np.float32


def test_a_gram_matrix_at_hand_changes_nothing(rows):
    X, y, folds = rows
    given = {"C": 1.0, "training": Training(), "n_classes": 3}
    with_gram = out_of_fold(X, y, folds, gram=np.asarray(gram_matrix(X)), **given)
    np.testing.assert_allclose(with_gram, out_of_fold(X, y, folds, **given), atol=1e-4)


@pytest.mark.parametrize("difficult", ["ignore", "negative"])
def test_of_several_labels_every_class_has_its_own_C(rows, difficult):
    X, y, folds = rows
    Y, C = indicator_of(y), np.array([0.01, 1.0, 0.01])
    training = Training(difficult=difficult)
    values = out_of_fold(X, Y, folds, C=C, training=training, n_classes=3)
    for k, column in enumerate(Y.T):
        kept = np.flatnonzero(column) if difficult == "ignore" else np.arange(60)
        for fold in folds:
            inside = np.setdiff1d(kept, fold)
            svc = LinearSVC(C=C[k], tol=1e-9, max_iter=100_000)
            svc.fit(X[inside], column[inside] > 0)
            np.testing.assert_allclose(values[fold, k], svc.decision_function(X[fold]), atol=1e-3)


def test_rows_in_no_fold_and_classes_without_rows_have_no_value(rows):
    X, y, folds = rows
    values = out_of_fold(X, y, folds[:2], C=1.0, training=Training(), n_classes=4)
    np.testing.assert_array_equal(np.isnan(values[:, 0]), np.arange(60) % 3 == 2)
    assert np.isnan(values[:, 3]).all()
    margins, _ = contradiction(values, y)
    np.testing.assert_array_equal(np.isneginf(margins), np.arange(60) % 3 == 2)


def test_two_classes_have_opposite_values(rows):
    X, y, folds = rows
    folds = [fold[fold < 40] for fold in folds]
    values = out_of_fold(X[:40], y[:40], folds, C=1.0, training=Training(), n_classes=2)
    np.testing.assert_array_equal(values[:, 0], -values[:, 1])


def test_a_class_of_one_image_is_scored_by_the_others(rows):
    X, y, folds = rows
    y = np.where(np.arange(60) == 0, 3, y)
    values = out_of_fold(X, y, folds, C=1.0, training=Training(), n_classes=4)
    assert np.isfinite(values).all()
    assert contradiction(values, y)[0][0] > 0


def test_wrong_labels_are_contradicted_most(rows):
    X, y, folds = rows
    wrong = np.array([3, 25, 47])
    y = np.where(np.isin(np.arange(60), wrong), (y + 1) % 3, y)
    values = out_of_fold(X, y, folds, C=0.01, training=Training(), n_classes=3)
    margins, classes = contradiction(values, y)
    assert set(np.argsort(-margins)[:3]) == set(wrong)
    np.testing.assert_array_equal(classes[wrong], [0, 1, 2])


def test_one_fold_is_refused(rows):
    X, y, _ = rows
    with pytest.raises(ConfigError, match="1 folds leave none to train on"):
        out_of_fold(X, y, [np.arange(60)], C=1.0, training=Training(), n_classes=3)
