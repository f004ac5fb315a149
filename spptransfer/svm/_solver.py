"""All problems at their costs: descend in the working precision, certify in float64, repeat.

Numbers in brackets are those of the equations in ``docs/solver.md``.
"""

from __future__ import annotations

import copy
import logging
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from spptransfer.errors import ConfigError, suggestion
from spptransfer.svm._loss import Iterate, Losses, best_offset
from spptransfer.svm._newton import Space, descend, line_search, objectives
from spptransfer.svm._rows import Array
from spptransfer.svm._targets import Problems
from spptransfer.svm._threads import for_each

logger = logging.getLogger(__name__)

LOSSES = ("squared_hinge", "hinge")
# The solver's float32 products of C with squares of numbers in rows end at 3e38.
LARGEST_C = 1e20
MAX_ROUNDS = 60
MAX_PROXIMAL_STEPS = 12
LIFT = 1.0 + 1e-10


@dataclass(frozen=True)
class Options:
    """The parameters that `LinearSVM` and `LinearSVMCV` share, checked."""

    loss: str
    fit_intercept: bool
    intercept_scaling: float
    regularize_intercept: bool
    tol: float
    max_iter: int
    memory: int | str | None
    device: str


def options_of(estimator: Any) -> Options:
    """Read and check an estimator's parameters."""
    options = Options(*map(vars(estimator).get, Options.__dataclass_fields__))
    if options.loss not in LOSSES:
        raise ConfigError(f"loss is {options.loss!r}; {suggestion(options.loss, LOSSES)}")
    for name in ("intercept_scaling", "tol", "max_iter"):
        check_positive(name, getattr(options, name))
    if not isinstance(options.max_iter, (int, np.integer)):
        raise ConfigError(f"max_iter is {options.max_iter!r}; allowed: whole numbers > 0")
    if options.device != "cpu":
        import torch

        try:
            torch.empty(0, device=options.device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(
                f"device is {options.device!r}, which torch cannot use here; allowed: 'cpu' or a "
                "device that torch reports"
            ) from error
    return options


def check_positive(name: str, value: Any, most: float = np.inf) -> None:
    """Refuse anything but a finite number above zero, or one that is too large."""
    if not (isinstance(value, (int, float, np.number)) and np.isfinite(value) and value > 0):
        raise ConfigError(f"{name} is {value!r}; allowed: finite numbers > 0")
    if value > most:
        raise ConfigError(f"{name} is {value!r}; allowed: numbers > 0, at most {most:g}")


def warn_unless_certified(gaps: Array, tol: float) -> None:
    """Say once how many problems missed the tolerance."""
    missed = ~(gaps <= tol)
    if missed.any():
        warnings.warn(
            f"{missed.sum()} of {missed.size} problems did not reach a relative duality gap of "
            f"{tol:g} (largest: {gaps.max():.2g}); raise max_iter or scale the features",
            ConvergenceWarning,
            stacklevel=3,
        )


@dataclass
class Solution:
    """One point per problem with its certificate.

    ``coefficients`` are the weight vectors, shape (n_features, n_problems), where asked for.
    """

    points: Iterate
    gaps: Array
    objectives: Array
    n_iter: Array
    worst: Array
    coefficients: Array | None = None

    @classmethod
    def unsolved(cls, points: Iterate, worst: Array) -> Solution:
        """Points about which nothing is known yet."""
        count = len(worst)
        gaps, steps = np.full(count, np.inf), np.zeros(count, dtype=int)
        return cls(points, gaps, np.zeros(count), steps, worst)

    @property
    def relative_gaps(self) -> Array:
        """Duality gaps (4) as fractions of the primal objectives.

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
        start: Iterate | None = None,
        *,
        columns: Array | None = None,
        with_coefficients: bool = False,
        with_scores: bool = True,
        in_place: bool = False,
    ) -> Solution:
        """Certified minimisers at one cost per column.

        ``columns`` are numbers of problems, by default those of all, over and over.
        A ``start`` may come without scores. ``in_place`` puts the solution where the start was,
        of which every group of columns takes a copy.
        """
        n_rows, n_columns = len(self.problems.signs), len(costs)
        points = start
        if points is None or not in_place:
            scores = np.empty((n_rows if with_scores else 0, n_columns), order="F")
            points = Iterate(self.space.start(n_columns), scores, np.zeros(n_columns))
        solution = Solution.unsolved(points, np.zeros(n_columns))
        if with_coefficients:
            solution.coefficients = np.empty((self.space.n_features, n_columns), order="F")

        def solve_group(group: Array) -> Array:
            """Solve some columns; the ones that need float64 remain."""
            losses = make_losses(*self.problems.dense(numbers[group], costs[group]))
            space = copy.copy(self.space)  # what is learnt here stays here
            run = _Run(
                space,
                self.options,
                losses,
                None if start is None else start.columns(group, copy=True),
            )
            run.finish()
            if with_coefficients:
                run.solution.coefficients = space.coefficients(run.solution.points.state)
            solution.assign(group, run.solution)
            return group[run.open] if run.needs_float64 else group[:0]

        make_losses = Losses.squared_hinge if self.options.loss == "squared_hinge" else Losses.hinge
        left = np.arange(n_columns)
        numbers = left if columns is None else columns
        while len(left):
            groups = self.space.groups(left)
            if self.space.side_by_side:
                left = np.concatenate(for_each(solve_group, groups))
            else:
                left = np.concatenate([solve_group(group) for group in groups])
            if len(left):
                logger.info("float32 does not reach the tolerance for %d problems", len(left))
                self.space.to_float64()
                start = None
        return solution

    def weights(self, points: Iterate) -> tuple[Array, Array]:
        """Weight vectors in columns, and biases."""
        biases = points.offset + self.space.bias(points.state)
        return self.space.coefficients(points.state), biases

    def decision_values(self, points: Iterate) -> Array:
        """Scores of all rows at what was solved."""
        return points.scores


def continuation_start(space: Space, losses: Losses) -> Iterate:
    """Walk from zero weights up to large costs in factors of ten.

    Newton's method likes to start nearby; how well each stop is solved matters little.
    """
    n_rows, n_problems = losses.y.shape
    scores = np.zeros((n_rows, n_problems), order="F")
    points = Iterate(space.start(n_problems), scores, np.zeros(n_problems))
    peak = losses.largest_cost * space.scale
    n_decades = int(np.ceil(np.log10(peak))) - 1 if peak > 10 else 0
    for decade in range(n_decades, 0, -1):
        descend(space, _softened(losses.times(10.0**-decade), space.scale), points, 1e-2, 20)
    return points


def warm_start(space: Space, losses: Losses, start: Iterate, most: float = 10.0) -> Iterate:
    """Start at what was solved for other costs.

    Small costs multiply the weights by whatever in 1 to ``most`` suits them best. It takes no
    product, and saves a Newton step or two.
    """
    scores = start.scores
    if not len(scores):
        scores = space.exact_scores(start.state) + start.offset
    if losses.largest_cost * space.scale > 1:
        return Iterate(start.state, scores, start.offset)
    own = scores - start.offset
    square = space.inner(start.state, start.state, own)
    length = line_search(
        _softened(losses, space.scale),
        scores,
        (most - 1) * own,
        slope=(most - 1) * square,
        curvature=(most - 1) ** 2 * square,
    )
    factor = 1 + (most - 1) * length
    return Iterate(factor * start.state, factor * own + start.offset, start.offset.copy())


class _Run:
    """The rounds of one solve: which problems are still open, and how soft their losses are."""

    def __init__(
        self, space: Space, options: Options, losses: Losses, start: Iterate | None
    ) -> None:
        self.space, self.options, self.losses = space, options, losses
        self.balanced = options.fit_intercept and not options.regularize_intercept
        points = warm_start(space, losses, start) if start else continuation_start(space, losses)
        if self.balanced:
            _settle_one_sided(points, losses)
        worst = losses.values(np.ones_like(points.scores))
        self.solution = Solution.unsolved(points, worst)
        self.softness = _first_softness(losses, space.scale)
        self.centre = np.zeros_like(points.scores if self.softness else points.scores[:0])
        self.least = np.full(len(worst), np.inf)
        self.idle = np.zeros(len(worst), dtype=int)
        self.stalls = 0
        self.needs_float64 = False
        self.aim = space.inner_tol_factor * options.tol
        space.begin()

    @property
    def open(self) -> Array:
        """Problems whose certificate is not good enough yet."""
        return np.flatnonzero(~(self.solution.relative_gaps <= self.options.tol))

    def finish(self) -> None:
        """Alternate descent and certification until all problems are certified.

        Or until rounds stop helping: then aim higher, and then ask for a higher precision for those
        that are left.
        """
        for _ in range(MAX_ROUNDS):
            chosen = self.open
            chosen = chosen[self.solution.n_iter[chosen] < self.options.max_iter]
            if not len(chosen) or self.needs_float64:
                return
            before = self.solution.gaps[chosen]
            points, true = self.solution.points.columns(chosen), self.losses.columns(chosen)
            if self.softness:
                n_steps = self._proximal_steps(points, true, chosen)
            else:
                n_steps = descend(self.space, true, points, self.aim, self.options.max_iter)
            self.solution.n_iter[chosen] += n_steps
            self.solution.points.assign(chosen, points)
            self._certify(chosen)
            gaps = self.solution.gaps[chosen]
            # Rounds in a row that did not halve the least gap a problem had.
            halved = gaps <= 0.5 * self.least[chosen]
            self.idle[chosen] = np.where(halved, 0, self.idle[chosen] + 1)
            self.least[chosen] = np.fmin(gaps, self.least[chosen])
            self.stalls = 0 if (gaps <= 0.5 * before).any() else self.stalls + 1
            if self.stalls:
                self.aim = max(0.01 * self.aim, 1e-15)
            self.needs_float64 = self.stalls >= 2 and self.space.needs_float64

    def _proximal_steps(self, points: Iterate, true: Losses, chosen: Array) -> Array:
        """Minimise losses smoothed around ever better dual variables (10)."""
        n_steps = np.zeros(len(chosen), dtype=int)
        left = np.arange(len(chosen))
        for _ in range(MAX_PROXIMAL_STEPS):
            now, pieces = points.columns(left), true.columns(left)
            smooth = pieces.smoothed(self.softness, self.centre[:, chosen[left]])
            n_steps[left] += descend(self.space, smooth, now, self.aim, self.options.max_iter)
            points.assign(left, now)
            m = smooth.margin_violation(now.scores)
            self.centre[:, chosen[left]] = self.space.duals(now.state, m, smooth)
            tol = self.space.inner_tol_factor * self.options.tol
            enough = tol * objectives(self.space, now, pieces)
            hard = np.ones(len(left), dtype=bool)
            gaps = self.space.estimates(now, pieces, smooth, enough, hard)
            left = left[gaps > enough]
            if not len(left):
                break
        else:
            self.softness = max(0.25 * self.softness, 1e-10 * self.space.scale)
        return n_steps

    def _certify(self, chosen: Array) -> None:
        """Recompute scores in float64 and from them the certificates (4)."""
        points, losses = self.solution.points.columns(chosen), self.losses.columns(chosen)
        proposing = losses
        if self.softness:
            proposing = losses.smoothed(self.softness, self.centre[:, chosen])
        if self.balanced:
            points.offset = points.offset + self.space.bias(points.state)
            points.state = self.space.without_bias(points.state, losses)
        points.scores = points.scores[:0]  # their memory is free for those that replace them
        points.scores = self.space.exact_scores(points.state)
        if self.balanced:
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
        enough = self.options.tol * values
        gaps = self.space.gaps(points, losses, proposing, enough, balanced=self.balanced)
        self.solution.gaps[chosen] = gaps

    def _lifted(self, points: Iterate, losses: Losses) -> Iterate:
        """Lengthen weights by a hair where that brings rows over the margin.

        Hinge losses with a large C multiply the rounding errors of rows that lie on the margin.
        """
        offset = points.offset
        longer = Iterate(LIFT * points.state, LIFT * (points.scores - offset) + offset, offset)
        gain = objectives(self.space, points, losses) - objectives(self.space, longer, losses)
        better = np.flatnonzero(gain > 0)
        points.assign(better, longer.columns(better))
        return points


def _settle_one_sided(points: Iterate, losses: Losses) -> None:
    """Solve problems whose rows are all on one side: a free bias of 1 or -1 loses nothing."""
    counted = np.where(losses.U > 0, losses.y, 0)
    side = np.sign(counted.max(axis=0) + counted.min(axis=0))
    alone = np.flatnonzero(side)
    points.state[:, alone] = 0.0
    points.scores[:, alone] = points.offset[alone] = side[alone]


def _softened(losses: Losses, scale: float) -> Losses:
    softness = _first_softness(losses, scale)
    return losses.smoothed(softness, np.zeros((1, 1))) if softness else losses


def _first_softness(losses: Losses, scale: float) -> float:
    """How soft to make a hinge: nothing for losses that are soft already.

    The softened part of the margin, softness times cost, should not be wider than the margin.
    """
    if losses.D.any():
        return 0.0
    caps = losses.U[losses.U > 0]
    return min(1e-2 * scale, 0.3 / float(np.median(caps))) if len(caps) else 1e-2 * scale
