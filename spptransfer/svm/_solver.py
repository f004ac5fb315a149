"""All problems at one cost C: descend in the working precision, certify in float64, repeat."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from spptransfer.svm._loss import Losses, best_offset
from spptransfer.svm._newton import Points, Space, descend, line_search, objectives
from spptransfer.svm._types import Array

logger = logging.getLogger(__name__)

MAX_ROUNDS = 60
LIFT = 1.0 + 1e-10


@dataclass(frozen=True)
class Options:
    """What does not change along the path of costs."""

    loss: str
    tol: float
    max_iter: int
    penalise_bias: bool


@dataclass
class Solution:
    """One point per problem with its certificate."""

    points: Points
    gaps: Array
    objectives: Array
    n_iter: Array
    worst: Array

    @property
    def relative_gaps(self) -> Array:
        """Duality gaps as fractions of the primal objectives.

        An objective counts as no less than 1e-14 of its value at zero weights: one that should
        be zero is a rounding error away from it.
        """
        size = np.maximum(self.objectives, 1e-14 * self.worst)
        return np.divide(self.gaps, size, out=np.zeros_like(self.gaps), where=self.gaps > 0)


class Solver:
    """Advances all problems of one data matrix, warm-started from whatever was solved before."""

    def __init__(self, space: Space, options: Options) -> None:
        self.space = space
        self.options = options

    def solve(self, signs: Array, costs: Array, start: Points | None = None) -> Solution:
        """Certified minimisers for these costs per row and problem."""
        squared = self.options.loss == "squared_hinge"
        make = Losses.squared_hinge if squared else Losses.hinge
        losses = make(np.asfortranarray(signs), np.asfortranarray(costs))
        if start is None:
            start = approach(self.space, losses)
        elif losses.largest_cost * self.space.scale <= 1:
            start = lengthened(start, self.space, losses)
        run = _Run(self.space, self.options, losses, start)
        run.finish()
        return run.solution


def approach(space: Space, losses: Losses) -> Points:
    """Walk from zero weights up to large costs in factors of ten.

    Newton's method likes to start nearby; how well each stop is solved matters little.
    """
    n_rows, n_problems = losses.signs.shape
    scores = np.zeros((n_rows, n_problems), order="F")
    points = Points(space.start(n_problems), scores, np.zeros(n_problems))
    peak = losses.largest_cost * space.scale
    n_decades = int(np.ceil(np.log10(peak))) - 1 if peak > 10 else 0
    for decade in range(n_decades, 0, -1):
        cheaper = losses.times(10.0**-decade)
        softness = _first_softness(cheaper, space.scale)
        if softness:
            cheaper = cheaper.smoothed(softness, np.zeros((1, 1)))
        descend(space, cheaper, points, 1e-2, 20)
    return points


def lengthened(points: Points, space: Space, losses: Losses, most: float = 10.0) -> Points:
    """Multiply the weights by whatever in 1 to ``most`` suits larger costs best.

    It takes no product, and saves a Newton step or two where the costs are still small.
    """
    softness = _first_softness(losses, space.scale)
    if softness:
        losses = losses.smoothed(softness, np.zeros((1, 1)))
    own = points.scores - points.offset
    square = space.inner(points.state, points.state, own)
    length = line_search(
        losses,
        points.scores,
        (most - 1) * own,
        slope=(most - 1) * square,
        curvature=(most - 1) ** 2 * square,
    )
    factor = 1 + (most - 1) * length
    return Points(factor * points.state, factor * own + points.offset, points.offset.copy())


class _Run:
    """The rounds of one solve: which problems are still open, and how soft their losses are."""

    def __init__(self, space: Space, options: Options, losses: Losses, start: Points) -> None:
        self.space, self.options, self.losses = space, options, losses
        n_problems = start.state.shape[1]
        everything = np.arange(n_problems)
        self.solution = Solution(
            start.columns(everything),
            np.full(n_problems, np.inf),
            np.zeros(n_problems),
            np.zeros(n_problems, dtype=int),
            losses.values(np.ones_like(start.scores)),
        )
        self.softness = _first_softness(losses, space.scale)
        self.centre = np.zeros_like(start.scores)
        self.stalls = 0
        self.aim = space.care * options.tol
        space.begin()

    @property
    def open(self) -> Array:
        """Problems whose certificate is not good enough yet."""
        return np.flatnonzero(~(self.solution.relative_gaps <= self.options.tol))

    def finish(self) -> None:
        """Alternate descent and certification until all problems are certified."""
        for _ in range(MAX_ROUNDS):
            chosen = self.open
            chosen = chosen[self.solution.n_iter[chosen] < self.options.max_iter]
            if not len(chosen):
                return
            before = self.solution.gaps[chosen]
            self._descend(chosen)
            self._react(chosen, self.solution.gaps[chosen] <= 0.5 * before)

    def _react(self, chosen: Array, improved: Array) -> None:
        """Aim higher, then raise the precision, when rounds stop helping."""
        self.stalls = 0 if improved.any() else self.stalls + 1
        if not self.stalls:
            return
        self.aim = max(0.01 * self.aim, 1e-15)
        if self.stalls >= 2 and self.space.can_sharpen:
            logger.info("float32 does not reach the tolerance for %d problems", len(chosen))
            self.space.sharpen()
            self.stalls = 0
            losses = self.losses.columns(chosen)
            self.solution.points.assign(chosen, approach(self.space, losses))
            self.centre[:, chosen] = 0.0

    def _descend(self, chosen: Array) -> None:
        """One round for some problems."""
        points = self.solution.points.columns(chosen)
        true = self.losses.columns(chosen)
        if self.softness:
            self.solution.n_iter[chosen] += self._proximal_steps(points, true, chosen)
        else:
            self.solution.n_iter[chosen] += descend(
                self.space, true, points, self.aim, self.options.max_iter
            )
        self.solution.points.assign(chosen, points)
        self._anchor(chosen)

    def _proximal_steps(self, points: Points, true: Losses, chosen: Array) -> Array:
        """Minimise losses smoothed around ever better dual variables."""
        n_steps = np.zeros(len(chosen), dtype=int)
        left = np.arange(len(chosen))
        for _ in range(12):
            now, pieces = points.columns(left), true.columns(left)
            smooth = pieces.smoothed(self.softness, self.centre[:, chosen[left]])
            n_steps[left] += descend(self.space, smooth, now, self.aim, self.options.max_iter)
            points.assign(left, now)
            deficits = smooth.deficits(now.scores)
            self.centre[:, chosen[left]] = self.space.duals(now.state, deficits, smooth)
            enough = self.space.care * self.options.tol * objectives(self.space, now, pieces)
            gaps = self.space.gaps(
                now.state, now.scores, pieces, smooth, enough, balanced=False, exact=False
            )
            left = left[gaps > enough]
            if not len(left):
                break
        else:
            self.softness = max(0.25 * self.softness, 1e-10 * self.space.scale)
        return n_steps

    def _anchor(self, chosen: Array) -> None:
        """Recompute scores in float64 and from them the certificates."""
        points, losses = self.solution.points.columns(chosen), self.losses.columns(chosen)
        proposing = losses
        if self.softness:
            proposing = losses.smoothed(self.softness, self.centre[:, chosen])
        balanced = not self.options.penalise_bias
        if balanced:
            points.offset = points.offset + self.space.bias(points.state)
            points.state = self.space.settled(points.state, losses)
        exact = self.space.exact_scores(points.state)
        if balanced:
            points.offset = best_offset(proposing, exact, points.offset)
        points.scores = exact + points.offset
        if self.softness:
            points = self._lifted(points, losses)
        values = objectives(self.space, points, losses)
        self.solution.points.assign(chosen, points)
        self.solution.objectives[chosen] = values
        self.solution.gaps[chosen] = self.space.gaps(
            points.state,
            points.scores,
            losses,
            proposing,
            self.options.tol * values,
            balanced=balanced,
            exact=True,
        )

    def _lifted(self, points: Points, losses: Losses) -> Points:
        """Lengthen weights by a hair where that brings rows over the margin.

        Hinge losses with a large C multiply the rounding errors of rows that lie on the margin.
        """
        offset = points.offset
        longer = Points(LIFT * points.state, LIFT * (points.scores - offset) + offset, offset)
        gain = objectives(self.space, points, losses) - objectives(self.space, longer, losses)
        points.assign(gain > 0, longer.columns(gain > 0))
        return points


def _first_softness(losses: Losses, scale: float) -> float:
    """How soft to make a hinge: nothing for losses that are soft already.

    The softened part of the margin, softness times cost, should not be wider than the margin.
    """
    if losses.softness.any():
        return 0.0
    caps = losses.cap[losses.cap > 0]
    return min(1e-2 * scale, 0.3 / float(np.median(caps))) if len(caps) else 1e-2 * scale
