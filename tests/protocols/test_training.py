from __future__ import annotations

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV
from sklearn.svm import LinearSVC

from spptransfer import metrics
from spptransfer.errors import ConfigError
from spptransfer.protocols.training import (
    Training,
    cheapest_gram,
    fit_classifier,
)
from spptransfer.svm import gram_matrix

AP = metrics.MEAN_AVERAGE_PRECISION


@pytest.fixture
def three_classes():
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(3, 40))
    y = np.repeat(np.arange(3), 20).astype(np.int32)
    X = (centres[y] + 1.5 * generator.normal(size=(60, 40))).astype(np.float32)
    return X, y


@pytest.fixture
def indicator(three_classes):
    X, y = three_classes
    Y = np.where(np.arange(3) == y[:, None], 1, -1).astype(np.int8)
    Y[::7, 0] = 0
    Y[np.arange(0, 60, 5), (y[::5] + 1) % 3] = 1
    return X, Y


def folds_of(n, k=3):
    return [np.arange(start, n, k) for start in range(k)]


def test_a_given_C_trains_liblinears_problem(three_classes):
    X, y = three_classes
    ours = fit_classifier(X, y, n_classes=3, training=Training(C=(0.5,)))
    theirs = LinearSVC(C=0.5, tol=1e-9, max_iter=100_000).fit(X, y)
    np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(X), atol=1e-4)
    assert ours.C == 0.5
    assert ours.validation == []


@pytest.mark.parametrize("loss", ["squared_hinge", "hinge"])
def test_both_solvers_choose_the_same_C_and_score_alike(three_classes, loss):
    X, y = three_classes
    values = (0.001, 0.03, 1.0)
    results = [
        fit_classifier(
            X,
            y,
            n_classes=3,
            training=Training(C=values, loss=loss, solver=solver),
            folds=folds_of(60),
        )
        for solver in ("spptransfer", "scikit-learn")
    ]
    assert results[0].C == results[1].C
    scores = [[row["score"] for row in result.validation] for result in results]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-9)
    np.testing.assert_allclose(
        results[0].decision_function(X), results[1].decision_function(X), atol=0.02
    )


def test_a_gram_matrix_at_hand_changes_nothing(three_classes):
    X, y = three_classes
    training = Training(C=(0.1, 1.0))
    wide = np.hstack([X, X])
    gram = gram_matrix(wide)
    with_gram = fit_classifier(
        wide, y, n_classes=3, training=training, folds=folds_of(60), gram=gram
    )
    without = fit_classifier(wide, y, n_classes=3, training=training, folds=folds_of(60))
    np.testing.assert_allclose(with_gram.coef, without.coef, atol=1e-4)


@pytest.mark.parametrize(
    ("n_splits", "folds", "precision"),
    [(1, 0, None), (8, 0, None), (12, 0, np.float32), (1, 3, None), (12, 3, np.float64)],
)
def test_splits_share_a_gram_matrix_where_it_is_cheaper_than_their_own(n_splits, folds, precision):
    # Caltech101's images, features and classes; ten splits of 30 images per class.
    n_certificates = 102 * 4 * (folds + 1) if folds else 102
    assert cheapest_gram((9144, 12_800), [3060] * n_splits, n_certificates) is precision


def test_two_classes_share_one_hyperplane_with_opposite_signs(three_classes):
    X, y = three_classes
    kept = y < 2
    for solver in ("spptransfer", "scikit-learn"):
        pair = fit_classifier(
            X[kept], y[kept], n_classes=2, training=Training(C=(1.0,), solver=solver)
        )
        scores = pair.decision_function(X[kept])
        assert scores.shape == (40, 2)
        np.testing.assert_allclose(scores[:, 0], -scores[:, 1], atol=1e-5)
        assert (scores.argmax(axis=1) == y[kept]).mean() > 0.9


@pytest.mark.parametrize("method", AP)
def test_C_per_class_maximises_the_named_average_precision(indicator, method):
    X, Y = indicator
    values = (0.0001, 0.01, 1.0)
    training = Training(C=values, chosen_by=AP[method], per_class=True)
    chosen = fit_classifier(X, Y, n_classes=3, training=training, folds=folds_of(60))
    for column in range(3):
        expected = []
        for C in values:
            scores = []
            for fold in folds_of(60):
                inside = np.setdiff1d(np.arange(60), fold)
                inside = inside[Y[inside, column] != 0]
                svc = LinearSVC(C=C, tol=1e-8, max_iter=100_000)
                svc.fit(X[inside], Y[inside, column])
                values_here = svc.decision_function(X[fold])
                scores.append(metrics.average_precision(Y[fold, column], values_here, method))
            expected.append(np.mean(scores))
        assert chosen.C[column] == values[int(np.argmax(expected))]


@pytest.mark.parametrize("difficult", ["ignore", "negative"])
@pytest.mark.parametrize("solver", ["spptransfer", "scikit-learn"])
def test_with_folds_of_its_own_every_class_gets_the_C_of_a_grid_search(
    indicator, difficult, solver
):
    X, Y = indicator
    values, weight = (0.0001, 0.001, 0.01, 1.0), {1: 2.0, -1: 1.0}
    training = Training(
        C=values,
        chosen_by=AP["uninterpolated"],
        per_class=True,
        difficult=difficult,
        class_weight=weight,
        solver=solver,
    )
    found = fit_classifier(X, Y, n_classes=3, training=training, folds=3)
    for k, column in enumerate(Y.T):
        kept = np.flatnonzero(column) if difficult == "ignore" else np.arange(len(column))
        svc = LinearSVC(class_weight=weight, tol=1e-8, max_iter=100_000)
        grid = GridSearchCV(svc, {"C": values}, cv=3, scoring="average_precision")
        labels = np.where(column[kept] > 0, 1, -1)
        assert found.C[k] == grid.fit(X[kept], labels).best_params_["C"]


def test_difficult_images_are_left_out_or_negatives_as_the_protocol_says(indicator):
    X, Y = indicator
    for difficult, kept, sign in (
        ("ignore", Y[:, 0] != 0, Y[:, 0]),
        ("negative", Y[:, 0] > -2, Y[:, 0] > 0),
    ):
        ours = fit_classifier(X, Y, n_classes=3, training=Training(C=(1.0,), difficult=difficult))
        labels = np.where(np.asarray(sign)[kept] > 0, 1, -1)
        theirs = LinearSVC(C=1.0, tol=1e-9, max_iter=100_000).fit(X[kept], labels)
        np.testing.assert_allclose(
            ours.decision_function(X)[:, 0], theirs.decision_function(X), atol=1e-3
        )


def test_weights_of_positives_are_those_of_liblinear(indicator):
    X, Y = indicator
    weight = {1: 2.0, -1: 1.0}
    ours = fit_classifier(X, Y, n_classes=3, training=Training(class_weight=weight))
    theirs = fit_classifier(
        X, Y, n_classes=3, training=Training(class_weight=weight, solver="scikit-learn")
    )
    np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(X), atol=0.1)


def test_the_certificate_is_reported(three_classes):
    X, y = three_classes
    solver = fit_classifier(X, y, n_classes=3, training=Training()).solver
    assert solver["relative_duality_gap"] <= 1e-6
    assert solver["iterations"] >= 1


def test_a_choice_of_C_without_folds_is_refused(three_classes):
    X, y = three_classes
    with pytest.raises(ConfigError, match=r"\[0.1, 1.0\] leaves a choice"):
        fit_classifier(X, y, n_classes=3, training=Training(C=(0.1, 1.0)))


def test_weights_of_positives_need_several_labels_per_image(three_classes):
    X, y = three_classes
    with pytest.raises(ConfigError, match="allowed here: balanced, null"):
        fit_classifier(X, y, n_classes=3, training=Training(class_weight={1: 2.0}))
    balanced = fit_classifier(X, y, n_classes=3, training=Training(class_weight="balanced"))
    assert balanced.coef.shape == (3, 40)


def test_liblinear_with_one_C_for_all_labels_is_refused(indicator):
    X, Y = indicator
    training = Training(
        C=(0.1, 1.0), solver="scikit-learn", chosen_by=AP["11-point"], per_class=False
    )
    with pytest.raises(ConfigError, match="chooses C per class only"):
        fit_classifier(X, Y, n_classes=3, training=training, folds=folds_of(60))


def test_dask_workers_choose_C_as_this_process_does(three_classes):
    distributed = pytest.importorskip("distributed", reason="dask[distributed] is not installed")
    X, y = three_classes
    options = {"n_classes": 3, "folds": folds_of(60)}
    here = fit_classifier(X, y, training=Training(C=(0.01, 1.0)), **options)
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=False,
        dashboard_address=None,
        protocol="tcp://",
    ) as workers:
        training = Training(C=(0.01, 1.0), engine="dask", scheduler=workers.scheduler_address)
        there = fit_classifier(X, y, training=training, **options)
    assert there.C == here.C
    assert there.validation == here.validation
    np.testing.assert_allclose(there.coef, here.coef, atol=1e-5)


def test_only_the_own_solver_is_spread_over_dask_workers(three_classes):
    X, y = three_classes
    training = Training(engine="dask", solver="scikit-learn")
    with pytest.raises(ConfigError, match=r"classifier\.engine: dask spreads the solver spptransf"):
        fit_classifier(X, y, n_classes=3, training=training)
