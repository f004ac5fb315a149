"""The product that two libraries may make is the product, whichever does."""

import subprocess
import sys
import threading
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spptransfer.svm import _gram_matrix
from spptransfer.svm._gram_matrix import product, product_with_transpose, submatrix, to_device
from spptransfer.svm._threads import for_each, own_threads


def matrices(n_left, n_right, n_columns, seed=0):
    rng = np.random.default_rng(seed)
    left = rng.standard_normal((n_left, n_columns), dtype=np.float32)
    return left, rng.standard_normal((n_right, n_columns), dtype=np.float32)


LAYOUTS = {
    "as they are": lambda matrix: matrix,
    "every other row": lambda matrix: matrix[::2],
    "by columns": np.asfortranarray,
    "backwards": lambda matrix: matrix[::-1],
    "float64": lambda matrix: matrix.astype(float),
}


@given(
    st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 50)),
    st.tuples(*2 * [st.sampled_from(sorted(LAYOUTS))]),
    st.sampled_from(["torch", "numpy", "cpu:0"]),
    st.booleans(),
)
def test_every_shape_and_layout_is_multiplied_as_in_float64(shape, layouts, by, transposed):
    left, right = (
        LAYOUTS[layout](matrix) for layout, matrix in zip(layouts, matrices(*shape), strict=True)
    )
    if "float64" in layouts:
        left, right = left.astype(float), right.astype(float)
    out = np.zeros((len(left) + 2, len(right) + 1), left.dtype, order="F" if transposed else "C")
    with pytest.MonkeyPatch.context() as patch:
        if by == "numpy":
            patch.setattr(_gram_matrix, "sys", SimpleNamespace(modules={}))
            patch.setattr(_gram_matrix, "WORTH_IMPORTING", np.inf)
        device = by if ":" in by else "cpu"
        product_with_transpose(left, right, out=out[1:-1, :-1], device=device)
    exact = left.astype(float) @ right.T.astype(float)
    lengths = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)
    assert (np.abs(out[1:-1, :-1] - exact) <= 1e-6 * lengths + 1e-30).all()
    assert not out[[0, -1]].any()
    assert not out[:, -1].any()


def test_read_only_matrices_are_multiplied_without_a_warning_and_stay_read_only():
    left, right = matrices(20, 30, 40)
    left.flags.writeable = right.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = product_with_transpose(left, right)
    np.testing.assert_allclose(found, left @ right.T, atol=1e-5)
    assert not left.flags.writeable


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
@pytest.mark.parametrize("n_vectors", [1, 7])
def test_products_and_parts_of_a_matrix_are_alike_on_every_device(n_vectors, device):
    square, _ = matrices(120, 1, 120)
    vectors = np.random.default_rng(0).normal(size=(120, n_vectors)).astype(np.float32)
    held, chosen = to_device(square, device), np.array([3, 5, 100])
    found = product(held, vectors)
    assert found.flags.f_contiguous
    np.testing.assert_allclose(found, square @ vectors, atol=1e-4)
    part, products = submatrix(held, chosen, vectors[:, 0])
    np.testing.assert_array_equal(part, square[np.ix_(chosen, chosen)])
    np.testing.assert_allclose(products, square[chosen] @ vectors[:, 0], atol=1e-4)


@pytest.mark.parametrize("n_items", [1, 8])
def test_torch_keeps_to_one_thread_meanwhile_and_has_its_threads_afterwards(n_items):
    def multiply(_):
        product_with_transpose(*matrices(9, 9, 9))
        return torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with own_threads():
            assert set(for_each(multiply, range(n_items))) == {1}
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
from spptransfer.svm import LinearSVM, _gram_matrix
print("torch" in sys.modules)
X, y = np.random.default_rng(0).random((1200, 1300), dtype=np.float32), np.arange(1200) % 2
LinearSVM().fit(X, y)
print("torch" in sys.modules)
_gram_matrix.WORTH_IMPORTING = 0
model = LinearSVM().fit(X, y)
print("torch" in sys.modules, model.duality_gap_.max() <= 1e-6)
"""


@pytest.mark.slow
def test_torch_is_loaded_only_for_much_work():
    done = subprocess.run(
        [sys.executable, "-c", LOADING], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.splitlines() == ["False", "False", "True True"]
