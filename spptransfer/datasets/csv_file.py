"""A table of paths, labels and, if wanted, splits."""

from __future__ import annotations

import csv
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from spptransfer.datasets.base import Dataset
from spptransfer.errors import DatasetError
from spptransfer.ids import Ids
from spptransfer.sections import PathText

_HEADERS = "path,label or path,labels, either with a further column split"


class CsvOptions(BaseModel):
    """Keys of the section of a ``csv`` dataset."""

    root: PathText = Field(description="a CSV file with the header path,label (or labels) [,split]")
    separator: Annotated[str, Field(min_length=1)] = Field(
        ";", description="what separates several labels of an image"
    )


class _Header(NamedTuple):
    """Where the columns stand that are read; `split` is None where there is none."""

    width: int
    path: int
    label: int
    split: int | None
    multi_label: bool


@dataclass
class _Columns:
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

    def add(self, number: int, labels: Sequence[str], split: str) -> None:
        self.numbers.append(number)
        self.counts.append(len(labels))
        self.labels.extend(self.classes.setdefault(label, len(self.classes)) for label in labels)
        self.splits.append(self.names.setdefault(split, len(self.names)) if split else -1)


def read_csv(table: str | os.PathLike[str], *, separator: str = ";") -> Dataset:
    r"""Read images, labels and splits from a CSV file.

    The header is ``path,label`` for one label per image, or ``path,labels`` for any number of
    them, none included. A further column ``split`` names the split of each row; a row that
    leaves it empty belongs to none. Other columns are ignored.

    Parameters
    ----------
    table : path-like
        The CSV file, or a folder with exactly one: UTF-8 (with or without a byte order mark),
        comma-separated. Relative paths in it are relative to its folder. An image's id is its
        path as written, but with forward slashes, so that a table written on Windows names the
        same images everywhere; only where a file's name itself holds a backslash, which other
        systems allow, is it kept.
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
    found = find_csv(Path(table))
    if found is None:
        raise DatasetError(f"cannot read {table}: neither a file nor a folder with one CSV file")
    table, columns = found, _Columns()
    try:
        with table.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, strict=True)
            header = _read_header(table, next(reader, []))
            ids = Ids(_read_rows(table, reader, header, separator, columns))
    except OSError as error:
        raise DatasetError(f"cannot read {table}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{table} is not UTF-8 text: {error.reason}") from error
    except csv.Error as error:
        raise DatasetError(f"{table}, row {reader.line_num}: {error}") from error
    except ValueError as error:
        raise DatasetError(f"{table}: the path {error}") from error
    if not ids:
        raise DatasetError(f"{table} has a header but no rows")
    _check_unique(table, ids, columns)
    if not columns.classes:
        raise DatasetError(f"{table}: no row has a label")
    classes = sorted(columns.classes)
    splits = np.asarray(columns.splits)
    return Dataset(
        name="csv",
        root=table.parent,
        ids=ids,
        classes=tuple(classes),
        targets=_targets(columns, classes, header.multi_label),
        official_splits={
            name: ids.take(np.flatnonzero(splits == number))
            for name, number in columns.names.items()
        },
    )


def find_csv(place: Path) -> Path | None:
    """Find the table at a place: the file itself, or the only CSV file of a folder."""
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
    table: Path, lines: Iterator[list[str]], header: _Header, separator: str, columns: _Columns
) -> Iterator[str]:
    """Yield the ids of all rows; what else they say is added to the columns."""
    for cells in lines:
        if not any(cell.strip() for cell in cells):
            continue
        number: int = lines.line_num  # type: ignore[attr-defined]
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
        columns.add(number, labels, "" if header.split is None else cells[header.split].strip())
        yield path if "\\" not in path or _is_name(table.parent, path) else path.replace("\\", "/")


def _is_name(folder: Path, path: str) -> bool:
    """Whether a path's backslashes belong to a file's name, as they can outside Windows."""
    return os.sep == "/" and os.path.lexists(folder / path)


def _check_unique(table: Path, ids: Ids, columns: _Columns) -> None:
    """Refuse images that are named twice."""
    repetition = ids.repetition()
    if repetition is not None:
        first, again = (columns.numbers[position] for position in repetition)
        path = ids[repetition[0]]
        raise DatasetError(f"{table}, row {again}: '{path}' is already in row {first}")


def _targets(
    columns: _Columns, classes: Sequence[str], multi_label: bool
) -> npt.NDArray[np.int32] | npt.NDArray[np.int8]:
    """Number the labels as a `Dataset` does."""
    index = {label: position for position, label in enumerate(classes)}
    in_order = np.array([index[label] for label in columns.classes], dtype=np.int32)
    labels = in_order[np.asarray(columns.labels)]
    if not multi_label:
        return labels
    targets = np.full((len(columns.counts), len(classes)), -1, dtype=np.int8)
    targets[np.repeat(np.arange(len(targets)), np.asarray(columns.counts)), labels] = 1
    return targets
