"""Features for other programs: as .npz, CSV or Parquet."""

from __future__ import annotations

import csv
import importlib.util
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spptransfer.cache.reading import FeatureCache
from spptransfer.cache.selection import Column, Combine
from spptransfer.cache.view import FeatureView
from spptransfer.errors import CacheError, ConfigError
from spptransfer.files import atomic_write

FORMATS = (".npz", ".csv", ".parquet")

_ROWS = 256


def export(
    cache: FeatureCache,
    path: Path,
    ids: Iterable[str] | None = None,
    *,
    levels: Sequence[int] | None = None,
    scales: Sequence[int] | None = None,
    combine: Combine = "concat",
) -> int:
    """Write chosen features with ids and labels to a file of another kind."""
    if path.suffix not in FORMATS:
        raise ConfigError(f"export: '{path.name}' must end in one of {', '.join(FORMATS)}")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ConfigError("export to .parquet needs pyarrow: pip install pyarrow")
    chosen = cache.ids if ids is None else list(ids)
    if not chosen:
        raise CacheError(f"'{cache.path}' has no rows to export")
    view = cache.view(chosen, levels=levels, scales=scales, combine=combine)
    names = column_names(cache.columns(levels, scales, combine))
    labels = None if cache.targets is None else cache.labels(chosen)
    table = _Table(view, chosen, names, labels, cache.classes)
    write = {".npz": _write_npz, ".csv": _write_csv, ".parquet": _write_parquet}[path.suffix]
    with atomic_write(path, view.nbytes if path.suffix == ".npz" else 0) as temporary:
        write(temporary, table)
    return len(chosen)


def column_names(columns: Iterable[Column]) -> list[str]:
    """Name every number by scale, level and place.

    Examples
    --------
    >>> column_names([Column(scale=224, level=1, start=0, stop=2)])
    ['s224_n1_0', 's224_n1_1']
    """
    names = []
    for column in columns:
        scale = "" if column.scale is None else f"s{column.scale}_"
        level = "v_" if column.level is None else f"n{column.level}_"
        names += [f"{scale}{level}{i}" for i in range(column.width)]
    return names


@dataclass(frozen=True)
class _Table:
    """What is written: features by id, the names of their columns, and labels if there are any."""

    view: FeatureView
    ids: list[str]
    names: list[str]
    labels: npt.NDArray[Any] | None
    classes: Sequence[str]

    def text_columns(self) -> dict[str, Sequence[Any]]:
        """Return the ids, and one column with the class, or one per class for several labels."""
        columns: dict[str, Sequence[Any]] = {"id": self.ids}
        if self.labels is not None and self.labels.ndim == 1:
            columns["label"] = self.labels.tolist()
        elif self.labels is not None:
            found = zip(self.classes, self.labels.T.tolist(), strict=True)
            columns |= {f"label_{name}": column for name, column in found}
        return columns

    def blocks(self) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
        """Go through the features some rows at a time."""
        for start in range(0, len(self.view), _ROWS):
            run = slice(start, min(start + _ROWS, len(self.view)))
            yield run, self.view[run]


def _write_npz(path: Path, table: _Table) -> None:
    """Write what `numpy.load` reads, a few rows at a time."""
    arrays = {"ids": np.array(table.ids), "columns": np.array(table.names)}
    if table.labels is not None:
        arrays |= {"labels": table.labels, "classes": np.array(table.classes)}
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
        with archive.open("features.npy", "w", force_zip64=True) as file:
            view = table.view
            layout = {"descr": view.dtype.str, "fortran_order": False, "shape": view.shape}
            np.lib.format.write_array_header_2_0(file, layout)
            for _, rows in table.blocks():
                file.write(np.ascontiguousarray(rows).data)


def _write_csv(path: Path, table: _Table) -> None:
    texts = table.text_columns()
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow([*texts, *table.names])
        for run, rows in table.blocks():
            parts = zip(*(column[run] for column in texts.values()), strict=True)
            for part, row in zip(parts, rows, strict=True):
                # Through str, which writes each float32 with the fewest digits that restore it.
                writer.writerow([*part, *map(str, row)])


def _write_parquet(path: Path, table: _Table) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    texts = {_in_utf8(name): column for name, column in table.text_columns().items()}
    writer = None
    try:
        for run, rows in table.blocks():
            columns = {name: pa.array(map(_in_utf8, c[run])) for name, c in texts.items()}
            numbers = np.asfortranarray(rows).T
            columns |= {name: pa.array(n) for name, n in zip(table.names, numbers, strict=True)}
            block = pa.table(columns)
            writer = writer or parquet.ParquetWriter(path, block.schema)
            writer.write_table(block)
    finally:
        if writer is not None:
            writer.close()


def _in_utf8(value: Any) -> Any:
    """Write bytes of a text that are no UTF-8 as escapes, as Parquet wants it."""
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "backslashreplace").decode("utf-8")
