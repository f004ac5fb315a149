"""Choice of C: folds, every problem of theirs along ascending C, and scores of held-out rows."""

from __future__ import annotations

import pickle
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, TypeAlias

import joblib
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import get_scorer
from sklearn.model_selection import StratifiedKFold, check_cv
from tqdm import tqdm

from spptransfer.errors import ConfigError
from spptransfer.svm._loss import Iterate
from spptransfer.svm._rows import Array, Rows
from spptransfer.svm._solver import Options
from spptransfer.svm._streaming import make_solver
from spptransfer.svm._targets import ClassWeight, Problems, Targets
from spptransfer.svm._threads import own_threads

Seed: TypeAlias = int | np.random.RandomState | None
Scoring: TypeAlias = str | Callable[..., float] | None


def make_folds(cv: Any, targets: Targets, seed: Seed) -> list[tuple[Array, Array]]:
    """How often each fold trains, and scores, on each row.

    Arrays have one column per problem or one for all. A number of folds stratifies: by class
    labels, or, for an indicator matrix, each class by itself; so does a `StratifiedKFold`, among
    the rows that count for the class. Other splitters and lists of index pairs are taken as
    given: a row counts as often as it is named.
    """
    n_rows, labels = len(targets.signs), targets.decode(targets.signs)
    if isinstance(cv, (int, np.integer)):
        return _stratified(int(cv), targets, labels, seed)
    if isinstance(cv, StratifiedKFold) and targets.kind == "multilabel":
        dealt = np.full(targets.signs.shape, -1)
        for column, signs in enumerate(targets.signs.T):
            dealt[signs != 0, column] = _fold_numbers(cv, signs[signs != 0])
        return [(dealt != fold, dealt == fold) for fold in range(cv.get_n_splits())]
    folds: list[tuple[Array, Array]] = []
    for pair in check_cv(cv, labels, classifier=True).split(np.zeros((n_rows, 1)), labels):
        train, held_out = _counted(pair[0], n_rows), _counted(pair[1], n_rows)
        for counts, purpose in ((train, "train on"), (held_out, "score on")):
            if not counts.any():
                raise ConfigError(f"cv: fold {len(folds) + 1} has no rows to {purpose}")
        folds.append((train, held_out))
    if not folds:
        raise ConfigError("cv gave no folds; allowed: an int, a splitter or (train, test) pairs")
    return folds


def _counted(chosen: Any, n_rows: int) -> Array:
    """How often each row is chosen."""
    try:
        # By way of the numbers, since rows may also be chosen by negative ones or a mask.
        numbers = np.arange(n_rows)[chosen]
    except IndexError as error:
        raise ConfigError(f"cv holds what are no numbers of {n_rows} rows: {error}") from error
    return np.bincount(numbers, minlength=n_rows)[:, None]


def _stratified(
    n_folds: int, targets: Targets, labels: Array, seed: Seed
) -> list[tuple[Array, Array]]:
    """Seeded folds in which every class is spread evenly."""
    if not 2 <= n_folds <= len(labels):
        raise ConfigError(f"cv is {n_folds}; allowed: 2 to {len(labels)} folds")
    if targets.kind == "multilabel":
        columns = targets.signs.T
    else:
        columns = np.unique(labels, return_inverse=True)[1][None]
    splitter = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    numbers = np.stack([_fold_numbers(splitter, column) for column in columns], axis=1)
    return [(numbers != fold, numbers == fold) for fold in range(n_folds)]


def _fold_numbers(splitter: StratifiedKFold, labels: Array) -> Array:
    """The fold that holds each row out; classes too small for all folds stay in some."""
    n_folds = splitter.get_n_splits()
    if np.bincount(labels - labels.min(initial=0)).max(initial=0) < n_folds:
        raise ConfigError(f"cv is {n_folds}, but no class has that many rows")
    numbers = np.empty(len(labels), dtype=int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for fold, (_, chosen) in enumerate(splitter.split(np.zeros((len(labels), 1)), labels)):
            numbers[chosen] = fold
    return numbers


class KnownScores(ClassifierMixin, BaseEstimator):
    """A fitted classifier that has scored its rows already; X holds their numbers."""

    def __init__(self, targets: Targets, scores: Array) -> None:
        self.targets = targets
        self.scores = scores
        self.classes_ = targets.classes

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def decision_function(self, X: Array) -> Array:
        """Decision values of the rows numbered in X."""
        scores = self.scores[X[:, 0]]
        return scores[:, 0] if self.targets.kind == "binary" else scores

    def predict(self, X: Array) -> Array:
        """Labels of the rows numbered in X."""
        return self.targets.decode(self.scores[X[:, 0]])


class HeldOutScorer:
    """Scores decision values by any scikit-learn scorer, jointly or class by class.

    Class by class, every problem is scored as a binary one on its own held-out rows, without
    those that it ignores. That is how indicator matrices are always scored.
    """

    def __init__(self, scoring: Scoring, targets: Targets, *, per_class: bool) -> None:
        self.separately = per_class or targets.kind == "multilabel"
        default = "average_precision" if self.separately else "accuracy"
        self.scorer = get_scorer(scoring or default)
        # Scikit-learn's own checks take longer than these scores, which it has no other way to.
        self.is_default = scoring in (None, default)
        self.targets = targets
        self.labels = targets.decode(targets.signs)

    def __call__(self, scores: Array, held_out: Array) -> Array:
        """One score, or one per problem; NaN where the held-out rows are all of one kind.

        ``held_out`` says how often a row counts.
        """
        if not self.separately:
            rows = np.repeat(np.arange(len(scores)), held_out[:, 0])
            if self.is_default:
                return np.array([np.mean(self.targets.decode(scores[rows]) == self.labels[rows])])
            known = KnownScores(self.targets, scores)
            return np.array([self.scorer(known, rows[:, None], self.labels[rows])])
        held_out = np.broadcast_to(held_out, scores.shape)
        return np.array(
            [self._score_one(scores[:, [k]], k, held_out[:, k]) for k in range(scores.shape[1])]
        )

    def _score_one(self, scores: Array, problem: int, held_out: Array) -> float:
        signs = self.targets.signs[:, problem]
        rows = np.repeat(np.arange(len(signs)), np.where(signs == 0, 0, held_out))
        truth = (signs > 0).astype(int)
        if len(np.unique(truth[rows])) < 2:
            return float("nan")
        if self.is_default:
            return average_precision(truth[rows], scores[rows, 0])
        binary = Targets("binary", np.array([0, 1]), signs[:, None])
        return float(self.scorer(KnownScores(binary, scores), rows[:, None], truth[rows]))


def average_precision(truth: Array, scores: Array) -> float:
    """`sklearn.metrics.average_precision_score` of one problem, without its checks.

    ``truth`` is 1 for positives, of which there must be one, and 0. Rows of the same score are
    found together; NaN if there is one among the scores.

    Examples
    --------
    >>> average_precision(np.array([0, 1, 1]), np.array([0.2, 0.1, 0.3])).__round__(3)
    0.833
    """
    if np.isnan(scores).any():
        return float("nan")
    order = np.argsort(-scores)
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    found = np.cumsum(truth[order])[last]
    gained = np.diff(found / found[-1], prepend=0.0)
    # From the last to the first, as scikit-learn adds them: ties between values of C stay ties.
    return float(np.sum((gained * (found / (last + 1)))[::-1].copy()))


def nan_mean(values: Any, axis: int | tuple[int, ...]) -> Array:
    """Mean of the numbers there are, NaN without a warning where there are none."""
    values = np.asarray(values, dtype=float)
    counted = np.isfinite(values).sum(axis=axis)
    total = np.nansum(values, axis=axis)
    return np.divide(total, counted, out=np.full(np.shape(total), np.nan), where=counted > 0)


@dataclass(frozen=True)
class Search:
    """What is solved along ascending C. Any of its folds are a search, too.

    ``folds`` say how often each trains, and scores, on a row; a last one may be None twice: all
    rows, which leaves none to score on.
    """

    targets: Targets
    class_weight: ClassWeight
    sample_weight: Array
    folds: Sequence[tuple[Array | None, Array | None]]
    scoring: Scoring
    per_class: bool
    options: Options


@dataclass
class Path:
    """What is known about each C, ascending.

    Problems stand fold by fold and those of all rows last. States and offsets are theirs only;
    ``weights`` makes weight vectors, in columns, and biases of them.
    """

    scores: Array  # (n_Cs, n_folds, n_problems), or 1 for one score per fold
    gaps: Array  # (n_Cs, n_columns), as the next two
    objectives: Array
    n_iter: Array
    seconds: Array  # (n_Cs, 2): of fits and of scores
    held_out: Array  # (n_Cs, n_rows, n_problems), decision values; NaN of rows never held out
    states: list[Array]
    offsets: list[Array]
    weights: Callable[[Iterate], tuple[Array, Array]]


def walk(
    rows: Rows, gram: Array | None, search: Search, ascending: Array, *, progress: bool = False
) -> Path:
    """Solve all folds together, each problem starting from its own solution at the last C."""
    counts, held_out = zip(*search.folds, strict=True)
    problems = Problems.of(search.targets, search.class_weight, search.sample_weight, counts)
    scorer = HeldOutScorer(search.scoring, search.targets, per_class=search.per_class)
    scored = held_out if held_out[-1] is not None else held_out[:-1]
    width, count = search.targets.signs.shape[1], problems.count
    found: list[tuple[Array, ...]] = []
    points: Iterate | None = None
    with own_threads(), tqdm(total=len(ascending), unit="C", disable=not progress) as bar:
        solver = make_solver(rows, gram, problems, search.options)
        while len(found) < len(ascending):
            # Several values of C where they share passes over the rows.
            costs = ascending[len(found) : len(found) + solver.at_once]
            bar.set_description(f"C={', '.join(map('{:g}'.format, costs))}, {count} problems")
            began = time.perf_counter()
            solution = solver.solve(np.repeat(costs, count), points, in_place=True)
            fitted = time.perf_counter()
            values = solver.decision_values(solution.points) if scored else np.empty((0, 0))
            for first in range(0, len(costs) * count, count):
                fold_scores = []
                known = np.full((rows.shape[0], width), np.nan, np.float32)
                for k, mask in enumerate(scored):
                    of_fold = values[:, first + k * width :][:, :width]
                    fold_scores.append(scorer(of_fold, mask))
                    np.copyto(known, of_fold, casting="same_kind", where=mask > 0)
                columns = np.arange(first, first + count)
                points = solution.points.columns(columns)
                last = slice(len(scored) * width, None)
                found.append(
                    (
                        np.array(fold_scores),
                        solution.relative_gaps[columns],
                        solution.objectives[columns],
                        solution.n_iter[columns],
                        np.array([fitted - began, time.perf_counter() - fitted]) / len(costs),
                        known,
                        points.state[:, last].copy(),
                        points.offset[last].copy(),
                    )
                )
            bar.update(len(costs))
    scores, gaps, objectives, n_iter, seconds, held_out, states, offsets = zip(*found, strict=True)
    return Path(
        scores=np.array(scores),
        gaps=np.array(gaps),
        objectives=np.array(objectives),
        n_iter=np.array(n_iter),
        seconds=np.array(seconds),
        held_out=np.array(held_out),
        states=list(states),
        offsets=list(offsets),
        weights=solver.weights,
    )


def walk_apart(
    rows: Rows, gram: Array | None, search: Search, ascending: Array, n_jobs: int | None
) -> Path:
    """Solve every fold, and all rows, as a task of its own, by the joblib backend that is set."""
    if not isinstance(rows.source, np.ndarray):
        try:
            pickle.dumps(rows.source)
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            raise ConfigError(
                f"X is a {type(rows.source).__name__}, which cannot be sent to several jobs "
                f"({error}); allowed there: arrays and the views of a feature cache"
            ) from error
    parts, rows_read = zip(
        *joblib.Parallel(n_jobs, batch_size=1)(
            joblib.delayed(_walk_part)(rows.source, gram, replace(search, folds=[fold]), ascending)
            for fold in search.folds
        ),
        strict=True,
    )
    rows.rows_read += sum(rows_read)
    return replace(
        parts[-1],
        scores=np.concatenate([part.scores for part in parts if part.scores.size], axis=1),
        gaps=np.concatenate([part.gaps for part in parts], axis=1),
        objectives=np.concatenate([part.objectives for part in parts], axis=1),
        n_iter=np.concatenate([part.n_iter for part in parts], axis=1),
        seconds=np.sum([part.seconds for part in parts], axis=0),
        held_out=reduce(_known_of_either, [part.held_out for part in parts]),
    )


def _known_of_either(first: Array, second: Array) -> Array:
    return np.where(np.isnan(second), first, second)


def _as_they_are(points: Iterate) -> tuple[Array, Array]:
    return points.state, points.offset


def _walk_part(
    source: Any, gram: Array | None, search: Search, ascending: Array
) -> tuple[Path, int]:
    """One fold's path, with weights and biases for states and offsets; how many rows were read."""
    rows = Rows(source)
    path = walk(rows, gram, search, ascending)
    for number, (state, offset) in enumerate(zip(path.states, path.offsets, strict=True)):
        if len(offset):
            points = Iterate(state, np.empty((0, 0)), offset)
            path.states[number], path.offsets[number] = path.weights(points)
    return replace(path, weights=_as_they_are), rows.rows_read
