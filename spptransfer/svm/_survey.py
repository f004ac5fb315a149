"""One pass over all rows: which of them lose something at given weights, and how much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spptransfer.svm._problems import Problems
from spptransfer.svm._rows import Rows, sum_of
from spptransfer.svm._threads import for_each
from spptransfer.svm._types import Array


@dataclass
class Survey:
    """What a pass found out.

    Attributes
    ----------
    nearest : ndarray of float32, shape (n_costs, n_rows)
        The largest margin deficit of a row in any problem at a cost: above 0 it loses something.
    losing : ndarray of int, shape (n_columns,)
        How many rows lose something, by problem.
    outside : ndarray, shape (n_columns,)
        The losses of the rows that are not held, by problem.
    worst : ndarray, shape (n_columns,)
        The losses of all rows at zero weights, by problem.
    """

    nearest: Array
    losing: Array
    outside: Array
    worst: Array


@dataclass(frozen=True)
class Weights:
    """Weights of the problems ``columns`` at one cost."""

    C: float
    columns: Array
    coefficients: Array
    biases: Array


def survey(
    rows: Rows,
    problems: Problems,
    weights: Sequence[Weights],
    held: Array,
    *,
    squared: bool,
    dtype: Any,
) -> Survey:
    """Read all rows once.

    Parameters
    ----------
    rows : Rows
        The rows.
    problems : Problems
        Their problems.
    weights : sequence of Weights
        What to look at, one for each cost.
    held : ndarray of bool, shape (n_rows,)
        Rows whose losses are known already.
    squared : bool
        Whether the loss is the squared hinge.
    dtype : data-type
        Precision of the scores. Losses are summed up in float64.
    """
    across = np.concatenate([part.coefficients.T for part in weights]).astype(dtype)
    biases = np.concatenate([part.biases for part in weights]).astype(dtype)
    stops = np.cumsum([len(part.columns) for part in weights])
    parts = [
        slice(stop - len(part.columns), stop) for stop, part in zip(stops, weights, strict=True)
    ]
    nearest = np.empty((len(weights), rows.shape[0]), dtype=np.float32)

    def look(share: Iterator[tuple[slice, Array]]) -> Array:
        found = np.zeros((3, len(biases)))
        for where, block in share:
            scores = across @ block.T
            scores += biases[:, None]
            signs, costs = (part.T for part in problems.of_rows(where).dense())
            for number, (part, own) in enumerate(zip(parts, weights, strict=True)):
                cost = costs[own.columns]
                deficits = 1.0 - signs[own.columns] * scores[part]
                deficits[cost <= 0] = -np.inf
                nearest[number, where] = deficits.max(axis=0)
                found[0, part] += (deficits > 0).sum(axis=1)
                losses = np.maximum(deficits, 0.0, out=deficits)
                losses = np.square(losses, out=losses) if squared else losses
                found[1, part] += own.C * np.einsum("ti,ti,i->t", losses, cost, ~held[where])
                found[2, part] += own.C * cost.sum(axis=1)
        return found

    losing, outside, worst = sum_of(for_each(look, rows.shares(dtype)))
    return Survey(nearest, losing.astype(int), outside, worst)
