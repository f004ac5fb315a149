"""Where and in which precision the solver works changes nothing but its speed."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spptransfer.errors import ConfigError
from spptransfer.svm import LinearSVM, _feature_space, _streaming, gram_matrix
from spptransfer.svm._loss import Losses
from spptransfer.svm._newton import LOOSE_SLOPE, line_search
from spptransfer.svm._streaming import budget_bytes
from spptransfer.svm._systems import LowRank


def data(shape, n_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    X = np.maximum(0, rng.normal(size=shape)).astype(np.float32)
    return X / np.linalg.norm(X, axis=1)[:, None], np.arange(shape[0]) % n_classes


def test_a_gram_matrix_that_does_not_fit_is_not_made():
    X, y = data((500, 700))
    roomy, tight = LinearSVM().fit(X, y), LinearSVM(memory="1MB").fit(X, y)
    assert tight.n_passes_ > roomy.n_passes_
    assert tight.duality_gap_.max() <= 1e-6
    np.testing.assert_allclose(tight.coef_, roomy.coef_, atol=1e-4)


@pytest.mark.parametrize(
    ("loss", "C"),
    [("squared_hinge", 0.01), ("squared_hinge", 1.0), ("squared_hinge", 100.0), ("hinge", 1.0)],
)
def test_streamed_rows_are_certified_too(loss, C, monkeypatch):
    monkeypatch.setattr(_feature_space, "SMALL", 0)
    X, y = data((350, 120))
    streamed = LinearSVM(C, loss=loss).fit(X, y)
    rows = LinearSVM(C, loss=loss).fit(X, y, gram=gram_matrix(X, np.float64))
    assert streamed.duality_gap_.max() <= 1e-6
    np.testing.assert_allclose(streamed.objective_, rows.objective_, rtol=1e-6)


def test_rows_of_a_file_are_read_a_few_dozen_times(tmp_path):
    X, y = data((3000, 300))
    with h5py.File(tmp_path / "X.h5", "w") as file:
        file["X"] = X.astype(np.float16)
        model = LinearSVM(memory="16MB").fit(file["X"], y)
    assert model.duality_gap_.max() <= 1e-6
    assert model.n_passes_ < 100


@pytest.mark.parametrize(
    ("text", "size"), [(1000, 1000), ("1GB", 2**30), ("1.5 MiB", 1.5 * 2**20), ("64k", 65536)]
)
def test_memory_budgets_are_read(text, size):
    assert budget_bytes(text) == size


@pytest.mark.parametrize("text", ["lots", "-1GB", 0, "1.2.3MB", ""])
def test_wrong_memory_budgets_are_named(text):
    X, y = data((20, 30))
    with pytest.raises(ConfigError, match=f"memory is {text!r}; allowed: None, bytes"):
        LinearSVM(memory=text).fit(X, y)


def test_an_unknown_device_is_named():
    pytest.importorskip("torch")
    X, y = data((20, 30))
    with pytest.raises(ConfigError, match="device is 'toaster'"):
        LinearSVM(device="toaster").fit(X, y)


@pytest.mark.parametrize("device", ["cpu:0", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("C", [0.1, 100.0])
def test_a_torch_device_finds_the_same_weights(device, C, monkeypatch):
    torch = pytest.importorskip("torch")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    monkeypatch.setattr(_streaming, "SMALL", 0)
    X, y = data((500, 900))
    there, here = LinearSVM(C, device=device).fit(X, y), LinearSVM(C).fit(X, y)
    assert there.duality_gap_.max() <= 1e-6
    np.testing.assert_allclose(there.coef_, here.coef_, atol=1e-4)


finite = st.floats(-3, 3)
costs = st.floats(0, 10)


@settings(deadline=None, max_examples=60)
@given(finite, costs, st.sampled_from([-1.0, 1.0]), st.booleans(), st.floats(0.01, 3), finite)
def test_a_loss_is_the_maximum_over_its_dual_variable(score, cost, sign, soft, softness, centre):
    one = np.ones((1, 1))
    for make in (Losses.squared_hinge, Losses.hinge):
        losses = make(sign * one, cost * one)
        if soft:
            losses = losses.smoothed(softness, max(0.0, centre) * one)
        m = float(losses.margin_violation(score * one)[0, 0])
        d, cap = float(losses.D[0, 0]), min(float(losses.U[0, 0]), 1e3)
        grid = np.linspace(0, cap, 20_001)
        best = np.max(grid * m - 0.5 * d * grid**2)
        assert losses.values(m_of(m))[0] >= best - 1e-9
        assert losses.values(m_of(m))[0] <= best + 0.5 * max(d, 1e-9) * (cap / 2e4) ** 2 + 1e-3


def m_of(m):
    return np.full((1, 1), m)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.booleans())
def test_a_fenchel_gap_is_loss_plus_conjugate_minus_product(seed, hinge):
    rng = np.random.default_rng(seed)
    signs, costs = rng.choice([-1.0, 1.0], (6, 3)), rng.uniform(0.1, 2, (6, 3))
    losses = (Losses.hinge if hinge else Losses.squared_hinge)(signs, costs)
    m = rng.normal(size=(6, 3))
    duals = rng.uniform(0, 1, (6, 3)) * np.minimum(losses.U, 5)
    plain = losses.values(m) + np.sum(0.5 * losses.D * duals**2 - duals * m, axis=0)
    np.testing.assert_allclose(losses.gaps(duals, m), plain, atol=1e-12)
    np.testing.assert_allclose(losses.gaps(losses.dual_from_margin(m), m), 0, atol=1e-12)


@settings(deadline=None)
@given(st.integers(0, 10_000))
@example(5710)
def test_the_line_search_leaves_no_more_than_its_share_of_the_first_slope(seed):
    rng = np.random.default_rng(seed)
    losses = Losses.squared_hinge(rng.choice([-1.0, 1.0], (8, 2)), rng.uniform(0.1, 2, (8, 2)))
    scores, change = rng.normal(size=(8, 2)), 3 * rng.normal(size=(8, 2))
    slope, curvature = rng.normal(size=2), rng.uniform(0.01, 2, 2)
    found = line_search(losses, scores, change, slope=slope, curvature=curvature)

    def value(t):
        smooth = t * slope + 0.5 * t**2 * curvature
        return smooth + losses.values(losses.margin_violation(scores + t * change))

    responses = losses.dual_from_margin(losses.margin_violation(scores))
    first = np.abs(slope - np.sum(losses.y * change * responses, axis=0))
    for t in np.linspace(0, 1, 101):
        # The objective is convex: its slope where the search stopped bounds what is left.
        left = LOOSE_SLOPE * first * np.abs(t - found)
        assert (value(found) <= value(np.full(2, t)) + left + 1e-12).all()


def test_the_low_rank_inverse_is_woodbury_s():
    rng = np.random.default_rng(0)
    half = rng.normal(size=(60, 5))
    gram = half @ half.T + 0.5 * np.eye(60)
    low = LowRank(lambda v: gram @ v, np.diag(gram)[:, None], np.dtype(np.float64))
    free = rng.random((60, 3)) < 0.6
    softness = rng.uniform(0.1, 1, (60, 3))
    residual = np.where(free, rng.normal(size=(60, 3)), 0)
    applied = low.restricted(free, softness)(residual, np.arange(3))
    rank = int((low.values > 0.1 * softness[free].min()).sum())
    rest = (np.trace(gram) - low.values[:rank].sum()) / 60
    model = low.factor[:, :rank] @ low.factor[:, :rank].T + rest * np.eye(60)
    for k in range(3):
        rows = np.flatnonzero(free[:, k])
        system = model[np.ix_(rows, rows)] + np.diag(softness[rows, k])
        np.testing.assert_allclose(
            applied[rows, k], np.linalg.solve(system, residual[rows, k]), atol=1e-8
        )
        assert not applied[~free[:, k], k].any()
