"""A low-rank picture of the Gram matrix that takes conjugate gradients' large eigenvalues away."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from spptransfer.svm._threads import for_each, single_threaded
from spptransfer.svm._types import Array

RANK = 128


class LowRank:
    """``K`` as ``factor @ factor.T + rest * I``, from a seeded randomised subspace iteration."""

    def __init__(self, product: Callable[[Array], Array], diagonal: Array, dtype: np.dtype) -> None:
        n_rows = len(diagonal)
        basis = np.random.default_rng(0).standard_normal((n_rows, min(RANK, n_rows)))
        for _ in range(2):
            image = product(basis.astype(dtype))
            with single_threaded():
                basis = np.linalg.qr(image)[0]
        small = basis.T @ product(basis)
        with single_threaded():
            values, vectors = np.linalg.eigh(0.5 * (small + small.T))
        self.factor = (basis @ vectors * np.sqrt(np.maximum(values, 0.0))).astype(dtype)
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
