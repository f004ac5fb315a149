"""A table of paths, labels and, if wanted, splits."""

from __future__ import annotations

import csv
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from spptransfer.datasets.base import Dataset
from spptransfer.errors import DatasetError
from spptransfer.ids import Ids

_HEADERS = "path,label or path,labels, either with a further column split"


class _Header(NamedTuple):
    """Where the columns stand that are read; `split` is None where there is none."""

    width: int
    path: int
    label: int
    split: int | None
    multi_label: bool


class _Row(NamedTuple):
    """One line of the table."""

    path: str
    labels: tuple[str, ...]
    split: str


@dataclass
class _Notes:
    """What is kept of all rows but their paths: numbers, not Python objects for each.

    `numbers` counts lines as a text editor does. `labels` of all rows stand one after another,
    by their number in `classes`; `counts` says how many each row has. `splits` holds numbers in
    `names`, -1 for none.
    """

    numbers: array[int] = field(default_factory=lambda: array("q"))
    labels: array[int] = field(default_factory=lambda: array("i"))
    counts: array[int] = field(default_factory=lambda: array("i"))
    splits: array[int] = field(default_factory=lambda: array("i"))
    classes: dict[str, int] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)

    def add(self, number: int, row: _Row) -> None:
        self.numbers.append(number)
        self.counts.append(len(row.labels))
        for label in row.labels:
            self.labels.append(self.classes.setdefault(label, len(self.classes)))
        split = self.names.setdefault(row.split, len(self.names)) if row.split else -1
        self.splits.append(split)


def read_csv(table: str | os.PathLike[str], *, separator: str = ";") -> Dataset:
    r"""Read images, labels and splits from a CSV file.

    The header is ``path,label`` for one label per image, or ``path,labels`` for any number of
    them, none included. A further column ``split`` names the split of each row; a row that
    leaves it empty belongs to none. Other columns are ignored.

    Parameters
    ----------
    table : path-like
        The CSV file: UTF-8 (with or without a byte order mark), comma-separated. Relative
        paths in it are relative to its folder; an image's id is its path as written.
    separator : str, default=";"
        What stands between several labels of an image in the column ``labels``.

    Returns
    -------
    Dataset
        With the splits of the table as `official_splits`.

    Raises
    ------
    DatasetError
        If the file is missing or has another header, or a row lacks a path or a label or names
        an image a second time. The message gives the row.

    Notes
    -----
    Whether the images are there is not looked at: one that is missing becomes a failed row of
    an extraction, as one that cannot be read does.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = Path(folder, "labels.csv")
    ...     _ = table.write_text("path,labels,split\na.jpg,cat;sofa,train\nb.jpg,cat,test\n")
    ...     for name in ("a.jpg", "b.jpg"):
    ...         Path(folder, name).touch()
    ...     dataset = read_csv(table)
    >>> dataset.classes, dataset.targets.tolist()
    (('cat', 'sofa'), [[1, 1], [1, -1]])
    >>> dataset.official_splits
    {'train': Ids(['a.jpg']), 'test': Ids(['b.jpg'])}
    """
    table = Path(table)
    notes = _Notes()
    try:
        with table.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, strict=True)
            header = _read_header(table, next(reader, []))
            ids = Ids(_read_rows(table, reader, header, separator, notes))
    except OSError as error:
        raise DatasetError(f"cannot read {table}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{table} is not UTF-8 text: {error.reason}") from error
    except csv.Error as error:
        raise DatasetError(f"{table}, row {reader.line_num}: {error}") from error
    if not ids:
        raise DatasetError(f"{table} has a header but no rows")
    _check_unique(table, ids, notes)
    if not notes.classes:
        raise DatasetError(f"{table}: no row has a label")
    classes = sorted(notes.classes)
    return Dataset(
        name="csv",
        root=table.parent,
        ids=ids,
        classes=tuple(classes),
        targets=_targets(notes, classes, header.multi_label),
        official_splits=_splits(ids, notes),
    )


def find_csv(place: Path) -> Path | None:
    """Find the table at a place: the file itself, or the only CSV file of a folder.

    Parameters
    ----------
    place : Path
        A file or a folder.

    Returns
    -------
    Path or None
        The CSV file.
    """
    if place.is_file():
        return place
    tables = sorted(place.glob("*.csv")) if place.is_dir() else []
    return tables[0] if len(tables) == 1 else None


def _read_header(table: Path, cells: Sequence[str]) -> _Header:
    """Find the columns, or say what they may be."""
    names = [name.strip().lower() for name in cells]
    labels = [name for name in names if name in ("label", "labels")]
    if names.count("path") != 1 or len(labels) != 1 or names.count("split") > 1:
        raise DatasetError(f"{table}: the header is '{','.join(names)}'; allowed: {_HEADERS}")
    split = names.index("split") if "split" in names else None
    multi_label = labels == ["labels"]
    return _Header(len(names), names.index("path"), names.index(labels[0]), split, multi_label)


def _read_rows(
    table: Path, lines: Iterator[list[str]], header: _Header, separator: str, notes: _Notes
) -> Iterator[str]:
    """Paths of all rows; what else they say is noted."""
    for cells in lines:
        if any(cell.strip() for cell in cells):
            number: int = lines.line_num  # type: ignore[attr-defined]
            row = _parse(table, number, header, cells, separator)
            notes.add(number, row)
            yield row.path


def _parse(table: Path, number: int, header: _Header, cells: Sequence[str], separator: str) -> _Row:
    """One row of the table."""
    if len(cells) != header.width:
        raise DatasetError(
            f"{table}, row {number}: {len(cells)} columns where the header has {header.width}"
        )
    path, written = cells[header.path].strip(), cells[header.label].strip()
    labels = [written]
    if header.multi_label:
        labels = [part.strip() for part in written.split(separator) if part.strip()]
    if not path or "" in labels:
        lacking = "label" if path else "path"
        raise DatasetError(f"{table}, row {number}: the {lacking} is empty")
    split = "" if header.split is None else cells[header.split].strip()
    return _Row(path, tuple(labels), split)


def _check_unique(table: Path, ids: Ids, notes: _Notes) -> None:
    """Refuse images that are named twice."""
    repetition = ids.repetition()
    if repetition is not None:
        first, again = (notes.numbers[position] for position in repetition)
        path = ids[repetition[0]]
        raise DatasetError(f"{table}, row {again}: '{path}' is already in row {first}")


def _targets(
    notes: _Notes, classes: Sequence[str], multi_label: bool
) -> npt.NDArray[np.int32] | npt.NDArray[np.int8]:
    """Targets as a `Dataset` holds them."""
    index = {label: position for position, label in enumerate(classes)}
    in_order = np.array([index[label] for label in notes.classes], dtype=np.int32)
    labels = in_order[np.asarray(notes.labels)]
    if not multi_label:
        return labels
    targets = np.full((len(notes.counts), len(classes)), -1, dtype=np.int8)
    targets[np.repeat(np.arange(len(targets)), np.asarray(notes.counts)), labels] = 1
    return targets


def _splits(ids: Ids, notes: _Notes) -> dict[str, Ids]:
    """Ids of each split that the table names."""
    splits = np.asarray(notes.splits)
    return {
        name: ids.take(np.flatnonzero(splits == number)) for name, number in notes.names.items()
    }
