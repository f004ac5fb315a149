"""What a cache file has besides its rows: the only code that makes HDF5 files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from spptransfer._version import __version__
from spptransfer.cache.ids import encode
from spptransfer.cache.layout import FORMAT, FORMAT_VERSION, Block, Extent, blocks_of
from spptransfer.cache.rows import CHECKSUM_BYTES, COLUMNS
from spptransfer.errors import CacheError
from spptransfer.ids import Ids
from spptransfer.spec import FeatureSpec

_PAGE = 4096


@dataclass(frozen=True)
class Labels:
    """Labels as the dataset had them when the file was written, one per row.

    `targets` holds class indices (n,) or an indicator (n, classes) in {1, 0 = ignored, -1}.
    """

    classes: Sequence[str]
    targets: npt.NDArray[np.integer]


@dataclass(frozen=True)
class Failures:
    """Numbers of the rows that have no features, ascending, and the reasons."""

    rows: npt.NDArray[np.int64]
    reasons: Ids


@dataclass(frozen=True)
class Outline:
    """What is known of a file before its first row.

    Parameters
    ----------
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
    """

    spec: FeatureSpec
    channels: int
    dataset: str
    count: int
    id_width: int

    @property
    def blocks(self) -> tuple[Block, ...]:
        """What is stored of every row."""
        return blocks_of(self.spec, self.channels)

    @property
    def header_bytes(self) -> int:
        """Room for the header: a power of two, as HDF5 wants user blocks to be."""
        estimate = 6144 + len(json.dumps(self.attributes())) + 256 * len(self.blocks)
        return 1 << (estimate - 1).bit_length()

    @property
    def needed(self) -> int:
        """Bytes that the file will have, about."""
        width = sum(block.width for block in self.blocks) * np.dtype(self.spec.storage).itemsize
        table = 2 * self.id_width + sum(np.dtype(dtype).itemsize for dtype in COLUMNS.values())
        # Ids are sorted there.
        return self.header_bytes + self.count * (width + table + CHECKSUM_BYTES + 16)

    def attributes(self, computed_by: Iterable[str] = ()) -> dict[str, Any]:
        """Attributes of the HDF5 root group."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "spec": json.dumps(self.spec.to_dict()),
            "fingerprint": self.spec.fingerprint,
            "channels": self.channels,
            "dataset": self.dataset,
            "written_by": f"spptransfer {__version__}",
            "computed_by": ", ".join(sorted(set(computed_by))),
        }


def write_skeleton(
    path: Path,
    outline: Outline,
    labels: Labels | None = None,
    failures: Failures | None = None,
    computed_by: Iterable[str] = (),
) -> dict[str, Extent]:
    """Make a file that has all but the rows: there it has room, which takes none on the disk.

    Parameters
    ----------
    path : Path
        The file; one that is there is written over.
    outline : Outline
        What determines where the rows lie.
    labels, failures, computed_by
        What comes behind them.

    Returns
    -------
    dict of str to Extent
        Where each dataset lies.
    """
    options: dict[str, Any] = {"alignment_threshold": _PAGE, "alignment_interval": _PAGE}
    with h5py.File(
        path, "w", userblock_size=outline.header_bytes, locking=False, **options
    ) as file:
        _make_room(file, outline)
        found = failures or Failures(np.empty(0, np.int64), Ids())
        file["failures/row"] = found.rows.astype("<i8")
        file["failures/error"] = encode(found.reasons)
        if labels is not None:
            file["labels/classes"] = encode(labels.classes)
            file["labels/targets"] = _storable(labels.targets, outline.count)
        # Last, for their length must not move the rows.
        file.attrs.update(outline.attributes(computed_by))
        file.flush()
        return extents_of(file)


def _storable(targets: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    """Targets in the type that a file has for them; readers know no other."""
    if targets.dtype.kind in "iub" and targets.shape[:1] == (count,) and targets.ndim <= 2:
        found = targets.astype("<i4" if targets.ndim == 1 else "|i1")
        if np.array_equal(found, targets):
            return found
    raise CacheError(f"targets of {targets.dtype} {targets.shape} do not fit {count} rows")


def _make_room(file: h5py.File, outline: Outline) -> None:
    """Give every dataset of rows its place, without writing anything there."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    count, storage = outline.count, outline.spec.storage
    rows: dict[str, tuple[tuple[int, ...], str]] = {
        "rows/id": ((count,), f"S{outline.id_width}"),
        **{f"rows/{name}": ((count,), dtype) for name, dtype in COLUMNS.items()},
        "rows/checksum": ((count, CHECKSUM_BYTES), "|u1"),
        "rows/by_id": ((count,), "<i8"),
        **{block.name: ((count, block.width), storage) for block in outline.blocks},
    }
    for name, (shape, dtype) in rows.items():
        file.create_dataset(name, shape, dtype, dcpl=creation)


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
