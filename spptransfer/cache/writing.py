"""Writing one cache file: the only code that makes HDF5 files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from spptransfer._version import __version__
from spptransfer.cache.files import appearing
from spptransfer.cache.layout import (
    CHECKSUM_BYTES,
    CHECKSUM_ROWS,
    FORMAT,
    FORMAT_VERSION,
    HEADER_BYTES,
    Block,
    Rows,
    block_checksum,
    seal,
    write_rows,
    write_text,
)
from spptransfer.spec import FeatureSpec

FeatureRows = Mapping[Block, npt.NDArray[Any]]


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
    blocks: Sequence[Block],
    rows: Rows,
    features: Iterable[FeatureRows],
    dataset: str,
    labels: Labels | None = None,
) -> None:
    """Write a complete file under its final name, or nothing.

    Parameters
    ----------
    path : Path
        Where the file will stand.
    spec : FeatureSpec
        What determines the values.
    blocks : sequence of Block
        What is stored of every row.
    rows : Rows
        Everything else about the rows.
    features : iterable of mapping from Block to ndarray of shape (up to 256, block.width)
        The rows' features in order, `CHECKSUM_ROWS` at a time, so that memory stays flat.
    dataset : str
        Name of the dataset.
    labels : Labels, optional
        Labels of the rows.

    Raises
    ------
    CacheError
        If the disk is full or the folder cannot be written to.
    """
    with appearing(path) as temporary:
        with h5py.File(temporary, "w", userblock_size=HEADER_BYTES) as file:
            _write_identity(file, spec, blocks, dataset)
            write_rows(file, rows)
            if labels is not None:
                write_text(file.create_group("labels"), "classes", labels.classes)
                file["labels"].create_dataset("targets", data=labels.targets)
            _write_features(file, spec, blocks, len(rows), features)
        seal(temporary)


def _write_identity(
    file: h5py.File, spec: FeatureSpec, blocks: Sequence[Block], dataset: str
) -> None:
    file.attrs["format"] = FORMAT
    file.attrs["format_version"] = FORMAT_VERSION
    file.attrs["spec"] = json.dumps(spec.to_dict())
    file.attrs["fingerprint"] = spec.fingerprint
    file.attrs["channels"] = blocks[0].channels
    file.attrs["dataset"] = dataset
    file.attrs["written_by"] = f"spptransfer {__version__}"


def _write_features(
    file: h5py.File,
    spec: FeatureSpec,
    blocks: Sequence[Block],
    count: int,
    features: Iterable[FeatureRows],
) -> None:
    stored = {
        block: file.create_dataset(block.name, (count, block.width), spec.storage)
        for block in blocks
    }
    runs = -(-count // CHECKSUM_ROWS)
    checksums = {block: np.zeros((runs, CHECKSUM_BYTES), np.uint8) for block in blocks}
    start = 0
    for run, values in enumerate(features):
        for block in blocks:
            rows = np.ascontiguousarray(values[block], dtype=spec.storage)
            stored[block][start : start + len(rows)] = rows
            checksums[block][run] = block_checksum(rows)
        start += len(values[blocks[0]])
    if start != count:
        raise ValueError(f"{count} rows were announced and {start} came")
    for block in blocks:
        file.create_dataset(f"checksums/{block.name}", data=checksums[block])
