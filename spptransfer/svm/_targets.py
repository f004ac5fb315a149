"""Labels of any kind become one problem per column: signs +1, -1, or 0 where a row is left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import assert_all_finite

from spptransfer.errors import ConfigError
from spptransfer.svm._types import Array

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
        self,
        class_weight: ClassWeight,
        sample_weight: Array,
        chosen: Array | None = None,
    ) -> tuple[Array, Array]:
        """Weights of the positives and of the negatives of each problem.

        ``chosen``, one column per problem or one for all, says how often rows count; "balanced"
        counts them that often, each time by its weight.
        """
        n_problems = self.signs.shape[1]
        if class_weight is None:
            return np.ones(n_problems), np.ones(n_problems)
        if isinstance(class_weight, str) and class_weight == "balanced":
            counted = sample_weight[:, None] if chosen is None else sample_weight[:, None] * chosen
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
            pair = self._two_sided(weights, n_problems)
        if weights:
            raise ConfigError(
                f"class_weight names {sorted(weights, key=str)}, which no row is labelled with"
            )
        return pair

    def _two_sided(self, weights: dict[Any, float], n_problems: int) -> tuple[Array, Array]:
        """Weights that name the positive and the negative side, taken out of ``weights``."""
        negative, positive = self.classes.tolist() if self.kind == "binary" else (0, 1)
        fallback = weights.pop(-1, 1.0) if self.kind == "multilabel" else 1.0
        return (
            np.full(n_problems, weights.pop(positive, 1.0)),
            np.full(n_problems, weights.pop(negative, fallback)),
        )

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

    def labels(self) -> Array:
        """The labels that were read, in their own form."""
        return self.decode(self.signs)

    def decode(self, scores: Array) -> Array:
        """Labels predicted by decision values, shape (n_rows, n_problems)."""
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
    if labels.ndim == 2 and labels.shape[1] > 1 and _is_indicator(labels):
        ternary = bool((labels == -1).any())
        signs = labels.astype(np.int8) if ternary else np.where(labels == 1, 1, -1).astype(np.int8)
        return Targets("multilabel", np.arange(labels.shape[1]), signs, -1 if ternary else 0)
    if labels.dtype.kind in "fc":
        assert_all_finite(labels, input_name="y")
    check_classification_targets(labels)
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise ConfigError(
            f"y has {labels.shape[1]} columns but is a {type_of_target(labels)}; "
            "allowed values in an indicator matrix: 1, 0, -1"
        )
    return _encode_classes(column_or_1d(labels, warn=True))


def _is_indicator(labels: Array) -> bool:
    return labels.dtype.kind in "biuf" and bool(np.isin(labels, (-1, 0, 1)).all())


def _encode_classes(labels: Array) -> Targets:
    classes, numbers = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ConfigError(
            f"y has {len(classes)} class ({', '.join(map(str, classes))}); at least 2 are needed"
        )
    if len(classes) == 2:
        return Targets("binary", classes, np.where(numbers == 1, 1, -1).astype(np.int8)[:, None])
    signs = np.where(numbers[:, None] == np.arange(len(classes)), 1, -1).astype(np.int8)
    return Targets("multiclass", classes, signs)
