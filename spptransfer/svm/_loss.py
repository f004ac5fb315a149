"""The hinge losses of many problems at once, as smooth pieces with a known conjugate.

Letters are LIBLINEAR's: signs ``y``, dual variables ``alpha``, their diagonal term ``D`` and their
upper bound ``U``. Numbers in brackets are those of the equations in ``docs/solver.md``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from spptransfer.svm._rows import Array

# The reciprocal of a smaller cost overflows.
NEGLIGIBLE = 1e-300


@dataclass(frozen=True)
class Losses:
    """One loss per row (first axis) and problem (second axis).

    It is ``max over 0 <= alpha <= U of alpha * m - D * alpha**2 / 2`` (2) in the margin violation
    ``m = offset - y * score``. ``U`` of infinity gives the squared hinge, ``D`` of zero the hinge,
    and both finite the hinge smoothed around an earlier dual variable (10). Rows with a ``U`` of
    zero do not count. ``y`` is -1, 0 or +1.
    """

    y: Array
    D: Array
    U: Array
    offset: Array

    @classmethod
    def squared_hinge(cls, y: Array, costs: Array) -> Losses:
        """``cost * max(0, m)**2``: D = 1 / (2 cost), no bound."""
        counts = costs > NEGLIGIBLE
        D = np.divide(0.5, costs, out=np.ones_like(costs), where=counts)
        # Few values, which need no digits.
        U = np.where(counts, np.float32(np.inf), np.float32(0))
        return cls(y.astype(np.int8), D, U, np.ones((1, 1)))

    @classmethod
    def hinge(cls, y: Array, costs: Array) -> Losses:
        """``cost * max(0, m)``: D = 0, bounded by the cost."""
        return cls(y, np.zeros((1, 1)), costs, np.ones((1, 1)))

    @property
    def largest_cost(self) -> float:
        """The largest cost that these losses were made with."""
        counts = self.U > 0
        if not counts.any():
            return 0.0
        if self.D.any():
            return float(0.5 / self.D[counts].min())
        return float(self.U.max())

    def times(self, factor: float) -> Losses:
        """The losses for costs multiplied by a factor."""
        return replace(self, D=self.D / factor, U=self.U * factor)

    def columns(self, chosen: Array) -> Losses:
        """The losses of some of the problems: a copy, unless they are all."""
        n_problems = self.y.shape[1]
        if len(chosen) == n_problems:
            return self
        pick = {}
        for name, value in vars(self).items():
            pick[name] = value if value.shape[1] == 1 < n_problems else value[:, chosen]
        return Losses(**pick)

    def smoothed(self, softness: float, centre: Array) -> Losses:
        """Add ``softness / 2 * (alpha - centre)**2`` to every conjugate (10)."""
        return replace(self, D=self.D + softness, offset=self.offset + softness * centre)

    def margin_violation(self, scores: Array) -> Array:
        """How far each row is from the right side of its margin."""
        return self.offset - self.y * scores

    def dual_from_margin(self, m: Array) -> Array:
        """The maximising dual variables, which are also the losses' derivatives."""
        if not self.D.any():
            return np.where(m > 0, self.U, 0.0)
        return np.clip(m / self.D, 0.0, self.U)

    def free(self, m: Array) -> Array:
        """Rows whose loss is curved at these margin violations."""
        return (m > 0) & (m < self.D * self.U)

    def values(self, m: Array) -> Array:
        """The sum of the losses of each problem."""
        alpha = self.dual_from_margin(m)
        losses = alpha * (m - 0.5 * self.D * alpha)
        return losses.sum(axis=0, dtype=np.float64)

    def gaps(self, alpha: Array, m: Array) -> Array:
        """Fenchel-Young gaps of feasible dual variables: the sum in (4).

        Its terms are not negative. Nothing cancels, so that gaps far below the objective's rounding
        error are still exact.
        """
        best = self.dual_from_margin(m)
        apart = alpha - best
        slack = np.abs(m - self.D * best)
        gaps = apart * apart * (0.5 * self.D) + np.abs(apart) * slack
        return gaps.sum(axis=0, dtype=np.float64)


@dataclass
class Iterate:
    """One point per problem: states, the scores they give to all rows, and the bias's centre.

    ``scores`` contain ``offset``, the part of the bias that carries no penalty. They have no rows
    where nobody needs them.
    """

    state: Array
    scores: Array
    offset: Array

    def columns(self, chosen: Array, *, copy: bool = False) -> Iterate:
        """Some of the problems: a copy, unless they are all and none is needed."""
        if not copy and len(chosen) == len(self.offset):
            return self
        return Iterate(self.state[:, chosen], self.scores[:, chosen], self.offset[chosen])

    def assign(self, chosen: Array, part: Iterate) -> None:
        """Put some problems' points back."""
        if part is self:
            return
        self.state[:, chosen] = part.state
        if len(self.scores):
            self.scores[:, chosen] = part.scores
        self.offset[chosen] = part.offset


def balance(alpha: Array, y: Array) -> Array:
    """Shrink the heavier side of each problem until positives and negatives weigh the same.

    An unregularised bias allows no other dual variables.
    """
    positive = np.sum(np.where(y > 0, alpha, 0.0), axis=0, dtype=np.float64)
    negative = np.sum(np.where(y < 0, alpha, 0.0), axis=0, dtype=np.float64)
    lighter = np.minimum(positive, negative)
    shrink_positive = np.divide(lighter, positive, out=np.zeros_like(lighter), where=positive > 0)
    shrink_negative = np.divide(lighter, negative, out=np.zeros_like(lighter), where=negative > 0)
    return alpha * np.where(y > 0, shrink_positive, shrink_negative)


def best_offset(losses: Losses, scores: Array, start: Array, n_halvings: int = 100) -> Array:
    """The bias of each problem that minimises its losses at fixed weights.

    The losses are convex in the bias, so that their slope's zero is found by halving.
    """

    def slope(offset: Array) -> Array:
        alpha = losses.dual_from_margin(losses.margin_violation(scores + offset))
        return np.asarray(-np.sum(losses.y * alpha, axis=0, dtype=np.float64))

    reach = 2.0 + np.abs(scores).max(axis=0) + np.abs(start)
    low, high = -reach, reach
    for _ in range(n_halvings):
        middle = 0.5 * (low + high)
        rising = slope(middle) > 0
        low, high = np.where(rising, low, middle), np.where(rising, middle, high)
    middle = 0.5 * (low + high)
    flat = np.abs(slope(start)) <= np.abs(slope(middle))
    return np.where(flat, start, middle)
