"""A low-rank picture of the Gram matrix that takes conjugate gradients' large eigenvalues away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from spptransfer.svm._threads import for_each, single_threaded
from spptransfer.svm._types import Array

RANK = 128


def leading_eigenpairs(
    product: Callable[[Array], Array], size: int, dtype: np.dtype[Any]
) -> tuple[Array, Array]:
    """The largest eigenvalues of a positive semidefinite matrix, nearly, in three products."""
    basis = np.random.default_rng(0).standard_normal((size, min(RANK, size)))
    for _ in range(2):
        image = product(basis.astype(dtype))
        with single_threaded():
            basis = np.linalg.qr(image)[0]
    small = basis.T @ product(basis.astype(dtype))
    with single_threaded():
        values, vectors = np.linalg.eigh(0.5 * (small + small.T))
    return np.maximum(values, 0.0), basis @ vectors


class LowRank:
    """``K`` as ``factor @ factor.T + rest * I``, from a seeded randomised subspace iteration."""

    def __init__(
        self, product: Callable[[Array], Array], diagonal: Array, dtype: np.dtype[Any]
    ) -> None:
        values, vectors = leading_eigenpairs(product, len(diagonal), dtype)
        self.factor = (vectors * np.sqrt(values)).astype(dtype)
        left = diagonal[:, 0] - np.einsum("ir,ir->i", self.factor, self.factor)
        self.rest = max(float(left.mean()), 0.0)

    def restricted(self, free: Array, softness: Array) -> Callable[[Array, Array], Array]:
        """Inverse of each problem's own restriction to its free rows, by Woodbury's formula."""
        dtype = self.factor.dtype
        inverse = np.where(free, 1.0 / (softness + self.rest), 0.0).astype(dtype)
        cores = np.empty((free.shape[1], *2 * self.factor.shape[1:]), dtype=dtype)
        identity = np.eye(self.factor.shape[1], dtype=dtype)

        def invert(problem: int) -> None:
            rows = np.flatnonzero(free[:, problem])
            part = self.factor[rows] * np.sqrt(inverse[rows, problem, None])
            cores[problem] = np.linalg.inv(identity + part.T @ part)

        for_each(invert, range(len(cores)))

        def apply(residual: Array, columns: Array) -> Array:
            scaled = inverse[:, columns] * residual
            inner = np.einsum("trs,st->rt", cores[columns], self.factor.T @ scaled)
            return scaled - inverse[:, columns] * (self.factor @ inner)

        return apply


class Spectrum:
    """``X.T @ X`` as its leading eigenpairs and a multiple of the identity."""

    def __init__(
        self,
        product: Callable[[Array], Array],
        size: int,
        trace: float,
        dtype: np.dtype[Any],
    ) -> None:
        values, vectors = leading_eigenpairs(product, size, dtype)
        self.rest = max(0.0, trace - float(values.sum())) / max(1, size - len(values))
        self.values, self.vectors = np.maximum(values, self.rest), vectors.astype(dtype)

    def inverse(self, curvature: Array) -> Callable[[Array, Array], Array]:
        """Inverse of ``1 + curvature * X.T @ X`` for each problem's mean curvature."""
        dtype = self.vectors.dtype
        outside = 1.0 / (1.0 + curvature * self.rest)
        inside = 1.0 / (1.0 + curvature * self.values[:, None]) - outside
        outside, inside = outside.astype(dtype), inside.astype(dtype)

        def apply(residual: Array, columns: Array) -> Array:
            leading = inside[:, columns] * (self.vectors.T @ residual)
            return outside[columns] * residual + self.vectors @ leading

        return apply
