"""How often every fold trains and scores on each row, which costs no copy of the data."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedKFold, check_cv

from spptransfer.errors import ConfigError
from spptransfer.svm._rows import Rows
from spptransfer.svm._targets import Targets
from spptransfer.svm._types import Array, Seed


def make_folds(
    cv: Any, targets: Targets, rows: Rows, seed: Seed
) -> tuple[list[Array], list[Array]]:
    """Counts of the training and of the held-out rows, with one column per problem or one for all.

    A number of folds stratifies: by class labels, or, for an indicator matrix, each class by
    itself. A `StratifiedKFold` does so among the rows that a class does not ignore, as for that
    class alone. Other splitters and lists of index pairs are taken as given: a row counts as often
    as it is named.
    """
    if isinstance(cv, (int, np.integer)):
        return _stratified(int(cv), targets, seed)
    if isinstance(cv, StratifiedKFold) and targets.kind == "multilabel":
        return _stratified_by_class(cv, targets.signs)
    n_rows = rows.shape[0]
    labels = targets.labels()
    pairs = list(check_cv(cv, labels, classifier=True).split(np.zeros((n_rows, 1)), labels))
    if not pairs:
        raise ConfigError("cv gave no folds; allowed: an int, a splitter or (train, test) pairs")
    counts = [[_counted(rows, n_rows) for rows in pair] for pair in pairs]
    for number, pair in enumerate(counts, 1):
        for count, purpose in zip(pair, ("train on", "score on"), strict=True):
            if not count.any():
                raise ConfigError(f"cv: fold {number} has no rows to {purpose}")
    train, held_out = zip(*counts, strict=True)
    return list(train), list(held_out)


def _counted(chosen: Any, n_rows: int) -> Array:
    """How often each row is chosen."""
    counts = np.zeros((n_rows, 1), dtype=np.int32)
    try:
        # Through the positions, since row numbers may also be negative or a mask.
        np.add.at(counts, np.arange(n_rows)[chosen], 1)
    except IndexError as error:
        raise ConfigError(f"cv holds what are no numbers of {n_rows} rows: {error}") from error
    return counts


def _stratified_by_class(cv: StratifiedKFold, signs: Array) -> tuple[list[Array], list[Array]]:
    """Folds that a splitter gives each class alone."""
    numbers = np.full(signs.shape, -1)
    for column, labels in enumerate(signs.T):
        kept = labels != 0
        numbers[kept, column] = _fold_numbers(cv, labels[kept])
    held_out = [numbers == fold for fold in range(cv.get_n_splits())]
    return [~mask for mask in held_out], held_out


def _stratified(n_folds: int, targets: Targets, seed: Seed) -> tuple[list[Array], list[Array]]:
    """Seeded folds in which every class is spread evenly."""
    if not 2 <= n_folds <= len(targets.signs):
        raise ConfigError(f"cv is {n_folds}; allowed: 2 to {len(targets.signs)} folds")
    if targets.kind == "multilabel":
        held_out = _stratified_by_column(n_folds, targets.signs, seed)
    else:
        _, labels = np.unique(targets.labels(), return_inverse=True)
        held_out = _stratified_by_column(n_folds, labels[:, None], seed)
    return [~mask for mask in held_out], held_out


def _stratified_by_column(n_folds: int, labels: Array, seed: Seed) -> list[Array]:
    held_out = [np.zeros(labels.shape, dtype=bool) for _ in range(n_folds)]
    for column in range(labels.shape[1]):
        splitter = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
        order = _fold_numbers(splitter, labels[:, column])
        for fold, mask in enumerate(held_out):
            mask[:, column] = order == fold
    return held_out


def _fold_numbers(splitter: StratifiedKFold, labels: Array) -> Array:
    """The fold that holds each row out; classes too small for all folds stay in some."""
    n_folds = splitter.get_n_splits()
    if np.bincount(labels - labels.min(initial=0)).max(initial=0) < n_folds:
        raise ConfigError(f"cv is {n_folds}, but no class has that many rows")
    numbers = np.empty(len(labels), dtype=int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for fold, (_, chosen) in enumerate(splitter.split(np.zeros((len(labels), 1)), labels)):
            numbers[chosen] = fold
    return numbers
