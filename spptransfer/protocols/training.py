"""Train one linear classifier per class, with C chosen inside the training part.

Settings are checked before an extraction, which needs no scikit-learn; hence the late imports.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from spptransfer import metrics
from spptransfer.errors import ConfigError
from spptransfer.system import available_memory

if TYPE_CHECKING:
    from spptransfer.svm import GramMatrix, RowSubset

Folds = Sequence[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]

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
    device : str
        Where `LinearSVM` computes.
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
    device: str = "cpu"
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
    """

    coef: npt.NDArray[np.float32]
    intercept: npt.NDArray[np.float32]
    C: float | npt.NDArray[np.float64]
    validation: list[dict[str, float]] = field(default_factory=list)
    solver: dict[str, float] = field(default_factory=dict)

    def decision_function(self, X: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Decision values of every class, (n_samples, n_classes)."""
        return np.asarray(X, np.float32) @ self.coef.T + self.intercept


def check_training(training: Training, *, multi_label: bool, has_folds: bool) -> None:
    """Refuse settings that do not fit the labels or the splits.

    Parameters
    ----------
    training : Training
        How to train.
    multi_label : bool
        Whether an image may carry several labels.
    has_folds : bool
        Whether there are folds to choose C on.

    Raises
    ------
    ConfigError
        If there are several values of C and no folds, the class weights do not fit the labels, or
        the engine does not fit the solver.
    """
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
    if training.engine == "dask" and importlib.util.find_spec("distributed") is None:
        raise ConfigError("classifier.engine: dask needs: pip install 'spptransfer[dask]'")
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
    folds: Sequence[npt.NDArray[np.intp]] = (),
    gram: npt.NDArray[np.floating] | None = None,
) -> Classifier:
    """Train all classes, with C chosen on the folds where there is a choice.

    Parameters
    ----------
    X : ndarray or RowSubset of shape (n, n_features)
        Normalised features.
    targets : ndarray of int, shape (n,) or (n, n_classes)
        Class indices, or an indicator in {1, 0 = difficult, -1}.
    n_classes : int
        Number of classes; with class indices each must occur.
    training : Training
        How to train.
    folds : sequence of ndarray of int
        Positions validated on, fold by fold.
    gram : ndarray of shape (n, n), optional
        ``X @ X.T`` where it is known already.

    Returns
    -------
    Classifier

    Raises
    ------
    ConfigError
        If there are several values of C and no folds, or the class weights do not fit the labels.
    """
    check_training(training, multi_label=targets.ndim == 2, has_folds=bool(folds))
    if targets.ndim == 2 and training.difficult == "negative":
        targets = np.where(targets > 0, targets, -1).astype(targets.dtype)
    everything = np.arange(len(targets))
    pairs = (
        [(np.setdiff1d(everything, fold), fold) for fold in folds] if len(training.C) > 1 else []
    )
    if training.solver == "scikit-learn":
        return _fit_scikit_learn(np.asarray(X[:]), targets, n_classes, training, pairs)
    return _fit_shared(X, targets, n_classes, training, pairs, gram)


def gram_if_useful(
    X: npt.NDArray[np.float32],
    training: Training,
    train: Sequence[npt.NDArray[np.intp]],
    *,
    n_classes: int = 1,
    n_folds: int = 0,
) -> GramMatrix | None:
    """Gram matrix of all training rows, for every split to reuse; None where it would not pay.

    A split alone computes the products of its own training rows only. Those of all splits' rows
    pay from about ``n_rows**2 / n_train**2`` splits on; in float64 they cost several times that,
    but certificates then need no passes over the features, of which there is one for every C.

    Parameters
    ----------
    X : ndarray of shape (n, n_features)
        Normalised features of all splits' images.
    training : Training
        How to train.
    train : sequence of ndarray of int
        Numbers of the training rows of every split.
    n_classes, n_folds : int
        Number of classes, and of the folds on which C is chosen.

    Returns
    -------
    GramMatrix of float32 or float64, or None
        Of the rows that any split trains on.

    Examples
    --------
    >>> X, rng = np.eye(90, 100, dtype=np.float32), np.random.default_rng(0)
    >>> train = [np.sort(rng.permutation(90)[:60]) for _ in range(10)]
    >>> gram_if_useful(X, Training(), train[:1]) is None
    True
    >>> gram_if_useful(X, Training(), train).dtype
    dtype('float32')
    >>> gram_if_useful(X, Training(C=(0.1, 1.0)), train, n_classes=20, n_folds=3).dtype
    dtype('float64')
    """
    used = np.unique(np.concatenate(train))
    if training.solver != "spptransfer" or len(used) > X.shape[1]:
        return None
    chosen = cheapest_gram(
        (len(used), X.shape[1]),
        [len(rows) for rows in train],
        n_classes * (n_folds + 1) * len(training.C) if n_folds else n_classes,
    )
    if chosen is None:
        return None
    from spptransfer.svm import gram_matrix

    return gram_matrix(X, chosen, rows=used)


def cheapest_gram(
    shape: tuple[int, int], train_sizes: Sequence[int], n_certificates: int
) -> type[np.float32] | type[np.float64] | None:
    """Precision of a Gram matrix for all splits that takes least time; None for none.

    Times are in float32 products of large matrices. Certificates' products have few columns and
    are in float64, which takes `CERTIFICATE` times as long.
    """
    (n_rows, n_features), sizes = shape, np.array(train_sizes, dtype=float)
    free = available_memory()
    passes = CERTIFICATE * n_certificates * 4 * n_features * sizes.sum()
    products = CERTIFICATE * n_certificates * 2 * (sizes**2).sum()
    once = float(n_features) * n_rows**2
    best, least = None, n_features * (sizes**2).sum() + passes
    choices = ((np.float32, 4, once + passes), (np.float64, 8, EXACT * once + products))
    for precision, itemsize, work in choices:
        # Beside one half of it, a split's own part of it, which is copied in float32 too.
        size = itemsize * n_rows**2 / 2 + (itemsize + 4) * sizes.max() ** 2
        if work < least and size <= 0.5 * free:
            best, least = precision, work
    return best


def _fit_shared(
    X: npt.NDArray[np.floating] | RowSubset,
    targets: npt.NDArray[np.integer],
    n_classes: int,
    training: Training,
    pairs: Folds,
    gram: npt.NDArray[np.floating] | None,
) -> Classifier:
    """All classes, values of C and folds in one call of `LinearSVMCV`."""
    from spptransfer.svm import LinearSVM, LinearSVMCV

    options: dict[str, Any] = {
        "loss": training.loss,
        "class_weight": training.class_weight,
        "device": training.device,
    }
    if not pairs:
        model: Any = LinearSVM(training.C[0], **options)
        C: Any = training.C[0]
    else:
        model = LinearSVMCV(
            training.C,
            cv=pairs,
            scoring=_scorer(training.chosen_by),
            per_class=training.per_class,
            **options,
        )
    with _workers(training):
        model.fit(X, targets, gram=gram)
    classifier = _classifier(model.coef_, model.intercept_, n_classes, model.C_ if pairs else C)
    if pairs:
        scores = model.cv_results_["mean_test_score"]
        classifier.validation = _validation(training.C, scores)
    classifier.solver = {
        "relative_duality_gap": float(np.max(model.duality_gap_)),
        "iterations": int(model.n_iter_),
    }
    return classifier


@contextmanager
def _workers(training: Training) -> Iterator[None]:
    """Let joblib send the folds of a search to Dask's workers, where that is asked for."""
    if training.engine == "local" or len(training.C) == 1:
        yield
        return
    import joblib
    from distributed import Client

    try:
        client = Client(training.scheduler)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"classifier.scheduler: no Dask scheduler answers at '{training.scheduler}'"
        ) from error
    with client, joblib.parallel_config("dask", client=client):
        yield


def _fit_scikit_learn(
    X: npt.NDArray[np.floating],
    targets: npt.NDArray[np.integer],
    n_classes: int,
    training: Training,
    pairs: Folds,
) -> Classifier:
    """The field's way, one LIBLINEAR problem after the other; for comparison."""
    if targets.ndim == 1:
        search = _search(training, pairs).fit(X, targets)
        return _from_search(search, n_classes, training, pairs)
    if not training.per_class and pairs:
        raise ConfigError(
            "classifier.solver: scikit-learn chooses C per class only; "
            "set protocol.choose_C: per class, or one C"
        )
    parts = []
    for column in targets.T:
        kept = np.flatnonzero(column != 0)
        position = np.full(len(column), -1)
        position[kept] = np.arange(len(kept))
        inside = [tuple(position[rows][position[rows] >= 0] for rows in pair) for pair in pairs]
        search = _search(training, inside).fit(X[kept], (column[kept] > 0).astype(int))
        parts.append(_from_search(search, 1, training, pairs))
    return Classifier(
        coef=np.concatenate([part.coef for part in parts]),
        intercept=np.concatenate([part.intercept for part in parts]),
        C=np.array([part.C for part in parts]) if pairs else training.C[0],
        validation=_validation(
            training.C, np.mean([[v["score"] for v in p.validation] for p in parts], axis=0)
        )
        if pairs
        else [],
    )


def _search(training: Training, pairs: Sequence[Any]) -> Any:
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import LinearSVC

    weight: Any = training.class_weight
    if isinstance(weight, Mapping):
        weight = {1: weight.get(1, 1.0), 0: weight.get(-1, 1.0)}
    svc = LinearSVC(
        C=training.C[0], loss=training.loss, class_weight=weight, dual="auto", max_iter=10_000
    )
    if not pairs:
        return svc
    return GridSearchCV(svc, {"C": training.C}, cv=pairs, scoring=_scorer(training.chosen_by))


def _from_search(search: Any, n_classes: int, training: Training, pairs: Folds) -> Classifier:
    best = search.best_estimator_ if pairs else search
    classifier = _classifier(best.coef_, best.intercept_, n_classes, float(best.C))
    if pairs:
        classifier.validation = _validation(training.C, search.cv_results_["mean_test_score"])
    return classifier


def _classifier(coef: Any, intercept: Any, n_classes: int, C: Any) -> Classifier:
    """Weights with one row per class; two classes share one hyperplane."""
    coef, intercept = np.asarray(coef, np.float32), np.asarray(intercept, np.float32)
    if n_classes == 2 and len(coef) == 1:
        coef, intercept = np.concatenate([-coef, coef]), np.concatenate([-intercept, intercept])
    return Classifier(coef, np.broadcast_to(intercept, (len(coef),)).copy(), C)


def _validation(values: Sequence[float], scores: npt.ArrayLike) -> list[dict[str, float]]:
    return [
        {"C": float(C), "score": float(score)}
        for C, score in zip(values, np.asarray(scores), strict=True)
    ]


# Scorers that LinearSVMCV and scikit-learn have, by the metric that they compute.
_SCORERS = {
    metrics.OVERALL_ACCURACY: "accuracy",
    metrics.MEAN_PER_CLASS_ACCURACY: "balanced_accuracy",
}


def _scorer(name: str) -> Any:
    """Return a scikit-learn scorer of a metric by its full name."""
    metric = metrics.metric_named(name)
    if name in _SCORERS:
        return _SCORERS[name]
    if metric.kind == "single-label":
        return partial(_score_classes, metric)
    from sklearn.metrics import make_scorer

    return make_scorer(partial(_score_one_class, metric=metric), response_method=_RESPONSE)


_RESPONSE = "decision_function"


def _score_classes(metric: metrics.Metric, model: Any, X: Any, y: Any) -> float:
    scores = model.decision_function(X)
    scores = np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores
    return metric.value(np.searchsorted(model.classes_, y), scores)


def _score_one_class(y_true: Any, scores: Any, *, metric: metrics.Metric) -> float:
    targets = np.where(np.asarray(y_true) > 0, 1, -1)
    return metric.value(targets[:, None], np.asarray(scores)[:, None])
