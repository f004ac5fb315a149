"""Problems over rows that do not fit into memory, solved on those that matter."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from spptransfer.svm._feature_space import FeatureSpace
from spptransfer.svm._gram_space import GramSpace
from spptransfer.svm._held import HeldRows
from spptransfer.svm._newton import Points, Space
from spptransfer.svm._problems import Problems
from spptransfer.svm._rows import Rows
from spptransfer.svm._solver import Options, Solution, Solver
from spptransfer.svm._survey import Survey, Weights, survey
from spptransfer.svm._types import Array

logger = logging.getLogger(__name__)

MAX_ROUNDS = 30
# The first sample, as a share of the rows and as a multiple of the features.
SAMPLE_SHARE = 1 / 16
SAMPLE_ROWS = 1.5
# By how much the rows held may grow at a time; the fewer, the faster they are solved.
GROWTH = 4
# How well the first rows are solved, and the next ones beside what is lost outside of them.
FIRST_TOLERANCE = 0.1
AHEAD = 0.1
# Share of the tolerance that rows outside may take.
OUTSIDE = 1e-2
# From this tolerance on a pass is in float64: it may be the last.
EXACT_FROM = 1e-5
# A set of losing rows shrinks if it is at most this fraction of what it was.
SHRINKING = 0.8
# Into how many teams problems are divided at most; each takes several passes of its own.
MAX_TEAMS = 8


class StreamedSolver(Solver):
    """Alternates between problems on the rows held in memory and passes over all rows.

    A row beyond the margins of all problems changes nothing. The minimiser over the other rows is
    the minimiser over all; the losses of rows outside, which a pass finds out, are what it is off
    by at most, and the rows to hold next. Where more rows lose something than fit into memory,
    problems are divided into teams that are solved one after the other; and problems that do not
    fit in on their own are solved by passes over all rows, from where the rows held have led.
    """

    space: FeatureSpace

    def __init__(
        self,
        space: FeatureSpace,
        problems: Problems,
        options: Options,
        capacity: int,
        make_space: Callable[[Rows], Space],
    ) -> None:
        super().__init__(space, problems, options)
        self.make_space = make_space
        self.held = HeldRows(space.rows, max(1, min(capacity, space.rows.shape[0])))
        self._betas: dict[float, tuple[Array, Array, Array]] = {}

    def solve(
        self,
        costs: Array,
        start: Points | None = None,
        *,
        with_coefficients: bool = False,
        with_scores: bool = False,
        in_place: bool = False,
    ) -> Solution:
        """Certified minimisers, all of them advanced by every pass.

        There is no starting point but the rows that were held last, and there are no scores.
        """
        points = Points(
            self.space.start(len(costs)), np.empty((0, len(costs))), np.zeros(len(costs))
        )
        solution = Solution.unsolved(points, np.zeros(len(costs)))
        self._betas.clear()
        teams, wide = [np.arange(len(costs))], []
        while teams:
            pieces, too_wide = self._solve_team(solution, costs, teams.pop(0))
            teams += pieces
            wide.append(too_wide)
        self._solve_wide(solution, costs, np.sort(np.concatenate(wide)))
        if with_coefficients:
            solution.coefficients = self.space.coefficients(points.state)
        return solution

    def decision_values(self, points: Points) -> Array:
        """Scores of all rows, in the precision that the rows deserve."""
        dtype = self.space.rows.working_dtype
        scores = self.space.rows.scores(self.space.coefficients(points.state), dtype)
        scores += self.biases(points).astype(dtype)
        return scores

    def _solve_team(
        self, solution: Solution, costs: Array, team: Array
    ) -> tuple[list[Array], Array]:
        """Solve problems as far as rows in memory suffice; how to divide the others."""
        self._hold_first(solution, costs, team)
        tolerance = dict.fromkeys(costs[team].tolist(), FIRST_TOLERANCE)
        before: float = self.space.rows.shape[0] / SHRINKING
        for number in range(MAX_ROUNDS):
            self._descend(solution, costs, team, tolerance)
            last = max(tolerance[C] for C in costs[team]) <= EXACT_FROM
            found = self._look(solution, costs, team, exact=last)
            off = self._certify(solution, team, found)
            logger.info("round %d: %d rows held, off by %.1e", number, self.held.count, off.max())
            open_ = np.ones(len(team), dtype=bool)
            for C, part in by_cost(costs[team]):
                done = last and self._is_done(solution, team[part], off[part], tolerance[C])
                open_[part] = not done
                least = 0.5 * self.options.tol
                tolerance[C] = float(np.clip(AHEAD * off[part].max(), least, FIRST_TOLERANCE))
            still = np.array([open_[part].any() for _, part in by_cost(costs[team])])
            team, losing = team[open_], found.losing[open_]
            if not len(team):
                return [], team
            nearest = found.nearest[still].max(axis=0)
            union = np.count_nonzero(nearest > 0)
            if union > self.held.capacity and union > SHRINKING * before:
                return self._divide(team, losing)
            before = float(union)
            self.held.replace(self._wanted(nearest))
        return [], team

    def _hold_first(self, solution: Solution, costs: Array, team: Array) -> None:
        """Random rows to begin with, or the rows that a team loses at what it has."""
        if np.isfinite(solution.gaps[team]).all():
            found = self._look(solution, costs, team, exact=False)
            self.held.replace(self._wanted(found.nearest.max(axis=0)))
        elif not self.held.count:
            n_rows, n_features = self.space.rows.shape
            count = max(SAMPLE_SHARE * n_rows, SAMPLE_ROWS * n_features)
            count = max(1, int(min(count, 0.5 * self.held.capacity)))
            mask = np.zeros(n_rows, dtype=bool)
            mask[np.random.default_rng(0).permutation(n_rows)[:count]] = True
            self.held.replace(mask)

    def _divide(self, team: Array, losing: Array) -> tuple[list[Array], Array]:
        """Teams whose losing rows fit into memory, and problems that are too wide for it."""
        too_wide = losing > self.held.capacity
        pieces: list[list[int]] = []
        room = 0
        for column, count in zip(team[~too_wide], losing[~too_wide], strict=True):
            if not pieces or count > room:
                pieces.append([])
                room = self.held.capacity
            pieces[-1].append(column)
            room -= count
        if len(pieces) > MAX_TEAMS:
            return [], team
        return [np.array(piece) for piece in pieces], team[too_wide]

    def _wanted(self, nearest: Array) -> Array:
        """The rows to hold: those that lose something, the worst of them if they are too many."""
        most = self.held.capacity
        if self.held.count:
            most = min(most, GROWTH * self.held.count)
        wanted = nearest > 0
        if np.count_nonzero(wanted) > most:
            wanted[:] = False
            wanted[np.argpartition(nearest, -most)[-most:]] = True
        return wanted

    def _descend(
        self, solution: Solution, costs: Array, team: Array, tolerance: dict[float, float]
    ) -> None:
        """Solve the problems on the rows that are held."""
        space = self.make_space(self.held.rows())
        problems = self.problems.of_rows(self.held.numbers)
        last: Points | None = None
        for C, part in by_cost(costs[team]):
            columns = team[part]
            options = replace(self.options, tol=tolerance[C])
            solver = Solver(space, problems.of_columns(columns % problems.count), options)
            start = self._start(space, solution, C, columns)
            if start is None and last is not None and len(last.offset) == len(columns):
                start = last
            found = solver.solve(costs[columns], start, with_coefficients=True)
            last = found.points
            self._keep(space, solution, found, C, columns)

    def _start(self, space: Space, solution: Solution, C: float, columns: Array) -> Points | None:
        """Where the last round has led, as the space has it."""
        if not np.isfinite(solution.gaps[columns]).all():
            return None
        state = None
        if isinstance(space, FeatureSpace):
            state = solution.points.state[:, columns]
        elif C in self._betas and np.array_equal(self._betas[C][0], columns):
            _, numbers, betas = self._betas[C]
            state = np.zeros((self.held.count, len(columns)), order="F")
            _, here, there = np.intersect1d(self.held.numbers, numbers, return_indices=True)
            state[here] = betas[there]
        if state is None:
            return None
        return Points(state, np.empty((0, len(columns))), solution.points.offset[columns])

    def _keep(
        self, space: Space, solution: Solution, found: Solution, C: float, columns: Array
    ) -> None:
        """Put a solution on the rows held into feature space."""
        assert found.coefficients is not None
        solution.points.state[:-1, columns] = found.coefficients
        if self.space.bias_value:
            bias = space.bias(found.points.state)
            solution.points.state[-1, columns] = bias / self.space.bias_value
        solution.points.offset[columns] = found.points.offset
        solution.gaps[columns], solution.objectives[columns] = found.gaps, found.objectives
        solution.n_iter[columns] += found.n_iter
        if isinstance(space, GramSpace):
            self._betas[C] = columns, self.held.numbers, found.points.state

    def _look(self, solution: Solution, costs: Array, team: Array, *, exact: bool) -> Survey:
        weights = [
            Weights(C, team[part] % self.problems.count, *self.weights(points))
            for C, part in by_cost(costs[team])
            for points in [solution.points.copy(team[part])]
        ]
        return survey(
            self.space.rows,
            self.problems,
            weights,
            self.held.is_held(),
            squared=self.options.loss == "squared_hinge",
            dtype=np.float64 if exact else self.space.rows.working_dtype,
        )

    def _certify(self, solution: Solution, team: Array, found: Survey) -> Array:
        """Add what is lost outside; returns its shares of the objectives.

        The dual variables of rows outside are zero, so that their loss is their share of the gap.
        """
        solution.gaps[team] += found.outside
        solution.objectives[team] += found.outside
        solution.worst[team] = found.worst
        size = np.maximum(solution.objectives[team], 1e-14 * found.worst)
        return np.divide(found.outside, size, out=np.zeros_like(size), where=size > 0)

    def _is_done(self, solution: Solution, columns: Array, off: Array, tolerance: float) -> bool:
        """Whether there is nothing left to win: certified, or as well solved as can be."""
        solved = solution.relative_gaps[columns] <= self.options.tol
        if tolerance <= 0.5 * self.options.tol:
            solved[:] = True
        return bool((solved & (off <= OUTSIDE * self.options.tol)).all())

    def _solve_wide(self, solution: Solution, costs: Array, columns: Array) -> None:
        """By passes over all rows; a hinge is softened to suit its cost, so one by one."""
        if not len(columns):
            return
        self.held = HeldRows(self.space.rows, self.held.capacity)
        groups = [columns]
        if self.options.loss == "hinge":
            groups = [columns[part] for _, part in by_cost(costs[columns])]
        for group in groups:
            problems = self.problems.of_columns(group % self.problems.count)
            solver = Solver(self.space, problems, self.options)
            start = solution.points.copy(group)
            solution.assign(group, solver.solve(costs[group], start, with_scores=False))


def by_cost(costs: Array) -> Iterator[tuple[float, Array]]:
    """Every value of C, ascending, with the positions where it stands."""
    for C in np.unique(costs):
        yield float(C), np.flatnonzero(costs == C)
