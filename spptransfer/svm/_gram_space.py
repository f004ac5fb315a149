"""Newton steps and certificates in the space of rows, where problems share one Gram matrix.

Numbers in brackets are those of the equations in ``docs/solver.md``.
"""

from __future__ import annotations

import numpy as np

from spptransfer.svm._gram_matrix import dense_gram, product, submatrix, to_device
from spptransfer.svm._loss import Iterate, Losses, balance
from spptransfer.svm._rows import Array, Rows
from spptransfer.svm._systems import LowRank, conjugate_gradients, positive_definite_solve
from spptransfer.svm._threads import for_each

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


class GramSpace:
    """States are the weights ``beta`` of the rows: ``w = X.T @ beta``, scores ``K @ beta``.

    ``bias_square`` is added to every entry of K: the regularised bias as one more feature.
    Beside a float32 ``gram``, ``exact_gram`` is the same in float64 where it is known: certificates
    then need no pass over the rows.
    """

    # Groups of columns share nothing but the Gram matrix, and get a thread each.
    side_by_side = True
    # How much of the present gap a Newton step's system may leave: products are cheap beside what
    # else a step costs, and loose steps are short, or do not descend.
    forcing = 1e-3

    def __init__(
        self,
        rows: Rows,
        gram: Array,
        bias_square: float,
        exact_gram: Array | None = None,
        device: str = "cpu",
    ) -> None:
        self.rows = rows
        self.n_features = rows.shape[1]
        self.bias_square = bias_square
        self.exact_gram = exact_gram
        self.device = device
        # Beside a float64 Gram matrix, and with few rows, all else is small.
        self.is_tight = exact_gram is None and rows.shape[0] > MANY_ROWS
        self._set_gram(gram)

    def _set_gram(self, gram: Array) -> None:
        self.gram = to_device(gram, self.device)
        self.dtype = np.dtype(gram.dtype)
        self.needs_float64 = self.dtype != np.float64
        # How much more tightly to solve a problem than its certificate asks: a gap bounds the
        # weights' squared error only (6), and a float64 factorisation gets there in one step.
        self.inner_tol_factor = 1e-2 if self.needs_float64 else 1e-12
        self.diagonal = np.diagonal(gram).astype(np.float64)[:, None] + self.bias_square
        self.scale = float(self.diagonal.mean())  # the mean squared length of a row
        self._low_rank: LowRank | None = None
        self.begin()

    def begin(self) -> None:
        """Forget what was learnt from earlier problems, so that results do not depend on it."""
        self.usual_products = 8.0
        self._combined = np.empty((0, 0)), np.empty((0, 0))

    def groups(self, columns: Array) -> list[Array]:
        """Divide columns so that they take, with results, no more memory than the Gram matrix.

        An even number of groups, for an even number of threads. Finds the preconditioner, which
        they share, unless all systems will be factorised.
        """
        (n_rows, n_features), n_columns = self.rows.shape, len(columns)
        if n_rows > TINY and self._low_rank is None:
            self._low_rank = LowRank(self.product, self.diagonal, self.dtype)
        if n_columns <= WIDE:
            return [columns]
        width = max(NARROW, n_rows // COLUMN_ARRAYS)
        if self.is_tight:
            # Beside the results, states and weights in float64.
            room = n_rows - 4 * n_columns - 2 * n_columns * n_features // n_rows
            width = max(NARROW, room // 2 // COLUMN_ARRAYS)
            # Little more than narrow takes as long as twice that.
            width = width if width >= 1.5 * NARROW else NARROW
        return np.array_split(columns, 2 * -(-n_columns // (2 * width)))

    def to_float64(self) -> None:
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

    def exact_scores(self, beta: Array) -> Array:
        """Scores accumulated in float64 from the rows or from a float64 Gram matrix."""
        if self.dtype == np.float64:
            return self.product(beta)
        if self.exact_gram is not None:
            scores = product(self.exact_gram, beta)
        else:
            self._combined = beta, self.rows.combine(beta)
            scores = self.rows.scores(self._combined[1])
        scores += self.bias(beta)
        return scores

    def inner(self, left: Array, right: Array, right_scores: Array) -> Array:
        """Inner products, in weight space, of two states per problem."""
        return np.einsum("it,it->t", left, right_scores)

    def duals(self, beta: Array, m: Array, losses: Losses) -> Array:
        """Feasible dual variables near those that a state stands for: ``beta = y * alpha``."""
        return _own(beta, losses)

    def without_bias(self, beta: Array, losses: Losses) -> Array:
        """States without a bias of their own: what an unregularised bias starts over from."""
        return losses.y * balance(_own(beta, losses), losses.y)

    def bias(self, beta: Array) -> Array:
        """The regularised bias's share of the scores."""
        return self.bias_square * beta.sum(axis=0)

    def coefficients(self, beta: Array) -> Array:
        """Weight vectors, shape (n_features, n_problems)."""
        known, coefficients = self._combined
        return coefficients if np.array_equal(known, beta) else self.rows.combine(beta)

    # The certificate (4): half the squared distance of two weight vectors, the state's and that of
    # the dual variables tried, plus the losses' own gaps. The state's own dual variables differ
    # from it hardly anywhere. They say nothing while the state is on its way, and where the Gram
    # matrix is singular they can stay bad although the weights are good; those that the losses'
    # slopes propose then do better, and cost a product.

    def gaps(
        self, points: Iterate, losses: Losses, proposing: Losses, enough: Array, *, balanced: bool
    ) -> Array:
        """Upper bounds on the duality gaps (4), in float64.

        With no more effort than it takes to show them small ``enough``.
        """

        def gaps_with(alpha: Array, columns: Array) -> Array:
            now, part = points.columns(columns), losses.columns(columns)
            if balanced:
                alpha = balance(alpha, part.y)
            gaps = part.gaps(alpha, part.margin_violation(now.scores))
            apart = now.state - part.y * alpha
            distances, room = self._longest(apart), enough[columns] - gaps
            far = np.flatnonzero(distances > room)
            if len(far):
                distances[far] = self._distances(apart[:, far], room[far])
            return gaps + distances

        gaps = gaps_with(_own(points.state, losses), np.arange(len(enough)))
        bad = np.flatnonzero(gaps > enough)
        if len(bad):
            others = gaps_with(_proposed(points.scores, proposing, bad), bad)
            gaps[bad] = np.minimum(gaps[bad], others)
        return gaps

    def estimates(
        self, points: Iterate, losses: Losses, proposing: Losses, enough: Array, stuck: Array
    ) -> Array:
        """Gaps in the working precision; of large ones only what takes no product."""
        beta, m = points.state, losses.margin_violation(points.scores)
        alpha = _own(beta, losses)
        gaps = losses.gaps(alpha, m)
        apart = beta - losses.y * alpha
        # As if all rows were orthogonal: what is too long even so is worth no product.
        gaps += 0.5 * np.einsum("it,it,i->t", apart, apart, self.diagonal[:, 0])
        close = np.flatnonzero((gaps <= enough) & (self._longest(apart) > enough - gaps))
        if len(close):
            gaps[close] += self._distances(apart[:, close], None)
        bad = np.flatnonzero(stuck & (gaps > enough))
        if len(bad):
            alpha = _proposed(points.scores, proposing, bad)
            losses, apart = losses.columns(bad), beta[:, bad] - losses.y[:, bad] * alpha
            others = losses.gaps(alpha, m[:, bad]) + self._distances(apart, None)
            gaps[bad] = np.minimum(gaps[bad], others)
        return gaps

    def _longest(self, apart: Array) -> Array:
        """What half the squared lengths are at most: as if all rows pointed the same way."""
        lengths = np.einsum("it,i->t", np.abs(apart), np.sqrt(self.diagonal[:, 0]))
        return np.asarray(0.5 * lengths**2)

    def _distances(self, apart: Array, room: Array | None) -> Array:
        """Half the squared lengths of small weights, in the working precision.

        With ``room`` they include a bound on their rounding errors, and are computed in float64
        where that does not show them to fit in.
        """
        image = self.product(apart)
        distances = 0.5 * np.maximum(0.0, np.einsum("it,it->t", apart, image))
        if room is None or self.dtype == np.float64:
            return distances
        # (5): an inner product of n terms misses by at most n * eps times its factors' lengths.
        n_terms = sum(self.rows.shape) + 4
        distances += n_terms * np.finfo(self.dtype).eps * self._longest(apart)
        doubtful = np.flatnonzero(distances > room)
        if len(doubtful):
            distances[doubtful] = self._exact_distances(apart[:, doubtful])
        return distances

    def _exact_distances(self, apart: Array) -> Array:
        """Half the squared lengths of weights, in float64."""
        if self.exact_gram is not None:
            squares = np.einsum("it,it->t", apart, product(self.exact_gram, apart))
        else:
            combined = self.rows.combine(apart)
            squares = np.einsum("jt,jt->t", combined, combined)
        bias = self.bias_square * apart.sum(axis=0) ** 2
        return np.asarray(0.5 * (np.maximum(0.0, squares) + bias))

    def newton_point(self, points: Iterate, losses: Losses, target: Array) -> tuple[Array, Array]:
        """Minimise the quadratic piece that the scores lie on; return its state and scores.

        Rows on a straight piece of their loss take its slope as their weight; the others solve
        ``(K_AA + D) beta_A = y * offset - K_AB beta_B`` (7).
        """
        self._combined = np.empty((0, 0)), np.empty((0, 0))
        beta, scores = points.state, points.scores
        m = losses.margin_violation(scores)
        free = losses.free(m)
        step = np.where(free, 0.0, losses.y * losses.dual_from_margin(m) - beta)
        del m  # as large as all that follows
        residual = losses.y * losses.offset - scores - losses.D * beta
        residual = np.where(free, residual, 0.0)
        D = np.broadcast_to(losses.D, residual.shape)
        # Whether a factorisation costs less than the products it saves.
        worthwhile = 6 * FACTOR_SPEED * self.usual_products * float(len(residual)) ** 2
        size = free.sum(axis=0).astype(float)
        direct = size**3 <= max(worthwhile, float(TINY) ** 3)
        image = np.empty_like(residual) if direct.any() else residual[:0]
        self._solve_each(step, image, residual, free, D, np.flatnonzero(direct))
        others = np.flatnonzero(~direct)
        if len(others) == len(direct):
            step, image = self._solve_together(step, residual, free, D, target)
        elif len(others):
            step[:, others], image[:, others] = self._solve_together(
                step[:, others],
                residual[:, others],
                free[:, others],
                D[:, others],
                target[others],
            )
        step += beta
        image += scores
        return step, image

    def _solve_each(
        self, step: Array, image: Array, residual: Array, free: Array, D: Array, columns: Array
    ) -> None:
        """Factorise small systems, in place; one product gives all that the steps change."""

        def factorise(column: int) -> None:
            """Cholesky on one problem's free rows, after the image of the others' step."""
            chosen = np.flatnonzero(free[:, column])
            if not len(chosen):
                return
            settled = step[:, column]
            gram, image = submatrix(self.gram, chosen, settled)
            right = residual[chosen, column] - image - self.bias_square * settled.sum()
            gram += self.dtype.type(self.bias_square)
            np.fill_diagonal(gram, np.diagonal(gram).astype(np.float64) + D[chosen, column])
            scale = np.abs(right).max() or 1.0
            solved = positive_definite_solve(gram, (right / scale).astype(self.dtype))
            step[chosen, column] = solved.astype(np.float64) * scale

        for_each(factorise, columns.tolist())
        if len(columns):
            image[:, columns] = self.product(step[:, columns])

    def _solve_together(
        self, settled: Array, residual: Array, free: Array, D: Array, target: Array
    ) -> tuple[Array, Array]:
        """Block conjugate gradients, stopped by what they leave of the duality gap (8).

        They begin where the preconditioner would have the solution, so that the first product
        also gives the image of the rows that are settled.
        """
        dtype = self.dtype
        scale = np.sqrt(_squares(residual) + _squares(settled))
        scale[scale == 0] = 1.0
        soft = np.where(free, D, 1.0).astype(dtype)
        low_rank = self._low_rank
        assert low_rank is not None  # since the first `groups`
        precondition = low_rank.restricted(free, soft)
        weight = 0.5 / soft
        floor = (8 * np.finfo(dtype).eps) ** 2

        # Directions and residuals are zero outside the free rows.
        def times(direction: Array, columns: Array) -> tuple[Array, Array]:
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
        goal = np.maximum(target / scale**2, floor * first)
        n_products = conjugate_gradients(
            times, rest, precondition, error, goal, step=step, image=image
        )
        self.usual_products = max(4.0, 0.5 * (self.usual_products + n_products + 1))
        step = step * scale
        step += settled
        return step, image * scale


def _own(beta: Array, losses: Losses) -> Array:
    return np.clip(losses.y * beta, 0.0, losses.U)


def _squares(columns: Array) -> Array:
    return np.asarray(np.einsum("it,it->t", columns, columns))


def _proposed(scores: Array, proposing: Losses, columns: Array) -> Array:
    proposing = proposing.columns(columns)
    return proposing.dual_from_margin(proposing.margin_violation(scores[:, columns]))
