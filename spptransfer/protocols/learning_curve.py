"""Splits of several training sizes on the same test images, for a learning curve.

For every repeat the training images are put into a random order once, and each size takes the first
ones, so that those of a size are among those of the next: curves differ by what images add, not by
which ones were drawn.

* One label per image: so many images of each class.
* Several labels: the rule of VISSL's low-shot benchmark on VOC 2007. Each class has a sample of its
  own, drawn independently: k positives, and k negatives for each of the other classes. An image
  that was not drawn for a class is ignored by that class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from spptransfer.datasets.base import Dataset
from spptransfer.errors import ConfigError, DatasetError
from spptransfer.protocols.splits import Settings, Split, ranked, sizes_of, with_folds
from spptransfer.text import plural


def draw_sizes(
    draw: Callable[[Dataset, Settings], list[Split]],
    dataset: Dataset,
    settings: Settings,
    largest_negative: int = -1,
) -> list[Split]:
    """Draw splits of every training size, each as often as there are repeats.

    Parameters
    ----------
    draw : callable
        Draws the splits of the largest size, or takes the dataset's own.
    dataset : Dataset
        Classes and targets.
    settings : mapping
        Of the protocol; ``train_per_class`` is a list.
    largest_negative : int, default=-1
        Where images have several labels, 0 if difficult images are negatives too.

    Returns
    -------
    list of Split
        Those of the smallest size, then those of the next.

    Raises
    ------
    ConfigError
        If a size leaves no choice of C.
    DatasetError
        If a class has too few images.
    """
    sizes, multi_label = sizes_of(settings), dataset.multi_label
    _check_folds(sizes[0], settings, multi_label)
    largest = None if multi_label else sizes[-1]
    bases = draw(dataset, {**settings, "train_per_class": largest, "folds": 0})
    bases = bases * ((settings.get("splits") or 1) // len(bases))
    splits = []
    for size in sizes:
        for number, base in enumerate(bases, start=1):
            samples = tuple(_samples(dataset, settings, base, size, number, largest_negative))
            taken = set().union(*samples)
            split = Split(
                f"{size} per class, split {number}",
                tuple(filter(taken.__contains__, base.train)),
                base.test,
                class_train=samples if multi_label else (),
            )
            splits.append(with_folds(split, dataset, settings, str(number)))
    return splits


def _check_folds(smallest: int, settings: Settings, multi_label: bool) -> None:
    """Refuse a size of which C cannot be chosen."""
    folds = settings["folds"]
    if folds and multi_label and settings["choose_C"] == "shared":
        raise ConfigError(
            "protocol.train_per_class gives each class images of its own, on which C is chosen "
            "for it alone: set protocol.choose_C='per class', or folds=0 and one classifier.C"
        )
    needed = folds if multi_label else 2
    if folds and smallest < needed:
        raise ConfigError(
            f"protocol.train_per_class: {plural(smallest, 'image')} of each class cannot be dealt "
            f"into {folds} folds to choose C; begin at {needed}, or set protocol.folds=0 and one "
            "classifier.C"
        )


def _samples(
    dataset: Dataset,
    settings: Settings,
    base: Split,
    size: int,
    number: int,
    largest_negative: int,
) -> Iterator[tuple[str, ...]]:
    """Yield what each class takes of the training images of a split."""
    others = len(dataset.classes) - 1
    order = ranked(base.train, settings["seed"], str(number))
    for k, name in enumerate(dataset.classes):
        if dataset.multi_label:  # each class draws for itself
            order = ranked(base.train, settings["seed"], f"{number}/{name}")
            targets = dataset.targets_of(order)[:, k]
            parts = [
                ("positive", targets == 1, size),
                ("negative", targets <= largest_negative, size * others),
            ]
        else:
            parts = [("training", dataset.targets_of(order) == k, size)]
        taken: list[str] = []
        for kind, fits, wanted in parts:
            rows = np.flatnonzero(fits)[:wanted]
            if len(rows) < wanted:
                raise DatasetError(
                    f"class '{name}' has {plural(len(rows), f'{kind} image')}, but "
                    f"protocol.train_per_class={size} needs {wanted}"
                )
            taken += [order[row] for row in rows]
        yield tuple(taken)


def describe_sizes(settings: Settings, multi_label: bool) -> str:
    """Say in plain words how a learning curve is drawn; nothing where there is none."""
    sizes = sizes_of(settings)
    if not sizes:
        return ""
    who = "Learning curve: images of a size are among those of the next"
    if multi_label:
        who += (
            ", and each class has a sample of its own, k positives and k negatives for each of the "
            "other classes (VISSL's low-shot rule)"
        )
    repeats = plural(settings.get("splits") or 1, "time")
    listed = ", ".join(map(str, sizes))
    return f" {who}; sizes {listed}, each drawn {repeats}; the headline is that of {sizes[-1]}."
