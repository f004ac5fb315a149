"""Looking into caches that are being made, and damaging them, as a kill or a power cut would."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np


def unfinished_files(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.*.partial"))


def unfinished_file(path: Path) -> Path:
    (file,) = unfinished_files(path)
    return file


def drafted_rows(path: Path) -> list[int]:
    """Rows of an unfinished cache that lie where they will stay."""
    rows = []
    for file in unfinished_files(path):
        with h5py.File(file, "r", locking=False) as opened:
            rows += np.flatnonzero(opened["rows/status"][:]).tolist()
    return rows


def overwrite(path: Path, dataset: str, row: int, content: bytes = b"", at: int = 0) -> None:
    """Write over bytes of an unfinished row; by default with zeros, as if they never got there."""
    with h5py.File(unfinished_file(path), "r", locking=False) as opened:
        node = opened[dataset]
        size = node.id.get_storage_size() // node.shape[0]
        start = node.id.get_offset() + row * size
    with open(unfinished_file(path), "r+b") as file:
        file.seek(start + at)
        file.write(content or bytes(size))
