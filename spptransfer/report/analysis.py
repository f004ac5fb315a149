"""What predictions and weights say beyond the metrics: confusions, curves, examples, maps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from spptransfer.metrics import confusion_matrix, precision_recall_curve, thin_curve
from spptransfer.report.run_folder import Predictions

EXAMPLES_PER_GROUP = 12

_Floats = npt.NDArray[np.float64]
_Counts = npt.NDArray[np.int64]
_Item = TypeVar("_Item")


def count_confusions(splits: Iterable[Predictions], n_classes: int) -> _Counts:
    """Count true (rows) against predicted classes (columns), over all splits."""
    counts = np.zeros((n_classes, n_classes), dtype=np.int64)
    for split in splits:
        counts += confusion_matrix(split.targets, split.scores.argmax(axis=1), n_classes)
    return counts


def similarity_order(counts: _Counts) -> npt.NDArray[np.intp]:
    """Order classes so that those which are confused with one another are neighbours.

    Hierarchical clustering, average linkage with optimal leaf ordering (Bar-Joseph et al., 2001),
    on the mean of both directions' confusion rates.
    """
    n_classes = len(counts)
    rates = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    similarity = (rates + rates.T) / 2
    np.fill_diagonal(similarity, 0)
    if n_classes < 3 or not similarity.any():
        return np.arange(n_classes)
    from scipy.cluster.hierarchy import leaves_list, linkage

    distances = 1 - similarity[np.triu_indices(n_classes, 1)]
    return leaves_list(linkage(distances, method="average", optimal_ordering=True)).astype(np.intp)


def most_confused(counts: _Counts, n_pairs: int) -> list[tuple[int, int]]:
    """List the largest cells off the diagonal; among equal counts the rarer class comes first.

    Examples
    --------
    >>> most_confused(np.array([[9, 0, 1], [0, 10, 0], [4, 0, 6]]), 10)
    [(2, 0), (0, 2)]
    """
    totals = counts.sum(axis=1)
    rows, columns = np.nonzero(counts * ~np.eye(len(counts), dtype=bool))
    worst = np.lexsort((columns, rows, totals[rows], -counts[rows, columns]))[:n_pairs]
    return list(zip(rows[worst].tolist(), columns[worst].tolist(), strict=True))


class ClassCurves(NamedTuple):
    """A class's precision-recall curves, and the precision of a random ranking.

    There is a curve, (n_points, 2) of recall and precision, for each split with a positive image.
    """

    name: str
    curves: list[_Floats]
    chance: float


def class_curves(splits: Sequence[Predictions], classes: Sequence[str]) -> list[ClassCurves]:
    """Compute every class's precision-recall curves, thinned to what a small figure shows."""
    found = []
    for index, name in enumerate(classes):
        curves, positives, counted = [], 0, 0
        for split in splits:
            kept = split.targets[:, index] != 0
            targets = split.targets[kept, index]
            if (targets == 1).any():
                curves.append(_thinned_curve(targets, split.scores[kept, index]))
            positives += int((targets == 1).sum())
            counted += len(targets)
        found.append(ClassCurves(name, curves, positives / max(counted, 1)))
    return found


def _thinned_curve(targets: npt.NDArray[np.integer], scores: npt.NDArray[np.floating]) -> _Floats:
    precision, recall, _ = precision_recall_curve(targets, scores)
    return thin_curve(recall, precision)


def envelope(curve: _Floats) -> _Floats:
    """Raise each precision to the largest one at that recall or beyond (VOC devkit, 2010 on).

    Examples
    --------
    >>> envelope(np.array([[0.0, 0.5], [0.5, 0.7], [1.0, 0.6]]))[:, 1]
    array([0.7, 0.7, 0.6])
    """
    highest = np.maximum.accumulate(curve[::-1, 1])[::-1]
    return np.column_stack([curve[:, 0], highest])


class Example(NamedTuple):
    """A test image, its labels, and the class whose score put it into its group.

    The rival, where an image has one label, is the class that came second, or the true one where
    `named` is wrong.
    """

    image_id: str
    labels: list[str]
    named: str
    score: float
    rival: str | None = None
    rival_score: float | None = None


class ExampleGroup(NamedTuple):
    """Images with something in common; the most extreme first."""

    title: str
    meaning: str
    examples: list[Example]


def example_groups(splits: Sequence[Predictions], classes: Sequence[str]) -> list[ExampleGroup]:
    """Choose the hardest right and the most confident wrong test images.

    No image appears twice in a group, however many splits tested it, and no class more often
    than `limit_per_class` says.
    """
    table = Predictions(*map(np.concatenate, zip(*splits, strict=True)))
    multi_label = table.targets.ndim == 2
    groups = []
    for title, meaning, keys in (_multi_label_kinds if multi_label else _single_label_kinds)(table):
        examples = []
        for row, column in _most_extreme(keys, table.ids):
            describe = _multi_label_example if multi_label else _single_label_example
            examples.append(describe(table, row, column, classes))
        if examples:
            groups.append(ExampleGroup(title, meaning, examples))
    return groups


def limit_per_class(n_classes: int) -> int:
    """Say how often a class may appear in a group, lest one fills it.

    Examples
    --------
    >>> limit_per_class(102), limit_per_class(2)
    (2, 6)
    """
    return max(2, math.ceil(EXAMPLES_PER_GROUP / max(n_classes, 1)))


def _most_extreme(
    keys: npt.NDArray[np.floating], ids: npt.NDArray[np.str_]
) -> Iterator[tuple[int, int]]:
    """Yield (row, column) of the smallest finite keys, within the limits on image and class."""
    n_classes = keys.shape[1]
    finite = np.flatnonzero(np.isfinite(keys))
    order = finite[np.argsort(keys.flat[finite], kind="stable")].tolist()
    cells = (divmod(cell, n_classes) for cell in order)
    return limited(((cell, ids[cell[0]], cell[1]) for cell in cells), n_classes)


def limited(candidates: Iterable[tuple[_Item, str, int]], n_classes: int) -> Iterator[_Item]:
    """Yield the first of candidates, given with image and class, within the limits on both.

    Examples
    --------
    >>> list(limited([("a", "1.jpg", 0), ("b", "1.jpg", 1), ("c", "2.jpg", 1)], 2))
    ['a', 'c']
    """
    seen: set[str] = set()
    shown: Counter[int] = Counter()
    for item, image, label in candidates:
        if image in seen or shown[label] >= limit_per_class(n_classes):
            continue
        seen.add(image)
        shown[label] += 1
        yield item
        if len(seen) == EXAMPLES_PER_GROUP:
            return


_Kind = tuple[str, str, npt.NDArray[np.floating]]


def _single_label_kinds(table: Predictions) -> Iterator[_Kind]:
    """Rank images by the margin of the true class, at whose column each has its key."""
    rows = np.arange(len(table.ids))
    others = table.scores.astype(np.float64)
    true = others[rows, table.targets]
    others[rows, table.targets] = -np.inf
    margins = np.full(others.shape, np.nan)
    with np.errstate(invalid="ignore"):  # two missing scores have no margin: NaN
        margins[rows, table.targets] = true - others.max(axis=1)
    yield (
        "Hardest right",
        "The true class came first by the smallest margin over the second.",
        np.where(margins > 0, margins, np.inf),
    )
    yield (
        "Most confident wrong",
        "Another class beat the true one by the largest margin.",
        np.where(margins < 0, margins, np.inf),
    )


def _single_label_example(
    table: Predictions, row: int, column: int, classes: Sequence[str]
) -> Example:
    """Describe the fight between the true class and the best other one, the winner first."""
    scores = table.scores[row]
    first, second = scores.argsort(kind="stable")[:-3:-1].tolist()
    other = first if first != column else second
    winner, loser = (column, other) if scores[column] > scores[other] else (other, column)
    return Example(
        str(table.ids[row]),
        [classes[column]],
        classes[winner],
        float(scores[winner]),
        classes[loser],
        float(scores[loser]),
    )


def _multi_label_kinds(table: Predictions) -> Iterator[_Kind]:
    """Rank pairs of an image and a class by the score."""
    positive, scores = table.targets == 1, table.scores
    yield (
        "Hardest right",
        "The class is in the image and its score is just above zero.",
        np.where(positive & (scores > 0), scores, np.inf),
    )
    yield (
        "Most confident false alarms",
        "The image is not labelled with the class, yet the score is high.",
        np.where((table.targets == -1) & (scores > 0), -scores, np.inf),
    )
    yield (
        "Most confident misses",
        "The image is labelled with the class, yet the score is low.",
        np.where(positive & (scores < 0), scores, np.inf),
    )


def _multi_label_example(
    table: Predictions, row: int, column: int, classes: Sequence[str]
) -> Example:
    labels = [classes[index] for index in np.flatnonzero(table.targets[row] == 1).tolist()]
    return Example(str(table.ids[row]), labels, classes[column], float(table.scores[row, column]))


def overlap(finest: int, level: int) -> _Floats:
    """Share of each of a coarse level's bins that falls into each cell of a finer grid.

    The level need not divide `finest`; every column sums to 1.

    Examples
    --------
    >>> overlap(4, 2)
    array([[0.5, 0. ],
           [0.5, 0. ],
           [0. , 0.5],
           [0. , 0.5]])
    """
    fine, coarse = np.arange(finest + 1) / finest, np.arange(level + 1) / level
    upper = np.minimum(fine[1:, None], coarse[None, 1:])
    lower = np.maximum(fine[:-1, None], coarse[None, :-1])
    return np.clip(upper - lower, 0, None) * level


def attention_maps(
    blocks: Iterable[tuple[int | None, npt.NDArray[np.floating]]], finest: int
) -> _Floats:
    """Spread every class's squared positive weights over the image.

    Each bin's energy (the sum over channels, scales and levels of the squared positive weights)
    is spread evenly over the area the bin covers.

    Parameters
    ----------
    blocks : iterable of (level, weights)
        Weights of shape (n_classes, channels · level²), channel-major. Blocks without a grid
        (level None) have no place in the image and are left out.
    finest : int
        Cells per side of the map, normally the finest level.

    Returns
    -------
    ndarray of float64, shape (n_classes, finest, finest)
        Energy relative to an even spread: 1 everywhere if a class looks everywhere alike.

    Examples
    --------
    >>> weights = np.array([[3.0, 0.0, -5.0, 1.0]])    # one class, one channel, a 2×2 level
    >>> attention_maps([(2, weights)], finest=2)
    array([[[3.6, 0. ],
            [0. , 0.4]]])
    """
    total = np.zeros((1, finest, finest))
    for level, weights in blocks:
        if level is None:
            continue
        grid = np.maximum(weights, 0).reshape(len(weights), -1, level, level)
        energy = np.einsum("kcij,kcij->kij", grid, grid, dtype=np.float64)
        spread = overlap(finest, level)
        total = total + np.einsum("fn,cnm,gm->cfg", spread, energy, spread)
    mean = total.mean(axis=(1, 2), keepdims=True)
    return np.divide(total, mean, out=np.ones_like(total), where=mean > 0)
