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

from spptransfer.cache.files import appearing
from spptransfer.cache.reading import FeatureCache
from spptransfer.cache.selection import Column, Combine
from spptransfer.cache.view import FeatureView
from spptransfer.errors import CacheError, ConfigError

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
    """Write chosen features with ids and labels to a file of another kind.

    Parameters
    ----------
    cache : FeatureCache
        Where they are.
    path : Path
        The file; its suffix says which kind: ``.npz`` with the arrays ``ids``, ``features``,
        ``columns`` and, where there are labels, ``labels``; ``.csv`` or ``.parquet`` with a row
        per image and a named column per number. Bytes of an id that are no UTF-8 stay what they
        are in the first two, and are escapes in the last.
    ids, levels, scales, combine
        As in `FeatureCache.matrix`.

    Returns
    -------
    int
        Number of rows written.

    Raises
    ------
    ConfigError
        If the suffix is unknown or pyarrow is needed and absent.
    CacheError
        If an id, level or scale is not there, or the file cannot be written.
    """
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
    features = _Features(view, chosen, names, labels, cache.classes)
    write = {".npz": _write_npz, ".csv": _write_csv, ".parquet": _write_parquet}[path.suffix]
    with appearing(path, view.nbytes if path.suffix == ".npz" else 0) as temporary:
        write(temporary, features)
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
class _Features:
    """What is written: features by id, the names of their columns, and labels if there are any."""

    view: FeatureView
    ids: list[str]
    names: list[str]
    labels: npt.NDArray[Any] | None
    classes: Sequence[str]

    def label_columns(self) -> list[tuple[str, npt.NDArray[Any]]]:
        """One column with the class, or one per class for several labels per image."""
        if self.labels is None:
            return []
        if self.labels.ndim == 1:
            return [("label", self.labels)]
        return [(f"label_{name}", self.labels[:, i]) for i, name in enumerate(self.classes)]

    def blocks(self) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Some rows at a time, and the number of the first."""
        for start in range(0, len(self.view), _ROWS):
            yield start, self.view[start : start + _ROWS]


def _write_npz(path: Path, features: _Features) -> None:
    """Write what `numpy.load` reads, a few rows at a time."""
    view = features.view
    arrays = {"ids": np.array(features.ids), "columns": np.array(features.names)}
    if features.labels is not None:
        arrays |= {"labels": features.labels, "classes": np.array(features.classes)}
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
        with archive.open("features.npy", "w", force_zip64=True) as file:
            layout = {"descr": view.dtype.str, "fortran_order": False, "shape": view.shape}
            np.lib.format.write_array_header_2_0(file, layout)
            for _, rows in features.blocks():
                file.write(np.ascontiguousarray(rows).data)


def _write_csv(path: Path, features: _Features) -> None:
    extra = features.label_columns()
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *(name for name, _ in extra), *features.names])
        for start, rows in features.blocks():
            for i, row in enumerate(rows, start):
                # Through str, which writes each float32 with the fewest digits that restore it.
                writer.writerow(
                    [features.ids[i], *(column[i] for _, column in extra), *map(str, row)]
                )


def _write_parquet(path: Path, features: _Features) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    extra = [(_escaped(name), column) for name, column in features.label_columns()]
    writer = None
    try:
        for start, rows in features.blocks():
            stop = start + len(rows)
            columns = {"id": pa.array(_in_utf8(features.ids[start:stop]))}
            columns |= {name: pa.array(_in_utf8(column[start:stop])) for name, column in extra}
            columns |= {
                name: pa.array(np.ascontiguousarray(rows[:, i]))
                for i, name in enumerate(features.names)
            }
            table = pa.table(columns)
            writer = writer or parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _in_utf8(values: Any) -> Any:
    """Texts as Parquet can hold them; numbers as they are."""
    return [_escaped(v) for v in values] if isinstance(values[0], str) else values


def _escaped(text: str) -> str:
    """Text whose bytes that are no UTF-8 are written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
