"""Newton steps in the space of rows, where every problem shares one Gram matrix."""

from __future__ import annotations

import numpy as np
from scipy.linalg import lapack

from spptransfer.svm._arithmetic import Arithmetic
from spptransfer.svm._conjugate import conjugate_gradients
from spptransfer.svm._loss import Losses, balance
from spptransfer.svm._preconditioner import LowRank
from spptransfer.svm._rows import Rows
from spptransfer.svm._threads import for_each
from spptransfer.svm._types import Array

# A Cholesky factorisation runs at about this fraction of a matrix product's speed.
FACTOR_SPEED = 0.5
# A gap this many times too large takes another step, whatever other dual variables would say.
FAR = 1e4
# Systems of up to this many rows are factorised whatever it costs.
TINY = 400


class GramSpace:
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
        arithmetic: Arithmetic,
        exact_gram: Array | None = None,
    ) -> None:
        self.rows = rows
        self.bias_square = bias_square
        self.arithmetic = arithmetic
        self.exact_gram = exact_gram
        self._set_gram(gram)

    def _set_gram(self, gram: Array) -> None:
        self.gram = self.arithmetic.hold(gram)
        self.dtype = np.dtype(gram.dtype)
        self.diagonal = np.diagonal(gram).astype(np.float64)[:, None] + self.bias_square
        self._low_rank: LowRank | None = None
        self._combined = np.empty((0, 0)), np.empty((0, 0))
        self.begin()

    def begin(self) -> None:
        """Forget how many products conjugate gradients have needed."""
        self.usual_products = 8.0

    @property
    def care(self) -> float:
        """Close to rounding where a float64 factorisation does it in one step."""
        return 1e-2 if self.can_sharpen else 1e-12

    @property
    def forcing(self) -> float:
        """Products are cheap beside what else a step costs."""
        return 1e-4

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
        self._set_gram(self.arithmetic.gram(self.rows, np.float64) if exact is None else exact)

    def start(self, n_problems: int) -> Array:
        """The state of zero weights."""
        return np.zeros((self.rows.shape[0], n_problems), order="F")

    def product(self, weights: Array) -> Array:
        """The change of the scores that a change of weights makes."""
        scores = self.arithmetic.product(self.gram, weights.astype(self.dtype, copy=False))
        scores += (self.bias_square * weights.sum(axis=0, dtype=np.float64)).astype(scores.dtype)
        return scores

    def exact_scores(self, state: Array) -> Array:
        """Scores accumulated in float64 from the rows or from a float64 Gram matrix."""
        if self.dtype == np.float64:
            return self.product(state)
        if self.exact_gram is not None:
            scores = np.asfortranarray(self.exact_gram @ state)
            return scores + self.bias_square * state.sum(axis=0)
        self._combined = state, self.rows.combine(state)
        return self.rows.scores(self._combined[1]) + self.bias_square * state.sum(axis=0)

    def inner(self, left: Array, right: Array, right_scores: Array) -> Array:
        """Inner products, in weight space, of two states per problem."""
        return np.einsum("it,it->t", left, right_scores)

    def gaps(
        self,
        state: Array,
        scores: Array,
        losses: Losses,
        proposing: Losses,
        enough: Array,
        *,
        balanced: bool,
        exact: bool,
    ) -> Array:
        """Duality gaps with the state's own dual variables, or with proposed ones if those fail.

        The state's own cost no product. They say nothing while the state is on its way, and where
        the Gram matrix is singular they can stay bad although the weights are good.
        """
        deficits = losses.deficits(scores)
        gaps = self._gaps_with(
            np.clip(losses.signs * state, 0.0, losses.cap),
            state,
            deficits,
            losses,
            enough,
            balanced=balanced,
            exact=exact,
        )
        bad = np.flatnonzero((gaps > enough) & (exact | (gaps <= FAR * enough)))
        if len(bad):
            state, deficits, losses = state[:, bad], deficits[:, bad], losses.columns(bad)
            proposing = proposing.columns(bad)
            duals = proposing.responses(proposing.deficits(scores[:, bad]))
            others = self._gaps_with(
                duals, state, deficits, losses, enough[bad], balanced=balanced, exact=exact
            )
            gaps[bad] = np.minimum(gaps[bad], others)
        return gaps

    def _gaps_with(
        self,
        duals: Array,
        state: Array,
        deficits: Array,
        losses: Losses,
        enough: Array,
        *,
        balanced: bool,
        exact: bool,
    ) -> Array:
        """Half the squared distance of the two weight vectors, plus the losses' own gaps."""
        if balanced:
            duals = balance(duals, losses.signs)
        gaps = losses.gaps(duals, deficits)
        apart = state - losses.signs * duals
        moved = np.flatnonzero(apart.any(axis=0))
        if len(moved):
            room = enough[moved] - gaps[moved] if exact else None
            gaps[moved] += self._distances(apart[:, moved], room)
        return gaps

    def _distances(self, apart: Array, room: Array | None) -> Array:
        """Half the squared lengths of small weights, in the working precision.

        With ``room`` they include a bound on their rounding errors, and are computed in float64
        where that does not show them to fit in.
        """
        product = self.product(apart)
        distances = 0.5 * np.maximum(0.0, np.einsum("it,it->t", apart, product))
        if room is None or self.dtype == np.float64:
            return distances
        distances += self._rounding(apart)
        doubtful = np.flatnonzero(distances > room)
        if len(doubtful):
            distances[doubtful] = self._exact_distances(apart[:, doubtful])
        return distances

    def _rounding(self, apart: Array) -> Array:
        """How far off half a squared length can be in the working precision.

        An inner product of n terms misses by at most n * eps times the lengths of its factors.
        """
        n_terms = sum(self.rows.shape) + 4
        lengths = np.einsum("it,i->t", np.abs(apart), np.sqrt(self.diagonal[:, 0]))
        return np.asarray(0.5 * n_terms * np.finfo(self.dtype).eps * lengths**2)

    def _exact_distances(self, apart: Array) -> Array:
        """Half the squared lengths of weights, in float64."""
        if self.exact_gram is not None:
            squares = np.einsum("it,it->t", apart, self.exact_gram @ apart)
        else:
            combined = self.rows.combine(apart)
            squares = np.einsum("jt,jt->t", combined, combined)
        return np.asarray(
            0.5 * (np.maximum(0.0, squares) + self.bias_square * apart.sum(axis=0) ** 2)
        )

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
        deficits = losses.deficits(scores)
        free = losses.free(deficits)
        base = np.where(free, state, losses.signs * losses.responses(deficits))
        scores = scores + self._moved(base - state)
        residual = np.where(
            free, losses.signs * losses.offset - scores - losses.softness * base, 0.0
        )
        softness = np.broadcast_to(losses.softness, residual.shape)
        step, image = self._solve(residual, free, softness, target)
        return base + step, scores + image

    def _moved(self, change: Array) -> Array:
        """Change of scores where any weight changed: late in a run hardly any problem's does."""
        moved = np.flatnonzero(change.any(axis=0))
        scores = np.zeros_like(change)
        if len(moved):
            scores[:, moved] = self.product(change[:, moved])
        return scores

    def _solve(
        self, residual: Array, free: Array, softness: Array, target: Array
    ) -> tuple[Array, Array]:
        """Factorise small systems, advance the large ones together."""
        n_rows = len(residual)
        size = free.sum(axis=0)
        worthwhile = 6 * FACTOR_SPEED * self.usual_products * float(n_rows) ** 2
        direct = size.astype(float) ** 3 <= max(worthwhile, float(TINY) ** 3)
        step, image = np.zeros_like(residual), np.zeros_like(residual)
        factored, iterated = np.flatnonzero(direct & (size > 0)), np.flatnonzero(~direct)

        def factorise(column: int) -> None:
            chosen = np.flatnonzero(free[:, column])
            step[chosen, column] = self._solve_one(
                chosen, softness[chosen, column], residual[chosen, column]
            )

        for_each(factorise, factored.tolist())
        if len(factored):
            image[:, factored] = self.product(step[:, factored])
        if len(iterated):
            step[:, iterated], image[:, iterated] = self._solve_together(
                residual[:, iterated], free[:, iterated], softness[:, iterated], target[iterated]
            )
        return step, image

    def _solve_one(self, chosen: Array, softness: Array, residual: Array) -> Array:
        """Cholesky on one problem's free rows, with jitter where rounding made it indefinite."""
        gram = self.arithmetic.submatrix(self.gram, chosen)
        gram += self.dtype.type(self.bias_square)
        diagonal = np.diagonal(gram).astype(np.float64) + softness
        jitter = 0.0
        factorise, solve = lapack.get_lapack_funcs(("potrf", "potrs"), dtype=self.dtype)
        while True:
            np.fill_diagonal(gram, diagonal + jitter)
            factor, failed = factorise(gram.T, lower=True, clean=False, overwrite_a=False)
            if not failed:
                scale = np.abs(residual).max() or 1.0
                step, _ = solve(factor, (residual / scale).astype(self.dtype), lower=True)
                return step.astype(np.float64) * scale
            jitter = max(10 * jitter, np.finfo(self.dtype).eps * float(diagonal.mean()))

    def _preconditioner(self) -> LowRank:
        if self._low_rank is None:
            self._low_rank = LowRank(self.product, self.diagonal, self.dtype)
        return self._low_rank

    def _solve_together(
        self, residual: Array, free: Array, softness: Array, target: Array
    ) -> tuple[Array, Array]:
        """Block conjugate gradients, stopped by what they leave of the duality gap."""
        dtype = self.dtype
        scale = np.sqrt(np.einsum("it,it->t", residual, residual))
        scale[scale == 0] = 1.0
        mask = free.astype(dtype)
        soft = np.where(free, softness, 1.0).astype(dtype)
        precondition = self._preconditioner().restricted(free, soft)
        weight = (0.5 * mask / soft).astype(dtype)
        floor = (8 * np.finfo(dtype).eps) ** 2

        def product(direction: Array, columns: Array) -> tuple[Array, Array]:
            change = self.product(direction)
            return mask[:, columns] * change + soft[:, columns] * direction, change

        def error(rest: Array, columns: Array) -> Array:
            return np.einsum("it,it,it->t", rest, rest, weight[:, columns])

        start = (residual / scale).astype(dtype)
        first = error(start, np.arange(start.shape[1]))
        iterate = conjugate_gradients(
            product,
            start,
            precondition,
            error,
            np.maximum(target / scale**2, floor * first),
            image_rows=len(residual),
            max_products=200,
        )
        self.usual_products = max(4.0, 0.5 * (self.usual_products + iterate.n_products))
        return iterate.step * scale, iterate.image * scale
