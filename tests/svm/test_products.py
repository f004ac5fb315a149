"""The product that two libraries may make is the product, whichever does."""

import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spptransfer.svm import _products
from spptransfer.svm._products import FILTERS, FILTERS_ABREAST, product_with_transpose
from spptransfer.svm._threads import for_each, own_threads

needs_convolutions = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN here"
)


@pytest.fixture
def numpy_alone(monkeypatch):
    monkeypatch.setattr(_products._torch, "after", lambda operations: None)


def matrices(n_left, n_right, n_columns, seed=0):
    rng = np.random.default_rng(seed)
    left = rng.standard_normal((n_left, n_columns), dtype=np.float32)
    return left, rng.standard_normal((n_right, n_columns), dtype=np.float32)


def assert_is_product(found, left, right):
    exact = left.astype(float) @ right.T.astype(float)
    lengths = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)
    assert found.shape == exact.shape
    assert (np.abs(found - exact) <= 1e-6 * lengths + 1e-30).all()


@given(st.integers(1, 40), st.integers(1, 2 * FILTERS + 3), st.integers(1, 50), st.integers(0, 99))
def test_every_shape_is_multiplied_as_in_float64(n_left, n_right, n_columns, seed):
    left, right = matrices(n_left, n_right, n_columns, seed)
    assert_is_product(product_with_transpose(left, right), left, right)


@pytest.mark.usefixtures("numpy_alone")
def test_numpy_alone_gives_the_same():
    left, right = matrices(30, 70, 200)
    assert_is_product(product_with_transpose(left, right), left, right)


@needs_convolutions
def test_convolutions_make_the_product_of_float32_matrices(monkeypatch):
    calls = []
    plain = _products._convolved
    monkeypatch.setattr(
        _products, "_convolved", lambda *given: calls.append(given[2].shape) or plain(*given)
    )
    left, right = matrices(30, FILTERS + 6, 200)
    assert_is_product(product_with_transpose(left, right), left, right)
    assert calls == [(FILTERS, 200), (FILTERS_ABREAST, 200)]


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_other_precisions_are_numpys(dtype, monkeypatch):
    monkeypatch.setattr(_products, "_convolved", None)
    left, right = (matrix.astype(dtype) for matrix in matrices(5, 6, 7))
    found = product_with_transpose(left, right)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, left @ right.T)


def test_matrices_that_are_parts_of_others_are_multiplied():
    left, right = matrices(20, 30, 40)
    assert_is_product(product_with_transpose(left[::2], right[:, :40]), left[::2], right)
    left, right = np.asfortranarray(left), right[::-1]
    assert_is_product(product_with_transpose(left, right), left, right)


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 2, 0)])
def test_nothing_times_something_is_nothing(shape):
    left, right = matrices(*shape)
    np.testing.assert_array_equal(product_with_transpose(left, right), np.zeros(shape[:2]))


def test_the_product_is_put_where_it_is_wanted():
    left, right = matrices(20, 30, 40)
    whole = np.zeros((40, 50), np.float32)
    product_with_transpose(left, right, out=whole[10:30, 5:35])
    assert_is_product(whole[10:30, 5:35], left, right)
    assert not whole[:10].any()
    assert not whole[:, 35:].any()


def test_read_only_matrices_are_multiplied_without_a_warning_and_stay_read_only():
    left, right = matrices(20, 30, 40)
    left.flags.writeable = right.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = product_with_transpose(left, right)
    assert_is_product(found, left, right)
    assert not left.flags.writeable


def test_not_a_number_stays_in_its_row():
    left, right = matrices(20, 30, 40)
    left[3, 5] = np.nan
    found = product_with_transpose(left, right)
    assert np.isnan(found[3]).all()
    assert np.isfinite(np.delete(found, 3, axis=0)).all()


def threads_seen_while_multiplying(monkeypatch, n_items):
    """Torch's threads at every convolution, in all threads that make one."""
    seen = []
    plain = _products._convolved
    monkeypatch.setattr(
        _products,
        "_convolved",
        lambda *given: seen.append(torch.get_num_threads()) or plain(*given),
    )
    for_each(lambda _: product_with_transpose(*matrices(9, 9, 9)), range(n_items))
    return seen


@needs_convolutions
@pytest.mark.parametrize("n_items", [1, 8])
def test_torch_keeps_to_one_thread_meanwhile_and_has_its_threads_afterwards(n_items, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert set(threads_seen_while_multiplying(monkeypatch, n_items)) == {1}
        assert torch.get_num_threads() == 2
        with own_threads():
            product_with_transpose(*matrices(9, 9, 9))
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        fresh = []
        thread = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert fresh == [2]
    finally:
        torch.set_num_threads(before)


LOADING = """
import sys
import numpy as np
from spptransfer.svm import LinearSVM, _products
X, y = np.random.default_rng(0).random((1200, 1300), dtype=np.float32), np.arange(1200) % 2
LinearSVM().fit(X, y)
print("torch" in sys.modules)
_products.WORTH_IMPORTING = 0
model = LinearSVM().fit(X, y)
print("torch" in sys.modules, model.duality_gap_.max() <= 1e-6)
import torch
print(torch.get_num_threads() > 0, _products._torch._module is torch)
"""


@pytest.mark.slow
@needs_convolutions
def test_torch_is_loaded_only_for_much_work():
    done = subprocess.run(
        [sys.executable, "-c", LOADING], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.splitlines() == ["False", "True True", "True True"]
