"""The linear SVM with C chosen by cross-validation, all folds and classes side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import joblib
import numpy as np
from tqdm import tqdm

from spptransfer.errors import ConfigError
from spptransfer.svm._classifier import FITTED, LinearClassifier, read_rows, read_targets
from spptransfer.svm._engine import Settings, check_cost, warn_unless_certified
from spptransfer.svm._folds import make_folds
from spptransfer.svm._gram_matrix import GramMatrix, whole_gram
from spptransfer.svm._newton import Points
from spptransfer.svm._path import Path, Search, SpreadPath, spread
from spptransfer.svm._rows import Rows
from spptransfer.svm._scoring import nan_mean
from spptransfer.svm._targets import ClassWeight, Targets
from spptransfer.svm._threads import own_threads
from spptransfer.svm._types import Array, Seed

# What not every search has, and must not stay from the one before.
_OF_ONE_SEARCH = ("best_index_", "best_params_", *FITTED)


class LinearSVMCV(LinearClassifier):
    """`LinearSVM` with C chosen by cross-validation.

    All classes and all folds advance together along ascending C, each problem starting from its
    own solution at the last C. A fold is a set of costs that are zero: nothing is copied.

    Parameters
    ----------
    Cs : sequence of float, default=(0.001, 0.01, 0.1, 1, 10, 100, 1000)
        Candidates, each at most 1e20.
    cv : int, splitter or iterable of (train, test), default=3
        Number of folds, stratified and seeded (for an indicator matrix each class by itself), or
        a scikit-learn splitter, or pairs of row numbers. A row counts as often as it is named.
    scoring : str, callable or None, default=None
        A scikit-learn scorer; None is "accuracy", or "average_precision" where classes are scored
        one by one. Indicator matrices always are, and a score is then the mean over classes.
    per_class : bool, default=False
        Choose a C for every class.
    refit : bool, default=True
        Also train on all rows, and keep the weights for the best C.
    progress : bool, default=False
        Show a progress bar.
    random_state : int, RandomState or None, default=0
        Seed of the folds when ``cv`` is a number.
    loss, fit_intercept, intercept_scaling, regularize_intercept, class_weight, tol, max_iter, \
memory, device
        As in `LinearSVM`.
    n_jobs : int or None, default=None
        As in scikit-learn: None is 1 unless a `joblib.parallel_config` says otherwise. With one
        job all folds are solved together, which is the fastest on one machine. With more, each
        fold is a task of its own, for the workers of a Dask cluster for example. They are sent X
        unless it is a view of a feature cache, which they open where it lies.

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
    n_passes_ : int
        How often the rows were read.

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

    Folds go to the workers of a Dask cluster by joblib's backend::

        with Client("tcp://10.0.0.1:8786"), joblib.parallel_config(backend="dask"):
            LinearSVMCV().fit(X, y)
    """

    C_: float | Array
    best_score_: float
    cv_results_: dict[str, Any]
    n_iter_: int
    n_passes_: int
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
        n_jobs: int | None = None,
    ) -> None:
        self.Cs = Cs
        self.cv = cv
        self.scoring = scoring
        self.per_class = per_class
        self.refit = refit
        self.progress = progress
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
        self.n_jobs = n_jobs

    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, gram: Array | GramMatrix | None = None
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
        gram : ndarray or GramMatrix, shape (n_samples, n_samples), optional
            ``X @ X.T`` where it is known already (`gram_matrix`).

        Returns
        -------
        LinearSVMCV
            This estimator.

        Raises
        ------
        ConfigError
            If a parameter, a label or a shape is wrong, X is not finite, or there are several
            jobs, to which it cannot be sent.
        """
        settings = Settings.of(self)
        candidates = _candidates(self.Cs)
        rows = read_rows(self, X, reset=True, memory=self.memory)
        targets, weight = read_targets(y, rows, sample_weight)
        search = self._make_search(rows, targets, weight, settings)
        ascending = np.sort(candidates)
        path: Path | SpreadPath
        if joblib.effective_n_jobs(self.n_jobs) > 1:
            path = spread(rows, whole_gram(gram), search, ascending, self.n_jobs)
        else:
            with own_threads():
                path = search.path(rows, whole_gram(gram))
                self._walk(path, ascending)
        for name in _OF_ONE_SEARCH:
            self.__dict__.pop(name, None)
        self._choose(path, candidates)
        if self.refit:
            self._keep_best(path, targets, candidates)
        else:
            self.classes_ = targets.classes
        self.n_passes_ = rows.passes
        warn_unless_certified(np.array([step["gaps"] for step in path.steps]), self.tol)
        return self

    def _make_search(
        self, rows: Rows, targets: Targets, weight: Array, settings: Settings
    ) -> Search:
        train, held_out = make_folds(self.cv, targets, rows, self.random_state)
        return Search(
            targets=targets,
            class_weight=self.class_weight,
            sample_weight=weight,
            masks=[*train, None] if self.refit else train,
            held_out=held_out,
            scoring=self.scoring,
            per_class=self.per_class,
            settings=settings,
        )

    def _walk(self, path: Path, ascending: Array) -> None:
        with tqdm(total=len(ascending), unit="C", disable=not self.progress) as bar:
            while len(path.steps) < len(ascending):
                costs = path.next_costs(ascending)
                names = ", ".join(f"{C:g}" for C in costs)
                bar.set_description(f"C={names}, {path.solver.problems.count} problems")
                path.advance(costs)
                bar.update(len(costs))

    def _choose(self, path: Path | SpreadPath, candidates: Array) -> None:
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

    def _keep_best(self, path: Path | SpreadPath, targets: Targets, candidates: Array) -> None:
        """Take each problem's weights from the step at its best C."""
        steps = [path.steps[position] for position in self._best]
        columns = range(path.n_problems)

        def pick(name: str) -> Array:
            start = 0 if name.startswith("final") else len(path.held_out) * path.n_problems
            values = [step[name][..., start + k] for step, k in zip(steps, columns, strict=True)]
            return np.stack(values, axis=-1)

        points = Points(pick("final_state"), np.empty((0, 0)), pick("final_offset"))
        self._set_weights(targets, *path.weights(points))
        self.duality_gap_ = pick("gaps")
        self.objective_ = pick("objectives")
        self.n_iter_ = max(1, int(pick("n_iter").max()))


def _candidates(Cs: Sequence[float]) -> Array:
    """The candidates as an array, checked."""
    try:
        values = list(Cs)[: len(Cs)]  # a generator, used up by a look at it, has no length
    except TypeError as error:
        message = f"Cs is {Cs!r}; allowed: a sequence of finite numbers > 0"
        raise ConfigError(message) from error
    for C in values:
        check_cost("Cs", C)
    if not values:
        raise ConfigError("Cs is empty; allowed: finite numbers > 0")
    return np.array(values, dtype=float)


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
