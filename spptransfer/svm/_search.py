"""The linear SVM with C chosen by cross-validation, all folds and classes side by side."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from spptransfer.errors import ConfigError
from spptransfer.svm._checkpoint import Checkpoint, fingerprint
from spptransfer.svm._classifier import LinearClassifier, read_rows, read_targets
from spptransfer.svm._engine import (
    Settings,
    check_positive,
    make_solver,
    warn_unless_certified,
)
from spptransfer.svm._folds import make_folds
from spptransfer.svm._newton import Points
from spptransfer.svm._scoring import HeldOutScorer, nan_mean
from spptransfer.svm._solver import Solver
from spptransfer.svm._targets import ClassWeight, Targets
from spptransfer.svm._types import Array, Seed


@dataclass
class _Path:
    """Every problem of every fold, and of all rows, along ascending C.

    The problems of one fold stand side by side, those of all rows last.
    """

    solver: Solver
    signs: Array
    costs: Array
    n_problems: int
    held_out: list[Array]
    scorer: HeldOutScorer
    points: Points | None = None
    steps: list[dict[str, Array]] = field(default_factory=list)

    def advance(self, C: float) -> None:
        """Solve at the next C, from the last one's solution."""
        began = time.perf_counter()
        solution = self.solver.solve(self.signs, C * self.costs, self.points)
        self.points = solution.points
        fitted = time.perf_counter()
        scores = self._scores(solution.points.scores)
        self.steps.append(
            {
                "scores": scores,
                "gaps": solution.relative_gaps,
                "objectives": solution.objectives,
                "n_iter": solution.n_iter,
                "final_state": self._final(solution.points.state),
                "final_offset": self._final(solution.points.offset),
                "seconds": np.array([fitted - began, time.perf_counter() - fitted]),
            }
        )

    def _scores(self, decision_values: Array) -> Array:
        folds = enumerate(self.held_out)
        width = self.n_problems
        return np.array(
            [self.scorer(decision_values[:, k * width : (k + 1) * width], m) for k, m in folds]
        )

    def _final(self, values: Array) -> Array:
        return values[..., len(self.held_out) * self.n_problems :].copy()

    def saved(self) -> dict[str, Array]:
        """Everything that going on needs."""
        assert self.points is not None
        arrays = {
            "state": self.points.state,
            "row_scores": self.points.scores,
            "offset": self.points.offset,
            "sharpened": np.array(not self.solver.space.can_sharpen),
        }
        for number, step in enumerate(self.steps):
            arrays |= {f"{number}/{name}": value for name, value in step.items()}
        return arrays

    def restore(self, arrays: dict[str, Array]) -> None:
        """Go back to where `saved` was called."""
        if arrays["sharpened"] and self.solver.space.can_sharpen:
            self.solver.space.sharpen()
        self.points = Points(arrays["state"], arrays["row_scores"], arrays["offset"])
        names = [key.split("/") for key in arrays if "/" in key]
        for number in sorted({int(number) for number, _ in names}):
            self.steps.append(
                {name: arrays[f"{number}/{name}"] for n, name in names if int(n) == number}
            )


class LinearSVMCV(LinearClassifier):
    """`LinearSVM` with C chosen by cross-validation.

    All classes and all folds advance together along ascending C, each problem starting from its
    own solution at the last C. A fold is a set of costs that are zero: nothing is copied.

    Parameters
    ----------
    Cs : sequence of float, default=(0.001, 0.01, 0.1, 1, 10, 100, 1000)
        Candidates.
    cv : int, splitter or iterable of (train, test), default=3
        Number of folds, stratified and seeded (for an indicator matrix each class by itself), or
        a scikit-learn splitter, or pairs of row numbers.
    scoring : str, callable or None, default=None
        A scikit-learn scorer; None is "accuracy", or "average_precision" where classes are scored
        one by one. Indicator matrices always are, and a score is then the mean over classes.
    per_class : bool, default=False
        Choose a C for every class.
    refit : bool, default=True
        Also train on all rows, and keep the weights for the best C.
    progress : bool, default=False
        Show a progress bar.
    checkpoint : path or None, default=None
        File that takes what is finished after every C. A search that finds its own there goes on
        from it, with the same result; at the end the file is removed.
    random_state : int, RandomState or None, default=0
        Seed of the folds when ``cv`` is a number.
    loss, fit_intercept, intercept_scaling, regularize_intercept, class_weight, tol, max_iter, \
memory, device
        As in `LinearSVM`.

    Attributes
    ----------
    C_ : float or ndarray, shape (n_problems,)
        The best C, per class with ``per_class``. On a tie the first of ``Cs``.
    best_score_ : float
        Mean cross-validated score at ``C_``.
    cv_results_ : dict of ndarrays
        As in `sklearn.model_selection.GridSearchCV`, with ``score_per_class`` of shape
        (n_Cs, n_folds, n_problems) where classes are scored one by one, and
        ``max_duality_gap`` over all problems at a C.
    coef_, intercept_, classes_, n_iter_, duality_gap_, objective_
        As in `LinearSVM`, of the problems on all rows (with ``refit``).
    n_splits_ : int
        Number of folds.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from spptransfer.svm import LinearSVMCV
    >>> X, y = load_iris(return_X_y=True)
    >>> model = LinearSVMCV(Cs=(0.001, 0.1, 10)).fit(X, y)
    >>> model.C_
    10.0
    >>> model.cv_results_["mean_test_score"].round(2).tolist()
    [0.67, 0.95, 0.95]
    """

    C_: float | Array
    best_score_: float
    cv_results_: dict[str, Any]
    n_iter_: int
    duality_gap_: Array
    objective_: Array

    def __init__(
        self,
        Cs: Sequence[float] = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0),
        *,
        cv: int | Any | Iterable[tuple[Array, Array]] = 3,
        scoring: str | Callable[..., float] | None = None,
        per_class: bool = False,
        refit: bool = True,
        progress: bool = False,
        checkpoint: str | os.PathLike[str] | None = None,
        random_state: Seed = 0,
        loss: Literal["squared_hinge", "hinge"] = "squared_hinge",
        fit_intercept: bool = True,
        intercept_scaling: float = 1.0,
        regularize_intercept: bool = True,
        class_weight: ClassWeight = None,
        tol: float = 1e-6,
        max_iter: int = 1000,
        memory: int | str | None = None,
        device: str = "cpu",
    ) -> None:
        self.Cs = Cs
        self.cv = cv
        self.scoring = scoring
        self.per_class = per_class
        self.refit = refit
        self.progress = progress
        self.checkpoint = checkpoint
        self.random_state = random_state
        self.loss = loss
        self.fit_intercept = fit_intercept
        self.intercept_scaling = intercept_scaling
        self.regularize_intercept = regularize_intercept
        self.class_weight = class_weight
        self.tol = tol
        self.max_iter = max_iter
        self.memory = memory
        self.device = device

    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, gram: Array | None = None
    ) -> LinearSVMCV:
        """Choose C and train with it.

        Parameters
        ----------
        X : array-like or row source, shape (n_samples, n_features)
            Features, as in `LinearSVM.fit`.
        y : array-like, shape (n_samples,) or (n_samples, n_classes)
            Labels or an indicator matrix, as in `LinearSVM.fit`.
        sample_weight : array-like, shape (n_samples,), optional
            Factors on C in training. Scores are not weighted.
        gram : ndarray, shape (n_samples, n_samples), optional
            ``X @ X.T`` where it is known already (`gram_matrix`).

        Returns
        -------
        LinearSVMCV
            This estimator.

        Raises
        ------
        ConfigError
            If a parameter, a label or a shape is wrong, X is not finite, or the checkpoint is
            another search's.
        """
        settings = Settings.of(self)
        candidates = _candidates(self.Cs)
        rows = read_rows(self, X, reset=True)
        targets, weight = read_targets(y, rows, sample_weight)
        path = self._make_path(rows, targets, weight, gram, settings)
        parts = (settings, candidates.tolist(), self.scoring, targets.signs, path.costs)
        checkpoint = Checkpoint(
            self.checkpoint, fingerprint(rows, *parts) if self.checkpoint else ""
        )
        self._walk(path, candidates, checkpoint)
        self._choose(path, candidates)
        if self.refit:
            self._keep_best(path, targets, candidates)
        else:
            self.classes_ = targets.classes
        warn_unless_certified(np.array([step["gaps"] for step in path.steps]), self.tol)
        checkpoint.remove()
        return self

    def _make_path(
        self, rows: Any, targets: Targets, weight: Array, gram: Array | None, settings: Settings
    ) -> _Path:
        train, held_out = make_folds(self.cv, targets, rows, self.random_state)
        everything = [np.ones((rows.shape[0], 1), dtype=bool)] if self.refit else []
        costs = [targets.costs(self.class_weight, weight, mask) for mask in train + everything]
        return _Path(
            solver=make_solver(rows, gram, settings),
            signs=np.tile(targets.signs.astype(np.float64), len(costs)),
            costs=np.concatenate(costs, axis=1),
            n_problems=targets.signs.shape[1],
            held_out=held_out,
            scorer=HeldOutScorer(self.scoring, targets, per_class=self.per_class),
        )

    def _walk(self, path: _Path, candidates: Array, checkpoint: Checkpoint) -> None:
        finished = checkpoint.load()
        if finished:
            path.restore(finished)
        ascending = np.sort(candidates)
        with tqdm(
            total=len(ascending), initial=len(path.steps), unit="C", disable=not self.progress
        ) as bar:
            for C in ascending[len(path.steps) :]:
                bar.set_description(f"C={C:g}, {path.signs.shape[1]} problems")
                path.advance(float(C))
                checkpoint.save(path.saved())
                bar.update()

    def _choose(self, path: _Path, candidates: Array) -> None:
        """Fill ``cv_results_`` in the order of ``Cs`` and pick the best."""
        order = np.argsort(np.argsort(candidates, kind="stable"), kind="stable")
        steps = [path.steps[position] for position in order]
        scores = np.array([step["scores"] for step in steps])
        self.n_splits_ = scores.shape[1]
        self.cv_results_ = _results(candidates, scores, steps)
        by_class = nan_mean(scores, axis=1)
        average = self.cv_results_["mean_test_score"]
        if self.per_class:
            best = np.argmax(np.nan_to_num(by_class, nan=-np.inf), axis=0)
            self.C_ = candidates[best]
            chosen = by_class[best, np.arange(by_class.shape[1])]
            self.best_score_ = float(nan_mean(chosen, axis=0))
            self._best = order[best]
            return
        index = int(np.argmax(np.nan_to_num(average, nan=-np.inf)))
        self.best_index_ = index
        self.best_params_ = {"C": float(candidates[index])}
        self.C_ = float(candidates[index])
        self.best_score_ = float(average[index])
        self._best = np.full(path.n_problems, order[index])

    def _keep_best(self, path: _Path, targets: Targets, candidates: Array) -> None:
        """Take each problem's weights from the step at its best C."""
        steps = [path.steps[position] for position in self._best]
        columns = range(path.n_problems)

        def pick(name: str) -> Array:
            start = 0 if name.startswith("final") else len(path.held_out) * path.n_problems
            values = [step[name][..., start + k] for step, k in zip(steps, columns, strict=True)]
            return np.stack(values, axis=-1)

        points = Points(pick("final_state"), np.empty((0, 0)), pick("final_offset"))
        space = path.solver.space
        self._set_weights(
            targets, space.coefficients(points.state), points.offset + space.bias(points.state)
        )
        self.duality_gap_ = pick("gaps")
        self.objective_ = pick("objectives")
        self.n_iter_ = max(1, int(pick("n_iter").max()))


def _candidates(Cs: Sequence[float]) -> Array:
    """The candidates as an array, checked."""
    for C in Cs:
        check_positive("Cs", C)
    if not len(Cs):
        raise ConfigError("Cs is empty; allowed: finite numbers > 0")
    return np.asarray(Cs, dtype=float)


def _results(candidates: Array, scores: Array, steps: list[dict[str, Array]]) -> dict[str, Any]:
    """The table that `GridSearchCV` would have made, and what it has no column for."""
    by_split = nan_mean(scores, axis=2)
    mean, std = nan_mean(by_split, axis=1), by_split.std(axis=1)
    seconds = np.array([step["seconds"] for step in steps]) / scores.shape[1]
    results: dict[str, Any] = {
        "mean_fit_time": seconds[:, 0],
        "std_fit_time": np.zeros(len(steps)),
        "mean_score_time": seconds[:, 1],
        "std_score_time": np.zeros(len(steps)),
        "param_C": np.ma.MaskedArray(candidates, mask=np.zeros(len(candidates), dtype=bool)),
        "params": [{"C": float(C)} for C in candidates],
    }
    results |= {f"split{k}_test_score": by_split[:, k] for k in range(by_split.shape[1])}
    sortable = np.nan_to_num(mean, nan=-np.inf)
    results |= {
        "mean_test_score": mean,
        "std_test_score": std,
        "rank_test_score": 1 + (sortable[None, :] > sortable[:, None]).sum(axis=1),
        "max_duality_gap": np.array([step["gaps"].max() for step in steps]),
    }
    if scores.shape[2] > 1:
        results["score_per_class"] = scores
    return results
