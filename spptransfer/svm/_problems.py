"""All problems of a task: every class against the rest, in every fold, one column each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spptransfer.svm._targets import ClassWeight, Targets
from spptransfer.svm._types import Array

Masks = Sequence[Array | None]


@dataclass(frozen=True)
class Problems:
    """Signs and costs, kept in as few bytes as say them: dense columns are made when needed.

    Attributes
    ----------
    signs : ndarray of int8, shape (n_rows, n_classes)
        -1, 0 or +1.
    masks : sequence of (ndarray, shape (n_rows, 1) or (n_rows, n_classes)) or None
        How often each fold trains on a row, or whether; None for once on all rows.
    sides : sequence of (ndarray, ndarray), shape (n_classes,)
        Weights of each fold's positives and negatives.
    sample_weight : ndarray, shape (n_rows,)
        Factors on C.
    chosen : ndarray of int, optional
        Numbers of the problems that are meant, where it is not all of them; they are counted
        fold by fold.
    """

    signs: Array
    masks: Masks
    sides: Sequence[tuple[Array, Array]]
    sample_weight: Array
    chosen: Array | None = None

    @classmethod
    def of(
        cls,
        targets: Targets,
        class_weight: ClassWeight,
        sample_weight: Array,
        masks: Masks = (None,),
    ) -> Problems:
        """The problems of some labels; "balanced" weighs only the rows that a fold trains on."""
        sides = [targets.side_weights(class_weight, sample_weight, mask) for mask in masks]
        return cls(targets.signs, masks, sides, sample_weight)

    @property
    def n_classes(self) -> int:
        """The number of problems of one fold."""
        return int(self.signs.shape[1])

    @property
    def count(self) -> int:
        """The number of problems."""
        return self.n_classes * len(self.masks) if self.chosen is None else len(self.chosen)

    def of_rows(self, rows: Any) -> Problems:
        """The same problems with some of the rows only."""
        masks = [None if mask is None else mask[rows] for mask in self.masks]
        signs, weight = self.signs[rows], self.sample_weight[rows]
        return replace(self, signs=signs, masks=masks, sample_weight=weight)

    def of_columns(self, columns: Array) -> Problems:
        """Some of the problems."""
        chosen = np.arange(self.count) if self.chosen is None else self.chosen
        return replace(self, chosen=chosen[columns])

    def dense(self, columns: Array | None = None, C: float | Array = 1.0) -> tuple[Array, Array]:
        """Signs and costs of some columns in float64, with contiguous columns.

        Parameters
        ----------
        columns : ndarray of int, optional
            Which; beyond the last they start over again.
        C : float or ndarray, shape (n_columns,)
            Factor on the costs.

        Returns
        -------
        (ndarray, ndarray), shape (n_rows, n_columns)
            Costs are zero in rows that do not count.
        """
        numbers = np.arange(self.count) if columns is None else columns % self.count
        if self.chosen is not None:
            numbers = self.chosen[numbers]
        signs = np.empty((len(numbers), len(self.signs)))
        costs = np.empty_like(signs)
        folds, classes = np.divmod(numbers, self.n_classes)
        for fold in np.unique(folds):
            inside = folds == fold
            signs[inside], costs[inside] = self._of_fold(fold, classes[inside])
        costs *= np.broadcast_to(C, len(numbers))[:, None]
        return signs.T, costs.T

    def _of_fold(self, fold: int, classes: Array) -> tuple[Array, Array]:
        """Signs and costs, one row per problem."""
        positive, negative = self.sides[fold]
        signs = self.signs[:, classes].T
        costs = np.where(
            signs > 0, positive[classes, None], np.where(signs < 0, negative[classes, None], 0.0)
        )
        costs *= self.sample_weight
        mask = self.masks[fold]
        if mask is not None:
            costs *= mask.T if mask.shape[1] == 1 else mask[:, classes].T
        return signs, costs
