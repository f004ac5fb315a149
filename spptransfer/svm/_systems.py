"""Newton's linear systems: block conjugate gradients, and low-rank preconditioners for them.

Numbers in brackets are those of the equations in ``docs/solver.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.linalg import lapack

from spptransfer.svm._gram_matrix import mirror
from spptransfer.svm._rows import Array
from spptransfer.svm._threads import for_each, own_threads

RANK = 96
NEGLIGIBLE = 0.1
# Squared lengths, relative to the longest, that are rounding errors.
SPAN = 1e-11


def conjugate_gradients(
    product: Callable[[Array, Array], tuple[Array, Array]],
    residual: Array,
    precondition: Callable[[Array, Array], Array],
    error: Callable[[Array, Array], Array],
    target: Array,
    *,
    step: Array,
    image: Array,
    max_products: int = 200,
) -> int:
    """Solve one symmetric positive definite system per column, each to its own target.

    One product advances all of them. ``product(direction, columns)`` returns the system times the
    direction and the change of the scores that goes with it. ``error(residual, columns)`` is held
    against ``target``. What solves the systems is added to ``step``, and the change of the scores
    to ``image``: the caller needs it next and gets it without another product. ``residual`` is
    used up. Returns the number of products.
    """
    left = np.arange(residual.shape[1])
    unfinished = error(residual, left) > target
    left, rest = _kept(unfinished, left, residual)
    if not len(left):
        return 0
    direction = precondition(rest, left)
    energy = _dots(rest, direction)
    n_products = 0
    while True:
        curved, change = product(direction, left)
        n_products += 1
        length = _ratio(energy, _dots(direction, curved))
        for total, multiple in ((step, direction), (image, change)):
            if len(left) == total.shape[1]:
                total += length * multiple
            else:
                total[:, left] += length * multiple
        curved *= length
        rest -= curved
        del curved, change
        unfinished = (error(rest, left) > target[left]) & (length > 0)
        left, rest, direction, energy = _kept(unfinished, left, rest, direction, energy)
        if not len(left) or n_products == max_products:
            return n_products
        preconditioned = precondition(rest, left)
        energy, previous = _dots(rest, preconditioned), energy
        direction *= _ratio(energy, previous)
        direction += preconditioned


def _kept(chosen: Array, *arrays: Array) -> tuple[Array, ...]:
    """The arrays' chosen columns: copies, unless they are all."""
    return arrays if chosen.all() else tuple(array[..., chosen] for array in arrays)


def _dots(left: Array, right: Array) -> Array:
    """Inner products of the columns, in the columns' precision."""
    return np.einsum("it,it->t", left, right)


def _ratio(numerator: Array, denominator: Array) -> Array:
    """Quotient, zero where the denominator has run out of digits."""
    usable = denominator > 0
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=usable)


def positive_definite_solve(matrix: Array, right: Array) -> Array:
    """Cholesky, with jitter where rounding made the matrix indefinite. The matrix is used up."""
    factorise, solve = lapack.get_lapack_funcs(("potrf", "potrs"), dtype=matrix.dtype)
    diagonal, jitter = np.diagonal(matrix).astype(np.float64), 0.0
    while True:
        # Fortran's lower triangle is the upper one as rows lie here.
        factor, failed = factorise(matrix.T, lower=True, clean=False, overwrite_a=True)
        if not failed:
            return np.asarray(solve(factor, right, lower=True)[0])
        jitter = max(10 * jitter, np.finfo(matrix.dtype).eps * float(diagonal.mean()))
        mirror(matrix)
        np.fill_diagonal(matrix, diagonal + jitter)


def leading_eigenpairs(
    product: Callable[[Array], Array], size: int, dtype: np.dtype[Any]
) -> tuple[Array, Array]:
    """The largest eigenvalues of a positive semidefinite matrix, nearly, in three products."""
    basis = np.random.default_rng(0).standard_normal((size, min(RANK, size)))
    for _ in range(2):
        basis = orthonormal(product(basis.astype(dtype)))
    small = basis.T @ product(basis.astype(dtype))
    with own_threads():
        values, vectors = np.linalg.eigh(0.5 * (small + small.T))
    return np.maximum(values, 0.0), basis @ vectors


def orthonormal(image: Array) -> Array:
    """A basis of what the columns span, as far as their precision tells it from rounding.

    By the eigenvectors of their inner products in float64: a few times faster than Householder's
    reflections, and precise enough for columns in float32, or for a preconditioner.
    """
    with own_threads():
        wide = image.astype(np.float64, copy=False)
        values, vectors = np.linalg.eigh(wide.T @ wide)
        kept = values > SPAN * max(float(values[-1]), np.finfo(float).tiny)
        return wide @ (vectors[:, kept] / np.sqrt(values[kept]))


class LowRank:
    """``K`` as ``factor @ factor.T + rest * I`` (9), by a seeded randomised subspace iteration."""

    def __init__(
        self, product: Callable[[Array], Array], diagonal: Array, dtype: np.dtype[Any]
    ) -> None:
        values, vectors = leading_eigenpairs(product, len(diagonal), dtype)
        order = np.argsort(values)[::-1]
        self.values = values[order]
        self.factor = np.ascontiguousarray((vectors[:, order] * np.sqrt(self.values)).astype(dtype))
        self.trace = float(diagonal.sum())

    def product(self, vectors: Array) -> Array:
        """What ``K @ vectors`` nearly is, without the share of the identity."""
        return ((self.factor.T @ vectors).T @ self.factor.T).T

    def restricted(self, free: Array, D: Array) -> Woodbury:
        """Inverse of each problem's own restriction to its free rows.

        Eigenvalues far below ``D`` change next to nothing, and are left out.
        """
        rank = max(1, int((self.values > NEGLIGIBLE * D[free].min()).sum()))
        rest = max(0.0, self.trace - float(self.values[:rank].sum())) / len(free)
        factor = np.ascontiguousarray(self.factor[:, :rank])
        inverse = np.where(free, 1.0 / (D + rest), 0.0).astype(factor.dtype)
        return Woodbury(factor, inverse)


class Woodbury:
    """``(diag(1 / inverse) + factor @ factor.T)**-1`` on the rows where ``inverse`` is not zero."""

    def __init__(self, factor: Array, inverse: Array) -> None:
        self.factor, self.inverse = factor, inverse
        self.columns = np.arange(inverse.shape[1])
        self.cores = np.empty((inverse.shape[1], *2 * factor.shape[1:]), dtype=factor.dtype)
        # On the way from zero weights all rows are free, in every problem of a fold.
        fresh = np.ones(len(self.cores), dtype=bool)
        fresh[1:] = (inverse[:, 1:] != inverse[:, :-1]).any(axis=0)
        for_each(self._invert, np.flatnonzero(fresh).tolist())
        for problem in np.flatnonzero(~fresh):
            self.cores[problem] = self.cores[problem - 1]

    def _invert(self, problem: int) -> None:
        weight = self.inverse[:, problem]
        rows = np.flatnonzero(weight)
        part = self.factor[rows] * np.sqrt(weight[rows, None])
        core = part.T @ part
        core[np.diag_indices_from(core)] += 1
        factorise, invert = lapack.get_lapack_funcs(("potrf", "potri"), dtype=core.dtype)
        # Fortran's lower triangle of a symmetric matrix is the upper one as rows lie here.
        factor, failed = factorise(core.T, lower=True)
        if failed:  # positive definite but for rounding
            self.cores[problem] = np.linalg.inv(core)
            return
        upper = invert(factor, lower=True)[0].T
        diagonal = upper.diagonal().copy()
        core = upper + upper.T
        np.fill_diagonal(core, diagonal)
        self.cores[problem] = core

    def __call__(self, residual: Array, columns: Array) -> Array:
        """Apply it to some problems' residuals; from call to call they only become fewer."""
        if len(columns) < len(self.columns):
            kept = np.isin(self.columns, columns)
            self.columns, self.cores = self.columns[kept], self.cores[kept]
            self.inverse = self.inverse[:, kept]
        scaled = self.inverse * residual
        inner = np.matmul(self.cores, (self.factor.T @ scaled).T[:, :, None])[:, :, 0]
        # Transposed, so that every column is contiguous.
        correction = (inner @ self.factor.T).T
        correction *= self.inverse
        scaled -= correction
        return scaled


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
