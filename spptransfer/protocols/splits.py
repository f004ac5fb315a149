"""Lists of training and test images: drawn by a rule of our own or read, checked and written.

The rule: the images of a class are put in the order of the SHA-256 digests of
``<seed>/<split>/<id>``, and the first ones are taken. It needs no random generator, so that the
lists are the same on every machine and with every version of every library. Images of several
labels are taken in that order too, but dealt by `deal`, which looks at all of their labels.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from spptransfer.datasets.base import Dataset
from spptransfer.errors import ConfigError, DatasetError
from spptransfer.files import atomic_write, expand_path, read_text
from spptransfer.text import counted, plural

logger = logging.getLogger(__name__)

FORMAT = "spptransfer-splits"
FORMAT_VERSION = 1
DEFAULT_TEST_FRACTION = 0.25
FOLDER_SPLITS = {"train": "train", "test": "test", "validation": None}
_VALIDATION_NAMES = ("val", "validation", "valid")

Settings = Mapping[str, Any]
Counts = npt.NDArray[np.intp]

# Splits are drawn again for every experiment on a table; what is odd about it is told once.
_told: WeakKeyDictionary[Dataset, set[str]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Split:
    """One division of a dataset into training and test images.

    Parameters
    ----------
    name : str
        Such as ``"split 1"``.
    train : tuple of str
        Ids to train on.
    test : tuple of str
        Ids to test on; empty where a model is trained for use on all images.
    folds : tuple of tuple of str, default=()
        How C is chosen: for each entry, a classifier is fitted on `train` without these ids
        and validated on them. Empty where there is nothing to choose.
    class_folds : int, default=0
        How C is chosen where every class has folds of its own: so many, stratified by that class
        alone as scikit-learn's ``StratifiedKFold`` does, unshuffled, in the order of `train`.
    class_train : tuple of tuple of str, default=()
        Where every class has training images of its own: for each class those of `train` that it
        is trained on, positives and negatives; it ignores the others.

    Raises
    ------
    DatasetError
        If there is nothing to train on, a list repeats an id, `train` and `test` overlap, or a
        fold is not a proper part of `train`.

    Examples
    --------
    >>> Split("split 1", train=("a", "b"), test=("b",))
    Traceback (most recent call last):
    ...
    spptransfer.errors.DatasetError: split 1: 1 images are in train and test, 'b' for one
    """

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    folds: tuple[tuple[str, ...], ...] = ()
    class_folds: int = 0
    class_train: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        train, test = set(self.train), set(self.test)
        if not train:
            raise DatasetError(f"{self.name}: there are no train images")
        for part, ids, unique in (("train", self.train, train), ("test", self.test, test)):
            if len(unique) < len(ids):
                raise DatasetError(f"{self.name}: the {part} list holds an id more than once")
        if both := train & test:
            raise DatasetError(
                f"{self.name}: {len(both)} images are in train and test, '{min(both)}' for one"
            )
        for number, fold in enumerate(self.folds, start=1):
            if not fold or not set(fold) < train or len(set(fold)) < len(fold):
                raise DatasetError(
                    f"{self.name}: fold {number} must hold some but not all train images, each once"
                )
        if not set().union(*self.class_train) <= train:
            raise DatasetError(f"{self.name}: class_train must hold train images alone")

    @property
    def n_folds(self) -> int:
        """Number of folds on which C is chosen."""
        return self.class_folds or len(self.folds)

    @property
    def checksum(self) -> str:
        """SHA-256 (hexadecimal) of the lists, whatever the split's name.

        Their order does not count, but that of `train` where folds of classes depend on it.
        """
        lists: dict[str, Any] = {
            "train": list(self.train) if self.class_folds else sorted(self.train),
            "test": sorted(self.test),
            "folds": list(map(sorted, self.folds)),
        }
        if self.class_folds:
            lists["class_folds"] = self.class_folds
        if self.class_train:
            lists["class_train"] = list(map(sorted, self.class_train))
        canonical = json.dumps(lists, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()

    def train_targets(self, dataset: Dataset, largest_negative: int = -1) -> npt.NDArray[Any]:
        """Return the targets of `train`: 0 where an image does not count for a class.

        Targets of several labels up to `largest_negative` are those of negatives.
        """
        targets: npt.NDArray[Any] = dataset.targets_of(self.train)
        if targets.ndim == 1:
            return targets
        targets = np.where(targets <= largest_negative, -1, targets).astype(targets.dtype)
        for k, ids in enumerate(self.class_train):
            targets[~np.isin(self.train, ids), k] = 0
        return targets


# ------------------------------------------------------------------------------------ drawn splits


def draw_per_class(dataset: Dataset, settings: Settings) -> list[Split]:
    """Draw from each class by the seeded rule: first those to train on, then those to test on."""
    return [_draw_one(dataset, settings, str(k)) for k in range(1, settings["splits"] + 1)]


def _draw_one(dataset: Dataset, settings: Settings, number: str) -> Split:
    train: list[str] = []
    test: list[str] = []
    order = ranked(dataset.ids, settings["seed"], number)
    if dataset.multi_label:
        fraction = _test_fraction(settings, multi_label=True)
        parts = deal(dataset.targets_of(order) == 1, (1 - fraction, fraction))
        train, test = ([order[i] for i in part] for part in parts)
    else:
        labels = dataset.targets_of(order)
        for k, label in enumerate(dataset.classes):
            group = [order[i] for i in np.flatnonzero(labels == k)]
            n_train, n_test = _sizes(label, len(group), settings)
            train += group[:n_train]
            test += group[n_train : n_train + n_test]
    split = Split(f"split {number}", _in_order(dataset, train), _in_order(dataset, test))
    return with_folds(split, dataset, settings, number)


def _in_order(dataset: Dataset, ids: Iterable[str]) -> tuple[str, ...]:
    """Ids in the order of the dataset."""
    return tuple(dataset.ids[int(i)] for i in np.sort(dataset.positions(ids)))


def _sizes(label: str, available: int, settings: Settings) -> tuple[int, int]:
    """Numbers of training and test images of a class that has so many images."""
    fraction = _test_fraction(settings)
    n_train, n_test = settings["train_per_class"], settings["test_per_class"]
    # Choosing C takes a class's images both to fit and to validate on.
    fewest = 2 if settings["folds"] else 1
    needed = (n_train or fewest) + (n_test if n_test and not n_train else 1)
    if available < needed:
        raise DatasetError(
            f"class '{label}' has {plural(available, 'image')}, "
            f"but the protocol needs at least {needed} of each class"
        )
    if n_train is not None:
        rest = available - n_train
        return n_train, rest if n_test is None else min(n_test, rest)
    if n_test is None:  # halves are rounded up
        n_test = min(max(int(available * fraction + 0.5), 1), available - fewest)
    return available - n_test, n_test


def _test_fraction(settings: Settings, multi_label: bool = False) -> float:
    fraction = settings.get("test_fraction")
    by_number = not settings["train_per_class"] is settings["test_per_class"] is None
    if by_number and fraction is not None:
        raise ConfigError("protocol.test_fraction excludes train_per_class and test_per_class")
    if by_number and multi_label:
        raise ConfigError(
            "protocol.train_per_class and test_per_class are for one label per image; "
            "with several, use protocol.test_fraction, or a list such as train_per_class=[8]"
        )
    return DEFAULT_TEST_FRACTION if fraction is None else float(fraction)


def sizes_of(settings: Settings) -> list[int]:
    """Return the training sizes of a learning curve, by rising size; empty where there is none."""
    given = settings.get("train_per_class")
    return list(given) if isinstance(given, list | tuple) else []


def ranked(ids: Iterable[str], seed: int, split: str) -> list[str]:
    """Put ids into the order of the seeded rule.

    An id's rank does not depend on which others there are.

    Examples
    --------
    >>> ranked(["a", "b", "c"], seed=0, split="1")
    ['c', 'b', 'a']
    """

    def digest(id: str) -> bytes:
        text = f"{seed}/{split}/{id}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()

    return sorted(ids, key=digest)


def deal(present: npt.NDArray[np.bool_], shares: Sequence[float]) -> list[Counts]:
    """Deal rows of several labels into parts that hold about their share of every label.

    This is the iterative stratification of Sechidis, Tsoumakas and Vlahavas (2011): the rarest
    label's rows first, each to the part that wants most of that label, then of any. What is still
    equal goes to the first part: the order of the rows takes the place of their random choice.
    """
    rows_wanted = len(present) * np.array(shares)
    labels_wanted = np.outer(shares, present.sum(axis=0))
    part = np.full(len(present), -1)
    while (part < 0).any():
        left = present[part < 0].sum(axis=0)
        label = np.where(left > 0, left, len(present) + 1).argmin() if left.any() else None
        chosen = part < 0 if label is None else (part < 0) & present[:, label]
        for row in np.flatnonzero(chosen):
            wanted = rows_wanted if label is None else labels_wanted[:, label]
            candidates = np.flatnonzero(wanted == wanted.max())
            best = candidates[rows_wanted[candidates].argmax()]
            part[row] = best
            rows_wanted[best] -= 1
            labels_wanted[best] -= present[row]
    return [np.flatnonzero(part == number) for number in range(len(shares))]


# ------------------------------------------------------------------------ splits of the dataset's


def draw_official(dataset: Dataset, settings: Settings) -> list[Split]:
    """Take the dataset's own training and test lists, and a part of the former to choose C."""
    validation = validation_split(settings)
    split = _lists_of(dataset, settings)
    if validation is not None:
        held_out = _official(dataset, validation, "validation")
        if not set(held_out) < set(split.train):
            raise ConfigError(
                f"protocol.validation='{validation}' must be a part of the training split "
                f"'{settings['train']}', and not all of it"
            )
        split = replace(split, folds=(held_out,))
    return [with_folds(split, dataset, settings, "1")]


def validation_split(settings: Settings) -> str | None:
    """Name the official split, inside the training one, that C is chosen on; None for folds."""
    if settings["folds"] == 0 or "validation" not in settings or sizes_of(settings):
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
    validation = table_validation_split(settings, dataset)
    split = _lists_of(dataset, settings)
    taken = [settings["train"], settings["test"]]
    if validation is not None:
        taken.append(validation)
        held_out = _official(dataset, validation, "validation")
        split = replace(split, train=split.train + held_out, folds=(held_out,))
    _tell_unused(dataset, taken)
    return [with_folds(split, dataset, settings, "1")]


def table_validation_split(settings: Settings, dataset: Dataset) -> str | None:
    """Name the table's split that C is chosen on; None for folds."""
    if settings["folds"] == 0 or sizes_of(settings):
        return None
    taken = (settings["train"], settings["test"])
    usual = [n for n in _VALIDATION_NAMES if n in dataset.official_splits and n not in taken]
    return settings["validation"] or next(iter(usual), None)


def draw_folder(dataset: Dataset, settings: Settings) -> list[Split]:
    """Take the splits that a folder's own folders are, or draw them where there are none."""
    if not has_own_folders(dataset):
        return draw_per_class(dataset, settings)
    return draw_table(dataset, {**settings, **FOLDER_SPLITS})


def has_own_folders(dataset: Dataset) -> bool:
    """Tell whether folders of a dataset are its splits; another dataset's splits are not asked."""
    return dataset.name == "folder" and bool(dataset.official_splits)


def _lists_of(dataset: Dataset, settings: Settings) -> Split:
    train = _official(dataset, settings["train"], "train")
    test = _official(dataset, settings["test"], "test")
    return Split(f"{settings['train']} to {settings['test']}", train, test)


def _official(dataset: Dataset, name: str, setting: str) -> tuple[str, ...]:
    """Ids of one of the dataset's own splits."""
    if name not in dataset.official_splits:
        present = ", ".join(dataset.official_splits) or "none"
        raise DatasetError(
            f"dataset '{dataset.name}' at {dataset.root.absolute()} has no split '{name}'; "
            f"set protocol.{setting} to one that it has: {present}"
        )
    return tuple(dataset.official_splits[name])


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


# -------------------------------------------------------------------------------- the choice of C


def with_folds(split: Split, dataset: Dataset, settings: Settings, key: str) -> Split:
    """Give a split that has none the folds that the settings ask for.

    Folds of classes are dealt in the order of `train`: official lists keep theirs, all others
    are put into the seeded one.
    """
    n_folds, seed = settings["folds"], settings["seed"]
    if n_folds == 0:
        return replace(split, folds=(), class_folds=0)
    if split.n_folds:
        return split
    if len(split.train) < n_folds:
        raise DatasetError(
            f"{len(split.train)} training images cannot be dealt into {n_folds} folds"
        )
    order = ranked(split.train, seed, f"{key}/folds")
    if settings["choose_C"] == "per class":
        train = tuple(order) if settings.get("splits") else split.train
        return replace(split, train=train, class_folds=n_folds)
    if dataset.multi_label:
        parts = deal(dataset.targets_of(order) == 1, [1 / n_folds] * n_folds)
        return replace(split, folds=tuple(tuple(order[i] for i in part) for part in parts))
    order = [order[i] for i in np.argsort(dataset.targets_of(order), kind="stable")]
    return replace(split, folds=tuple(tuple(order[k::n_folds]) for k in range(n_folds)))


def all_images(dataset: Dataset, settings: Settings) -> Split:
    """All labelled images to train on, none to test: what a model for use is trained on."""
    split = Split("all labelled images", tuple(dataset.ids), ())
    return with_folds(split, dataset, settings, "all")


# ------------------------------------------------------------------------------------------ checks


def check_splits(splits: Sequence[Split], dataset: Dataset) -> None:
    """Refuse splits that cannot be trained and tested on a dataset.

    Parameters
    ----------
    splits : sequence of Split
        From a protocol or a file.
    dataset : Dataset
        The dataset they are for.

    Raises
    ------
    DatasetError
        If there is no split, one has no test images, an id is not in the dataset, or a class has
        no image to train on, be it in a whole training list or beside one of its folds.
    """
    if not splits:
        raise DatasetError("there are no splits")
    for split in splits:
        if not split.test:
            raise DatasetError(f"{split.name}: there are no test images")
        dataset.positions(split.test)
        in_train = images_per_class(dataset, split.train)
        _check_every_class(in_train, dataset, f"{split.name}: class '%s' has no training image")
        beside = [in_train - images_per_class(dataset, fold) for fold in split.folds]
        for left in [in_train - 1] if split.class_folds else beside:
            _check_every_class(
                left,
                dataset,
                f"{split.name}: class '%s' has too few training images to choose C by "
                f"{split.n_folds} folds; give it more images or set protocol.folds=0",
            )


def images_per_class(dataset: Dataset, ids: Sequence[str]) -> Counts:
    """Count the images of each class; an image of several counts for each, if not as difficult."""
    targets = dataset.targets_of(ids)
    if dataset.multi_label:
        return (targets == 1).sum(axis=0)
    return np.bincount(targets, minlength=len(dataset.classes))


def _check_every_class(counts: Counts, dataset: Dataset, message: str) -> None:
    """Raise `message` with the name of the first class that has no image."""
    if counts.min() < 1:
        raise DatasetError(message % dataset.classes[int(counts.argmin())])


def shared_content(split: Split, digests: Mapping[str, str]) -> list[tuple[str, str]]:
    """Find test images that are the same file as a training image under another id.

    Parameters
    ----------
    split : Split
        Whose `train` and `test` to compare.
    digests : mapping of str to str
        Content digest by id, as a feature cache holds them; ids without one are left out.

    Returns
    -------
    list of (str, str)
        The first training id with that content and the test id, in the order of `test`.

    Examples
    --------
    >>> split = Split("split 1", train=("cat/1.jpg",), test=("cat/2.jpg", "dog/1.jpg"))
    >>> shared_content(split, {"cat/1.jpg": "6f", "cat/2.jpg": "a0", "dog/1.jpg": "6f"})
    [('cat/1.jpg', 'dog/1.jpg')]
    """
    trained = {digests[id]: id for id in reversed(split.train) if id in digests}
    return [(trained[digests[id]], id) for id in split.test if digests.get(id) in trained]


# ------------------------------------------------------------------------------------------- files


def splits_checksum(splits: Iterable[Split]) -> str:
    """One SHA-256 (hexadecimal) for a list of splits: that of their checksums, line by line.

    Examples
    --------
    >>> splits_checksum([Split("split 1", train=("a",), test=("b",))])[:12]
    '84edd8222036'
    """
    lines = "\n".join(split.checksum for split in splits)
    return hashlib.sha256(lines.encode("ascii")).hexdigest()


def write_splits(
    path: str | os.PathLike[str], splits: Sequence[Split], *, description: str = ""
) -> None:
    """Write splits as JSON, whole or not at all.

    Parameters
    ----------
    path : path-like
        File to write.
    splits : sequence of Split
        What to write.
    description : str, default=""
        Said at the head of the file, for readers.
    """
    path = Path(path)
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "description": description,
        "checksum": splits_checksum(splits),
        "splits": [{**vars(split), "checksum": split.checksum} for split in splits],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as draft:
        text = json.dumps(content, indent=1, ensure_ascii=False)
        # Bytes of a file name that are no UTF-8 become escapes as JSON has them, and come back.
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_splits(path: str | os.PathLike[str]) -> list[Split]:
    """Read splits that were written by `write_splits` or by hand.

    By hand, ``{"splits": [{"train": [...], "test": [...]}]}`` is enough.

    Parameters
    ----------
    path : path-like
        A JSON file.

    Returns
    -------
    list of Split
        In the order of the file.

    Raises
    ------
    DatasetError
        If the file cannot be read, is of another form or a later version, or its lists do not
        have the checksum that it carries.
    """
    path = expand_path(path)
    try:
        content = json.loads(read_text(path))
        version = content.get("format_version", FORMAT_VERSION)
        if content.get("format", FORMAT) != FORMAT or version != FORMAT_VERSION:
            raise DatasetError(f"{path}: not a file of the format {FORMAT} {FORMAT_VERSION}")
        splits = [_from_json(item, number) for number, item in enumerate(content["splits"], 1)]
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{path} does not hold splits ({error}); "
            'expected {"splits": [{"train": [ids], "test": [ids]}, ...]}'
        ) from error
    if content.get("checksum", splits_checksum(splits)) != splits_checksum(splits):
        raise DatasetError(f"{path}: the lists do not have the checksum that the file carries")
    return splits


def _from_json(item: Mapping[str, Any], number: int) -> Split:
    """One split from plain lists of strings."""
    n_folds, by_class = len(item.get("folds", [])), item.get("class_train", [])
    lists = [item["train"], item["test"], *item.get("folds", []), *by_class]
    if not all(isinstance(ids, list) and all(isinstance(id, str) for id in ids) for ids in lists):
        raise TypeError("train, test, folds and class_train must be lists of ids")
    train, test, *rest = map(tuple, lists)
    folds, own = rest[:n_folds], rest[n_folds:]
    class_folds = item.get("class_folds", 0)
    if type(class_folds) is not int or class_folds < 0 or class_folds == 1:
        raise TypeError("class_folds must be 0 or a whole number of at least 2")
    name = str(item.get("name", f"split {number}"))
    return Split(name, train, test, tuple(folds), class_folds, tuple(own))
