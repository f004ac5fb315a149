"""LinearSVMCV chooses what a grid search over LIBLINEAR chooses."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import average_precision_score, make_scorer
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
from sklearn.svm import LinearSVC

from spptransfer.errors import ConfigError
from spptransfer.svm import LinearSVM, LinearSVMCV, gram_matrix

COSTS = (0.003, 0.1, 3.0)


def classes(shape=(90, 150), n_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(shape[0]) % n_classes
    centres = 0.4 * rng.normal(size=(n_classes, shape[1]))
    return np.maximum(0, rng.normal(size=shape) + centres[y]), y


def ternary(shape=(90, 150), seed=0):
    X, y = classes(shape, 4, seed)
    Y = np.where(y[:, None] == np.arange(4), 1, -1)
    Y[np.random.default_rng(seed).random(Y.shape) < 0.1] = 0
    return X, Y


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("shape", [(60, 100), (90, 12)])
@pytest.mark.parametrize("scoring", [None, "balanced_accuracy"])
def test_choice_and_table_are_those_of_a_grid_search(shape, n_classes, scoring):
    X, y = classes(shape, n_classes)
    folds = list(StratifiedKFold(3, shuffle=True, random_state=1).split(X, y))
    ours = LinearSVMCV(COSTS, cv=folds, scoring=scoring).fit(X, y)
    svc = LinearSVC(tol=1e-8, max_iter=100_000)
    theirs = GridSearchCV(svc, {"C": COSTS}, cv=folds, scoring=scoring).fit(X, y)
    assert theirs.best_params_["C"] == ours.C_
    assert ours.best_score_ == pytest.approx(theirs.best_score_)
    for name in ("mean_test_score", "std_test_score", "split2_test_score", "rank_test_score"):
        np.testing.assert_allclose(ours.cv_results_[name], theirs.cv_results_[name])
    assert set(theirs.cv_results_) <= set(ours.cv_results_)
    np.testing.assert_allclose(ours.coef_, theirs.best_estimator_.coef_, atol=1e-4)


@pytest.mark.parametrize("shape", [(40, 60), (200, 5)])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_a_row_counts_as_often_as_a_fold_names_it(shape, class_weight):
    """A rare class, repeated eight times where it is trained on and twice where it is scored."""
    rng = np.random.default_rng(0)
    y = (rng.random(shape[0]) < 0.15).astype(int)
    X = rng.normal(size=shape) + 0.7 * y[:, None]
    folds = []
    for train, test in StratifiedKFold(3, shuffle=True, random_state=0).split(X, y):
        rare = [np.tile(rows[y[rows] == 1], times) for rows, times in ((train, 7), (test, 1))]
        folds.append((np.concatenate([train, rare[0]]), np.concatenate([test, rare[1]])))
    options = {"cv": folds, "scoring": "balanced_accuracy", "refit": False}
    ours = LinearSVMCV(COSTS, class_weight=class_weight, **options).fit(X, y)
    grid = GridSearchCV(LinearSVM(class_weight=class_weight), {"C": COSTS}, **options).fit(X, y)
    for name in ("split0_test_score", "mean_test_score", "rank_test_score"):
        np.testing.assert_allclose(ours.cv_results_[name], grid.cv_results_[name])


def test_refit_gives_what_a_fit_at_that_c_gives():
    X, Y = ternary()
    search = LinearSVMCV(COSTS).fit(X, Y)
    alone = LinearSVM(search.C_).fit(X, Y)
    np.testing.assert_allclose(search.coef_, alone.coef_, atol=1e-6)
    np.testing.assert_allclose(search.intercept_, alone.intercept_, atol=1e-6)
    np.testing.assert_array_equal(search.predict(X), alone.predict(X))
    assert search.duality_gap_.max() <= 1e-6


def test_indicator_matrices_are_scored_class_by_class_without_the_ignored():
    X, Y = ternary()
    folds = list(KFold(3).split(X))
    search = LinearSVMCV(COSTS, cv=folds).fit(X, Y)
    for c, C in enumerate(COSTS):
        for f, (train, test) in enumerate(folds):
            scores = LinearSVM(C).fit(X[train], Y[train]).decision_function(X[test])
            for k in range(4):
                kept = Y[test, k] != 0
                ap = average_precision_score(Y[test, k][kept] == 1, scores[kept, k])
                assert search.cv_results_["score_per_class"][c, f, k] == pytest.approx(ap)


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_rows_keep_the_decision_values_of_the_models_trained_without_them(per_class, n_jobs):
    X, Y = ternary()
    folds = [np.arange(0, 80, 2), np.arange(1, 80, 2)]  # the last ten rows are in none
    pairs = [(np.setdiff1d(np.arange(90), fold), fold) for fold in folds]
    model = LinearSVMCV((0.01, 1.0), cv=pairs, per_class=per_class, n_jobs=n_jobs).fit(X, Y)
    found = model.held_out_decision_function_
    assert found.dtype == np.float32
    assert np.isnan(found[80:]).all()
    for train, fold in pairs:
        for problem, C in enumerate(np.broadcast_to(model.C_, Y.shape[1])):
            alone = LinearSVM(C, tol=1e-9).fit(X[train], Y[train])
            expected = alone.decision_function(X[fold])[:, problem]
            np.testing.assert_allclose(found[fold, problem], expected, atol=2e-3)


def test_every_class_may_have_its_own_c():
    X, Y = ternary()
    search = LinearSVMCV(COSTS, per_class=True).fit(X, Y)
    means = search.cv_results_["score_per_class"].mean(axis=1)
    np.testing.assert_array_equal(search.C_, np.array(COSTS)[means.argmax(axis=0)])
    assert search.best_score_ == pytest.approx(means.max(axis=0).mean())
    for k, C in enumerate(search.C_):
        np.testing.assert_allclose(search.coef_[k], LinearSVM(C).fit(X, Y).coef_[k], atol=1e-6)


def test_one_versus_rest_classes_may_have_their_own_c_too():
    X, y = classes()
    search = LinearSVMCV(COSTS, per_class=True).fit(X, y)
    assert search.C_.shape == (3,)
    assert search.score(X, y) > 0.8


def test_the_order_of_candidates_does_not_matter():
    X, Y = ternary()
    forth, back = LinearSVMCV(COSTS).fit(X, Y), LinearSVMCV(COSTS[::-1]).fit(X, Y)
    assert forth.C_ == back.C_
    np.testing.assert_array_equal(forth.coef_, back.coef_)
    np.testing.assert_array_equal(
        forth.cv_results_["mean_test_score"], back.cv_results_["mean_test_score"][::-1]
    )


def test_a_tie_goes_to_the_first_candidate():
    X = np.vstack([np.eye(12)] * 2)
    y = np.tile(np.arange(12) % 2, 2)
    assert LinearSVMCV((1.0, 100.0, 10.0), cv=2).fit(X, y).C_ == 1.0


def test_folds_are_seeded_and_stratified_for_each_class():
    X, Y = ternary()
    first, again = LinearSVMCV(COSTS).fit(X, Y), LinearSVMCV(COSTS).fit(X, Y)
    other = LinearSVMCV(COSTS, random_state=1).fit(X, Y)
    scores = [s.cv_results_["score_per_class"] for s in (first, again, other)]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert (scores[0] != scores[2]).any()


@pytest.mark.parametrize("regularize_intercept", [True, False])
@pytest.mark.parametrize("shape", [(60, 100), (90, 12)])
def test_folds_without_a_positive_are_solved_but_not_scored(shape, regularize_intercept):
    X, y = classes(shape, 2)
    Y = np.column_stack([2 * y - 1, np.where(np.arange(len(y)) == 4, 1, -1)])
    search = LinearSVMCV(
        COSTS, cv=KFold(3), per_class=True, regularize_intercept=regularize_intercept
    ).fit(X, Y)
    scores = search.cv_results_["score_per_class"]
    assert np.isnan(scores[:, :, 1]).sum() == 2 * len(COSTS)
    assert np.isfinite(search.best_score_)
    assert search.cv_results_["max_duality_gap"].max() <= 1e-6


def test_a_scorer_may_be_a_callable():
    X, Y = ternary()
    scorer = make_scorer(average_precision_score, response_method="decision_function")
    ours, named = LinearSVMCV(COSTS, scoring=scorer).fit(X, Y), LinearSVMCV(COSTS).fit(X, Y)
    assert ours.best_score_ == named.best_score_


def test_a_gram_matrix_is_shared_by_splits():
    X, Y = ternary()
    gram = gram_matrix(X, np.float64)
    rows = np.flatnonzero(np.arange(90) % 3 > 0)
    shared = LinearSVMCV(COSTS).fit(X[rows], Y[rows], gram=gram.of(rows))
    alone = LinearSVMCV(COSTS).fit(X[rows], Y[rows])
    assert shared.C_ == alone.C_
    np.testing.assert_allclose(shared.coef_, alone.coef_, atol=1e-6)


def test_without_refit_there_is_a_choice_but_no_weights():
    X, Y = ternary()
    search = LinearSVMCV(COSTS, refit=False).fit(X, Y)
    assert search.C_ in COSTS
    assert not hasattr(search, "coef_")
    with pytest.raises(NotFittedError, match="chose C but has no weights, since refit is False"):
        search.predict(X)


def test_a_search_that_fails_leaves_the_one_before_as_it_was():
    X, y = classes()
    search = LinearSVMCV(COSTS).fit(X, y)
    before = search.predict(X)
    with pytest.raises(ConfigError, match="cv is 1"):
        search.set_params(cv=1).fit(X, y)
    np.testing.assert_array_equal(search.predict(X), before)


@pytest.mark.parametrize("kind", [tuple, np.array, pd.Series, pd.Index])
def test_candidates_come_in_any_sequence(kind):
    X, y = classes()
    costs = [0.1, 1.0]
    search, plain = (LinearSVMCV(given).fit(X, y) for given in (kind(costs), costs))
    assert search.C_ == plain.C_


def test_nothing_stays_from_the_search_before():
    X, y = classes()
    search = LinearSVMCV(COSTS).fit(X, y)
    fresh = LinearSVMCV(COSTS, per_class=True, refit=False).fit(X, y)
    search.set_params(per_class=True, refit=False).fit(X, y)
    assert vars(search).keys() == vars(fresh).keys()


def test_progress_goes_to_standard_error_only_when_asked(capsys):
    X, y = classes()
    LinearSVMCV(COSTS).fit(X, y)
    assert capsys.readouterr().err == ""
    LinearSVMCV(COSTS, progress=True).fit(X, y)
    captured = capsys.readouterr()
    assert "C=3, 12 problems" in captured.err
    assert captured.out == ""


def test_uncertified_problems_of_a_whole_search_are_one_warning():
    X, y = classes()
    with pytest.warns(ConvergenceWarning, match=r"of 36 problems did not reach") as caught:
        LinearSVMCV(COSTS, tol=1e-200, max_iter=2).fit(X, y)
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"Cs": ()}, "Cs is empty"),
        ({"Cs": (1.0, -1.0)}, "Cs is -1.0"),
        ({"Cs": (1.0, 1e21)}, r"Cs is 1e\+21; allowed: numbers > 0, at most 1e\+20"),
        ({"cv": 1}, "cv is 1; allowed: 2 to 90 folds"),
        ({"cv": 80}, "no class has that many rows"),
        ({"cv": []}, "cv gave no folds"),
        ({"Cs": 1.0}, "Cs is 1.0; allowed: a sequence of finite numbers > 0"),
        ({"Cs": None}, "Cs is None; allowed: a sequence"),
        ({"Cs": [[1], [1, 2]]}, r"Cs is \[1\]; allowed: finite numbers > 0"),
        ({"cv": [([0, 1], [2]), ([0, 2], [])]}, "cv: fold 2 has no rows to score on"),
        ({"cv": [([], [2])]}, "cv: fold 1 has no rows to train on"),
        ({"cv": [([0, 1], [90])]}, "cv holds what are no numbers of 90 rows: index 90 is out of"),
        ({"cv": [([0, 1], [2.0])]}, "cv holds what are no numbers of 90 rows"),
    ],
)
def test_wrong_searches_are_named(parameters, message):
    X, y = classes()
    with pytest.raises(ConfigError, match=message):
        LinearSVMCV(**parameters).fit(X, y)
