"""The linear support vector machine as scikit-learn classifiers, with C given or chosen."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import joblib
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils import Tags, check_array
from sklearn.utils.validation import check_is_fitted, validate_data

from spptransfer.errors import ConfigError
from spptransfer.svm._gram_matrix import GramMatrix
from spptransfer.svm._loss import Iterate
from spptransfer.svm._rows import BLOCK_BYTES, Array, Rows
from spptransfer.svm._search import Path, Search, Seed, make_folds, nan_mean, walk, walk_apart
from spptransfer.svm._solver import LARGEST_C, check_positive, options_of, warn_unless_certified
from spptransfer.svm._streaming import budget_bytes, make_solver
from spptransfer.svm._targets import ClassWeight, Problems, Targets, encode_targets
from spptransfer.svm._threads import own_threads

# What training leaves behind, besides the classes.
FITTED = ("_targets", "coef_", "intercept_", "duality_gap_", "objective_", "n_iter_")
# What not every search has, and must not stay from the one before.
OF_ONE_SEARCH = ("best_index_", "best_params_", *FITTED)


class LinearClassifier(ClassifierMixin, BaseEstimator):
    """What `LinearSVM` and `LinearSVMCV` share: reading data, and scoring it."""

    coef_: Array
    intercept_: Array
    classes_: Array

    def decision_function(self, X: Any) -> Array:
        """Signed distances to the hyperplanes, in units of the margin.

        Parameters
        ----------
        X : array-like or row source, shape (n_samples, n_features)
            Read in blocks, so that it may be larger than memory.

        Returns
        -------
        ndarray, shape (n_samples,) or (n_samples, n_classes)
            One column per class; for binary targets only the second class's, as a vector.
        """
        scores = self._scores(X)
        return scores[:, 0] if self._targets.kind == "binary" else scores

    def predict(self, X: Any) -> Array:
        """Predicted labels in the form that ``y`` had.

        Parameters
        ----------
        X : array-like or row source, shape (n_samples, n_features)
            The rows to label.

        Returns
        -------
        ndarray, shape (n_samples,) or (n_samples, n_classes)
            Class labels, or an indicator matrix that uses 0 or -1 for "not this class" as the
            training labels did.
        """
        scores = self._scores(X)
        return self._targets.decode(scores)

    def _scores(self, X: Any) -> Array:
        check_is_fitted(self)
        if not hasattr(self, "coef_"):
            raise NotFittedError(
                f"this {type(self).__name__} chose C but has no weights, since refit is False"
            )
        rows = read_rows(self, X, reset=False)
        return rows.scores(np.atleast_2d(self.coef_).T) + self.intercept_

    def _set_weights(self, targets: Targets, coefficients: Array, biases: Array) -> None:
        self._targets = replace(targets, signs=targets.signs[:0])
        self.classes_ = targets.classes
        self.coef_ = np.ascontiguousarray(coefficients.T)
        self.intercept_ = biases if getattr(self, "fit_intercept", True) else np.zeros(len(biases))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


def read_rows(
    estimator: BaseEstimator, X: Any, *, reset: bool, memory: int | str | None = None
) -> Rows:
    """Validate X, which is training data if ``reset``; a row source that is no array stays put."""
    if not is_row_source(X):
        X = validate_data(
            estimator, X, reset=reset, dtype=[np.float64, np.float32], ensure_all_finite=False
        )
    elif reset:
        estimator.n_features_in_ = X.shape[1]
        vars(estimator).pop("feature_names_in_", None)
    elif X.shape[1] != estimator.n_features_in_:
        raise ConfigError(
            f"X has {X.shape[1]} features, but {type(estimator).__name__} is expecting "
            f"{estimator.n_features_in_} features as input"
        )
    # A small part of the budget: there are a few blocks at a time for each thread.
    rows = Rows(X, int(min(BLOCK_BYTES, max(budget_bytes(memory) / 64, 2**18))))
    rows.check_finite()
    return rows


def is_row_source(X: Any) -> bool:
    """Whether X is a matrix outside memory, or one in half precision."""
    if isinstance(X, np.ndarray):
        half = X.dtype == np.float16
        return X.ndim == 2 and len(X) > 0 and (half or isinstance(X, np.memmap))
    # Views of a feature cache and h5py's datasets can become arrays, but would be read whole.
    is_table = hasattr(X, "columns") or hasattr(X, "toarray") or not hasattr(X, "__getitem__")
    matrix = isinstance(getattr(X, "dtype", None), np.dtype) and len(getattr(X, "shape", ())) == 2
    return matrix and not is_table


def read_targets(y: Any, n_rows: int, sample_weight: Any) -> tuple[Targets, Array]:
    """Validate labels, and weights in float64; a number, or nothing, is every row's weight."""
    if y is None:
        raise ConfigError("requires y to be passed, but the target y is None")
    targets = encode_targets(y)
    if len(targets.signs) != n_rows:
        raise ConfigError(f"X has {n_rows} rows but y has {len(targets.signs)}")
    if sample_weight is None or isinstance(sample_weight, numbers.Real):
        sample_weight = np.full(n_rows, 1 if sample_weight is None else sample_weight)
    weight: Array = check_array(
        sample_weight, ensure_2d=False, dtype=np.float64, input_name="sample_weight"
    )
    if weight.shape != (n_rows,):
        raise ConfigError(f"sample_weight.shape == {weight.shape}, expected {(n_rows,)}!")
    if (weight < 0).any():
        raise ConfigError("Negative values in data passed to `sample_weight`")
    if not weight.any():
        raise ConfigError("Sample weights must contain at least one non-zero number.")
    return targets, weight


class LinearSVM(LinearClassifier):
    """Linear support vector machine whose optimality is certified.

    Minimises LIBLINEAR's objective, ``||w||**2 / 2 + C * sum(loss(1 - y * (x @ w + b)))``, for
    all one-versus-rest problems at once [1]_. They share one Gram matrix of the rows where there
    are no more rows than features, and passes over the rows otherwise.

    Parameters
    ----------
    C : float, default=1.0
        Weight of the losses against the length of the weights, at most 1e20.
    loss : {"squared_hinge", "hinge"}, default="squared_hinge"
        The square of the distance to the margin, or the distance.
    fit_intercept : bool, default=True
        Whether to have a bias.
    intercept_scaling : float, default=1.0
        Value of the constant feature whose weight gives the bias. The larger, the less the bias
        is regularised.
    regularize_intercept : bool, default=True
        As in LIBLINEAR, the bias is regularised with the weights; False leaves it free.
    class_weight : dict, "balanced" or None, default=None
        Factors on C. With several classes they act on the class's own rows, as in LIBLINEAR.
        For indicator matrices, ``{1: 2, -1: 1}`` weighs the positives and the negatives of
        every class, and "balanced" balances each class against the rest. "balanced" counts rows
        by their sample weights.
    tol : float, default=1e-6
        Largest relative duality gap, computed in float64, that counts as solved.
    max_iter : int, default=1000
        Most Newton steps per problem.
    memory : int, str or None, default=None
        Budget in bytes, or like "1GB"; None is half of what is free. Without room for a Gram
        matrix the rows are streamed, in smaller blocks the smaller the budget.
    device : str, default="cpu"
        Where products with the Gram matrix are computed: "cpu", by numpy or torch, otherwise a
        torch device. Certificates, and passes over the rows, are computed by numpy.

    Attributes
    ----------
    coef_ : ndarray, shape (1, n_features) or (n_classes, n_features)
        Weights, float64.
    intercept_ : ndarray, shape (1,) or (n_classes,)
        Biases.
    classes_ : ndarray, shape (n_classes,)
        Class labels; for an indicator matrix its column numbers.
    n_iter_ : int
        Newton steps of the slowest problem.
    duality_gap_ : ndarray, shape (n_problems,)
        Relative duality gap of each problem: a bound on how far its objective is from the best.
    objective_ : ndarray, shape (n_problems,)
        Primal objective of each problem.
    n_passes_ : int
        How often the rows were read in training.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray, shape (n_features,)
        Names of the features, where X had them.

    See Also
    --------
    LinearSVMCV : The same with C chosen by cross-validation.
    sklearn.svm.LinearSVC : LIBLINEAR, one problem at a time.

    Notes
    -----
    Labels may be binary, multi-class or an indicator matrix with a column per class. If such a
    matrix holds a -1 anywhere, 1 is the class, -1 is not the class, and rows with a 0 are left
    out of that class's problem; otherwise 1 is the class and 0 is not. A single column is taken
    as a vector of labels, with scikit-learn's warning.

    References
    ----------
    .. [1] R.-E. Fan, K.-W. Chang, C.-J. Hsieh, X.-R. Wang, C.-J. Lin, "LIBLINEAR: A library for
       large linear classification", JMLR 9, 2008.

    Examples
    --------
    >>> import numpy as np
    >>> from spptransfer.svm import LinearSVM
    >>> X = np.array([[2.0, 0.0], [1.5, 0.5], [0.0, 2.0], [0.5, 1.0]])
    >>> model = LinearSVM(C=10.0).fit(X, ["cat", "cat", "dog", "dog"])
    >>> print(model.predict([[0.0, 1.0]]))
    ['dog']
    >>> bool(model.duality_gap_.max() <= 1e-6)
    True
    """

    n_iter_: int
    duality_gap_: Array
    objective_: Array
    n_passes_: int

    def __init__(
        self,
        C: float = 1.0,
        *,
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
        self.C = C
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
        self, X: Any, y: Any, sample_weight: Any = None, gram: Array | GramMatrix | None = None
    ) -> LinearSVM:
        """Train all problems.

        Parameters
        ----------
        X : array-like or row source, shape (n_samples, n_features)
            Features. A row source has ``shape``, ``dtype`` and slices of rows, like an
            `h5py.Dataset` or a `numpy.memmap`, and is read in blocks.
        y : array-like, shape (n_samples,) or (n_samples, n_classes)
            Labels, or an indicator matrix (see Notes).
        sample_weight : array-like, shape (n_samples,), optional
            Factors on C; rows of weight zero are left out.
        gram : ndarray or GramMatrix, shape (n_samples, n_samples), optional
            ``X @ X.T`` where it is known already (`gram_matrix`).

        Returns
        -------
        LinearSVM
            This estimator.

        Raises
        ------
        ConfigError
            If a parameter, a label or a shape is wrong, or X is not finite.
        """
        options = options_of(self)
        check_positive("C", self.C, LARGEST_C)
        rows = read_rows(self, X, reset=True, memory=self.memory)
        targets, weight = read_targets(y, rows.shape[0], sample_weight)
        problems = Problems.of(targets, self.class_weight, weight)
        gram = None if gram is None else np.asarray(gram)
        with own_threads():
            solver = make_solver(rows, gram, problems, options)
            costs = np.full(problems.count, float(self.C))
            solution = solver.solve(costs, with_coefficients=True, with_scores=False)
        biases = solution.points.offset + solver.space.bias(solution.points.state)
        assert solution.coefficients is not None
        self._set_weights(targets, solution.coefficients, biases)
        self.n_passes_ = rows.passes
        self.duality_gap_ = solution.relative_gaps
        self.objective_ = solution.objectives
        self.n_iter_ = max(1, int(solution.n_iter.max()))
        warn_unless_certified(self.duality_gap_, self.tol)
        return self


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
    held_out_decision_function_ : ndarray of float32, shape (n_samples, n_problems)
        Decision values at ``C_`` of each row by the models that were trained without it; NaN of
        rows that no fold held out.
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
    held_out_decision_function_: Array
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
        options = options_of(self)
        candidates = _candidates(self.Cs)
        rows = read_rows(self, X, reset=True, memory=self.memory)
        targets, weight = read_targets(y, rows.shape[0], sample_weight)
        folds: list[Any] = make_folds(self.cv, targets, self.random_state)
        search = Search(
            targets=targets,
            class_weight=self.class_weight,
            sample_weight=weight,
            folds=[*folds, (None, None)] if self.refit else folds,
            scoring=self.scoring,
            per_class=self.per_class,
            options=options,
        )
        gram = None if gram is None else np.asarray(gram)
        ascending = np.sort(candidates)
        if joblib.effective_n_jobs(self.n_jobs) > 1:
            path = walk_apart(rows, gram, search, ascending, self.n_jobs)
        else:
            path = walk(rows, gram, search, ascending, progress=self.progress)
        for name in OF_ONE_SEARCH:
            self.__dict__.pop(name, None)
        order = np.argsort(np.argsort(candidates, kind="stable"), kind="stable")
        best = order[self._choose(candidates, path, order)]
        problems = np.arange(targets.signs.shape[1])
        self.held_out_decision_function_ = path.held_out[best, :, problems].T
        if self.refit:
            points = self._keep_best(path, np.broadcast_to(best, targets.signs.shape[1]))
            self._set_weights(targets, *path.weights(points))
        else:
            self.classes_ = targets.classes
        self.n_passes_ = rows.passes
        warn_unless_certified(path.gaps, self.tol)
        return self

    def _choose(self, candidates: Array, path: Path, order: Array) -> Array:
        """Fill ``cv_results_``; return the number of the best C, or one for each problem."""
        scores = path.scores[order]
        self.n_splits_ = scores.shape[1]
        self.cv_results_ = _results(candidates, scores, path.seconds[order], path.gaps[order])
        by_class = nan_mean(scores, axis=1)
        if self.per_class:
            best = np.argmax(np.nan_to_num(by_class, nan=-np.inf), axis=0)
            self.C_ = candidates[best]
            self.best_score_ = float(nan_mean(by_class[best, np.arange(len(best))], axis=0))
            return np.asarray(best)
        average = self.cv_results_["mean_test_score"]
        self.best_index_ = int(np.argmax(np.nan_to_num(average, nan=-np.inf)))
        self.C_ = float(candidates[self.best_index_])
        self.best_params_ = {"C": self.C_}
        self.best_score_ = float(average[self.best_index_])
        return np.array([self.best_index_])

    def _keep_best(self, path: Path, best: Array) -> Iterate:
        """Each problem's certificate at its best C, and its point, of those on all rows."""
        last = np.arange(-len(best), 0)
        self.duality_gap_, self.objective_ = path.gaps[best, last], path.objectives[best, last]
        self.n_iter_ = max(1, int(path.n_iter[best, last].max()))
        states = [path.states[C][:, k] for k, C in enumerate(best)]
        offsets = np.array(path.offsets)[best, last]
        return Iterate(np.stack(states, axis=-1), np.empty((0, 0)), offsets)


def _candidates(Cs: Sequence[float]) -> Array:
    """The candidates as an array, checked."""
    try:
        values = list(Cs)[: len(Cs)]  # a generator, used up by a look at it, has no length
    except TypeError as error:
        message = f"Cs is {Cs!r}; allowed: a sequence of finite numbers > 0"
        raise ConfigError(message) from error
    for C in values:
        check_positive("Cs", C, LARGEST_C)
    if not values:
        raise ConfigError("Cs is empty; allowed: finite numbers > 0")
    return np.array(values, dtype=float)


def _results(candidates: Array, scores: Array, seconds: Array, gaps: Array) -> dict[str, Any]:
    """The table that `GridSearchCV` would have made, and what it has no column for."""
    (n_costs, n_folds, n_scores), zeros = scores.shape, np.zeros(len(candidates))
    by_split = nan_mean(scores, axis=2)
    mean = nan_mean(by_split, axis=1)
    sortable = np.nan_to_num(mean, nan=-np.inf)
    results: dict[str, Any] = {
        "mean_fit_time": seconds[:, 0] / n_folds,
        "std_fit_time": zeros,
        "mean_score_time": seconds[:, 1] / n_folds,
        "std_score_time": zeros.copy(),
        "param_C": np.ma.MaskedArray(candidates, mask=np.zeros(n_costs, dtype=bool)),
        "params": [{"C": float(C)} for C in candidates],
        **{f"split{k}_test_score": by_split[:, k] for k in range(n_folds)},
        "mean_test_score": mean,
        "std_test_score": by_split.std(axis=1),
        "rank_test_score": 1 + (sortable[None, :] > sortable[:, None]).sum(axis=1),
        "max_duality_gap": gaps.max(axis=1),
    }
    if n_scores > 1:
        results["score_per_class"] = scores
    return results
