"""The hinge losses of many problems at once, as smooth pieces with a known conjugate.

Every loss here is ``max over 0 <= a <= cap of a * m - softness * a**2 / 2`` in the margin deficit
``m = offset - sign * score``. A cap of infinity gives the squared hinge, a softness of zero the
hinge, and both finite the hinge smoothed around an earlier dual variable.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from spptransfer.svm._types import Array

# The reciprocal of a smaller cost overflows.
NEGLIGIBLE = 1e-300


@dataclass(frozen=True)
class Losses:
    """One loss per row (first axis) and problem (second axis).

    Rows with a cap of zero do not count. ``signs`` are -1, 0 or +1.
    """

    signs: Array
    softness: Array
    cap: Array
    offset: Array

    @classmethod
    def squared_hinge(cls, signs: Array, costs: Array) -> Losses:
        """``cost * max(0, m)**2``: soft by 1 / (2 cost), without a cap."""
        counts = costs > NEGLIGIBLE
        softness = np.divide(0.5, costs, out=np.ones_like(costs), where=counts)
        # Few values, which need no digits.
        cap = np.where(counts, np.float32(np.inf), np.float32(0))
        return cls(signs.astype(np.int8), softness, cap, np.ones((1, 1)))

    @classmethod
    def hinge(cls, signs: Array, costs: Array) -> Losses:
        """``cost * max(0, m)``: capped by the cost, without softness."""
        return cls(signs, np.zeros((1, 1)), costs, np.ones((1, 1)))

    @property
    def largest_cost(self) -> float:
        """The largest cost that these losses were made with."""
        counts = self.cap > 0
        if not counts.any():
            return 0.0
        if self.softness.any():
            return float(0.5 / self.softness[counts].min())
        return float(self.cap.max())

    def times(self, factor: float) -> Losses:
        """The losses for costs multiplied by a factor."""
        return replace(self, softness=self.softness / factor, cap=self.cap * factor)

    def columns(self, chosen: Array) -> Losses:
        """The losses of some of the problems: a copy, unless they are all."""
        if len(chosen) == self.signs.shape[1]:
            return self
        pick = {
            name: value if value.shape[1] == 1 < self.signs.shape[1] else value[:, chosen]
            for name, value in vars(self).items()
        }
        return Losses(**pick)

    def smoothed(self, softness: float, centre: Array) -> Losses:
        """Add the proximal term ``softness / 2 * (a - centre)**2`` to every conjugate."""
        return replace(
            self, softness=self.softness + softness, offset=self.offset + softness * centre
        )

    def deficits(self, scores: Array) -> Array:
        """How far each row is from the right side of its margin."""
        return self.offset - self.signs * scores

    def responses(self, deficits: Array) -> Array:
        """The maximising dual variables, which are also the losses' derivatives."""
        if not self.softness.any():
            return np.where(deficits > 0, self.cap, 0.0)
        return np.clip(deficits / self.softness, 0.0, self.cap)

    def free(self, deficits: Array) -> Array:
        """Rows whose loss is curved at these margin deficits."""
        return (deficits > 0) & (deficits < self.softness * self.cap)

    def values(self, deficits: Array) -> Array:
        """The sum of the losses of each problem."""
        duals = self.responses(deficits)
        return _column_sums(duals * (deficits - 0.5 * self.softness * duals))

    def gaps(self, duals: Array, deficits: Array) -> Array:
        """Fenchel-Young gaps of feasible dual variables, as sums of non-negative terms.

        Nothing cancels, so that gaps far below the objective's rounding error are still exact.
        """
        best = self.responses(deficits)
        apart = duals - best
        slack = np.abs(deficits - self.softness * best)
        return _column_sums(apart * apart * (0.5 * self.softness) + np.abs(apart) * slack)


def _column_sums(values: Array) -> Array:
    return values.sum(axis=0, dtype=np.float64)


def balance(duals: Array, signs: Array) -> Array:
    """Shrink the heavier side of each problem until positives and negatives weigh the same.

    An unregularised bias allows no other dual variables.
    """
    positive = _column_sums(np.where(signs > 0, duals, 0.0))
    negative = _column_sums(np.where(signs < 0, duals, 0.0))
    lighter = np.minimum(positive, negative)
    shrink_positive = np.divide(lighter, positive, out=np.zeros_like(lighter), where=positive > 0)
    shrink_negative = np.divide(lighter, negative, out=np.zeros_like(lighter), where=negative > 0)
    return duals * np.where(signs > 0, shrink_positive, shrink_negative)


def best_offset(losses: Losses, scores: Array, start: Array, n_halvings: int = 100) -> Array:
    """The bias of each problem that minimises its losses at fixed weights.

    The losses are convex in the bias, so that their slope's zero is found by halving.
    """

    def slope(offset: Array) -> Array:
        duals = losses.responses(losses.deficits(scores + offset))
        return -_column_sums(losses.signs * duals)

    reach = 2.0 + np.abs(scores).max(axis=0) + np.abs(start)
    low, high = -reach, reach
    for _ in range(n_halvings):
        middle = 0.5 * (low + high)
        rising = slope(middle) > 0
        low, high = np.where(rising, low, middle), np.where(rising, middle, high)
    middle = 0.5 * (low + high)
    flat = np.abs(slope(start)) <= np.abs(slope(middle))
    return np.where(flat, start, middle)
