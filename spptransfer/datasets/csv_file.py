"""A table of paths, labels and, if wanted, splits."""

from __future__ import annotations

import csv
import os
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field

from spptransfer.datasets.base import Dataset, number_labels
from spptransfer.errors import DatasetError
from spptransfer.files import expand_path, open_text
from spptransfer.ids import Ids
from spptransfer.sections import PathText

_HEADERS = "path,label or path,labels, either with a further column split"


class CsvOptions(BaseModel):
    """Keys of the section of a ``csv`` dataset."""

    root: PathText = Field(description="a CSV file with the header path,label (or labels) [,split]")
    separator: Annotated[str, Field(min_length=1)] = Field(
        ";", description="what separates several labels of an image"
    )


@dataclass
class _Columns:
    """What is kept of all rows but their paths: numbers and a few strings, not one for each row.

    `rows` counts lines as a text editor does. The `labels` of all rows stand one after another,
    and `counts` says how many each row has; a row that is in no split has an empty one.
    """

    rows: array[int] = field(default_factory=lambda: array("q"))
    counts: array[int] = field(default_factory=lambda: array("i"))
    labels: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)


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
        path as written, but with forward slashes and without ``./``, so that a table written on
        Windows names the same images everywhere; only where a file's name itself holds a
        backslash, which other systems allow, is it kept.
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
    found = find_csv(expand_path(table))
    if found is None:
        raise DatasetError(f"cannot read {table}: neither a file nor a folder with one CSV file")
    table, columns = found, _Columns()
    try:
        with open_text(table, newline="") as lines:
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
    places = Ids(map(partial(_place, os.path.abspath(table.parent)), ids))
    if (twice := places.repetition()) is not None:
        first, again = (columns.rows[position] for position in twice)
        earlier, later = (ids[position] for position in twice)
        written = "" if earlier == later else f" as '{earlier}'"
        raise DatasetError(f"{table}, row {again}: '{later}' is already in row {first}{written}")
    if not columns.labels:
        raise DatasetError(f"{table}: no row has a label")
    classes, labels = number_labels(columns.labels)
    targets = labels if "label" in header else np.full((len(ids), len(classes)), -1, np.int8)
    if "labels" in header:
        rows = np.repeat(np.arange(len(ids), dtype=np.int32), np.asarray(columns.counts))
        targets[rows, labels] = 1
    names = list(dict.fromkeys(columns.splits))
    splits = np.fromiter(map(names.index, columns.splits), np.int32)
    return Dataset(
        name="csv",
        root=table.parent,
        ids=ids,
        classes=classes,
        targets=targets,
        official_splits={
            name: ids.take(np.flatnonzero(splits == number))
            for number, name in enumerate(names)
            if name
        },
    )


def find_csv(place: Path) -> Path | None:
    """Find the table at a place: the file itself, or the only CSV file of a folder."""
    if place.is_file():
        return place
    tables = sorted(place.glob("*.csv")) if place.is_dir() else []
    return tables[0] if len(tables) == 1 else None


def _read_header(table: Path, cells: Sequence[str]) -> list[str]:
    """Return the names of the columns, or say what they may be."""
    names = [name.strip().lower() for name in cells]
    known = sorted(name for name in names if name in ("path", "label", "labels", "split"))
    allowed = (["label", "path"], ["labels", "path"])
    if known[:2] not in allowed or known[2:] not in ([], ["split"]):
        raise DatasetError(f"{table}: the header is '{','.join(names)}'; allowed: {_HEADERS}")
    return names


def _read_rows(
    table: Path, lines: Iterator[list[str]], header: list[str], separator: str, columns: _Columns
) -> Iterator[str]:
    """Yield the ids of all rows; what else they say is added to the columns."""
    for cells in lines:
        if not any(map(str.strip, cells)):
            continue
        row: int = lines.line_num  # type: ignore[attr-defined]
        if len(cells) != len(header):
            raise DatasetError(
                f"{table}, row {row}: {len(cells)} columns where the header has {len(header)}"
            )
        values = dict(zip(header, map(str.strip, cells), strict=True))
        path, labels = values["path"], [values.get("label", "")]
        if "labels" in values:
            labels = list(filter(None, map(str.strip, values["labels"].split(separator))))
        if not path or "" in labels:
            lacking = "label" if path else "path"
            raise DatasetError(f"{table}, row {row}: the {lacking} is empty")
        columns.rows.append(row)
        columns.counts.append(len(labels))
        columns.labels += map(sys.intern, labels)
        columns.splits.append(sys.intern(values.get("split", "")))
        # Outside Windows, a backslash can belong to a file's name.
        if "\\" in path and not (os.sep == "/" and os.path.lexists(table.parent / path)):
            path = path.replace("\\", "/")
        is_roundabout = "./" in path or "//" in path
        yield str(PurePosixPath(path)) if is_roundabout else path


def _place(folder: str, id: str) -> str:
    """Return the one path to an image that may be written in several ways."""
    if ".." not in id and not os.path.isabs(id):
        return id
    path = os.path.normpath(os.path.join(folder, id)).removeprefix(folder + os.sep)
    return path.replace(os.sep, "/")
