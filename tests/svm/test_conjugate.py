"""Block conjugate gradients solve every column, from where they start and to its own target."""

from __future__ import annotations

import numpy as np
import pytest

from spptransfer.svm._systems import conjugate_gradients


def systems(seed=0, size=40, count=5):
    """A matrix for every column, and right sides."""
    rng = np.random.default_rng(seed)
    matrices = []
    for column in range(count):
        basis, _ = np.linalg.qr(rng.standard_normal((size, size)))
        matrices.append(basis * np.geomspace(1, 10.0**column, size) @ basis.T)
    return matrices, rng.standard_normal((size, count))


def solve(matrices, right, target, step=None, max_products=300):
    """Steps, images (twice the steps, to tell them apart), and how often columns were computed."""
    step = np.zeros_like(right) if step is None else step
    image = 2 * step
    computed = np.zeros(right.shape[1], dtype=int)

    def product(direction, columns):
        computed[columns] += 1
        parts = [matrices[column] @ part for column, part in zip(columns, direction.T, strict=True)]
        return np.stack(parts, axis=1), 2 * direction

    residual = right.copy()
    for column, matrix in enumerate(matrices):
        residual[:, column] -= matrix @ step[:, column]
    n_products = conjugate_gradients(
        product,
        residual,
        lambda rest, columns: rest.copy(),
        lambda rest, columns: np.einsum("it,it->t", rest, rest),
        np.asarray(target, dtype=float),
        step=step,
        image=image,
        max_products=max_products,
    )
    return step, image, computed, n_products


def errors(matrices, step, right):
    rest = [m @ s - r for m, s, r in zip(matrices, step.T, right.T, strict=True)]
    return np.array([part @ part for part in rest])


def test_every_column_reaches_its_target_and_is_left_then():
    matrices, right = systems()
    target = np.array([1e-16, 1e-4, 1e-12, 1e-2, 1e-8])
    step, image, computed, n_products = solve(matrices, right, target)
    assert (errors(matrices, step, right) <= 1.1 * target).all()
    np.testing.assert_allclose(image, 2 * step, rtol=1e-10)
    assert n_products == computed.max()
    assert computed.min() < computed.max()


def test_what_is_solved_at_the_start_stays_as_it_is():
    matrices, right = systems()
    start = np.stack([np.linalg.solve(m, r) for m, r in zip(matrices, right.T, strict=True)], 1)
    start[:, 2] = 0
    step, _, computed, _ = solve(matrices, right, np.full(5, 1e-12), start.copy())
    np.testing.assert_array_equal(np.delete(step, 2, axis=1), np.delete(start, 2, axis=1))
    assert computed[2] > 0
    assert not np.delete(computed, 2).any()


def test_nothing_is_multiplied_where_nothing_is_left():
    matrices, right = systems()
    step, image, _, n_products = solve(matrices, right, np.full(5, 1e9))
    assert n_products == 0
    assert not step.any()
    assert not image.any()


@pytest.mark.parametrize("most", [1, 3])
def test_products_are_limited(most):
    matrices, right = systems()
    *_, n_products = solve(matrices, right, np.full(5, 1e-30), max_products=most)
    assert n_products == most


def test_without_right_sides_there_is_nothing_to_do():
    step, image, _, n_products = solve([], np.zeros((4, 0)), np.zeros(0))
    assert (step.shape, image.shape, n_products) == ((4, 0), (4, 0), 0)
