"""Images that lie close to one another by their features, or far from all others.

Distances are cosine distances, 1 - cos: 0 for features of one direction, 1 for orthogonal ones.
They come from products of blocks of rows; nothing is kept for all pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]

TRAIN, TEST = 1, 2
# Rows of a block, whose products with another one's take 4 MB.
_BLOCK = 1024
# Of so many images the typical distance is measured.
_SAMPLE = 1000


class Pairs(NamedTuple):
    """Pairs of rows: those across training and test first, in each part the closest first.

    `across` counts the splits that train on one row and test on the other.
    """

    first: Indices
    second: Indices
    distance: Floats
    across: Indices

    def take(self, chosen: Indices) -> Pairs:
        """Return some of them."""
        return Pairs._make(column[chosen] for column in self)

    def join(self, others: Pairs) -> Pairs:
        """Return these and others."""
        columns: Any = zip(self, others, strict=True)
        return Pairs._make(map(np.concatenate, columns))


def unit_rows(X: npt.NDArray[np.floating]) -> Floats:
    """Return rows of length 1 in float32; rows of zeros stay."""
    lengths = np.sqrt(np.einsum("ij,ij->i", X, X, dtype=np.float64))[:, None]
    return np.divide(X, lengths, out=np.zeros(X.shape, np.float32), where=lengths > 0)


def typical_distance(units: Floats, k: int = 5) -> float:
    """Median over images of the distance to the k-th nearest other one, on up to 1,000 of them.

    The nearest few may be copies, so that the first says less.

    Examples
    --------
    >>> round(typical_distance(unit_rows(np.eye(8))), 3)
    1.0
    """
    chosen = np.unique(np.linspace(0, len(units) - 1, _SAMPLE).astype(np.intp))
    k = min(k, len(units) - 1)
    distances = [_nearest(units[part], units, k, part)[:, -1] for part in _blocks(chosen)]
    return float(np.median(np.concatenate(distances))) if k else 0.0


def near_copies(
    units: Floats,
    roles: npt.NDArray[np.int8] | None = None,
    *,
    closer_than: float,
    most: int = 1000,
) -> Pairs:
    """Find the pairs of images that are closer than a distance.

    Parameters
    ----------
    units : ndarray of float32, shape (n_images, n_features)
        Rows of length 1 (`unit_rows`).
    roles : ndarray of int8, shape (n_splits, n_images), optional
        What each split does with an image: 1 trains on it, 2 tests on it, 0 neither.
    closer_than : float
        Cosine distance.
    most : int, default=1000
        The most pairs returned, and a bound on memory.

    Returns
    -------
    Pairs

    Examples
    --------
    >>> units = unit_rows(np.array([[1, 0], [0, 1], [1, 0.1], [0.1, 1]]))
    >>> found = near_copies(units, np.array([[1, 1, 1, 2]], np.int8), closer_than=0.1)
    >>> found.first, found.second, found.distance.round(3), found.across
    (array([1, 0]), array([3, 2]), array([0.005, 0.005], dtype=float32), array([1, 0]))
    """
    roles = np.zeros((0, len(units)), np.int8) if roles is None else roles
    empty = np.empty(0, np.intp)
    best = Pairs(empty, empty, np.empty(0, np.float32), empty)
    starts = range(0, len(units), _BLOCK)
    for start in starts:
        for other in starts[start // _BLOCK :]:
            distances = _distances(units[start : start + _BLOCK], units[other : other + _BLOCK])
            is_close = distances < closer_than
            if start == other:
                is_close &= np.triu(np.ones_like(is_close), 1)
            rows, columns = np.nonzero(is_close)
            first, second = start + rows, other + columns
            across = np.zeros(len(rows), np.intp)
            for role in roles:
                across += role[first] * role[second] == TRAIN * TEST
            found = Pairs(first, second, distances[rows, columns], across)
            best = best.join(found)
            order = np.lexsort((best.second, best.first, best.distance, best.across == 0))
            best = best.take(order[:most])
    return best


def isolation(units: Floats, groups: npt.NDArray[np.integer], k: int = 5) -> tuple[Floats, Floats]:
    """Measure how far images lie from their nearest neighbours of the same group.

    Parameters
    ----------
    units : ndarray of float32, shape (n_images, n_features)
        Rows of length 1 (`unit_rows`).
    groups : ndarray of int, shape (n_images,)
        The class of each image.
    k : int, default=5
        Neighbours; fewer in a smaller group.

    Returns
    -------
    distances : ndarray of float32, shape (n_images,)
        Mean cosine distance to the k nearest other images of the group; NaN for one alone.
    ratios : ndarray of float32, shape (n_images,)
        The same divided by the group's median, so that groups that spread widely can be compared
        with others.

    Examples
    --------
    >>> units = unit_rows(np.array([[1, 0], [1, 0.2], [1, -0.2], [0, 1]]))
    >>> distances, ratios = isolation(units, np.zeros(4, int), k=2)
    >>> ratios.round(1)
    array([ 0.4,  1. ,  1. , 18.7], dtype=float32)
    """
    distances, ratios = np.full((2, len(units)), np.nan, np.float32)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        nearest = min(k, len(members) - 1)
        if not nearest:
            continue
        inside = units[members]
        for part in _blocks(np.arange(len(members))):
            near = _nearest(inside[part], inside, nearest, part)
            distances[members[part]] = near.mean(axis=1)
        median = np.median(distances[members])
        ratios[members] = distances[members] / max(median, np.finfo(np.float32).eps)
    return distances, ratios


def _blocks(numbers: Indices) -> Iterator[Indices]:
    for start in range(0, len(numbers), _BLOCK):
        yield numbers[start : start + _BLOCK]


def _distances(one: Floats, other: Floats) -> Floats:
    return np.maximum(1 - one @ other.T, 0)


def _nearest(some: Floats, units: Floats, k: int, own: Indices) -> Floats:
    """Ascending distances to the k nearest rows other than their own, shape (n_some, k)."""
    best = np.empty((len(some), 0), np.float32)
    for part in _blocks(np.arange(len(units))):
        found = _distances(some, units[part])
        rows = np.flatnonzero((own >= part[0]) & (own <= part[-1]))
        found[rows, own[rows] - part[0]] = np.inf
        both = np.concatenate([best, found], axis=1)
        best = np.sort(np.partition(both, min(k, both.shape[1]) - 1, axis=1)[:, :k], axis=1)
    return best
