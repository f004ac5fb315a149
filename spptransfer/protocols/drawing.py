"""How the presets turn a dataset and settings into splits."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from weakref import WeakKeyDictionary

import numpy as np

from spptransfer.datasets.base import Dataset
from spptransfer.datasets.folder import BACKGROUND
from spptransfer.errors import ConfigError, DatasetError
from spptransfer.protocols.protocol import Settings
from spptransfer.protocols.splits import Split, ranked, strata, stratified_folds
from spptransfer.text import counted, plural

logger = logging.getLogger(__name__)

DEFAULT_TEST_FRACTION = 0.25
FOLDER_SPLITS = {"train": "train", "test": "test", "validation": None}
_VALIDATION_NAMES = ("val", "validation", "valid")

# Splits are drawn again for every experiment on a table; what is odd about it is told once.
_told: WeakKeyDictionary[Dataset, set[str]] = WeakKeyDictionary()


def caltech101_classes(dataset: Dataset, settings: Settings) -> Dataset:
    """Check the number of categories, and drop the background one if it does not count."""
    if not settings["include_background"] and BACKGROUND in dataset.classes:
        dataset = dataset.without_class(BACKGROUND)
    expected = 102 if settings["include_background"] else 101
    if len(dataset.classes) != expected:
        raise DatasetError(
            f"the Caltech-101 protocols need {expected} categories "
            f"(protocol.include_background={str(settings['include_background']).lower()}), "
            f"but {dataset.root} has {len(dataset.classes)}"
        )
    return dataset


def draw_per_class(dataset: Dataset, settings: Settings) -> list[Split]:
    """Draw from each class by the seeded rule: first those to train on, then those to test on."""
    return [_draw_one(dataset, settings, number) for number in range(1, settings["splits"] + 1)]


def draw_official(dataset: Dataset, settings: Settings) -> list[Split]:
    """Take the dataset's own training and test lists, and a part of the former to choose C."""
    train = _official(dataset, settings["train"], "train")
    test = _official(dataset, settings["test"], "test")
    name = f"{settings['train']} to {settings['test']}"
    validation = validation_split(settings)
    if validation is None:
        return [Split(name, train, test, _folds(dataset, train, settings))]
    held_out = _official(dataset, validation, "validation")
    if not set(held_out) < set(train):
        raise ConfigError(
            f"protocol.validation='{validation}' must be a part of the training split "
            f"'{settings['train']}', and not all of it"
        )
    return [Split(name, train, test, (held_out,))]


def validation_split(settings: Settings) -> str | None:
    """Name the official split, inside the training one, that C is chosen on; None for folds."""
    if settings["folds"] == 0 or "validation" not in settings:
        return None
    default = "val" if settings["train"] == "trainval" else None
    return settings["validation"] or default


def draw_table(dataset: Dataset, settings: Settings) -> list[Split]:
    """Take the splits of a table, or draw them where it names none.

    A row of a table has one split, so validation images lie outside the training ones; they
    join them once C is chosen. A warning counts the rows that are in no split that is used.
    """
    if not dataset.official_splits:
        return draw_per_class(dataset, settings)
    train = _official(dataset, settings["train"], "train")
    test = _official(dataset, settings["test"], "test")
    name = f"{settings['train']} to {settings['test']}"
    validation = table_validation_split(settings, dataset)
    taken = [settings["train"], settings["test"]]
    if validation is None:
        _tell_unused(dataset, taken)
        return [Split(name, train, test, _folds(dataset, train, settings))]
    held_out = _official(dataset, validation, "validation")
    _tell_unused(dataset, [*taken, validation])
    return [Split(name, train + held_out, test, (held_out,))]


def draw_folder(dataset: Dataset, settings: Settings) -> list[Split]:
    """Take the splits that a folder's own folders are, or draw them where there are none."""
    if not has_own_folders(dataset):
        return draw_per_class(dataset, settings)
    return draw_table(dataset, {**settings, **FOLDER_SPLITS})


def has_own_folders(dataset: Dataset) -> bool:
    """Tell whether folders of a dataset are its splits; another dataset's splits are not asked."""
    return dataset.name == "folder" and bool(dataset.official_splits)


def _tell_unused(dataset: Dataset, taken: Collection[str]) -> None:
    """Count the rows of a table that are in none of some splits, by the split they name."""
    unused = np.ones(len(dataset), dtype=bool)
    for name in taken:
        unused[dataset.positions(dataset.official_splits[name])] = False
    number, named = int(unused.sum()), {}
    for name, ids in dataset.official_splits.items():
        positions = dataset.positions(ids)
        if name not in taken and (count := int(unused[positions].sum())):
            named[f"'{name}'"] = count
            unused[positions] = False
    if unused.any():
        named["no split given"] = int(unused.sum())
    rows = plural(number, "row is", "rows are")
    message = f"{rows} in no split that is used ({', '.join(taken)}): {counted(named)}"
    told = _told.setdefault(dataset, set())
    if number and message not in told:
        told.add(message)
        logger.warning("dataset '%s' at %s: %s", dataset.name, dataset.root.absolute(), message)


def table_validation_split(settings: Settings, dataset: Dataset) -> str | None:
    """Name the table's split that C is chosen on; None for folds."""
    if settings["folds"] == 0:
        return None
    usual = (name for name in _VALIDATION_NAMES if name in dataset.official_splits)
    taken = (settings["train"], settings["test"])
    return settings["validation"] or next((name for name in usual if name not in taken), None)


def _draw_one(dataset: Dataset, settings: Settings, number: int) -> Split:
    """Draw one seeded split."""
    train: list[str] = []
    test: list[str] = []
    seed, split = settings["seed"], str(number)
    for label, group in zip((*dataset.classes, None), strata(dataset, dataset.ids), strict=True):
        order = ranked(group, seed=seed, split=split)
        n_train, n_test = _sizes(label, len(group), dataset.multi_label, settings)
        train += order[:n_train]
        test += order[n_train : n_train + n_test]
    train_ids = _in_order(dataset, train)
    folds = stratified_folds(dataset, train_ids, settings["folds"], seed=seed, split=split)
    return Split(f"split {number}", train_ids, _in_order(dataset, test), folds)


def _sizes(
    label: str | None, available: int, multi_label: bool, settings: Settings
) -> tuple[int, int]:
    """Numbers of training and test images of a class that has so many images."""
    n_train, n_test = settings["train_per_class"], settings["test_per_class"]
    fraction = settings.get("test_fraction")
    if fraction is not None and not n_train is n_test is None:
        raise ConfigError("protocol.test_fraction excludes train_per_class and test_per_class")
    if multi_label:
        if not n_train is n_test is None:
            raise ConfigError(
                "protocol.train_per_class and test_per_class are for one label per image; "
                "with several, use protocol.test_fraction"
            )
        share = _share(available, fraction)
        return available - share, share
    # Choosing C takes a class's images both to fit and to validate on.
    fewest = 2 if settings["folds"] else 1
    needed = (n_train or fewest) + (n_test if n_test and not n_train else 1)
    if label is not None and available < needed:
        raise DatasetError(
            f"class '{label}' has {available} image{'s' if available != 1 else ''}, "
            f"but the protocol needs at least {needed} of each class"
        )
    if n_train is not None:
        rest = available - n_train
        return n_train, rest if n_test is None else min(n_test, rest)
    share = min(max(_share(available, fraction), 1), available - fewest)
    return (available - n_test, n_test) if n_test is not None else (available - share, share)


def _share(available: int, fraction: float | None) -> int:
    """Number of test images that a fraction gives, halves rounded up."""
    return int(available * (DEFAULT_TEST_FRACTION if fraction is None else fraction) + 0.5)


def _official(dataset: Dataset, name: str, setting: str) -> tuple[str, ...]:
    """Ids of one of the dataset's own splits."""
    try:
        return tuple(dataset.official_splits[name])
    except KeyError:
        present = ", ".join(dataset.official_splits) or "none"
        raise DatasetError(
            f"dataset '{dataset.name}' at {dataset.root.absolute()} has no split '{name}'; "
            f"set protocol.{setting} to one that it has: {present}"
        ) from None


def _folds(
    dataset: Dataset, train: tuple[str, ...], settings: Settings
) -> tuple[tuple[str, ...], ...]:
    """Deal the training images of the only split into folds."""
    return stratified_folds(dataset, train, settings["folds"], seed=settings["seed"], split="1")


def _in_order(dataset: Dataset, ids: Iterable[str]) -> tuple[str, ...]:
    """Ids in the order of the dataset."""
    positions = sorted(dataset.positions(ids))
    return tuple(dataset.ids[position] for position in positions)
