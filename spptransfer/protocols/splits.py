"""Lists of training and test images: drawn by a rule of our own, written, read and checked.

The rule: the images of a class are put in the order of the SHA-256 digests of
``<seed>/<split>/<id>``, and the first ones are taken. It needs no random generator, so that the
lists are the same on every machine and with every version of every library, and an image's
rank does not depend on which other images there are.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spptransfer.datasets.base import Dataset
from spptransfer.errors import DatasetError
from spptransfer.files import expand_path, read_text

FORMAT = "spptransfer-splits"
FORMAT_VERSION = 1


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
        Ids to test on.
    folds : tuple of tuple of str, default=()
        How C is chosen: for each entry, a classifier is fitted on `train` without these ids
        and validated on them. Empty where there is nothing to choose.

    Raises
    ------
    DatasetError
        If a list is empty or repeats an id, `train` and `test` overlap, or a fold is not a
        proper part of `train`.

    Examples
    --------
    >>> split = Split("split 1", train=("a", "b", "c"), test=("d",), folds=(("c",),))
    >>> split.fit_ids(0)
    ('a', 'b')
    >>> Split("split 1", train=("a", "b"), test=("b",))
    Traceback (most recent call last):
    ...
    spptransfer.errors.DatasetError: split 1: 1 images are in train and test, 'b' for one
    """

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    folds: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        train, test = set(self.train), set(self.test)
        for part, ids, unique in (("train", self.train, train), ("test", self.test, test)):
            if not ids:
                raise DatasetError(f"{self.name}: there are no {part} images")
            if len(unique) < len(ids):
                raise DatasetError(f"{self.name}: the {part} list holds an id more than once")
        both = train & test
        if both:
            raise DatasetError(
                f"{self.name}: {len(both)} images are in train and test, '{min(both)}' for one"
            )
        for number, fold in enumerate(self.folds, start=1):
            if not fold or not set(fold) < train or len(set(fold)) < len(fold):
                raise DatasetError(
                    f"{self.name}: fold {number} must hold some but not all train images, each once"
                )

    def fit_ids(self, fold: int) -> tuple[str, ...]:
        """Training ids without those of a fold.

        Parameters
        ----------
        fold : int
            Index into `folds`.

        Returns
        -------
        tuple of str
            In the order of `train`.
        """
        held_out = set(self.folds[fold])
        return tuple(id for id in self.train if id not in held_out)

    @property
    def checksum(self) -> str:
        """SHA-256 (hexadecimal) of the lists, whatever their order and the split's name."""
        lists = {
            "train": sorted(self.train),
            "test": sorted(self.test),
            "folds": [sorted(fold) for fold in self.folds],
        }
        canonical = json.dumps(lists, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def ranked(ids: Iterable[str], *, seed: int, split: str) -> list[str]:
    """Put ids into the order of the seeded rule.

    Parameters
    ----------
    ids : iterable of str
        Ids, in any order.
    seed : int
        Another seed, another order.
    split : str
        Another split, another order.

    Returns
    -------
    list of str
        By the SHA-256 digest of ``<seed>/<split>/<id>``.

    Examples
    --------
    >>> ranked(["a", "b", "c"], seed=0, split="1")
    ['c', 'b', 'a']
    >>> ranked(["c", "a"], seed=0, split="1")
    ['c', 'a']
    """

    def digest(id: str) -> bytes:
        text = f"{seed}/{split}/{id}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()

    return sorted(ids, key=digest)


def strata(dataset: Dataset, ids: Sequence[str]) -> list[list[str]]:
    """Group images so that drawing evenly from each group keeps every class represented.

    Parameters
    ----------
    dataset : Dataset
        Gives the targets.
    ids : sequence of str
        Images to group.

    Returns
    -------
    list of list of str
        One group per class, in the order of the classes, then one of images without a class.
        An image of several classes goes to the one that is rarest among `ids`.
    """
    targets = dataset.targets_of(ids)
    if dataset.multi_label:
        present = targets == 1
        rarity = np.where(present, present.sum(axis=0), len(ids) + 1)
        stratum = np.where(present.any(axis=1), rarity.argmin(axis=1), len(dataset.classes))
    else:
        stratum = targets
    groups: list[list[str]] = [[] for _ in range(len(dataset.classes) + 1)]
    for id, number in zip(ids, stratum, strict=True):
        groups[number].append(id)
    return groups


def stratified_folds(
    dataset: Dataset, train: Sequence[str], n_folds: int, *, seed: int, split: str
) -> tuple[tuple[str, ...], ...]:
    """Deal training images into folds, class by class.

    Parameters
    ----------
    dataset : Dataset
        Gives the targets.
    train : sequence of str
        Ids to deal.
    n_folds : int
        Number of folds; 0 for none.
    seed, split
        As in `ranked`.

    Returns
    -------
    tuple of tuple of str
        Disjoint folds that cover `train`; their sizes differ by at most one, and so do the
        numbers of images that they hold of a class (for one label per image).

    Raises
    ------
    DatasetError
        If there are fewer images than folds.
    """
    if n_folds == 0:
        return ()
    if len(train) < n_folds:
        raise DatasetError(f"{len(train)} training images cannot be dealt into {n_folds} folds")
    order = [
        id
        for group in strata(dataset, train)
        for id in ranked(group, seed=seed, split=f"{split}/folds")
    ]
    return tuple(tuple(order[fold::n_folds]) for fold in range(n_folds))


def splits_checksum(splits: Iterable[Split]) -> str:
    """One SHA-256 (hexadecimal) for a list of splits: that of their checksums, line by line.

    Examples
    --------
    >>> splits_checksum([Split("split 1", train=("a",), test=("b",))])[:12]
    '84edd8222036'
    """
    lines = "\n".join(split.checksum for split in splits)
    return hashlib.sha256(lines.encode("ascii")).hexdigest()


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
        If there is no split, an id is not in the dataset, or a class has no image to train on,
        be it in a whole training list or beside one of its folds.
    """
    if not splits:
        raise DatasetError("there are no splits")
    for split in splits:
        dataset.positions(split.test)
        in_train = images_per_class(dataset, split.train)
        _check_every_class(in_train, dataset, f"{split.name}: class '%s' has no training image")
        for fold in split.folds:
            _check_every_class(
                in_train - images_per_class(dataset, fold),
                dataset,
                f"{split.name}: class '%s' has too few training images to choose C by "
                f"{len(split.folds)} folds; give it more images or set protocol.folds=0",
            )


def images_per_class(dataset: Dataset, ids: Sequence[str]) -> npt.NDArray[np.intp]:
    """Count the images of each class.

    Parameters
    ----------
    dataset : Dataset
        Gives classes and targets.
    ids : sequence of str
        Images to count.

    Returns
    -------
    ndarray of intp, shape (n_classes,)
        An image of several classes counts for each; ignored (difficult) ones do not count.
    """
    targets = dataset.targets_of(ids)
    if dataset.multi_label:
        return (targets == 1).sum(axis=0)
    return np.bincount(targets, minlength=len(dataset.classes))


def _check_every_class(counts: npt.NDArray[np.intp], dataset: Dataset, message: str) -> None:
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
    trained: dict[str, str] = {}
    for id in split.train:
        if id in digests:
            trained.setdefault(digests[id], id)
    return [(trained[digests[id]], id) for id in split.test if digests.get(id) in trained]


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
        "splits": [_as_json(split) for split in splits],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        draft = Path(folder, path.name)
        text = json.dumps(content, indent=1, ensure_ascii=False)
        # Bytes of a file name that are no UTF-8 become escapes as JSON has them, and come back.
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")
        draft.replace(path)


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


def _as_json(split: Split) -> dict[str, Any]:
    """One split as plain lists."""
    return {
        "name": split.name,
        "checksum": split.checksum,
        "train": list(split.train),
        "test": list(split.test),
        "folds": [list(fold) for fold in split.folds],
    }


def _from_json(item: Mapping[str, Any], number: int) -> Split:
    """One split from plain lists of strings."""
    lists = [item["train"], item["test"], *item.get("folds", [])]
    if not all(isinstance(ids, list) and all(isinstance(id, str) for id in ids) for ids in lists):
        raise TypeError("train, test and folds must be lists of ids")
    train, test, *folds = (tuple(ids) for ids in lists)
    return Split(str(item.get("name", f"split {number}")), train, test, tuple(folds))
