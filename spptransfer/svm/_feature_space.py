"""Newton steps in the space of features, for more rows than features."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from scipy.linalg import lapack

from spptransfer.svm._conjugate import conjugate_gradients
from spptransfer.svm._loss import Losses, balance
from spptransfer.svm._preconditioner import Spectrum
from spptransfer.svm._rows import Rows
from spptransfer.svm._threads import Once
from spptransfer.svm._types import Array

# Up to this many numbers float64 products cost next to nothing.
SMALL = 1_000_000


class FeatureSpace:
    """States are weight vectors with the bias's weight as their last entry."""

    def __init__(self, rows: Rows, bias_square: float, group_width: int = 10_000) -> None:
        self.rows = rows
        self.group_width = group_width
        self.bias_value = float(np.sqrt(bias_square))
        self.n_weights = rows.shape[1] + 1
        self.scale = rows.mean_square() + bias_square
        small = rows.shape[0] * self.n_weights <= SMALL
        self.dtype = np.dtype(np.float64) if small else rows.working_dtype
        self._spectrum = Once(self._find_spectrum)
        self.begin()

    def begin(self) -> None:
        """Forget how many products conjugate gradients have needed."""
        self.usual_products = 20.0
        self._known_gradient = np.empty((0, 0)), np.empty((0, 0))

    def prepare(self) -> None:
        """Groups come one after the other, and wait for nothing."""

    def branch(self) -> FeatureSpace:
        """The same rows, for another thread."""
        return copy.copy(self)

    @property
    def n_features(self) -> int:
        """The length of a weight vector, without the bias."""
        return self.n_weights - 1

    def groups(self, columns: Array) -> list[Array]:
        """All together, to read the rows once for all, as far as ``group_width`` allows."""
        return np.array_split(columns, -(-len(columns) // self.group_width) or 1)

    @property
    def is_tight(self) -> bool:
        """A group may take a large part of a budget."""
        return True

    @property
    def side_by_side(self) -> bool:
        """Groups are as large as memory allows."""
        return False

    @property
    def care(self) -> float:
        """Close to rounding where a factorisation does it in one step."""
        return 1e-12 if self._factorises else 1e-2

    @property
    def forcing(self) -> float:
        """Every product is a pass over the rows."""
        return 1e-2

    @property
    def _factorises(self) -> bool:
        """Whether a Hessian matrix per problem is cheaper than products with the rows."""
        return self.n_weights <= 4 * self.usual_products

    @property
    def can_sharpen(self) -> bool:
        """Whether products are float32 still."""
        return self.dtype != np.float64

    def sharpen(self) -> None:
        """Compute all products in float64."""
        self.dtype = np.dtype(np.float64)
        self._spectrum = Once(self._find_spectrum)

    def start(self, n_problems: int) -> Array:
        """The state of zero weights."""
        return np.zeros((self.n_weights, n_problems), order="F")

    def exact_scores(self, state: Array) -> Array:
        """Scores accumulated in float64."""
        return self.rows.scores(state[:-1]) + self.bias_value * state[-1]

    def inner(self, left: Array, right: Array, right_scores: Array) -> Array:
        """Inner products of two states per problem."""
        return np.einsum("jt,jt->t", left, right)

    def bias(self, state: Array) -> Array:
        """The regularised bias's share of the scores."""
        return self.bias_value * state[-1]

    def coefficients(self, state: Array) -> Array:
        """Weight vectors, shape (n_features, n_problems)."""
        return state[:-1]

    def duals(self, state: Array, deficits: Array, losses: Losses) -> Array:
        """The dual variables that the losses' slopes propose."""
        return losses.responses(deficits)

    def settled(self, state: Array, losses: Losses) -> Array:
        """States without a bias of their own: what an unregularised bias starts over from."""
        state = state.copy()
        state[-1] = 0.0
        return state

    def gaps(
        self,
        state: Array,
        scores: Array,
        losses: Losses,
        proposing: Losses,
        enough: Array,
        *,
        balanced: bool,
    ) -> Array:
        """Duality gaps with the dual variables that the slopes of the losses propose."""
        duals = proposing.responses(proposing.deficits(scores))
        if balanced:
            duals = balance(duals, losses.signs)
        return self._gaps_with(duals, state, scores, losses, np.dtype(np.float64))[0]

    def estimates(
        self,
        state: Array,
        scores: Array,
        losses: Losses,
        proposing: Losses,
        enough: Array,
        stuck: Array,
    ) -> Array:
        """The same in the working precision."""
        duals = proposing.responses(proposing.deficits(scores))
        gaps, apart = self._gaps_with(duals, state, scores, losses, self.dtype)
        if proposing is losses:
            # It is the gradient, which the Newton step from here would take a pass to find again.
            self._known_gradient = state, apart
        return gaps

    def _gaps_with(
        self, duals: Array, state: Array, scores: Array, losses: Losses, dtype: np.dtype[Any]
    ) -> tuple[Array, Array]:
        """Half the squared distance of two weight vectors plus the losses' gaps; the difference."""
        apart = state - self._combine(losses.signs * duals, dtype)
        distance = 0.5 * np.einsum("jt,jt->t", apart, apart)
        return distance + losses.gaps(duals, losses.deficits(scores)), apart

    def _gradient(self, state: Array, deficits: Array, losses: Losses) -> Array:
        known, gradient = self._known_gradient
        if np.array_equal(known, state):
            return gradient
        return state - self._combine(losses.signs * losses.responses(deficits), self.dtype)

    def _combine(self, weights: Array, dtype: np.dtype[Any]) -> Array:
        combined = np.empty((self.n_weights, weights.shape[1]), order="F")
        combined[:-1] = self.rows.combine(weights, dtype)
        combined[-1] = self.bias_value * weights.sum(axis=0)
        return combined

    def newton_point(
        self, state: Array, scores: Array, losses: Losses, target: Array
    ) -> tuple[Array, Array]:
        """Solve ``(1 + X_A.T X_A / softness) step = -gradient`` for every problem."""
        deficits = losses.deficits(scores)
        curvature = np.where(losses.free(deficits), 1.0, 0.0) / np.where(
            losses.softness > 0, losses.softness, 1.0
        )
        gradient = self._gradient(state, deficits, losses)
        if self._factorises:
            return self._solve_each(state, scores, curvature, gradient)
        return self._solve_together(state, scores, curvature, gradient, target)

    def _solve_each(
        self, state: Array, scores: Array, curvature: Array, gradient: Array
    ) -> tuple[Array, Array]:
        """Factorise every problem's own Hessian matrix."""
        step = np.empty_like(state)
        for column, hessian in enumerate(self._hessians(curvature)):
            step[:, column] = -_positive_definite_solve(hessian, gradient[:, column])
        return state + step, scores + self.exact_scores(step)

    def _hessians(self, curvature: Array) -> Array:
        n_problems = curvature.shape[1]
        hessians = np.zeros((n_problems, self.n_weights, self.n_weights))
        for where, block in self.rows.blocks(np.float64):
            extended = np.column_stack([block, np.full(len(block), self.bias_value)])
            for column in range(n_problems):
                weight = curvature[where, column]
                chosen = weight > 0
                half = extended[chosen] * np.sqrt(weight[chosen])[:, None]
                hessians[column] += half.T @ half
        hessians += np.eye(self.n_weights)
        return hessians

    def _solve_together(
        self, state: Array, scores: Array, curvature: Array, gradient: Array, target: Array
    ) -> tuple[Array, Array]:
        """Block conjugate gradients, stopped by the gradient that they leave."""
        scale = np.sqrt(np.einsum("jt,jt->t", gradient, gradient))
        scale[scale == 0] = 1.0
        curvature = curvature.astype(self.dtype, copy=False)

        def product(direction: Array, columns: Array) -> tuple[Array, Array]:
            combined, change = self._normal_product(direction, curvature[:, columns])
            return direction + combined, change

        floor = 0.5 * (8 * np.finfo(self.dtype).eps) ** 2
        residual = (-gradient / scale).astype(self.dtype)
        step = np.zeros_like(residual)
        image = np.zeros(scores.shape, self.dtype, order="F")
        n_products = conjugate_gradients(
            product,
            residual,
            self._spectrum.get().inverse(curvature.mean(axis=0, dtype=np.float64)),
            lambda rest, columns: 0.5 * np.einsum("jt,jt->t", rest, rest),
            np.maximum(target / scale**2, floor),
            step=step,
            image=image,
            max_products=200,
        )
        self.usual_products = max(10.0, 0.5 * (self.usual_products + n_products))
        return state + step * scale, scores + image * scale

    def _normal_product(self, vectors: Array, weights: Array | None) -> tuple[Array, Array]:
        """Weighted inner products of the features times vectors, and the vectors' scores."""
        constant = self.bias_value * vectors[-1]
        combined = np.empty_like(vectors)
        combined[:-1], image = self.rows.normal_product(vectors[:-1], weights, constant)
        weighted = image if weights is None else weights * image
        combined[-1] = self.bias_value * weighted.sum(axis=0, dtype=np.float64)
        return combined, image

    def _find_spectrum(self) -> Spectrum:
        return Spectrum(
            lambda vectors: self._normal_product(vectors, None)[0],
            self.n_weights,
            self.scale * self.rows.shape[0],
            self.dtype,
        )


def _positive_definite_solve(matrix: Array, right: Array) -> Array:
    """Cholesky, with jitter where rounding made the matrix indefinite."""
    diagonal, jitter = np.diagonal(matrix).copy(), 0.0
    while True:
        factor, failed = lapack.dpotrf(matrix, lower=True, clean=False)
        if not failed:
            return np.asarray(lapack.dpotrs(factor, right, lower=True)[0])
        jitter = max(10 * jitter, np.finfo(np.float64).eps * float(diagonal.mean()))
        np.fill_diagonal(matrix, diagonal + jitter)
