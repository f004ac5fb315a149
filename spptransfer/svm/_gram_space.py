"""Newton steps in the space of rows, where every problem shares one Gram matrix."""

from __future__ import annotations

import copy

import numpy as np
from scipy.linalg import lapack

from spptransfer.svm._conjugate import conjugate_gradients
from spptransfer.svm._gram_gaps import GramGaps
from spptransfer.svm._gram_matrix import dense_gram, mirror
from spptransfer.svm._loss import Losses, balance
from spptransfer.svm._preconditioner import LowRank
from spptransfer.svm._products import product, submatrix, to_device
from spptransfer.svm._rows import Rows
from spptransfer.svm._threads import Once, for_each
from spptransfer.svm._types import Array

# A Cholesky factorisation runs at about this fraction of a matrix product's speed.
FACTOR_SPEED = 0.25
# Systems of up to this many rows are factorised whatever it costs.
TINY = 400
# How many float64 arrays of the columns in progress there are, in float32 arrays' widths.
COLUMN_ARRAYS = 34
# With fewer rows no memory is worth giving back.
MANY_ROWS = 1000
# Products take as long with fewer columns.
NARROW = 16
# Up to this many columns products are divided among threads by rows of the Gram matrix.
WIDE = 32


class GramSpace(GramGaps):
    """States are the weights ``beta`` of the rows: ``w = X.T @ beta``, scores ``K @ beta``.

    ``bias_square`` is added to every entry of K: the regularised bias as one more feature.
    Beside a float32 ``gram``, ``exact_gram`` is the same in float64 where it is known: certificates
    then need no pass over the rows.
    """

    def __init__(
        self,
        rows: Rows,
        gram: Array,
        bias_square: float,
        exact_gram: Array | None = None,
        device: str = "cpu",
    ) -> None:
        self.rows = rows
        self.bias_square = bias_square
        self.exact_gram = exact_gram
        self.device = device
        self._set_gram(gram)

    def _set_gram(self, gram: Array) -> None:
        self.gram = to_device(gram, self.device)
        self.dtype = np.dtype(gram.dtype)
        self.diagonal = np.diagonal(gram).astype(np.float64)[:, None] + self.bias_square
        self._low_rank = Once(lambda: LowRank(self.product, self.diagonal, self.dtype))
        self.begin()

    def begin(self) -> None:
        """Forget how many products conjugate gradients have needed."""
        self.usual_products = 8.0
        self._forget_combined()

    def _forget_combined(self) -> None:
        self._combined = np.empty((0, 0)), np.empty((0, 0))

    def prepare(self) -> None:
        """Find the preconditioner's low rank, unless all systems will be factorised."""
        if len(self.diagonal) > TINY:
            self._low_rank.get()

    def branch(self) -> GramSpace:
        """The same Gram matrix, for another thread."""
        return copy.copy(self)

    @property
    def n_features(self) -> int:
        """The length of a weight vector."""
        return self.rows.shape[1]

    def groups(self, columns: Array) -> list[Array]:
        """As many columns at a time as take, with results, no more memory than the Gram matrix.

        An even number of groups, for an even number of threads.
        """
        width = self._width(len(columns))
        pairs = -(-len(columns) // (2 * width))
        return np.array_split(columns, 2 * pairs if len(columns) > WIDE else 1)

    def _width(self, n_columns: int) -> int:
        """Columns for which there is room beside the results, states and weights in float64."""
        n_rows, n_features = self.rows.shape
        if not self.is_tight:
            return max(NARROW, n_rows // COLUMN_ARRAYS)
        room = n_rows - 4 * n_columns - 2 * n_columns * n_features // n_rows
        width = max(NARROW, room // 2 // COLUMN_ARRAYS)
        # Little more than narrow takes as long as twice that.
        return width if width >= 1.5 * NARROW else NARROW

    @property
    def side_by_side(self) -> bool:
        """Groups share nothing but the Gram matrix."""
        return True

    @property
    def is_tight(self) -> bool:
        """Not beside a float64 Gram matrix, nor with few rows: all else is small then."""
        return self.exact_gram is None and self.rows.shape[0] > MANY_ROWS

    @property
    def care(self) -> float:
        """Close to rounding where a float64 factorisation does it in one step."""
        return 1e-2 if self.can_sharpen else 1e-12

    @property
    def forcing(self) -> float:
        """Products are cheap beside what else a step costs."""
        return 1e-3

    @property
    def scale(self) -> float:
        """The mean squared length of a row."""
        return float(self.diagonal.mean())

    @property
    def can_sharpen(self) -> bool:
        """Whether a float64 Gram matrix could still replace the present one."""
        return self.dtype != np.float64

    def sharpen(self) -> None:
        """Go over to the Gram matrix in float64, computing it if it is not known."""
        self.gram = None
        exact = self.exact_gram
        self._set_gram(dense_gram(self.rows, np.float64, self.device) if exact is None else exact)

    def start(self, n_problems: int) -> Array:
        """The state of zero weights."""
        return np.zeros((self.rows.shape[0], n_problems), order="F")

    def product(self, weights: Array) -> Array:
        """The change of the scores that a change of weights makes."""
        scores = product(self.gram, weights.astype(self.dtype, copy=False))
        scores += (self.bias_square * weights.sum(axis=0, dtype=np.float64)).astype(scores.dtype)
        return scores

    def exact_scores(self, state: Array) -> Array:
        """Scores accumulated in float64 from the rows or from a float64 Gram matrix."""
        if self.dtype == np.float64:
            return self.product(state)
        if self.exact_gram is not None:
            scores = product(self.exact_gram, state)
        else:
            self._combined = state, self.rows.combine(state)
            scores = self.rows.scores(self._combined[1])
        scores += self.bias_square * state.sum(axis=0)
        return scores

    def inner(self, left: Array, right: Array, right_scores: Array) -> Array:
        """Inner products, in weight space, of two states per problem."""
        return np.einsum("it,it->t", left, right_scores)

    def duals(self, state: Array, deficits: Array, losses: Losses) -> Array:
        """Feasible dual variables near those that a state stands for."""
        return np.clip(losses.signs * state, 0.0, losses.cap)

    def settled(self, state: Array, losses: Losses) -> Array:
        """States without a bias of their own: what an unregularised bias starts over from."""
        duals = np.clip(losses.signs * state, 0.0, losses.cap)
        return losses.signs * balance(duals, losses.signs)

    def bias(self, state: Array) -> Array:
        """The regularised bias's share of the scores."""
        return self.bias_square * state.sum(axis=0)

    def coefficients(self, state: Array) -> Array:
        """Weight vectors, shape (n_features, n_problems)."""
        known, coefficients = self._combined
        return coefficients if np.array_equal(known, state) else self.rows.combine(state)

    def newton_point(
        self, state: Array, scores: Array, losses: Losses, target: Array
    ) -> tuple[Array, Array]:
        """Minimise the quadratic piece that the scores lie on.

        Rows on a straight piece of their loss take its slope as their weight; the others solve
        ``(K_AA + softness) beta_A = sign * offset - K_AU beta_U``.
        """
        self._forget_combined()
        deficits = losses.deficits(scores)
        free = losses.free(deficits)
        step = np.where(free, 0.0, losses.signs * losses.responses(deficits) - state)
        del deficits  # as large as all that follows
        residual = losses.signs * losses.offset - scores - losses.softness * state
        residual = np.where(free, residual, 0.0)
        softness = np.broadcast_to(losses.softness, residual.shape)
        direct = self._worth_factorising(free.sum(axis=0), len(residual))
        image = np.empty_like(residual) if direct.any() else residual[:0]
        self._solve_each(step, image, residual, free, softness, np.flatnonzero(direct))
        others = np.flatnonzero(~direct)
        if len(others) == len(direct):
            step, image = self._solve_together(step, residual, free, softness, target)
        elif len(others):
            step[:, others], image[:, others] = self._solve_together(
                step[:, others],
                residual[:, others],
                free[:, others],
                softness[:, others],
                target[others],
            )
        step += state
        image += scores
        return step, image

    def _worth_factorising(self, size: Array, n_rows: int) -> Array:
        """Whether a factorisation costs less than the products it saves."""
        worthwhile = 6 * FACTOR_SPEED * self.usual_products * float(n_rows) ** 2
        return np.asarray(size.astype(float) ** 3 <= max(worthwhile, float(TINY) ** 3))

    def _solve_each(
        self,
        step: Array,
        image: Array,
        residual: Array,
        free: Array,
        softness: Array,
        columns: Array,
    ) -> None:
        """Factorise small systems, in place; one product gives all that the steps change."""

        def factorise(column: int) -> None:
            chosen = np.flatnonzero(free[:, column])
            if len(chosen):
                step[chosen, column] = self._solve_one(
                    chosen, softness[chosen, column], residual[chosen, column], step[:, column]
                )

        for_each(factorise, columns.tolist())
        if len(columns):
            image[:, columns] = self.product(step[:, columns])

    def _solve_one(self, chosen: Array, softness: Array, residual: Array, settled: Array) -> Array:
        """Cholesky on one problem's free rows, with jitter where rounding made it indefinite.

        ``settled`` is the step of the other rows, whose image the residual does not have yet.
        """
        gram, image = submatrix(self.gram, chosen, settled)
        residual = residual - image - self.bias_square * settled.sum()
        gram += self.dtype.type(self.bias_square)
        diagonal = np.diagonal(gram).astype(np.float64) + softness
        jitter = 0.0
        factorise, solve = lapack.get_lapack_funcs(("potrf", "potrs"), dtype=self.dtype)
        while True:
            np.fill_diagonal(gram, diagonal + jitter)
            factor, failed = factorise(gram.T, lower=True, clean=False, overwrite_a=True)
            if not failed:
                scale = np.abs(residual).max() or 1.0
                step, _ = solve(factor, (residual / scale).astype(self.dtype), lower=True)
                return step.astype(np.float64) * scale
            jitter = max(10 * jitter, np.finfo(self.dtype).eps * float(diagonal.mean()))
            mirror(gram)  # what lies above the diagonal was overwritten

    def _solve_together(
        self, settled: Array, residual: Array, free: Array, softness: Array, target: Array
    ) -> tuple[Array, Array]:
        """Block conjugate gradients, stopped by what they leave of the duality gap.

        They begin where the preconditioner would have the solution, so that the first product
        also gives the image of the rows that are settled.
        """
        dtype = self.dtype
        scale = np.sqrt(np.einsum("it,it->t", residual, residual) + _squares(settled))
        scale[scale == 0] = 1.0
        soft = np.where(free, softness, 1.0).astype(dtype)
        low_rank = self._low_rank.get()
        precondition = low_rank.restricted(free, soft)
        weight = 0.5 / soft
        floor = (8 * np.finfo(dtype).eps) ** 2

        # Directions and residuals are zero outside the free rows.
        def product(direction: Array, columns: Array) -> tuple[Array, Array]:
            change = self.product(direction)
            curved = soft[:, columns] * direction
            curved += free[:, columns] * change
            return curved, change

        def error(rest: Array, columns: Array) -> Array:
            return np.einsum("it,it,it->t", rest, rest, weight[:, columns])

        everything = np.arange(residual.shape[1])
        rest, image = (residual / scale).astype(dtype), (settled / scale).astype(dtype)
        first = error(rest, everything)
        step = precondition(rest - free * low_rank.product(image), everything)
        image += step
        image = self.product(image)
        rest -= free * image
        rest -= soft * step
        n_products = conjugate_gradients(
            product,
            rest,
            precondition,
            error,
            np.maximum(target / scale**2, floor * first),
            step=step,
            image=image,
            max_products=200,
        )
        self.usual_products = max(4.0, 0.5 * (self.usual_products + n_products + 1))
        step = step * scale
        step += settled
        return step, image * scale


def _squares(columns: Array) -> Array:
    return np.asarray(np.einsum("it,it->t", columns, columns))
