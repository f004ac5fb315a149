"""Train a linear classifier per class, with C chosen by cross-validation.

Settings are checked before an extraction, which needs no scikit-learn; hence the late imports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from spptransfer import metrics
from spptransfer.errors import ConfigError
from spptransfer.scheduler import check_scheduler, dask_workers
from spptransfer.system import available_memory

if TYPE_CHECKING:
    from spptransfer.svm import RowSubset

Indices = npt.NDArray[np.intp]

# Float64 products with a few columns, against float32 products of large matrices.
CERTIFICATE = 3.0
# Float64 products of large matrices, against the same.
EXACT = 3.5


@dataclass(frozen=True)
class Training:
    """How classifiers are trained and C is chosen.

    Parameters
    ----------
    C : tuple of float
        Values to choose from; a single one is taken as it is.
    loss : {"squared_hinge", "hinge"}
        Loss of the SVM.
    class_weight : "balanced", mapping or None
        For several labels per image, weights of positives (1) and negatives (-1).
    solver : {"spptransfer", "scikit-learn"}
        `LinearSVM`, or scikit-learn's LinearSVC.
    chosen_by : str
        Full name of the metric that decides C.
    per_class : bool
        Choose a C for every class instead of one for all.
    difficult : {"ignore", "negative"}
        What a target of 0 is in training.
    engine : {"local", "dask"}
        Who chooses C: this process, or the workers of a Dask cluster, a fold each.
    scheduler : str or None
        Address of Dask's scheduler; None for a cluster on this machine.
    """

    C: tuple[float, ...] = (1.0,)
    loss: Literal["squared_hinge", "hinge"] = "squared_hinge"
    class_weight: Literal["balanced"] | Mapping[int, float] | None = None
    solver: Literal["spptransfer", "scikit-learn"] = "spptransfer"
    chosen_by: str = metrics.OVERALL_ACCURACY
    per_class: bool = False
    difficult: Literal["ignore", "negative"] = "ignore"
    engine: Literal["local", "dask"] = "local"
    scheduler: str | None = None


@dataclass
class Classifier:
    """Trained weights, one row per class, and how C came about.

    Attributes
    ----------
    coef : ndarray of float32, shape (n_classes, n_features)
        Weights.
    intercept : ndarray of float32, shape (n_classes,)
        Biases.
    C : float or ndarray of shape (n_classes,)
        The C trained with.
    validation : list of dict
        ``C`` and its mean ``score``, empty where C was given.
    solver : dict
        ``relative_duality_gap`` and ``iterations`` where the solver knows them.
    held_out : ndarray of float32, shape (n_rows, n_classes), or None
        Decision values of the training rows by classifiers trained without them, where the choice
        of C left some behind.
    sigmoids : ndarray of float32, shape (n_classes, 2)
        Slope and offset of each class's probability; NaN as long as they are not fitted.
    """

    coef: npt.NDArray[np.float32]
    intercept: npt.NDArray[np.float32]
    C: float | npt.NDArray[np.float64]
    validation: list[dict[str, float]] = field(default_factory=list)
    solver: dict[str, float] = field(default_factory=dict)
    held_out: npt.NDArray[np.float32] | None = None
    sigmoids: npt.NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        self.sigmoids = np.full((len(self.coef), 2), np.nan, np.float32)

    def decision_function(self, X: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Decision values of every class, (n_samples, n_classes)."""
        return np.asarray(X, np.float32) @ self.coef.T + self.intercept


def check_training(training: Training, *, multi_label: bool, has_folds: bool) -> None:
    """Refuse settings that do not fit the labels or the splits."""
    if len(training.C) > 1 and not has_folds:
        raise ConfigError(
            f"classifier.C: {list(training.C)} leaves a choice, but the protocol has no folds "
            "(protocol.folds: 0); give one value"
        )
    if training.engine == "dask" and training.solver != "spptransfer":
        raise ConfigError(
            f"classifier.engine: dask spreads the solver spptransfer, not {training.solver}; "
            "allowed here: local"
        )
    if _is_spread(training):
        check_scheduler(training.scheduler, "classifier.scheduler")
    shared = multi_label and len(training.C) > 1 and not training.per_class
    if training.solver == "scikit-learn" and shared:
        raise ConfigError(
            "classifier.solver: scikit-learn chooses C per class only; "
            "set protocol.choose_C: per class, or one C"
        )
    if isinstance(training.class_weight, Mapping) and not multi_label:
        raise ConfigError(
            "classifier.class_weight: weights of positives and negatives are for several labels "
            "per image; allowed here: balanced, null"
        )


def fit_classifier(
    X: npt.NDArray[np.floating] | RowSubset,
    targets: npt.NDArray[np.integer],
    *,
    n_classes: int,
    training: Training,
    folds: Sequence[Indices] | int = (),
    gram: npt.NDArray[np.floating] | None = None,
) -> Classifier:
    """Train all classes, with C chosen where there is a choice.

    It is chosen on `folds`, the positions that each validates on; or there are so many for each
    class, stratified by itself, unshuffled. `gram` is ``X @ X.T`` where it is known already.
    """
    from sklearn.model_selection import StratifiedKFold

    from spptransfer.svm import LinearSVM, LinearSVMCV

    check_training(training, multi_label=targets.ndim == 2, has_folds=bool(folds))
    if targets.ndim == 2 and training.difficult == "negative":
        targets = np.where(targets > 0, targets, -1).astype(targets.dtype)
    cv: Any = None
    if len(training.C) > 1:
        everything = np.arange(len(targets))
        cv = (
            StratifiedKFold(folds)
            if isinstance(folds, int)
            else [(np.setdiff1d(everything, fold), fold) for fold in folds]
        )
    if training.solver == "scikit-learn":
        return _fit_scikit_learn(np.asarray(X[:]), targets, n_classes, training, cv)
    model: Any = LinearSVM(training.C[0])
    if cv is not None:
        scorer = _scorer(training.chosen_by)
        model = LinearSVMCV(training.C, cv=cv, scoring=scorer, per_class=training.per_class)
    model.set_params(loss=training.loss, class_weight=training.class_weight)
    with _workers(training):
        model.fit(X, targets, gram=gram)
    gap, steps = float(np.max(model.duality_gap_)), int(model.n_iter_)
    scores = () if cv is None else model.cv_results_["mean_test_score"]
    classifier = _classifier(
        model, n_classes, getattr(model, "C_", training.C[0]), training, scores
    )
    held_out = getattr(model, "held_out_decision_function_", None)
    if held_out is not None and held_out.shape[1] < n_classes:  # two classes share one hyperplane
        held_out = np.hstack([-held_out, held_out])
    solver = {"relative_duality_gap": gap, "iterations": steps}
    return replace(classifier, solver=solver, held_out=held_out)


def _workers(training: Training) -> AbstractContextManager[None]:
    """Let joblib send the folds of a search to Dask's workers, where that is asked for."""
    if _is_spread(training):
        return dask_workers(training.scheduler, "classifier.scheduler")
    return nullcontext()


def _is_spread(training: Training) -> bool:
    return training.engine == "dask" and len(training.C) > 1


def _fit_scikit_learn(
    X: npt.NDArray[np.floating],
    targets: npt.NDArray[np.integer],
    n_classes: int,
    training: Training,
    cv: Any,
) -> Classifier:
    """The field's way, one LIBLINEAR problem after the other; for comparison."""
    if targets.ndim == 1:
        return _search(X, targets, n_classes, training, cv)
    parts = []
    for column in targets.T:
        kept = np.flatnonzero(column)
        inside = cv
        if isinstance(cv, list):  # row numbers among those that are kept
            position = np.cumsum(column != 0) - 1
            inside = [tuple(position[rows[column[rows] != 0]] for rows in pair) for pair in cv]
        parts.append(_search(X[kept], (column[kept] > 0).astype(int), 1, training, inside))
    coef, intercept = ([getattr(part, name) for part in parts] for name in ("coef", "intercept"))
    validation = [
        {"C": C, "score": float(np.mean([part.validation[k]["score"] for part in parts]))}
        for k, C in enumerate(training.C if cv else ())
    ]
    C = training.C[0] if cv is None else np.array([part.C for part in parts])
    return Classifier(np.concatenate(coef), np.concatenate(intercept), C, validation)


def _search(X: Any, y: Any, n_classes: int, training: Training, cv: Any) -> Classifier:
    """One of scikit-learn's problems, with C chosen by its grid search."""
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import LinearSVC

    weight: Any = training.class_weight
    if isinstance(weight, Mapping):
        weight = {1: weight.get(1, 1.0), 0: weight.get(-1, 1.0)}
    svc = LinearSVC(
        C=training.C[0], loss=training.loss, class_weight=weight, dual="auto", max_iter=10_000
    )
    if cv is None:
        return _classifier(svc.fit(X, y), n_classes, svc.C, training)
    grid = GridSearchCV(svc, {"C": training.C}, cv=cv, scoring=_scorer(training.chosen_by))
    best, scores = grid.fit(X, y).best_estimator_, grid.cv_results_["mean_test_score"]
    return _classifier(best, n_classes, float(best.C), training, scores)


def _classifier(
    model: Any, n_classes: int, C: Any, training: Training, scores: Sequence[float] = ()
) -> Classifier:
    """Weights with one row per class; two classes share one hyperplane."""
    coef = np.asarray(model.coef_, np.float32)
    intercept = np.asarray(model.intercept_, np.float32)
    if n_classes == 2 and len(coef) == 1:
        coef, intercept = np.concatenate([-coef, coef]), np.concatenate([-intercept, intercept])
    intercept = np.broadcast_to(intercept, (len(coef),)).copy()
    tried = zip(training.C, scores, strict=False)  # no scores where C was given
    validation = [{"C": float(value), "score": float(score)} for value, score in tried]
    return Classifier(coef, intercept, C, validation)


# Scorers that scikit-learn has, by the metric that they compute.
_SCORERS = {
    metrics.OVERALL_ACCURACY: "accuracy",
    metrics.MEAN_PER_CLASS_ACCURACY: "balanced_accuracy",
    metrics.MEAN_AVERAGE_PRECISION["uninterpolated"]: "average_precision",
}


def _scorer(name: str) -> Any:
    """Return a scikit-learn scorer of a metric by its full name."""
    metric = metrics.metric_named(name)
    return _SCORERS.get(name) or partial(_score, metric)


def _score(metric: metrics.Metric, model: Any, X: Any, y: Any) -> float:
    """Score all classes, or one class of several labels against the rest."""
    scores = model.decision_function(X)
    if metric.kind == "multi-label":
        return metric.value(np.where(y > 0, 1, -1)[:, None], scores[:, None])
    scores = np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores
    return metric.value(np.searchsorted(model.classes_, y), scores)


def cheapest_gram(
    shape: tuple[int, int], train_sizes: Sequence[int], n_certificates: int
) -> type[np.float32] | type[np.float64] | None:
    """Precision of a Gram matrix for all splits that takes least time; None for none.

    A split alone computes the products of its own training rows only. Those of all splits' rows
    pay from about ``n_rows**2 / n_train**2`` splits on; in float64 they cost several times that,
    but certificates then need no passes over the features, of which there is one for every C.
    Times are in float32 products of large matrices. Certificates' products have few columns and
    are in float64, which takes `CERTIFICATE` times as long.
    """
    (n_rows, n_features), sizes = shape, np.array(train_sizes, dtype=float)
    passes = CERTIFICATE * n_certificates * 4 * n_features * sizes.sum()
    products = CERTIFICATE * n_certificates * 2 * (sizes**2).sum()
    once = float(n_features) * n_rows**2
    best, least = None, n_features * (sizes**2).sum() + passes
    choices = ((np.float32, 4, once + passes), (np.float64, 8, EXACT * once + products))
    for precision, itemsize, work in choices:
        # Beside one half of it, a split's own part of it, which is copied in float32 too.
        size = itemsize * n_rows**2 / 2 + (itemsize + 4) * sizes.max() ** 2
        if work < least and size <= 0.5 * available_memory():
            best, least = precision, work
    return best
