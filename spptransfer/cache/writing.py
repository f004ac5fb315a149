"""Writing one cache file: the only code that makes HDF5 files."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from spptransfer._version import __version__
from spptransfer.cache.files import appearing
from spptransfer.cache.ids import encode, encoded_width, id_runs, sort_ids
from spptransfer.cache.layout import (
    FORMAT,
    FORMAT_VERSION,
    Block,
    Extent,
    Header,
    blocks_of,
    body_sha256,
)
from spptransfer.cache.rows import (
    CHECKSUM_BYTES,
    COLUMNS,
    FAILED,
    Chunk,
    checksums,
)
from spptransfer.ids import Ids
from spptransfer.spec import FeatureSpec

_PAGE = 4096
# One file at a time, as HDF5 does anyhow: another thread would take the space just found free.
_writing = threading.Lock()


@dataclass(frozen=True)
class Labels:
    """Labels as the dataset had them when the file was written, one per row.

    `targets` holds class indices (n,) or an indicator (n, classes) in {1, 0 = ignored, -1}.
    """

    classes: Sequence[str]
    targets: npt.NDArray[np.integer]


def write_cache(
    path: Path,
    *,
    spec: FeatureSpec,
    channels: int,
    dataset: str,
    count: int,
    id_width: int,
    chunks: Iterable[Chunk],
    labels: Labels | None = None,
    computed_by: Iterable[str] = (),
) -> None:
    """Write a complete file under its final name, or nothing.

    Parameters
    ----------
    path : Path
        Where the file will stand.
    spec : FeatureSpec
        What determines the values.
    channels : int
        Channels of the spec's layer.
    dataset : str
        Name of the dataset.
    count : int
        Number of rows.
    id_width : int
        Bytes of the longest id, see `encoded_width`.
    chunks : iterable of Chunk
        The rows in order, some at a time, so that memory stays flat. Checksums that they come
        with are written as they are: what was checked is vouched for from end to end.
    labels : Labels, optional
        Labels of the rows.
    computed_by : iterable of str
        Names and versions of what computed the rows.

    Raises
    ------
    CacheError
        If the disk is full or the folder cannot be written to.
    """
    blocks = blocks_of(spec, channels)
    attributes = _attributes(spec, channels, dataset, computed_by)
    header_bytes = _header_bytes(attributes, blocks)
    width = sum(block.width for block in blocks) * np.dtype(spec.storage).itemsize
    table = 2 * id_width + sum(np.dtype(dtype).itemsize for dtype in COLUMNS.values())
    needed = header_bytes + count * (width + table + CHECKSUM_BYTES + 16)  # ids are sorted there
    with _writing, appearing(path, needed) as temporary:
        options: dict[str, Any] = {"alignment_threshold": _PAGE, "alignment_interval": _PAGE}
        with h5py.File(
            temporary, "w", userblock_size=header_bytes, locking=False, **options
        ) as file:
            file.attrs.update(attributes)
            ids = file.create_dataset("rows/id", count, f"S{id_width}")
            _write_chunks(file, blocks, spec.storage, ids, chunks)
            _write_order(file, ids, path.parent)
            if labels is not None:
                file["labels/classes"] = encode(labels.classes)
                file["labels/targets"] = labels.targets
            file.flush()
            extents = extents_of(file)
        _seal(temporary, header_bytes, attributes, extents)


def _attributes(
    spec: FeatureSpec, channels: int, dataset: str, computed_by: Iterable[str]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "spec": json.dumps(spec.to_dict()),
        "fingerprint": spec.fingerprint,
        "channels": channels,
        "dataset": dataset,
        "written_by": f"spptransfer {__version__}",
        "computed_by": ", ".join(sorted(set(computed_by))),
    }


def _header_bytes(attributes: dict[str, Any], blocks: Sequence[Block]) -> int:
    """Room for the header: a power of two, as HDF5 wants user blocks to be."""
    estimate = 4096 + len(json.dumps(attributes)) + 256 * len(blocks)
    return 1 << (estimate - 1).bit_length()


def _write_chunks(
    file: h5py.File,
    blocks: Sequence[Block],
    storage: str,
    ids: h5py.Dataset,
    chunks: Iterable[Chunk],
) -> None:
    count, start = len(ids), 0
    columns = {n: file.create_dataset(f"rows/{n}", count, dtype) for n, dtype in COLUMNS.items()}
    checks = file.create_dataset("rows/checksum", (count, CHECKSUM_BYTES), "|u1")
    stored = {b: file.create_dataset(b.name, (count, b.width), storage) for b in blocks}
    failures: list[tuple[npt.NDArray[np.int64], Ids]] = []
    for rows, features, known in chunks:
        run = slice(start, start + len(rows))
        encoded = encode(rows.ids)
        if run.stop > count or encoded.itemsize > ids.dtype.itemsize:
            raise ValueError(f"rows {run.start} to {run.stop} are not those announced")
        ids[run] = encoded
        for name, column in columns.items():
            column[run] = getattr(rows, name)
        values = {b: np.ascontiguousarray(features[b], dtype=storage) for b in blocks}
        for block in blocks:
            stored[block][run] = values[block]
        checks[run] = checksums(rows, values, blocks) if known is None else known
        failed = np.flatnonzero(rows.status == FAILED)
        if len(failed):
            failures.append((start + failed, Ids(rows.error[i] for i in failed)))
        start = run.stop
    if start != count:
        raise ValueError(f"{count} rows were announced and {start} came")
    _write_failures(file, failures)


def _write_failures(file: h5py.File, failures: Sequence[tuple[npt.NDArray[np.int64], Ids]]) -> None:
    """Write numbers of failed rows and the reasons, which were packed chunk by chunk."""
    rows = np.concatenate([np.array([], "<i8"), *(numbers for numbers, _ in failures)])
    file["failures/row"] = rows
    width = max((encoded_width(reasons) for _, reasons in failures), default=1)
    errors, start = file.create_dataset("failures/error", len(rows), f"S{width}"), 0
    for _, reasons in failures:
        errors[start : start + len(reasons)] = encode(reasons)
        start += len(reasons)


def _write_order(file: h5py.File, ids: h5py.Dataset, folder: Path) -> None:
    by_id = file.create_dataset("rows/by_id", len(ids), "<i8")
    in_order = sort_ids((ids[run] for run in id_runs(len(ids))), folder)
    for run in id_runs(len(ids)):
        positions = (position for _, position in islice(in_order, run.stop - run.start))
        by_id[run] = np.fromiter(positions, "<i8")


def extents_of(file: h5py.File) -> dict[str, Extent]:
    """Where the datasets of an HDF5 file lie."""
    extents = {}

    def note(name: str, node: h5py.Group | h5py.Dataset) -> None:
        if isinstance(node, h5py.Dataset):
            # Absent where the dataset is empty.
            offset = node.id.get_offset() or 0
            extents[name] = Extent(node.dtype.str, node.shape, offset)

    file.visititems(note)
    return extents


def _seal(
    path: Path, header_bytes: int, attributes: dict[str, Any], extents: dict[str, Extent]
) -> None:
    """Write the header of a finished file and force all of it onto the disk."""
    with ThreadPoolExecutor(1) as pool:
        # The disk takes the body while it is hashed.
        written = pool.submit(_sync, path)
        digest = body_sha256(path, header_bytes)
        written.result()
    header = Header(header_bytes, path.stat().st_size, digest, attributes, extents)
    with open(path, "r+b") as file:
        file.write(header.pack())
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    with open(path, "r+b") as file:
        os.fsync(file.fileno())
