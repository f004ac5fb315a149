"""Writing one cache file from end to end."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from spptransfer.cache.draft import Draft
from spptransfer.cache.files import appearing
from spptransfer.cache.outline import Labels, Outline
from spptransfer.cache.rows import Chunk
from spptransfer.spec import FeatureSpec

# One file at a time: another thread would take the space just found free.
_writing = threading.Lock()


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
    spec, channels, dataset, count, id_width
        As in `Outline`.
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
    outline = Outline(spec, channels, dataset, count, id_width)
    with (
        _writing,
        appearing(path, outline.needed) as temporary,
        contextlib.closing(Draft(temporary, outline, path)) as draft,
    ):
        start = 0
        for chunk in chunks:
            stop = start + len(chunk.rows)
            draft.put(np.arange(start, stop), chunk)
            start = stop
        if start != count:
            raise ValueError(f"{count} rows were announced and {start} came")
        draft.seal(labels, computed_by)
