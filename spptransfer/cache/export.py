"""Features for other programs: as .npz, CSV, Parquet, or for TensorBoard's projector."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spptransfer.cache.reading import Combine, FeatureCache, FeatureView, feature_names
from spptransfer.errors import CacheError, ConfigError
from spptransfer.files import atomic_write, write_text

FORMATS = (".npz", ".csv", ".parquet", ".tsv")
# What the projector looks for beside tensors, by names of its own.
_METADATA, _CONFIG = "metadata.tsv", "projector_config.pbtxt"

_ROWS = 256

# Columns of text or labels by name, of as many entries as there are rows.
Texts = Mapping[str, Sequence[Any]]


def export(
    cache: FeatureCache,
    path: Path,
    ids: Iterable[str] | None = None,
    *,
    levels: Sequence[int] | None = None,
    scales: Sequence[int] | None = None,
    combine: Combine = "concat",
    layers: Sequence[str] | None = None,
) -> int:
    """Write chosen features with ids and labels to a file of another kind.

    Beside a ``.tsv`` of features alone, for TensorBoard's projector, come ``metadata.tsv`` with ids
    and labels, and ``projector_config.pbtxt``.
    """
    if path.suffix not in FORMATS:
        raise ConfigError(f"export: '{path.name}' must end in one of {', '.join(FORMATS)}")
    if path.name == _METADATA:
        raise ConfigError(f"export: '{_METADATA}' holds ids and labels; name the file tensors.tsv")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ConfigError("export to .parquet needs pyarrow: pip install pyarrow")
    chosen = cache.ids if ids is None else list(ids)
    if not chosen:
        raise CacheError(f"'{cache.path}' has no rows to export")
    view = cache.view(chosen, levels=levels, scales=scales, combine=combine, layers=layers)
    names = feature_names(view.selection)
    labels = None if cache.targets is None else cache.labels(chosen)
    with atomic_write(path, view.nbytes if path.suffix == ".npz" else 0) as temporary:
        if path.suffix == ".npz":
            arrays = {"ids": np.array(chosen), "columns": np.array(names)}
            if labels is not None:
                arrays |= {"labels": labels, "classes": np.array(cache.classes)}
            _write_npz(temporary, view, arrays)
        else:
            texts: dict[str, Sequence[Any]] = {"id": chosen}
            if labels is not None and labels.ndim == 1:
                texts["label"] = labels.tolist()
            elif labels is not None:
                columns = zip(cache.classes, labels.T.tolist(), strict=True)
                texts |= {f"label_{name}": column for name, column in columns}
            writers = {".csv": _write_csv, ".parquet": _write_parquet, ".tsv": _write_tensors}
            writers[path.suffix](temporary, view, names, texts)
            if path.suffix == ".tsv":
                _describe_tensors(path, texts)
    return len(chosen)


def _blocks(view: FeatureView) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
    """Go through the features some rows at a time."""
    for start in range(0, len(view), _ROWS):
        run = slice(start, start + _ROWS)
        yield run, view[run]


def _write_npz(path: Path, view: FeatureView, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write what `numpy.load` reads, a few rows at a time."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
        with archive.open("features.npy", "w", force_zip64=True) as file:
            layout = {"descr": view.dtype.str, "fortran_order": False, "shape": view.shape}
            np.lib.format.write_array_header_2_0(file, layout)
            for _, rows in _blocks(view):
                file.write(np.ascontiguousarray(rows).data)


def _write_csv(path: Path, view: FeatureView, names: Sequence[str], texts: Texts) -> None:
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow([*texts, *names])
        for run, rows in _blocks(view):
            parts = zip(*(column[run] for column in texts.values()), strict=True)
            for part, row in zip(parts, rows, strict=True):
                # Through str, which writes each float32 with the fewest digits that restore it.
                writer.writerow([*part, *map(str, row)])


def _write_parquet(path: Path, view: FeatureView, names: Sequence[str], texts: Texts) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    with contextlib.ExitStack() as stack:
        writer = None
        for run, rows in _blocks(view):
            columns = {_in_utf8(name): pa.array(map(_in_utf8, texts[name][run])) for name in texts}
            columns |= {
                name: pa.array(row)
                for name, row in zip(names, np.asfortranarray(rows).T, strict=True)
            }
            block = pa.table(columns)
            if writer is None:
                writer = stack.enter_context(parquet.ParquetWriter(path, block.schema))
            writer.write_table(block)


def _write_tensors(path: Path, view: FeatureView, _: Sequence[str], __: Texts) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for _run, rows in _blocks(view):
            file.writelines("\t".join(map(str, row)) + "\n" for row in rows)


def _describe_tensors(tensors: Path, texts: Texts) -> None:
    """Write what belongs to tensors in the projector; one column alone has no header there."""
    lines = [list(texts)] if len(texts) > 1 else []
    lines += map(list, zip(*texts.values(), strict=True))
    metadata = ["\t".join(map(_on_one_line, line)) + "\n" for line in lines]
    write_text(tensors.with_name(_METADATA), "".join(metadata))
    fields = {"name": tensors.stem, "path": tensors.name}
    config = [f"  tensor_{field}: {json.dumps(value)}\n" for field, value in fields.items()]
    config.append(f'  metadata_path: "{_METADATA}"\n')
    write_text(tensors.with_name(_CONFIG), "".join(["embeddings {\n", *config, "}\n"]))


def _on_one_line(value: Any) -> str:
    r"""Write what would end a cell or a line as escapes.

    Examples
    --------
    >>> _on_one_line("a\tb"), _on_one_line(-1)
    ('a\\tb', '-1')
    """
    escaped = str(value).translate({9: "\\t", 10: "\\n", 13: "\\r"})
    return str(_in_utf8(escaped))


def _in_utf8(value: Any) -> Any:
    """Write bytes of a text that are no UTF-8 as escapes, as Parquet wants it."""
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "backslashreplace").decode("utf-8")
