"""A table of paths, labels and, if wanted, splits."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from spptransfer.datasets.base import Dataset
from spptransfer.errors import DatasetError

_HEADERS = "path,label or path,labels, either with a further column split"


class _Row(NamedTuple):
    """One line of the table; `number` counts as a text editor does."""

    number: int
    path: str
    labels: tuple[str, ...]
    split: str


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
        If the file is missing or has another header, or a row lacks a path or a label, names a
        missing image, or names an image a second time. The message gives the row.

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
    {'train': ('a.jpg',), 'test': ('b.jpg',)}
    """
    table = Path(table)
    rows, multi_label = _read_rows(table, separator)
    if not rows:
        raise DatasetError(f"{table} has a header but no rows")
    _check_paths(table, rows)
    classes = sorted({label for row in rows for label in row.labels})
    if not classes:
        raise DatasetError(f"{table}: no row has a label")
    return Dataset(
        name="csv",
        root=table.parent,
        ids=tuple(row.path for row in rows),
        classes=tuple(classes),
        targets=_targets(rows, classes, multi_label),
        official_splits=_splits(rows),
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


def _read_rows(table: Path, separator: str) -> tuple[list[_Row], bool]:
    """All rows, and whether an image may carry several labels."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, strict=True)
            header = [name.strip().lower() for name in next(reader, [])]
            multi_label = _is_multi_label(table, header)
            rows = [
                _parse(table, reader.line_num, header, cells, separator)
                for cells in reader
                if any(cell.strip() for cell in cells)
            ]
    except OSError as error:
        raise DatasetError(f"cannot read {table}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{table} is not UTF-8 text: {error.reason}") from error
    except csv.Error as error:
        raise DatasetError(f"{table}, row {reader.line_num}: {error}") from error
    return rows, multi_label


def _is_multi_label(table: Path, header: Sequence[str]) -> bool:
    """Tell one label from several by the header, or say what it may be."""
    label_columns = [name for name in header if name in ("label", "labels")]
    if header.count("path") == 1 and len(label_columns) == 1 and header.count("split") <= 1:
        return label_columns == ["labels"]
    raise DatasetError(f"{table}: the header is '{','.join(header)}'; allowed: {_HEADERS}")


def _parse(
    table: Path, number: int, header: Sequence[str], cells: Sequence[str], separator: str
) -> _Row:
    """One row of the table."""
    if len(cells) != len(header):
        raise DatasetError(
            f"{table}, row {number}: {len(cells)} columns where the header has {len(header)}"
        )
    values = dict(zip(header, (cell.strip() for cell in cells), strict=True))
    if "labels" in values:
        parts = (part.strip() for part in values["labels"].split(separator))
        labels = tuple(part for part in parts if part)
    else:
        labels = (values["label"],)
    if not values["path"] or "" in labels:
        lacking = "label" if values["path"] else "path"
        raise DatasetError(f"{table}, row {number}: the {lacking} is empty")
    return _Row(number, values["path"], labels, values.get("split", ""))


def _check_paths(table: Path, rows: Iterable[_Row]) -> None:
    """Refuse images that are named twice or are not there."""
    first: dict[str, int] = {}
    missing: list[_Row] = []
    for row in rows:
        if row.path in first:
            raise DatasetError(
                f"{table}, row {row.number}: '{row.path}' is already in row {first[row.path]}"
            )
        first[row.path] = row.number
        if not os.path.isfile(os.path.join(table.parent, row.path)):
            missing.append(row)
    if missing:
        others = f" (and {len(missing) - 1} more missing images)" if len(missing) > 1 else ""
        raise DatasetError(
            f"{table}, row {missing[0].number}: no image at '{missing[0].path}'{others}; "
            f"paths are relative to {table.parent.absolute()}"
        )


def _targets(
    rows: Sequence[_Row], classes: Sequence[str], multi_label: bool
) -> npt.NDArray[np.int32] | npt.NDArray[np.int8]:
    """Targets as a `Dataset` holds them."""
    index = {label: position for position, label in enumerate(classes)}
    if not multi_label:
        return np.array([index[row.labels[0]] for row in rows], dtype=np.int32)
    targets = np.full((len(rows), len(classes)), -1, dtype=np.int8)
    for position, row in enumerate(rows):
        targets[position, [index[label] for label in row.labels]] = 1
    return targets


def _splits(rows: Iterable[_Row]) -> dict[str, tuple[str, ...]]:
    """Ids of each split that the table names."""
    splits: dict[str, list[str]] = {}
    for row in rows:
        if row.split:
            splits.setdefault(row.split, []).append(row.path)
    return {name: tuple(ids) for name, ids in splits.items()}
