"""Labels of any kind become one problem per column: signs +1, -1, or 0 where a row is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import assert_all_finite

from spptransfer.errors import ConfigError
from spptransfer.svm._rows import Array

Kind: TypeAlias = Literal["binary", "multiclass", "multilabel"]
ClassWeight: TypeAlias = Mapping[Any, float] | Literal["balanced"] | None


@dataclass(frozen=True)
class Targets:
    """The one-versus-rest problems that some labels stand for.

    Attributes
    ----------
    kind : {"binary", "multiclass", "multilabel"}
        One problem for two classes, otherwise one per class.
    classes : ndarray
        The labels; for an indicator matrix its column numbers.
    signs : ndarray of int8, shape (n_rows, n_problems)
        What each row is in each problem.
    negative_label : int
        What an indicator matrix uses for "not this class": 0 or -1.
    """

    kind: Kind
    classes: Array
    signs: Array
    negative_label: int = 0

    def side_weights(
        self, class_weight: ClassWeight, sample_weight: Array, counts: Array | None = None
    ) -> tuple[Array, Array]:
        """Weights of the positives and of the negatives of each problem.

        ``counts``, one column per problem or one for all, says how often rows count; "balanced"
        counts them that often, each time by its weight.
        """
        n_problems = self.signs.shape[1]
        if class_weight is None:
            return np.ones(n_problems), np.ones(n_problems)
        if isinstance(class_weight, str) and class_weight == "balanced":
            counted = sample_weight[:, None] if counts is None else sample_weight[:, None] * counts
            return self._balanced(counted)
        if not isinstance(class_weight, Mapping):
            raise ConfigError(
                f"class_weight is {class_weight!r}; allowed: None, 'balanced' or a dict"
            )
        weights = {key: _weight(key, value) for key, value in class_weight.items()}
        if self.kind == "multiclass":
            by_class = np.array([weights.pop(label, 1.0) for label in self.classes.tolist()])
            pair = by_class, np.ones(n_problems)
        else:
            negative, positive = self.classes.tolist() if self.kind == "binary" else (0, 1)
            fallback = weights.pop(-1, 1.0) if self.kind == "multilabel" else 1.0
            pair = (
                np.full(n_problems, weights.pop(positive, 1.0)),
                np.full(n_problems, weights.pop(negative, fallback)),
            )
        if weights:
            raise ConfigError(
                f"class_weight names {sorted(weights, key=str)}, which no row is labelled with"
            )
        return pair

    def _balanced(self, counted: Array) -> tuple[Array, Array]:
        """Weights inversely proportional to how much a class's rows weigh.

        In a multi-class problem they multiply the positives only, as they do in LIBLINEAR.
        """
        positives = np.sum(counted * (self.signs > 0), axis=0)
        negatives = np.sum(counted * (self.signs < 0), axis=0)
        both = positives + negatives
        if self.kind == "multiclass":
            return _ratio(both, len(self.classes) * positives), np.ones(len(both))
        return _ratio(both, 2.0 * positives), _ratio(both, 2.0 * negatives)

    def decode(self, scores: Array) -> Array:
        """Labels predicted by decision values, or read as signs, shape (n_rows, n_problems)."""
        if self.kind == "multilabel":
            return np.where(scores > 0, 1, self.negative_label)
        if self.kind == "binary":
            return np.asarray(self.classes[(scores[:, 0] > 0).astype(int)])
        return np.asarray(self.classes[scores.argmax(axis=1)])


def _ratio(total: Array, part: Array) -> Array:
    """Quotients; 1 where there is no part, and nothing to weigh."""
    return np.divide(total, part, out=np.ones_like(total), where=part > 0)


def _weight(key: Any, value: Any) -> float:
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = float("nan")
    if not (np.isfinite(weight) and weight >= 0):
        raise ConfigError(f"class_weight[{key!r}] is {value!r}; allowed: finite numbers >= 0")
    return weight


def encode_targets(y: Any) -> Targets:
    """Read labels of any kind.

    A matrix with one column per class is an indicator: with a -1 anywhere, 1 is the class,
    -1 not the class and 0 to be ignored; without, 1 is the class and 0 not the class. A single
    column holds class labels, as in scikit-learn.
    """
    labels = np.asarray(y)
    several = labels.ndim == 2 and labels.shape[1] > 1
    if several and labels.dtype.kind in "biuf" and np.isin(labels, (-1, 0, 1)).all():
        ternary = bool((labels == -1).any())
        signs = labels.astype(np.int8) if ternary else np.where(labels == 1, 1, -1).astype(np.int8)
        return Targets("multilabel", np.arange(labels.shape[1]), signs, -1 if ternary else 0)
    if labels.dtype.kind in "fc":
        assert_all_finite(labels, input_name="y")
    check_classification_targets(labels)
    if several:
        raise ConfigError(
            f"y has {labels.shape[1]} columns but is a {type_of_target(labels)}; "
            "allowed values in an indicator matrix: 1, 0, -1"
        )
    classes, numbers = np.unique(column_or_1d(labels, warn=True), return_inverse=True)
    if len(classes) < 2:
        raise ConfigError(
            f"y has {len(classes)} class ({', '.join(map(str, classes))}); at least 2 are needed"
        )
    if len(classes) == 2:
        return Targets("binary", classes, np.where(numbers == 1, 1, -1).astype(np.int8)[:, None])
    signs = np.where(numbers[:, None] == np.arange(len(classes)), 1, -1).astype(np.int8)
    return Targets("multiclass", classes, signs)


@dataclass(frozen=True)
class Problems:
    """Signs and costs of every class against the rest, in every fold, one column each.

    Kept in as few bytes as say them: dense columns are made when needed.

    Attributes
    ----------
    signs : ndarray of int8, shape (n_rows, n_classes)
        -1, 0 or +1.
    counts : sequence of (ndarray, shape (n_rows, 1) or (n_rows, n_classes)) or None
        How often each fold trains on a row, or whether; None for once on all rows.
    sides : sequence of (ndarray, ndarray), shape (n_classes,)
        Weights of each fold's positives and negatives.
    sample_weight : ndarray, shape (n_rows,)
        Factors on C.
    count : int
        The number of problems, which are numbered fold by fold.
    """

    signs: Array
    counts: Sequence[Array | None]
    sides: Sequence[tuple[Array, Array]]
    sample_weight: Array
    count: int

    @classmethod
    def of(
        cls,
        targets: Targets,
        class_weight: ClassWeight,
        sample_weight: Array,
        counts: Sequence[Array | None] = (None,),
    ) -> Problems:
        """The problems of some labels; "balanced" weighs only the rows that a fold trains on."""
        sides = [targets.side_weights(class_weight, sample_weight, count) for count in counts]
        n_problems = len(counts) * targets.signs.shape[1]
        return cls(targets.signs, counts, sides, sample_weight, n_problems)

    def of_rows(self, rows: Any) -> Problems:
        """The same problems with some of the rows only."""
        counts = [None if count is None else count[rows] for count in self.counts]
        signs, weight = self.signs[rows], self.sample_weight[rows]
        return replace(self, signs=signs, counts=counts, sample_weight=weight)

    def dense(self, columns: Array | None = None, C: float | Array = 1.0) -> tuple[Array, Array]:
        """Signs and costs of some columns in float64, each column contiguous.

        Beyond the last column they start over again. ``C`` is a factor on the costs, which are zero
        in rows that do not count.
        """
        numbers = np.arange(self.count) if columns is None else columns % self.count
        across, costs = np.empty((2, len(numbers), len(self.signs)))
        folds, classes = np.divmod(numbers, self.signs.shape[1])
        for fold in np.unique(folds):
            inside = folds == fold
            own = classes[inside]
            signs = self.signs[:, own].T
            positive, negative = self.sides[fold]
            negatives = np.where(signs < 0, negative[own, None], 0.0)
            cost = np.where(signs > 0, positive[own, None], negatives)
            cost *= self.sample_weight
            count = self.counts[fold]
            if count is not None:
                cost *= count.T if count.shape[1] == 1 else count[:, own].T
            across[inside], costs[inside] = signs, cost
        costs *= np.broadcast_to(C, len(numbers))[:, None]
        return across.T, costs.T
