"""Rows that do not fit into memory: same weights, few passes, and the budget is kept."""

from __future__ import annotations

import tracemalloc

import h5py
import numpy as np
import pytest
from cache_files import make_cache
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import KFold

from spptransfer.cache import FeatureCache
from spptransfer.svm import LinearSVM, LinearSVMCV, _streaming
from spptransfer.svm._rows import Rows
from spptransfer.svm._streaming import WorkingSet
from spptransfer.svm._targets import Problems, encode_targets


class Counted:
    """A row source that knows how many of its rows were read."""

    def __init__(self, X):
        self.X, self.shape, self.dtype, self.ndim = X, X.shape, X.dtype, 2
        self.rows_read = 0

    def __getitem__(self, where):
        block = self.X[where]
        self.rows_read += len(block)
        return block.copy()


def data(shape=(900, 40), n_classes=3, noise=0.0, seed=0, dtype=np.float32):
    """Rows of unit length around one centre per class; ``noise`` of the labels are wrong."""
    rng = np.random.default_rng(seed)
    y = np.arange(shape[0]) % n_classes
    X = np.maximum(0, rng.normal(size=shape) + 1.5 * rng.normal(size=(n_classes, shape[1]))[y])
    wrong = rng.random(shape[0]) < noise
    y = np.where(wrong, rng.integers(0, n_classes, shape[0]), y)
    return (X / np.linalg.norm(X, axis=1)[:, None]).astype(dtype), y


def streamed_solvers(monkeypatch):
    """Collects the solvers that stream."""
    made = []
    plain = _streaming.StreamedSolver.__init__

    def init(self, *args):
        made.append(self)
        plain(self, *args)

    monkeypatch.setattr(_streaming.StreamedSolver, "__init__", init)
    return made


@pytest.mark.parametrize(
    ("C", "noise", "memory"),
    [(0.01, 0.3, "60KB"), (1.0, 0.0, "60KB"), (1.0, 0.3, "300KB"), (100.0, 0.3, "150KB")],
)
@pytest.mark.parametrize("loss", ["squared_hinge", "hinge"])
def test_streamed_weights_are_those_of_rows_in_memory(loss, C, noise, memory, monkeypatch):
    X, y = data(noise=noise)
    made = streamed_solvers(monkeypatch)
    inside = LinearSVM(C, loss=loss).fit(X, y)
    assert not made
    streamed = LinearSVM(C, loss=loss, memory=memory).fit(Counted(X), y)
    assert made
    assert streamed.duality_gap_.max() <= 1e-6
    np.testing.assert_allclose(streamed.objective_, inside.objective_, rtol=1e-6)
    np.testing.assert_allclose(
        streamed.decision_function(X), inside.decision_function(X), atol=5e-3
    )


@pytest.mark.parametrize("options", [
    {"regularize_intercept": False},
    {"fit_intercept": False},
    {"intercept_scaling": 10.0},
    {"class_weight": "balanced"},
    {"class_weight": {0: 3.0}},
])  # fmt: skip
def test_every_option_streams(options):
    X, y = data(noise=0.1)
    weight = np.random.default_rng(0).integers(0, 3, len(y))
    inside = LinearSVM(**options).fit(X, y, sample_weight=weight)
    streamed = LinearSVM(**options, memory="150KB").fit(Counted(X), y, sample_weight=weight)
    assert streamed.duality_gap_.max() <= 1e-6
    np.testing.assert_allclose(streamed.objective_, inside.objective_, rtol=1e-6)
    np.testing.assert_allclose(streamed.intercept_, inside.intercept_, atol=2e-2)


def test_rows_with_few_features_stream_too():
    X, y = data((200, 400))
    inside = LinearSVM(10.0).fit(X, y)
    streamed = LinearSVM(10.0, memory="100KB").fit(Counted(X), y)
    assert streamed.duality_gap_.max() <= 1e-6
    np.testing.assert_allclose(streamed.coef_, inside.coef_, atol=1e-3)


def test_several_costs_share_passes_and_give_what_each_gives_alone():
    X, Y = data((1500, 40), noise=0.02)
    costs, folds = (0.3, 1.0, 3.0, 10.0), list(KFold(3).split(X))
    source = Counted(X)
    together = LinearSVMCV(costs, cv=folds, memory="1500KB", scoring="balanced_accuracy")
    together.fit(source, Y)
    alone_read = 0
    for number, C in enumerate(costs):
        one = Counted(X)
        alone = LinearSVMCV((C,), cv=folds, memory="600KB", scoring="balanced_accuracy")
        alone.fit(one, Y)
        alone_read += one.rows_read
        assert alone.cv_results_["mean_test_score"][0] == pytest.approx(
            together.cv_results_["mean_test_score"][number], abs=2e-3
        )
        if together.C_ == C:
            np.testing.assert_allclose(alone.objective_, together.objective_, rtol=1e-6)
    assert together.cv_results_["max_duality_gap"].max() <= 1e-6
    assert source.rows_read < 0.6 * alone_read


def test_a_streamed_search_chooses_what_a_search_in_memory_chooses():
    X, y = data((1200, 30), noise=0.2)
    inside = LinearSVMCV((0.01, 0.1, 1.0)).fit(X, y)
    streamed = LinearSVMCV((0.01, 0.1, 1.0), memory="300KB")
    streamed.fit(Counted(X), y)
    assert streamed.C_ == inside.C_
    np.testing.assert_allclose(
        streamed.cv_results_["mean_test_score"], inside.cv_results_["mean_test_score"], atol=2e-3
    )
    np.testing.assert_allclose(streamed.objective_, inside.objective_, rtol=1e-6)


@pytest.mark.parametrize("memory", ["2MB", "3MB"])
def test_passes_are_counted_and_few(memory):
    X, y = data((3000, 300), n_classes=5)
    source = Counted(X)
    model = LinearSVM(memory=memory).fit(source, y)
    assert model.n_passes_ == -(-source.rows_read // len(X))
    assert model.n_passes_ < 30
    search = LinearSVMCV((0.1, 1.0), cv=2, memory=memory)
    source.rows_read = 0
    search.fit(source, y)
    assert search.n_passes_ == -(-source.rows_read // len(X))


def test_a_view_of_a_feature_cache_is_never_read_whole(tmp_path, monkeypatch):
    make_cache(tmp_path / "features.h5", 200)
    cache = FeatureCache.open(tmp_path / "features.h5")
    X, y = cache.view(dtype=np.float16), cache.labels()
    expected = LinearSVM().fit(np.asarray(X, np.float32), y)
    monkeypatch.setattr(type(X), "__array__", None)
    model = LinearSVM(memory="20KB").fit(X, y)
    np.testing.assert_allclose(model.objective_, expected.objective_, rtol=1e-6)
    np.testing.assert_array_equal(model.predict(X), expected.predict(X[:]))


def test_rows_that_fit_into_memory_are_read_once_more_than_checked():
    X, y = data()
    source = Counted(X)
    assert LinearSVM().fit(source, y).n_passes_ == 2
    assert source.rows_read == 2 * len(X)


def test_the_memory_budget_is_kept(tmp_path):
    budget = 6 * 2**20
    X, y = data((20_000, 200), n_classes=3, noise=0.02)
    with h5py.File(tmp_path / "X.h5", "w") as file:
        file["X"] = X.astype(np.float16)
        del X
        tracemalloc.start()
        try:
            model = LinearSVM(memory=budget).fit(file["X"], y)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert file["X"].nbytes > budget
    assert model.duality_gap_.max() <= 1e-6
    assert peak <= budget


def test_problems_whose_rows_do_not_fit_together_are_divided(monkeypatch):
    X, y = data((3000, 100), n_classes=8)
    made = streamed_solvers(monkeypatch)
    divided = []
    plain = _streaming.StreamedSolver._divide
    monkeypatch.setattr(
        _streaming.StreamedSolver,
        "_divide",
        lambda self, *args: divided.append(plain(self, *args)) or divided[-1],
    )
    streamed = LinearSVM(10.0, memory="1MB").fit(Counted(X), y)
    assert made
    assert streamed.n_passes_ < 40
    assert any(len(teams) > 1 for teams, _ in divided)
    np.testing.assert_allclose(streamed.objective_, LinearSVM(10.0).fit(X, y).objective_, rtol=1e-6)


def test_teams_hold_every_problem_once():
    rng = np.random.default_rng(0)
    solver = _streaming.StreamedSolver.__new__(_streaming.StreamedSolver)
    solver.held = WorkingSet(Rows(np.zeros((100, 3), np.float32)), 50)
    for _ in range(20):
        team, losing = np.arange(30), rng.integers(0, 60, 30)
        teams, wide = solver._divide(team, losing)
        assert sorted(np.concatenate([*teams, wide]).tolist()) == team.tolist()
        assert all(losing[piece].sum() <= 50 for piece in teams)


def test_a_streamed_fit_is_reproducible():
    X, y = data(noise=0.1)
    first, again = (LinearSVM(memory="150KB").fit(Counted(X), y) for _ in range(2))
    np.testing.assert_array_equal(first.coef_, again.coef_)


@given(st.lists(st.sets(st.integers(0, 39), max_size=12), max_size=6))
def test_rows_that_are_held_are_those_wanted(wishes):
    X = np.arange(80, dtype=np.float32).reshape(40, 2)
    held = WorkingSet(Rows(X), 12)
    for wish in wishes:
        mask = np.isin(np.arange(40), list(wish))
        held.replace(mask)
        assert sorted(held.numbers.tolist()) == sorted(wish)
        np.testing.assert_array_equal(held.rows().source, X[held.numbers])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_half_that_is_not_finite_is_found(bad):
    X, y = data((300, 40), dtype=np.float16)
    X[123, 7] = bad
    with pytest.raises(ValueError, match="row 123 of X contains NaN or infinity"):
        LinearSVM().fit(X, y)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.booleans())
def test_problems_are_what_their_definition_says(seed, per_class):
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1, 0, 1], (12, 3)).astype(np.int8)
    signs[0], signs[1] = 1, -1
    masks = [rng.random((12, 3 if per_class else 1)) < 0.7, None]
    weight, targets = rng.random(12), encode_targets(signs)
    problems = Problems.of(targets, {1: 2.0, -1: 0.5}, weight, masks)
    rows, columns = rng.permutation(12)[:7], rng.integers(0, 12, 5)
    C = rng.random(5)
    found, costs = problems.of_rows(rows).dense(columns, C)
    for at, column in enumerate(columns):
        fold, k = divmod(column % 6, 3)
        for i, row in enumerate(rows):
            sign = signs[row, k]
            inside = fold == 1 or masks[0][row, k if per_class else 0]
            side = {1: 2.0, -1: 0.5, 0: 0.0}[int(sign)]
            assert found[i, at] == sign
            assert costs[i, at] == pytest.approx(C[at] * side * weight[row] * inside)
