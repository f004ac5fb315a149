"""The linear support vector machine as a scikit-learn classifier."""

from __future__ import annotations

import numbers
from typing import Any, Literal

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils import Tags, check_array
from sklearn.utils.validation import check_is_fitted, validate_data

from spptransfer.errors import ConfigError
from spptransfer.svm._engine import (
    Settings,
    block_bytes,
    budget_bytes,
    check_cost,
    make_solver,
    warn_unless_certified,
)
from spptransfer.svm._gram_matrix import GramMatrix, whole_gram
from spptransfer.svm._problems import Problems
from spptransfer.svm._rows import Rows
from spptransfer.svm._targets import ClassWeight, Targets, encode_targets
from spptransfer.svm._threads import own_threads
from spptransfer.svm._types import Array

# What training leaves behind, besides the classes.
FITTED = ("_targets", "coef_", "intercept_", "duality_gap_", "objective_", "n_iter_")


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
        self._targets = Targets(
            targets.kind, targets.classes, targets.signs[:0], targets.negative_label
        )
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
    """Validate X, leaving a row source that is no array where it is.

    Parameters
    ----------
    estimator : BaseEstimator
        Remembers, or is asked for, the number and names of the features.
    X : array-like or row source
        Anything with ``shape``, ``dtype`` and slices of rows is taken as it is.
    reset : bool
        Whether this is the training data.
    memory : int, str or None
        The budget, of which blocks of rows take a small part.

    Returns
    -------
    Rows
        Checked to be finite.
    """
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
    rows = Rows(X, block_bytes(budget_bytes(memory)))
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


def read_targets(y: Any, rows: Rows, sample_weight: Any) -> tuple[Targets, Array]:
    """Validate labels and weights against the rows.

    Returns
    -------
    targets : Targets
        The one-versus-rest problems.
    sample_weight : ndarray, shape (n_samples,)
        Ones where none were given.
    """
    if y is None:
        raise ConfigError("requires y to be passed, but the target y is None")
    targets = encode_targets(y)
    if len(targets.signs) != rows.shape[0]:
        raise ConfigError(f"X has {rows.shape[0]} rows but y has {len(targets.signs)}")
    return targets, _check_sample_weight(sample_weight, rows.shape[0])


def _check_sample_weight(sample_weight: Any, n_samples: int) -> Array:
    """Return one weight per sample, in float64; a number is every sample's weight."""
    if sample_weight is None or isinstance(sample_weight, numbers.Real):
        sample_weight = np.full(n_samples, 1 if sample_weight is None else sample_weight)
    weight: Array = check_array(
        sample_weight, ensure_2d=False, dtype=np.float64, input_name="sample_weight"
    )
    if weight.shape != (n_samples,):
        raise ConfigError(f"sample_weight.shape == {weight.shape}, expected {(n_samples,)}!")
    if (weight < 0).any():
        raise ConfigError("Negative values in data passed to `sample_weight`")
    if not weight.any():
        raise ConfigError("Sample weights must contain at least one non-zero number.")
    return weight


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
    feature_names_in_ : ndarray, shape (n_features_in_,)
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
        settings = Settings.of(self)
        check_cost("C", self.C)
        rows = read_rows(self, X, reset=True, memory=self.memory)
        targets, weight = read_targets(y, rows, sample_weight)
        problems = Problems.of(targets, self.class_weight, weight)
        with own_threads():
            solver = make_solver(rows, whole_gram(gram), problems, settings)
            costs = np.full(problems.count, float(self.C))
            solution = solver.solve(costs, with_coefficients=True, with_scores=False)
        assert solution.coefficients is not None
        self._set_weights(targets, solution.coefficients, solver.biases(solution.points))
        self.n_passes_ = rows.passes
        self.duality_gap_ = solution.relative_gaps
        self.objective_ = solution.objectives
        self.n_iter_ = max(1, int(solution.n_iter.max()))
        warn_unless_certified(self.duality_gap_, self.tol)
        return self
