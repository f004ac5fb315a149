"""Semi-smooth Newton descent with a line search, for many problems side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from spptransfer.svm._loss import Losses
from spptransfer.svm._types import Array

# How much of the slope at its beginning a line search may leave, and how often it looks.
LOOSE_SLOPE = 1e-3
MAX_LOOKS = 30


class Space(Protocol):
    """Where states live: weights of rows (`GramSpace`) or of features (`FeatureSpace`)."""

    @property
    def scale(self) -> float:
        """The mean squared length of a row."""

    @property
    def can_sharpen(self) -> bool:
        """Whether `sharpen` would raise the working precision."""

    @property
    def care(self) -> float:
        """How much more tightly to solve a problem than its certificate asks.

        A duality gap bounds the weights' squared error only; and where the last step is exact
        anyway, it may as well be taken.
        """

    @property
    def forcing(self) -> float:
        """How much of the present gap a Newton step's linear system may leave.

        Loose systems save products and cost steps: their directions are short, or do not descend.
        """

    @property
    def n_features(self) -> int:
        """The length of a weight vector, without the bias."""

    def begin(self) -> None:
        """Forget what was learnt from earlier problems, so that results do not depend on it."""

    def prepare(self) -> None:
        """Compute with all threads what groups side by side would wait for."""

    def branch(self) -> Space:
        """The same space for another thread: what is learnt there stays there."""

    def groups(self, columns: Array) -> list[Array]:
        """How to divide problems into groups that are solved on their own."""

    @property
    def side_by_side(self) -> bool:
        """Whether groups get a thread each; otherwise threads share the work on one."""

    @property
    def is_tight(self) -> bool:
        """Whether groups are to give back at once what memory they had."""

    def sharpen(self) -> None:
        """Work in float64 from now on."""

    def start(self, n_problems: int) -> Array:
        """States of zero weights."""

    def exact_scores(self, state: Array) -> Array:
        """Scores of all rows, accumulated in float64."""

    def inner(self, left: Array, right: Array, right_scores: Array) -> Array:
        """Inner products in weight space."""

    def bias(self, state: Array) -> Array:
        """The penalised bias's share of the scores."""

    def coefficients(self, state: Array) -> Array:
        """Weight vectors, shape (n_features, n_problems)."""

    def duals(self, state: Array, deficits: Array, losses: Losses) -> Array:
        """Feasible dual variables that go with states."""

    def settled(self, state: Array, losses: Losses) -> Array:
        """States without a bias of their own."""

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
        """Upper bounds on duality gaps, computed in float64.

        With no more effort than it takes to show them small ``enough``.
        """

    def estimates(
        self,
        state: Array,
        scores: Array,
        losses: Losses,
        proposing: Losses,
        enough: Array,
        stuck: Array,
    ) -> Array:
        """The same in the working precision, with more effort for problems that are stuck."""

    def newton_point(
        self, state: Array, scores: Array, losses: Losses, target: Array
    ) -> tuple[Array, Array]:
        """Minimiser of the quadratic piece at the scores, and its scores."""


@dataclass
class Points:
    """One point per problem: states, the scores they give to all rows, and the bias's centre.

    ``scores`` contain ``offset``, the part of the bias that carries no penalty. They have no rows
    where nobody needs them.
    """

    state: Array
    scores: Array
    offset: Array

    def columns(self, chosen: Array) -> Points:
        """Some of the problems: a copy, unless they are all."""
        return self if len(chosen) == len(self.offset) else self.copy(chosen)

    def copy(self, chosen: Array) -> Points:
        """A copy of some of the problems."""
        return Points(self.state[:, chosen], self.scores[:, chosen], self.offset[chosen])

    def assign(self, chosen: Array, points: Points) -> None:
        """Put some problems' points back."""
        if points is self:
            return
        self.state[:, chosen] = points.state
        if len(self.scores):
            self.scores[:, chosen] = points.scores
        self.offset[chosen] = points.offset


def objectives(space: Space, points: Points, losses: Losses) -> Array:
    """Primal objectives: half the squared length of the weights plus the losses."""
    lengths = space.inner(points.state, points.state, points.scores - points.offset)
    return 0.5 * lengths + losses.values(losses.deficits(points.scores))


def descend(space: Space, losses: Losses, points: Points, aim: float, max_iter: int) -> Array:
    """Advance all problems until each one's relative gap is at most ``aim``.

    Works in place and returns how many steps each problem took. The gap is the model's own: the
    scores are advanced by products in the space's working precision.
    """
    n_problems = points.state.shape[1]
    n_steps = np.zeros(n_problems, dtype=int)
    patience = _Patience(n_problems)
    open_ = np.arange(n_problems)
    forcing = np.full(n_problems, space.forcing)
    for _ in range(max_iter):
        now, pieces = points.columns(open_), losses.columns(open_)
        scale = objectives(space, now, pieces)
        enough = aim * scale
        gaps = space.estimates(now.state, now.scores, pieces, pieces, enough, patience.worn(open_))
        unfinished = np.flatnonzero((gaps > enough) & patience.lasts(open_, gaps, scale))
        open_ = open_[unfinished]
        if not len(open_):
            break
        now, pieces = now.columns(unfinished), pieces.columns(unfinished)
        target = np.maximum(0.1 * enough[unfinished], forcing[open_] * gaps[unfinished])
        length = _step(space, now, pieces, target)
        forcing[open_] = np.where(length < 0.1, 0.1 * forcing[open_], forcing[open_])
        points.assign(open_, now)
        n_steps[open_] += 1
    return n_steps


class _Patience:
    """Tells rounding noise from progress: neither gap nor objective fell for some steps."""

    def __init__(self, n_problems: int, n_steps: int = 4) -> None:
        self.n_steps = n_steps
        self.gaps = np.full(n_problems, np.inf)
        self.objectives = np.full(n_problems, np.inf)
        self.left = np.full(n_problems, n_steps)

    def worn(self, columns: Array) -> Array:
        """Which of these problems made no progress in the last step."""
        return np.asarray(self.left[columns] < self.n_steps)

    def lasts(self, columns: Array, gaps: Array, values: Array) -> Array:
        """Whether it is worth going on with each of these problems."""
        best_gap, best_value = self.gaps[columns], self.objectives[columns]
        progress = (gaps < 0.5 * best_gap) | (values < (1 - 1e-9) * best_value)
        self.left[columns] = np.where(progress, self.n_steps, self.left[columns] - 1)
        self.gaps[columns] = np.minimum(gaps, best_gap)
        self.objectives[columns] = np.minimum(values, best_value)
        return np.asarray(self.left[columns] > 0)


def _step(space: Space, points: Points, losses: Losses, target: Array) -> Array:
    """Move to the best point between here and the Newton point; returns the lengths."""
    state, scores = space.newton_point(points.state, points.scores, losses, target)
    state -= points.state
    scores -= points.scores
    length = line_search(
        losses,
        points.scores,
        scores,
        slope=space.inner(points.state, state, scores),
        curvature=space.inner(state, state, scores),
    )
    # Not in place: a space may remember what it computed for the state that was.
    state *= length
    state += points.state
    scores *= length
    scores += points.scores
    points.state, points.scores = state, scores
    return length


def line_search(
    losses: Losses, scores: Array, change: Array, *, slope: Array, curvature: Array
) -> Array:
    """Minimisers over [0, 1] along each problem's direction, up to 1e-3 of the first slope.

    ``slope`` and ``curvature`` are those of the half squared length of the weights. The
    objective's own slope rises along the way in straight pieces, so that the false position finds
    its zero in a few looks.
    """

    def rise(length: Array, columns: Array) -> Array:
        pieces, moved = losses.columns(columns), change[:, columns]
        duals = pieces.responses(pieces.deficits(scores[:, columns] + length * moved))
        bend = slope[columns] + length * curvature[columns]
        return np.asarray(bend - np.einsum("it,it,it->t", pieces.signs, moved, duals))

    length = np.ones(scores.shape[1])
    at_end = rise(length, np.arange(len(length)))
    columns = np.flatnonzero(at_end > 0)
    if not len(columns):
        return length
    at_start = rise(np.zeros(len(columns)), columns)
    # What is no way down is not taken.
    length[columns] = 0.0
    down = at_start < 0
    columns = columns[down]
    length[columns] = _false_position(
        lambda where, left: rise(where, columns[left]), at_start[down], at_end[columns]
    )
    return length


def _false_position(function: Callable[[Array, Array], Array], below: Array, above: Array) -> Array:
    """Zeros in (0, 1) of rising functions that are ``below`` at 0 and ``above`` at 1.

    An end that stays for two looks counts half (Illinois' rule): ends would come near very slowly
    otherwise, where a function bends.
    """
    low, high, middle = np.zeros(len(below)), np.ones(len(below)), np.ones(len(below))
    enough, side = LOOSE_SLOPE * np.abs(below), np.zeros(len(below))
    left = np.arange(len(below))
    for _ in range(MAX_LOOKS if len(left) else 0):
        share = below[left] / (below[left] - above[left])
        middle[left] = low[left] + share * (high[left] - low[left])
        value = function(middle[left], left)
        over, under = left[value > 0], left[value <= 0]
        below[over] *= np.where(side[over] > 0, 0.5, 1.0)
        above[under] *= np.where(side[under] < 0, 0.5, 1.0)
        high[over], above[over], side[over] = middle[over], value[value > 0], 1
        low[under], below[under], side[under] = middle[under], value[value <= 0], -1
        # Never beyond the zero: there a step would lead uphill.
        left = left[(value > 0) | (value < -enough[left])]
        if not len(left):
            return middle
    middle[left] = low[left]
    return middle
