"""All problems at their costs: descend in the working precision, certify in float64, repeat."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from spptransfer.svm._loss import Losses, best_offset
from spptransfer.svm._newton import Points, Space, descend, line_search, objectives
from spptransfer.svm._problems import Problems
from spptransfer.svm._threads import for_each
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
    """One point per problem with its certificate.

    ``coefficients`` are the weight vectors, shape (n_features, n_problems), where asked for.
    """

    points: Points
    gaps: Array
    objectives: Array
    n_iter: Array
    worst: Array
    coefficients: Array | None = None

    @classmethod
    def unsolved(cls, points: Points, worst: Array) -> Solution:
        """Points about which nothing is known yet."""
        count = len(worst)
        gaps, steps = np.full(count, np.inf), np.zeros(count, dtype=int)
        return cls(points, gaps, np.zeros(count), steps, worst)

    @property
    def relative_gaps(self) -> Array:
        """Duality gaps as fractions of the primal objectives.

        An objective counts as no less than 1e-14 of its value at zero weights: one that should
        be zero is a rounding error away from it.
        """
        size = np.maximum(self.objectives, 1e-14 * self.worst)
        # What is not a number is no certificate.
        return np.divide(self.gaps, size, out=np.zeros_like(self.gaps), where=~(self.gaps <= 0))

    def assign(self, chosen: Array, part: Solution) -> None:
        """Put some problems' solutions in."""
        self.points.assign(chosen, part.points)
        for name in ("gaps", "objectives", "n_iter", "worst"):
            getattr(self, name)[chosen] = getattr(part, name)
        if self.coefficients is not None and part.coefficients is not None:
            self.coefficients[:, chosen] = part.coefficients


class Solver:
    """Advances all problems of one data matrix, warm-started from whatever was solved before.

    They are solved in groups of columns, each on a thread of its own where there are several:
    only what is in progress needs memory beyond its result. ``at_once`` says how many costs to
    solve in one call.
    """

    at_once = 1

    def __init__(self, space: Space, problems: Problems, options: Options) -> None:
        self.space = space
        self.problems = problems
        self.options = options

    def solve(
        self,
        costs: Array,
        start: Points | None = None,
        *,
        with_coefficients: bool = False,
        with_scores: bool = True,
        in_place: bool = False,
    ) -> Solution:
        """Certified minimisers at one cost per column; columns are the problems, over and over.

        A ``start`` may come without scores. ``in_place`` puts the solution where the start was,
        of which every group of columns takes a copy.
        """
        n_rows, n_columns = len(self.problems.signs), len(costs)
        if start is None or not in_place:
            scores = np.empty((n_rows if with_scores else 0, n_columns), order="F")
            points = Points(self.space.start(n_columns), scores, np.zeros(n_columns))
        else:
            points = start
        solution = Solution.unsolved(points, np.zeros(n_columns))
        if with_coefficients:
            shape = self.space.n_features, n_columns
            solution.coefficients = np.empty(shape, order="F")

        def solve_group(columns: Array) -> Array:
            run = _Run(
                self.space.branch(),
                self.options,
                self._losses(columns, costs[columns]),
                None if start is None else start.copy(columns),
            )
            run.finish()
            if with_coefficients:
                run.solution.coefficients = run.space.coefficients(run.solution.points.state)
            solution.assign(columns, run.solution)
            blunt = columns[run.open] if run.blunt else columns[:0]
            del run
            return blunt

        def solve_groups(columns: Array) -> Array:
            groups = self.space.groups(columns)
            if self.space.side_by_side:
                if len(groups) > 1:
                    self.space.prepare()
                return np.concatenate(for_each(solve_group, groups))
            return np.concatenate([solve_group(group) for group in groups])

        blunt = solve_groups(np.arange(n_columns))
        if len(blunt):
            logger.info("float32 does not reach the tolerance for %d problems", len(blunt))
            self.space.sharpen()
            start = None
            solve_groups(blunt)
        return solution

    def weights(self, points: Points) -> tuple[Array, Array]:
        """Weight vectors in columns, and biases."""
        return self.space.coefficients(points.state), self.biases(points)

    def decision_values(self, points: Points) -> Array:
        """Scores of all rows at what was solved."""
        return points.scores

    def biases(self, points: Points) -> Array:
        """The bias of each problem."""
        return points.offset + self.space.bias(points.state)

    def _losses(self, columns: Array, costs: Array) -> Losses:
        signs, scaled = self.problems.dense(columns, costs)
        squared = self.options.loss == "squared_hinge"
        return (Losses.squared_hinge if squared else Losses.hinge)(signs, scaled)


def first_points(space: Space, losses: Losses, start: Points | None) -> Points:
    """Where to begin: at what was solved for other costs, or from afar."""
    if start is None:
        return approach(space, losses)
    if not len(start.scores):
        start = Points(start.state, space.exact_scores(start.state) + start.offset, start.offset)
    if losses.largest_cost * space.scale <= 1:
        return lengthened(start, space, losses)
    return start


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

    def __init__(
        self, space: Space, options: Options, losses: Losses, start: Points | None
    ) -> None:
        self.space, self.options, self.losses = space, options, losses
        points = first_points(space, losses, start)
        if not options.penalise_bias:
            _settle_one_sided(points, losses)
        worst = losses.values(np.ones_like(points.scores))
        self.solution = Solution.unsolved(points, worst)
        self.softness = _first_softness(losses, space.scale)
        self.centre = np.zeros_like(points.scores if self.softness else points.scores[:0])
        self.least = np.full(len(worst), np.inf)
        self.idle = np.zeros(len(worst), dtype=int)
        self.stalls = 0
        self.blunt = False
        self.aim = space.care * options.tol
        space.begin()

    @property
    def open(self) -> Array:
        """Problems whose certificate is not good enough yet."""
        return np.flatnonzero(~(self.solution.relative_gaps <= self.options.tol))

    def finish(self) -> None:
        """Alternate descent and certification until all problems are certified.

        Or until the working precision proves too ``blunt`` for those that are left.
        """
        for _ in range(MAX_ROUNDS):
            chosen = self.open
            chosen = chosen[self.solution.n_iter[chosen] < self.options.max_iter]
            if not len(chosen) or self.blunt:
                return
            before = self.solution.gaps[chosen]
            self._descend(chosen)
            gaps = self.solution.gaps[chosen]
            self._watch(chosen, gaps)
            self._react(gaps <= 0.5 * before)

    def _watch(self, chosen: Array, gaps: Array) -> None:
        """Count each problem's rounds in a row that did not halve the least gap it had."""
        halved = gaps <= 0.5 * self.least[chosen]
        self.idle[chosen] = np.where(halved, 0, self.idle[chosen] + 1)
        self.least[chosen] = np.fmin(gaps, self.least[chosen])

    def _react(self, improved: Array) -> None:
        """Aim higher, then ask for a higher precision, when rounds stop helping."""
        self.stalls = 0 if improved.any() else self.stalls + 1
        if self.stalls:
            self.aim = max(0.01 * self.aim, 1e-15)
        self.blunt = self.stalls >= 2 and self.space.can_sharpen

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
            hard = np.ones(len(left), dtype=bool)
            gaps = self.space.estimates(now.state, now.scores, pieces, smooth, enough, hard)
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
        points.scores = points.scores[:0]  # their memory is free for those that replace them
        points.scores = self.space.exact_scores(points.state)
        if balanced:
            # Taken alone it may swing for ever around the best; the multipliers' own comes near.
            # Most swings die out, though, and one round's larger gap is no sign of another kind.
            best = best_offset(proposing, points.scores, points.offset)
            points.offset = np.where(self.idle[chosen] > 1, points.offset, best)
        points.scores += points.offset
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
        )

    def _lifted(self, points: Points, losses: Losses) -> Points:
        """Lengthen weights by a hair where that brings rows over the margin.

        Hinge losses with a large C multiply the rounding errors of rows that lie on the margin.
        """
        offset = points.offset
        longer = Points(LIFT * points.state, LIFT * (points.scores - offset) + offset, offset)
        gain = objectives(self.space, points, losses) - objectives(self.space, longer, losses)
        better = np.flatnonzero(gain > 0)
        points.assign(better, longer.columns(better))
        return points


def _settle_one_sided(points: Points, losses: Losses) -> None:
    """Solve problems whose rows are all on one side: a free bias of 1 or -1 loses nothing."""
    counted = np.where(losses.cap > 0, losses.signs, 0)
    side = np.sign(counted.max(axis=0) + counted.min(axis=0))
    alone = np.flatnonzero(side)
    points.state[:, alone] = 0.0
    points.scores[:, alone] = points.offset[alone] = side[alone]


def _first_softness(losses: Losses, scale: float) -> float:
    """How soft to make a hinge: nothing for losses that are soft already.

    The softened part of the margin, softness times cost, should not be wider than the margin.
    """
    if losses.softness.any():
        return 0.0
    caps = losses.cap[losses.cap > 0]
    return min(1e-2 * scale, 0.3 / float(np.median(caps))) if len(caps) else 1e-2 * scale
