"""Newton steps and certificates in the space of features, for more rows than features.

Numbers in brackets are those of the equations in ``docs/solver.md``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from spptransfer.svm._loss import Iterate, Losses, balance
from spptransfer.svm._rows import Array, Rows
from spptransfer.svm._systems import Spectrum, conjugate_gradients, positive_definite_solve

# Up to this many numbers float64 products cost next to nothing.
SMALL = 1_000_000


class FeatureSpace:
    """States are weight vectors with the bias's weight as their last entry."""

    # Groups of columns come one after the other, each as large as memory allows.
    side_by_side = False
    is_tight = True
    # How much of the present gap a Newton step's system may leave: every product is a pass over
    # the rows.
    forcing = 1e-2

    def __init__(self, rows: Rows, bias_square: float, group_width: int = 10_000) -> None:
        self.rows = rows
        self.n_features = rows.shape[1]
        self.group_width = group_width
        self.bias_value = float(np.sqrt(bias_square))
        self.scale = rows.mean_square() + bias_square  # the mean squared length of a row
        small = rows.shape[0] * (self.n_features + 1) <= SMALL
        self._set_dtype(np.dtype(np.float64) if small else rows.working_dtype)
        self.begin()

    def _set_dtype(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.needs_float64 = dtype != np.float64
        self._spectrum: Spectrum | None = None

    def begin(self) -> None:
        """Forget what was learnt from earlier problems, so that results do not depend on it."""
        self.usual_products = 20.0
        self._known_gradient = np.empty((0, 0)), np.empty((0, 0))

    def groups(self, columns: Array) -> list[Array]:
        """All together, to read the rows once for all, as far as ``group_width`` allows.

        Finds the preconditioner, which they share, unless Hessian matrices are factorised.
        """
        if self._spectrum is None and not self._factorises:
            self._spectrum = Spectrum(
                lambda vectors: self._normal_product(vectors, None)[0],
                self.n_features + 1,
                self.scale * self.rows.shape[0],
                self.dtype,
            )
        return np.array_split(columns, -(-len(columns) // self.group_width) or 1)

    @property
    def _factorises(self) -> bool:
        """Whether a Hessian matrix per problem is cheaper than products with the rows."""
        return self.n_features + 1 <= 4 * self.usual_products

    @property
    def inner_tol_factor(self) -> float:
        """Close to rounding where a factorisation does it in one step."""
        return 1e-12 if self._factorises else 1e-2

    def to_float64(self) -> None:
        """Compute all products in float64."""
        self._set_dtype(np.dtype(np.float64))

    def start(self, n_problems: int) -> Array:
        """The state of zero weights."""
        return np.zeros((self.n_features + 1, n_problems), order="F")

    def exact_scores(self, w: Array) -> Array:
        """Scores accumulated in float64."""
        return self.rows.scores(w[:-1]) + self.bias(w)

    def inner(self, left: Array, right: Array, right_scores: Array) -> Array:
        """Inner products of two states per problem."""
        return np.einsum("jt,jt->t", left, right)

    def bias(self, w: Array) -> Array:
        """The regularised bias's share of the scores."""
        return self.bias_value * w[-1]

    def coefficients(self, w: Array) -> Array:
        """Weight vectors, shape (n_features, n_problems)."""
        return w[:-1]

    def duals(self, w: Array, m: Array, losses: Losses) -> Array:
        """The dual variables that the losses' slopes propose."""
        return losses.dual_from_margin(m)

    def without_bias(self, w: Array, losses: Losses) -> Array:
        """States without a bias of their own: what an unregularised bias starts over from."""
        w = w.copy()
        w[-1] = 0.0
        return w

    def gaps(
        self, points: Iterate, losses: Losses, proposing: Losses, enough: Array, *, balanced: bool
    ) -> Array:
        """Duality gaps (4) with the dual variables that the slopes of the losses propose."""
        alpha = proposing.dual_from_margin(proposing.margin_violation(points.scores))
        if balanced:
            alpha = balance(alpha, losses.y)
        return self._gaps_with(alpha, points, losses, np.dtype(np.float64))[0]

    def estimates(
        self, points: Iterate, losses: Losses, proposing: Losses, enough: Array, stuck: Array
    ) -> Array:
        """The same in the working precision."""
        alpha = proposing.dual_from_margin(proposing.margin_violation(points.scores))
        gaps, apart = self._gaps_with(alpha, points, losses, self.dtype)
        if proposing is losses:
            # It is the gradient (11), which the Newton step from here would take a pass to find.
            self._known_gradient = points.state, apart
        return gaps

    def _gaps_with(
        self, alpha: Array, points: Iterate, losses: Losses, dtype: np.dtype[Any]
    ) -> tuple[Array, Array]:
        """Half the squared distance of two weight vectors plus the losses' gaps; the difference."""
        apart = points.state - self._combine(losses.y * alpha, dtype)
        distance = 0.5 * np.einsum("jt,jt->t", apart, apart)
        return distance + losses.gaps(alpha, losses.margin_violation(points.scores)), apart

    def _combine(self, weights: Array, dtype: np.dtype[Any]) -> Array:
        combined = np.empty((self.n_features + 1, weights.shape[1]), order="F")
        combined[:-1] = self.rows.combine(weights, dtype)
        combined[-1] = self.bias_value * weights.sum(axis=0)
        return combined

    def newton_point(self, points: Iterate, losses: Losses, target: Array) -> tuple[Array, Array]:
        """Solve ``(I + X_A.T X_A / D) step = -gradient`` (12); return the new state and scores."""
        w, scores = points.state, points.scores
        m = losses.margin_violation(scores)
        curvature = np.where(losses.free(m), 1.0, 0.0) / np.where(losses.D > 0, losses.D, 1.0)
        known, gradient = self._known_gradient
        if not np.array_equal(known, w):
            gradient = w - self._combine(losses.y * losses.dual_from_margin(m), self.dtype)
        if self._factorises:
            step = np.empty_like(w)
            for column, hessian in enumerate(self._hessians(curvature)):
                step[:, column] = -positive_definite_solve(hessian, gradient[:, column])
            return w + step, scores + self.exact_scores(step)
        return self._solve_together(w, scores, curvature, gradient, target)

    def _hessians(self, curvature: Array) -> Array:
        n_weights, n_problems = self.n_features + 1, curvature.shape[1]
        hessians = np.zeros((n_problems, n_weights, n_weights))
        for where, block in self.rows.blocks(np.float64):
            extended = np.column_stack([block, np.full(len(block), self.bias_value)])
            for column in range(n_problems):
                weight = curvature[where, column]
                chosen = weight > 0
                half = extended[chosen] * np.sqrt(weight[chosen])[:, None]
                hessians[column] += half.T @ half
        hessians += np.eye(n_weights)
        return hessians

    def _solve_together(
        self, w: Array, scores: Array, curvature: Array, gradient: Array, target: Array
    ) -> tuple[Array, Array]:
        """Block conjugate gradients, stopped by the gradient that they leave."""
        scale = np.sqrt(np.einsum("jt,jt->t", gradient, gradient))
        scale[scale == 0] = 1.0
        curvature = curvature.astype(self.dtype, copy=False)

        def times(direction: Array, columns: Array) -> tuple[Array, Array]:
            combined, change = self._normal_product(direction, curvature[:, columns])
            return direction + combined, change

        floor = 0.5 * (8 * np.finfo(self.dtype).eps) ** 2
        residual = (-gradient / scale).astype(self.dtype)
        step = np.zeros_like(residual)
        image = np.zeros(scores.shape, self.dtype, order="F")
        assert self._spectrum is not None  # since the first `groups`
        n_products = conjugate_gradients(
            times,
            residual,
            self._spectrum.inverse(curvature.mean(axis=0, dtype=np.float64)),
            lambda rest, columns: 0.5 * np.einsum("jt,jt->t", rest, rest),
            np.maximum(target / scale**2, floor),
            step=step,
            image=image,
        )
        self.usual_products = max(10.0, 0.5 * (self.usual_products + n_products))
        return w + step * scale, scores + image * scale

    def _normal_product(self, vectors: Array, weights: Array | None) -> tuple[Array, Array]:
        """Weighted inner products of the features times vectors, and the vectors' scores."""
        constant = self.bias_value * vectors[-1]
        combined = np.empty_like(vectors)
        combined[:-1], image = self.rows.normal_product(vectors[:-1], weights, constant)
        weighted = image if weights is None else weights * image
        combined[-1] = self.bias_value * weighted.sum(axis=0, dtype=np.float64)
        return combined, image
