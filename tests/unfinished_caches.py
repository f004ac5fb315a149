"""Looking into caches that are being made, and damaging them, as a kill or a power cut would."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spptransfer.cache.layout import Extent
from spptransfer.cache.unfinished import draft_files, noted_rows, open_draft, parts_folder
from spptransfer.errors import CacheError


def drafted_rows(path: Path) -> list[int]:
    """Rows of an unfinished cache that lie where they will stay."""
    rows = []
    for draft in draft_files(parts_folder(path)):
        try:
            rows += np.concatenate(list(noted_rows(open_draft(draft)))).tolist()
        except CacheError:  # its note is not there yet
            continue
    return rows


def draft_of(path: Path) -> Path:
    (draft,) = draft_files(parts_folder(path))
    return draft


def place_of(extent: Extent, row: int) -> tuple[int, int]:
    """First byte of a row in a dataset, and how many they are."""
    size = extent.nbytes // extent.shape[0]
    return extent.offset + row * size, size


def overwrite(path: Path, dataset: str, row: int, content: bytes = b"", at: int = 0) -> None:
    """Write over bytes of a drafted row; by default with zeros, as if they never got there."""
    start, size = place_of(open_draft(draft_of(path)).header.extents[dataset], row)
    with open(draft_of(path), "r+b") as file:
        file.seek(start + at)
        file.write(content or bytes(size))
