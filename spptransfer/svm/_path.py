"""Every problem of a search along ascending C, and what is known about each C."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import joblib
import numpy as np

from spptransfer.errors import ConfigError
from spptransfer.svm._engine import Settings, make_solver
from spptransfer.svm._newton import Points
from spptransfer.svm._problems import Masks, Problems
from spptransfer.svm._rows import Rows
from spptransfer.svm._scoring import HeldOutScorer
from spptransfer.svm._solver import Solver
from spptransfer.svm._targets import ClassWeight, Targets
from spptransfer.svm._types import Array

Steps = list[dict[str, Array]]


@dataclass(frozen=True)
class Search:
    """What is searched: folds, problems and settings. Any of its folds are a search, too.

    Attributes
    ----------
    masks : sequence of (ndarray of bool or None)
        Rows trained on, fold by fold; None for all rows.
    held_out : sequence of ndarray of bool
        Rows to score on, for the first of the masks.
    """

    targets: Targets
    class_weight: ClassWeight
    sample_weight: Array
    masks: Masks
    held_out: Sequence[Array]
    scoring: str | Callable[..., float] | None
    per_class: bool
    settings: Settings

    def problems(self) -> Problems:
        """The problems of all folds."""
        return Problems.of(self.targets, self.class_weight, self.sample_weight, self.masks)

    def parts(self) -> list[Search]:
        """One search for each fold."""
        held_out = [[mask] for mask in self.held_out]
        held_out += [[] for _ in self.masks[len(held_out) :]]
        return [
            replace(self, masks=[mask], held_out=outside)
            for mask, outside in zip(self.masks, held_out, strict=True)
        ]

    def path(self, rows: Rows, gram: Array | None) -> Path:
        """Everything at its beginning."""
        solver = make_solver(rows, gram, self.problems(), self.settings)
        scorer = HeldOutScorer(self.scoring, self.targets, per_class=self.per_class)
        return Path(solver, self.held_out, scorer)


@dataclass
class Path:
    """Every problem of every fold, and of all rows, along ascending C.

    The problems of one fold stand side by side, those of all rows last.
    """

    solver: Solver
    held_out: Sequence[Array]
    scorer: HeldOutScorer
    points: Points | None = None
    steps: Steps = field(default_factory=list)

    def advance(self, costs: list[float]) -> None:
        """Solve at the next values of C, from the last one's solution."""
        began = time.perf_counter()
        width = self.solver.problems.count
        solution = self.solver.solve(np.repeat(costs, width), self.points, in_place=True)
        fitted = time.perf_counter()
        values = self.solver.decision_values(solution.points) if len(self.held_out) else None
        for number in range(len(costs)):
            columns = np.arange(number * width, (number + 1) * width)
            self.points = solution.points.columns(columns)
            self.steps.append(
                {
                    "scores": self._scores(None if values is None else values[:, columns]),
                    "gaps": solution.relative_gaps[columns],
                    "objectives": solution.objectives[columns],
                    "n_iter": solution.n_iter[columns],
                    "final_state": self._final(self.points.state),
                    "final_offset": self._final(self.points.offset),
                }
            )
        seconds = np.array([fitted - began, time.perf_counter() - fitted]) / len(costs)
        for step in self.steps[-len(costs) :]:
            step["seconds"] = seconds

    def next_costs(self, ascending: Array) -> list[float]:
        """What to solve at next: several values of C where they share passes over the rows."""
        left = ascending[len(self.steps) :]
        return [float(C) for C in left[: self.solver.at_once]]

    @property
    def n_problems(self) -> int:
        """The number of problems of one fold."""
        return self.solver.problems.n_classes

    def weights(self, points: Points) -> tuple[Array, Array]:
        """Weight vectors in columns, and biases, of final states and offsets."""
        return self.solver.weights(points)

    def _scores(self, values: Array | None) -> Array:
        if values is None:
            return np.empty((0, 0))
        width = self.n_problems
        folds = enumerate(self.held_out)
        return np.array([self.scorer(values[:, k * width : (k + 1) * width], m) for k, m in folds])

    def _final(self, values: Array) -> Array:
        return values[..., len(self.held_out) * self.n_problems :].copy()


class SpreadPath:
    """A path whose folds were walked elsewhere; final states are weights already."""

    def __init__(self, search: Search, parts: Sequence[Steps]) -> None:
        self.held_out = search.held_out
        self.n_problems = int(search.targets.signs.shape[1])
        self.steps = [joined(steps) for steps in zip(*parts, strict=True)]

    def weights(self, points: Points) -> tuple[Array, Array]:
        """Weight vectors in columns, and biases."""
        return points.state, points.offset


def spread(
    rows: Rows, gram: Array | None, search: Search, ascending: Array, n_jobs: int | None
) -> SpreadPath:
    """Walk every fold, and all rows, as a task of its own, by the joblib backend that is set."""
    if not isinstance(rows.source, np.ndarray):
        try:
            pickle.dumps(rows.source)
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            raise ConfigError(
                f"X is a {type(rows.source).__name__}, which cannot be sent to several jobs "
                f"({error}); allowed there: arrays and the views of a feature cache"
            ) from error
    tasks = (joblib.delayed(walked)(rows.source, gram, part, ascending) for part in search.parts())
    parts = joblib.Parallel(n_jobs, batch_size=1)(tasks)
    rows.rows_read += sum(rows_read for _, rows_read in parts)
    return SpreadPath(search, [steps for steps, _ in parts])


def walked(source: Any, gram: Array | None, search: Search, ascending: Array) -> tuple[Steps, int]:
    """Walk one part of a search from its beginning to its end; also how many rows were read."""
    rows = Rows(source)
    path = search.path(rows, gram)
    while len(path.steps) < len(ascending):
        path.advance(path.next_costs(ascending))
    for step in path.steps:
        points = Points(step["final_state"], np.empty((0, 0)), step["final_offset"])
        if points.state.shape[1]:
            step["final_state"], step["final_offset"] = path.weights(points)
    return path.steps, rows.rows_read


def joined(steps: Sequence[dict[str, Array]]) -> dict[str, Array]:
    """One C's results of all parts as one."""
    names = ("gaps", "objectives", "n_iter")
    whole = {name: np.concatenate([step[name] for step in steps]) for name in names}
    whole["scores"] = np.concatenate([step["scores"] for step in steps if len(step["scores"])])
    whole["seconds"] = np.sum([step["seconds"] for step in steps], axis=0)
    for name in ("final_state", "final_offset"):
        whole[name] = steps[-1][name]
    return whole
