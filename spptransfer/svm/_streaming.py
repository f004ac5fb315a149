"""Where problems are solved, by the memory there is: at once, or on the rows that matter."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from spptransfer.errors import ConfigError
from spptransfer.svm._feature_space import FeatureSpace
from spptransfer.svm._gram_matrix import dense_gram
from spptransfer.svm._gram_space import GramSpace
from spptransfer.svm._loss import Iterate
from spptransfer.svm._newton import Space
from spptransfer.svm._rows import Array, Blocks, Rows, sum_of
from spptransfer.svm._solver import Options, Solution, Solver
from spptransfer.svm._targets import Problems
from spptransfer.svm._threads import for_each
from spptransfer.system import available_memory

logger = logging.getLogger(__name__)

# Up to this many rows a float64 Gram matrix costs next to nothing.
SMALL = 1000
# Bytes that a row and problem take while it is being solved in the space of features.
STATE_BYTES = 128
MAX_ROUNDS = 30
# The first sample, as a share of the rows and as a multiple of the features.
SAMPLE_SHARE = 1 / 16
SAMPLE_ROWS = 1.5
# By how much the working set may grow at a time; the fewer rows, the faster they are solved.
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
# Rows moved at a time.
RUN = 1024


class WorkingSet:
    """Some rows of a matrix that is larger than memory, held in memory as they are stored.

    Which rows are held changes, the memory stays the same. ``numbers`` are those of the rows, in
    the order of `rows`.
    """

    def __init__(self, source: Rows, capacity: int) -> None:
        self.source = source
        self.capacity = capacity
        self.numbers = np.empty(0, dtype=np.intp)
        # Pages that were never written take no memory.
        self._features = np.empty((capacity, source.shape[1]), source.source.dtype)

    def rows(self) -> Rows:
        """The rows that are held, as a matrix of their own."""
        return Rows(self._features[: len(self.numbers)], self.source.block_bytes)

    def is_held(self) -> Array:
        """Mask over all rows of the source."""
        mask = np.zeros(self.source.shape[0], dtype=bool)
        mask[self.numbers] = True
        return mask

    def replace(self, wanted: Array) -> None:
        """Hold the rows of a mask, at most ``capacity``: read those that are not held already."""
        stay = np.flatnonzero(wanted[self.numbers])
        fresh = np.flatnonzero(wanted & ~self.is_held())
        # To the front, a few at a time: a copy of all would double the memory.
        for start in range(0, len(stay), RUN):
            some = stay[start : start + RUN]
            self._features[start : start + len(some)] = self._features[some]
        at = len(stay)
        for block in self.source.chosen(fresh):
            self._features[at : at + len(block)] = block
            at += len(block)
        self.numbers = np.concatenate([self.numbers[stay], fresh])


class Screening(NamedTuple):
    """What a pass over all rows found out."""

    nearest: Array  # largest margin violation, shape (n_costs, n_rows): above 0 a row loses
    losing: Array  # how many rows lose something, by problem
    outside: Array  # losses of the rows that are not held, by problem
    worst: Array  # losses of all rows at zero weights, by problem


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
        self.held = WorkingSet(space.rows, max(1, min(capacity, space.rows.shape[0])))
        self._betas: dict[float, tuple[Array, Array, Array]] = {}

    def solve(self, costs: Array, *_: Any, with_coefficients: bool = False, **__: Any) -> Solution:
        """Certified minimisers, all of them advanced by every pass.

        There is no starting point but the rows that were held last, and there are no scores: what
        else can be asked of a `Solver` has no meaning here.
        """
        state, scores = self.space.start(len(costs)), np.empty((0, len(costs)))
        points = Iterate(state, scores, np.zeros(len(costs)))
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

    def decision_values(self, points: Iterate) -> Array:
        """Scores of all rows, in the precision that the rows deserve."""
        dtype = self.space.rows.working_dtype
        coefficients, biases = self.weights(points)
        scores = self.space.rows.scores(coefficients, dtype)
        scores += biases.astype(dtype)
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
            found = self._screen(solution, costs, team, exact=last)
            off = _add_outside(solution, team, found)
            held = len(self.held.numbers)
            logger.info("round %d: %d rows held, off by %.1e", number, held, off.max())
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
            found = self._screen(solution, costs, team, exact=False)
            self.held.replace(self._wanted(found.nearest.max(axis=0)))
        elif not len(self.held.numbers):
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
        if len(self.held.numbers):
            most = min(most, GROWTH * len(self.held.numbers))
        wanted = nearest > 0
        if np.count_nonzero(wanted) > most:
            wanted[:] = False
            wanted[np.argpartition(nearest, -most)[-most:]] = True
        return wanted

    def _descend(
        self, solution: Solution, costs: Array, team: Array, tolerance: dict[float, float]
    ) -> None:
        """Solve the problems on the rows that are held, and put the solution into feature space."""
        space = self.make_space(self.held.rows())
        problems = self.problems.of_rows(self.held.numbers)
        points = solution.points
        last: Iterate | None = None
        for C, part in by_cost(costs[team]):
            columns = team[part]
            options = replace(self.options, tol=tolerance[C])
            solver = Solver(space, problems, options)
            start = self._start(space, solution, C, columns)
            if start is None and last is not None and len(last.offset) == len(columns):
                start = last
            found = solver.solve(costs[columns], start, columns=columns, with_coefficients=True)
            last = found.points
            assert found.coefficients is not None
            points.state[:-1, columns] = found.coefficients
            if self.space.bias_value:
                points.state[-1, columns] = space.bias(last.state) / self.space.bias_value
            points.offset[columns] = last.offset
            solution.gaps[columns], solution.objectives[columns] = found.gaps, found.objectives
            solution.n_iter[columns] += found.n_iter
            if isinstance(space, GramSpace):
                self._betas[C] = columns, self.held.numbers, last.state

    def _start(self, space: Space, solution: Solution, C: float, columns: Array) -> Iterate | None:
        """Where the last round has led, as the space has it."""
        if not np.isfinite(solution.gaps[columns]).all():
            return None
        if isinstance(space, FeatureSpace):
            state = solution.points.state[:, columns]
        elif C in self._betas and np.array_equal(self._betas[C][0], columns):
            _, numbers, betas = self._betas[C]
            state = np.zeros((len(self.held.numbers), len(columns)), order="F")
            _, here, there = np.intersect1d(self.held.numbers, numbers, return_indices=True)
            state[here] = betas[there]
        else:
            return None
        return Iterate(state, np.empty((0, len(columns))), solution.points.offset[columns])

    def _screen(self, solution: Solution, costs: Array, team: Array, *, exact: bool) -> Screening:
        """Read all rows once: which of them lose something as it is, and how much.

        Scores are in float64 or as precise as the rows deserve; losses are summed up in float64.
        """
        rows, problems = self.space.rows, self.problems
        dtype = np.dtype(np.float64) if exact else rows.working_dtype
        coefficients, biases = self.weights(solution.points.columns(team))
        across, biases = np.ascontiguousarray(coefficients.T, dtype), biases.astype(dtype)[:, None]
        groups = list(by_cost(costs[team]))
        nearest = np.empty((len(groups), rows.shape[0]), dtype=np.float32)
        held, numbers = self.held.is_held(), team % problems.count

        def look(share: Blocks) -> Array:
            found = np.zeros((3, len(team)))
            for where, _, block in share:
                scores = across @ block.T
                scores += biases
                signs, factors = (part.T for part in problems.of_rows(where).dense())
                for number, (C, part) in enumerate(groups):
                    cost = factors[numbers[part]]
                    m = 1.0 - signs[numbers[part]] * scores[part]
                    m[cost <= 0] = -np.inf
                    nearest[number, where] = m.max(axis=0)
                    found[0, part] += (m > 0).sum(axis=1)
                    losses = np.maximum(m, 0.0, out=m)
                    if self.options.loss == "squared_hinge":
                        losses = np.square(losses, out=losses)
                    found[1, part] += C * np.einsum("ti,ti,i->t", losses, cost, ~held[where])
                    found[2, part] += C * cost.sum(axis=1)
            return found

        losing, outside, worst = sum_of(for_each(look, rows.shares(dtype)))
        return Screening(nearest, losing.astype(int), outside, worst)

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
        self.held = WorkingSet(self.space.rows, self.held.capacity)
        groups = [columns]
        if self.options.loss == "hinge":
            groups = [columns[part] for _, part in by_cost(costs[columns])]
        for group in groups:
            solver = Solver(self.space, self.problems, self.options)
            start = solution.points.columns(group, copy=True)
            found = solver.solve(costs[group], start, columns=group, with_scores=False)
            solution.assign(group, found)


def _add_outside(solution: Solution, team: Array, found: Screening) -> Array:
    """Add what is lost outside; returns its shares of the objectives.

    The dual variables of rows outside are zero, so that their loss is their share of the gap (4).
    """
    solution.gaps[team] += found.outside
    solution.objectives[team] += found.outside
    solution.worst[team] = found.worst
    size = np.maximum(solution.objectives[team], 1e-14 * found.worst)
    return np.divide(found.outside, size, out=np.zeros_like(size), where=size > 0)


def by_cost(costs: Array) -> Iterator[tuple[float, Array]]:
    """Every value of C, ascending, with the positions where it stands."""
    for C in np.unique(costs):
        yield float(C), np.flatnonzero(costs == C)


def budget_bytes(memory: int | str | None) -> float:
    """Read a memory budget; None is half of what is free."""
    if memory is None:
        return 0.5 * available_memory()
    match = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?)I?B?\s*", str(memory).upper())
    try:
        size = float(match[1]) * 1024.0 ** " KMGT".index(match[2] or " ") if match else 0.0
    except ValueError:
        size = 0.0
    if size <= 0:
        raise ConfigError(f"memory is {memory!r}; allowed: None, bytes, or a size like '1GB'")
    return size


def make_solver(rows: Rows, gram: Array | None, problems: Problems, options: Options) -> Solver:
    """Choose where to solve: by a Gram matrix, by features in memory, or streaming them."""
    budget = budget_bytes(options.memory)
    bias_square = float(options.intercept_scaling) ** 2 if options.fit_intercept else 0.0
    if options.fit_intercept and not options.regularize_intercept:
        # Its size only decides how fast the multiplier iteration converges; rows of about that
        # length suit it.
        square = rows.mean_square()
        bias_square = square if square > np.finfo(float).tiny else 1.0
    if gram is not None or _gram_fits(rows, budget):
        if gram is None and rows.is_outside and rows.nbytes + 8 * rows.shape[0] ** 2 <= budget:
            rows.load(budget - 8 * rows.shape[0] ** 2)
        return Solver(_gram_space(rows, gram, bias_square, options.device), problems, options)
    states = STATE_BYTES * rows.shape[0]
    if rows.nbytes * rows.is_outside + states * problems.count <= budget:
        if rows.is_outside:
            rows.load(budget - states * problems.count)
        return Solver(FeatureSpace(rows, bias_square), problems, options)
    space = FeatureSpace(rows, bias_square, max(1, int(0.65 * budget / states)))
    row_bytes = rows.nbytes / rows.shape[0] + STATE_BYTES * problems.count

    def make_space(held: Rows) -> Space:
        if _gram_fits(held, 0.25 * budget):
            return _gram_space(held, None, bias_square, options.device)
        return FeatureSpace(held, bias_square)

    solver = StreamedSolver(space, problems, options, int(0.6 * budget / row_bytes), make_space)
    solver.at_once = max(1, int(0.1 * budget / (4 * rows.shape[0] * problems.count)))
    return solver


def _gram_fits(rows: Rows, budget: float) -> bool:
    # A float32 Gram matrix may have to make way for a float64 one.
    return rows.shape[0] <= rows.shape[1] and 8 * rows.shape[0] ** 2 <= budget


def _gram_space(rows: Rows, gram: Array | None, bias_square: float, device: str) -> GramSpace:
    """The space of rows, with the Gram matrix that is given or a new one."""
    n_rows, _ = rows.shape
    if gram is None:
        gram = dense_gram(rows, np.float64 if n_rows <= SMALL else np.float32, device)
        if not np.isfinite(np.diagonal(gram)).all():
            raise ConfigError(f"X is so large that its squares overflow {gram.dtype}; scale it")
    elif gram.shape != (n_rows, n_rows):
        raise ConfigError(f"gram has shape {gram.shape}; {n_rows} rows need {(n_rows, n_rows)}")
    elif not (np.isfinite(gram.min()) and np.isfinite(gram.max())):
        raise ConfigError("gram contains NaN or infinity")
    if gram.dtype == np.float64 and n_rows > SMALL:
        return GramSpace(rows, gram.astype(np.float32), bias_square, gram, device)
    return GramSpace(rows, gram, bias_square, device=device)
