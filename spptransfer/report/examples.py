"""The images worth looking at: right by a hair, wrong with conviction."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spptransfer.report.run_folder import Predictions

PER_GROUP = 12
# Of one class, no more can be needed: at most PER_GROUP are shown, and at most as many taken
# already as another class's example.
_CANDIDATES_PER_CLASS = 2 * PER_GROUP


@dataclass(frozen=True)
class Example:
    """One image and what was said about it.

    Attributes
    ----------
    image_id : str
        The image's id.
    labels : tuple of str
        What the image is labelled with.
    named : str
        The class whose score put the image here.
    score : float
        That class's decision value.
    rival, rival_score : str or None, float or None
        Single-label runs: the class that came second, or the true one where `named` is wrong.
    """

    image_id: str
    labels: tuple[str, ...]
    named: str
    score: float
    rival: str | None = None
    rival_score: float | None = None


@dataclass(frozen=True)
class ExampleGroup:
    """Images of one kind.

    Attributes
    ----------
    title, meaning : str
        What the images have in common, in a few words and in a sentence.
    examples : tuple of Example
        The most extreme first.
    """

    title: str
    meaning: str
    examples: tuple[Example, ...]


# Extremity, class the limit counts, example: the larger the extremity the earlier it is shown.
_Candidate = tuple[float, str, Example]


def example_groups(
    splits: Iterable[Predictions], classes: Sequence[str], *, multi_label: bool
) -> list[ExampleGroup]:
    """Choose the hardest right and the most confident wrong test images.

    No image appears twice in a group, however many splits tested it, and no class more often
    than `limit_per_class` says.

    Parameters
    ----------
    splits : iterable of Predictions
        The splits' predictions.
    classes : sequence of str
        Class names in the order of the score columns.
    multi_label : bool
        Whether an image can have several labels.

    Returns
    -------
    list of ExampleGroup
        Groups that have an image, each with at most `PER_GROUP`.
    """
    kinds = _MULTI_LABEL_KINDS if multi_label else _SINGLE_LABEL_KINDS
    found: list[list[_Candidate]] = [[] for _ in kinds]
    for split in splits:
        for candidates, (_, _, select) in zip(found, kinds, strict=True):
            candidates.extend(select(split, classes))
    groups = (
        ExampleGroup(title, meaning, _most_extreme(candidates, limit_per_class(len(classes))))
        for candidates, (title, meaning, _) in zip(found, kinds, strict=True)
    )
    return [group for group in groups if group.examples]


def limit_per_class(n_classes: int) -> int:
    """Say how often a class may appear in a group, lest one fills it.

    Parameters
    ----------
    n_classes : int
        Number of classes.

    Returns
    -------
    int
        2, or more where few classes have to fill a group.

    Examples
    --------
    >>> limit_per_class(102), limit_per_class(2)
    (2, 6)
    """
    return max(2, math.ceil(PER_GROUP / max(n_classes, 1)))


def _most_extreme(candidates: list[_Candidate], per_class: int) -> tuple[Example, ...]:
    """Take the first `PER_GROUP` by falling extremity within the limits."""
    chosen: dict[str, Example] = {}
    shown: Counter[str] = Counter()
    for _, name, example in sorted(candidates, key=lambda item: (-item[0], item[2].image_id)):
        if example.image_id in chosen or shown[name] >= per_class:
            continue
        chosen[example.image_id] = example
        shown[name] += 1
        if len(chosen) == PER_GROUP:
            break
    return tuple(chosen.values())


def _margins(
    split: Predictions,
) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.intp]]:
    """Score of the true class minus the best other one's, and that other class."""
    rows = np.arange(len(split.ids))
    others = split.known_scores.astype(np.float64)
    true = others[rows, split.targets].copy()
    others[rows, split.targets] = -np.inf
    rivals = others.argmax(axis=1)
    with np.errstate(invalid="ignore"):  # two missing scores have no margin: NaN
        return true - others[rows, rivals], rivals


def _hardest_right(split: Predictions, classes: Sequence[str]) -> Iterator[_Candidate]:
    """Images whose true class came first by the smallest margin."""
    margins, rivals = _margins(split)
    keys = np.where(margins > 0, margins, np.inf)
    yield from _single(split, classes, keys, split.targets, rivals)


def _confident_wrong(split: Predictions, classes: Sequence[str]) -> Iterator[_Candidate]:
    """Images where another class beat the true one by the largest margin."""
    margins, rivals = _margins(split)
    keys = np.where(margins < 0, margins, np.inf)
    yield from _single(split, classes, keys, rivals, split.targets)


def _single(
    split: Predictions,
    classes: Sequence[str],
    keys: npt.NDArray[np.floating],
    named: npt.NDArray[np.integer],
    rivals: npt.NDArray[np.integer],
) -> Iterator[_Candidate]:
    """Describe the images with the smallest finite keys, and the two classes of each fight."""
    for row in _smallest(keys, split.targets):
        true = classes[split.targets[row]]
        example = Example(
            image_id=str(split.ids[row]),
            labels=(true,),
            named=classes[named[row]],
            score=float(split.scores[row, named[row]]),
            rival=classes[rivals[row]],
            rival_score=float(split.scores[row, rivals[row]]),
        )
        yield -float(keys[row]), true, example


def _faint_hits(split: Predictions, classes: Sequence[str]) -> Iterator[_Candidate]:
    """Positives that scored just above zero."""
    hits = (split.targets == 1) & (split.scores > 0)
    yield from _multi(split, classes, np.where(hits, split.scores, np.inf))


def _false_alarms(split: Predictions, classes: Sequence[str]) -> Iterator[_Candidate]:
    """Negatives with the largest scores above zero."""
    alarms = (split.targets == -1) & (split.scores > 0)
    yield from _multi(split, classes, np.where(alarms, -split.scores, np.inf))


def _misses(split: Predictions, classes: Sequence[str]) -> Iterator[_Candidate]:
    """Positives with the smallest scores below zero."""
    misses = (split.targets == 1) & (split.scores < 0)
    yield from _multi(split, classes, np.where(misses, split.scores, np.inf))


def _multi(
    split: Predictions, classes: Sequence[str], keys: npt.NDArray[np.floating]
) -> Iterator[_Candidate]:
    """Describe the (image, class) pairs with the smallest finite keys."""
    columns = np.tile(np.arange(len(classes)), len(keys))
    for cell in _smallest(keys.ravel(), columns):
        row, column = divmod(int(cell), len(classes))
        present = np.flatnonzero(split.targets[row] == 1).tolist()
        labels = tuple(classes[index] for index in present)
        name, score = classes[column], float(split.scores[row, column])
        yield -float(keys[row, column]), name, Example(str(split.ids[row]), labels, name, score)


def _smallest(
    keys: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]
) -> npt.NDArray[np.intp]:
    """Positions of each label's smallest finite keys, smallest first."""
    order = np.argsort(keys, kind="stable")
    order = order[np.isfinite(keys[order])]
    by_label = np.argsort(labels[order], kind="stable")
    sorted_labels = labels[order][by_label]
    rank = np.empty(len(order), dtype=np.intp)
    rank[by_label] = np.arange(len(order)) - np.searchsorted(sorted_labels, sorted_labels)
    return order[rank < _CANDIDATES_PER_CLASS]


_SINGLE_LABEL_KINDS = (
    (
        "Hardest right",
        "The true class came first by the smallest margin over the second.",
        _hardest_right,
    ),
    (
        "Most confident wrong",
        "Another class beat the true one by the largest margin.",
        _confident_wrong,
    ),
)
_MULTI_LABEL_KINDS = (
    ("Hardest right", "The class is in the image and its score is just above zero.", _faint_hits),
    (
        "Most confident false alarms",
        "The image is not labelled with the class, yet the score is high.",
        _false_alarms,
    ),
    (
        "Most confident misses",
        "The image is labelled with the class, yet the score is low.",
        _misses,
    ),
)
