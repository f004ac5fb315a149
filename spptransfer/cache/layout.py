"""What lies in a cache file, and where: `docs/cache-format.md` tells it to readers.

A file is an ordinary HDF5 file behind a user block of one page. It is made with room for every
row, so that nothing of HDF5's own changes afterwards. Its *head* is all of that, the labels, and
the columns that vouch for rows or change with the file system; the rows come behind it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from spptransfer._version import __version__
from spptransfer.errors import CacheError
from spptransfer.ids import Ids, encode
from spptransfer.spec import FeatureSpec

FORMAT = "spptransfer-features"
FORMAT_VERSION = 3

CHECKSUM_BYTES = 16
# HDF5's part begins behind so many bytes, and larger datasets on a page of their own.
PAGE = 4096
_RUN_BYTES = 1 << 22
_RUN_ROWS = 256
_COMPUTED_BY = "S256"

Shape = tuple[int, ...]
# The columns of the table of rows that lie behind the head, but for the ids.
_COLUMNS = {
    "digest": "|S64",
    "height": "<i4",
    "width": "<i4",
    "error": "|S160",
    "status": "|u1",
}


@dataclass(frozen=True)
class Block:
    """Stored numbers of one scale: a determining level, or a vector (`level` None).

    Examples
    --------
    >>> Block(scale=224, level=6, channels=256).name
    'features/scale_224/level_6'
    """

    scale: int
    level: int | None
    channels: int

    @property
    def name(self) -> str:
        """Name of the dataset in the file."""
        part = "vector" if self.level is None else f"level_{self.level}"
        return f"features/scale_{self.scale}/{part}"

    @property
    def width(self) -> int:
        """Numbers per row."""
        return self.channels * (1 if self.level is None else self.level**2)


@dataclass(frozen=True)
class Labels:
    """Labels of a dataset, one per row.

    `targets` holds class indices (n,) or an indicator (n, classes) in {1, 0 = ignored, -1}.
    """

    classes: Sequence[str]
    targets: npt.NDArray[np.integer]


def blocks_of(spec: FeatureSpec, channels: int) -> tuple[Block, ...]:
    """List the blocks that a file of this spec holds, in the order in which they are stored."""
    levels: tuple[int | None, ...] = spec.levels or (None,)
    return tuple(Block(scale, level, channels) for scale in spec.scales for level in levels)


def row_runs(count: int, row_bytes: int) -> Iterator[slice]:
    """Cut rows into runs of about 4 MiB, at least 256 rows: the unit of reading and writing.

    Examples
    --------
    >>> [(run.start, run.stop) for run in row_runs(300, row_bytes=36_864)]
    [(0, 256), (256, 300)]
    """
    step = max(_RUN_ROWS, _RUN_BYTES // max(1, row_bytes))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def head_datasets(count: int) -> dict[str, tuple[Shape, str]]:
    """Return shape and type of the datasets in the head, but for the labels."""
    return {
        "computed_by": ((), f"|{_COMPUTED_BY}"),
        "rows/stamp": ((count, 3), "<i8"),
        "rows/checksum": ((count, CHECKSUM_BYTES), "|u1"),
    }


def row_datasets(count: int, storage: str, blocks: Sequence[Block]) -> dict[str, tuple[Shape, str]]:
    """Return shape and type of the datasets behind the head, but for the ids."""
    return {
        **{f"rows/{name}": ((count,), dtype) for name, dtype in _COLUMNS.items()},
        **{block.name: ((count, block.width), np.dtype(storage).str) for block in blocks},
    }


def short_text(text: str, dtype: str = _COLUMNS["error"]) -> str:
    """Cut a text to what its column holds, an ellipsis at the end.

    Examples
    --------
    >>> short_text("too long", "S6")
    'too...'
    """
    raw, room = text.encode("utf-8", "backslashreplace"), np.dtype(dtype).itemsize
    cut = raw if len(raw) <= room else raw[: room - 3]
    return cut.decode("utf-8", "ignore") + ("..." if cut is not raw else "")


@dataclass(frozen=True)
class Layout:
    """All that is known of a file before its first row; parameters as of `CacheWriter`."""

    spec: FeatureSpec
    channels: int
    dataset: str
    ids: Ids
    labels: Labels | None = None

    def __post_init__(self) -> None:
        if not len(self.ids):
            raise CacheError("a cache needs at least one row")
        if self.labels is not None:
            object.__setattr__(self, "labels", _storable(self.labels, len(self.ids)))

    @cached_property
    def encoded_ids(self) -> npt.NDArray[np.bytes_]:
        """Ids as wide as the longest."""
        return self.ids.narrow().encoded

    @property
    def needed(self) -> int:
        """Bytes that the file will have, about."""
        blocks, count = blocks_of(self.spec, self.channels), len(self.ids)
        found = row_datasets(count, self.spec.storage, blocks) | head_datasets(count)
        rows = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in found.values())
        return 3 * self._metadata_bytes + rows + self.encoded_ids.nbytes

    @property
    def _metadata_bytes(self) -> int:
        """Room for HDF5's own description of the file: it must not need a second piece."""
        blocks = blocks_of(self.spec, self.channels)
        estimate = (1 << 14) + 2 * len(json.dumps(self.spec.to_dict())) + 2048 * len(blocks)
        return 1 << (estimate - 1).bit_length()

    @property
    def digest(self) -> str:
        """Hash of it; where it is the same an unfinished file can be gone on with."""
        hasher = hashlib.sha256(f"{self.spec.fingerprint} {self.channels}".encode())
        hasher.update(json.dumps([self.dataset, self.ids.sha256()]).encode())
        if self.labels is not None:
            hasher.update(json.dumps(list(self.labels.classes)).encode())
            hasher.update(np.ascontiguousarray(self.labels.targets).tobytes())
        return hasher.hexdigest()

    def create(self, path: Path) -> None:
        """Make a file with room for every row, which takes nothing on the disk yet."""
        count, blocks = len(self.ids), blocks_of(self.spec, self.channels)
        # A dataset takes its place at once, and has there what the disk has: zeros.
        room = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        room.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        room.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        options = {
            "meta_block_size": self._metadata_bytes,
            "alignment_threshold": PAGE,
            "alignment_interval": PAGE,
            "locking": False,
        }
        with h5py.File(path, "w", userblock_size=PAGE, **options) as file:
            file.attrs.update(
                format=FORMAT,
                format_version=FORMAT_VERSION,
                spec=json.dumps(self.spec.to_dict()),
                fingerprint=self.spec.fingerprint,
                channels=self.channels,
                dataset=self.dataset,
                written_by=f"spptransfer {__version__}",
            )
            if self.labels is not None:
                file["labels/classes"] = encode(self.labels.classes)
                file["labels/targets"] = self.labels.targets
            file["computed_by"] = np.zeros((), _COMPUTED_BY)
            for name, (shape, dtype) in head_datasets(count).items():
                if shape:
                    file.create_dataset(name, shape, dtype, dcpl=room)
        # HDF5 puts small datasets into what is left of a block of small ones. Closing the file
        # ends that block, so that from here on all rows come to lie behind the head.
        with h5py.File(path, "r+", **options) as file:
            for block in blocks:
                file.require_group(block.name.rpartition("/")[0])
            file.create_dataset("rows/id", (count,), self.encoded_ids.dtype, dcpl=room)
            for name, (shape, dtype) in row_datasets(count, self.spec.storage, blocks).items():
                file.create_dataset(name, shape, dtype, dcpl=room)
            for run in row_runs(count, self.encoded_ids.itemsize):
                file["rows/id"][run] = self.encoded_ids[run]


def _storable(labels: Labels, count: int) -> Labels | None:
    """Return labels in the types that a file has for them; None where there are no classes."""
    targets = labels.targets
    if not len(labels.classes):
        return None
    with contextlib.suppress(ValueError):
        encode(labels.classes)
        if targets.dtype.kind in "iub" and targets.shape[:1] == (count,) and targets.ndim <= 2:
            found = targets.astype("<i4" if targets.ndim == 1 else "|i1")
            if np.array_equal(found, targets):
                return Labels(tuple(labels.classes), found)
    raise CacheError(
        f"targets of {targets.dtype} {targets.shape} and {len(labels.classes)} classes "
        f"do not fit {count} rows"
    )
