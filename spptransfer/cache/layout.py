"""What lies in a cache file, and where: `docs/cache-format.md` tells it to readers.

A file is an ordinary HDF5 file behind a user block of one page. It is made with room for every
row, so that nothing of HDF5's own changes afterwards. Its *head* is all of that, the labels, and
the columns that vouch for rows or change with the file system; the rows come behind it. The page
of a finished file is its *seal*: one line that says how long the file is and what its head is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO
from urllib.parse import quote

import h5py
import numpy as np
import numpy.typing as npt

from spptransfer._version import __version__
from spptransfer.backbones.probe import PROBE_NUMBERS
from spptransfer.errors import CacheError
from spptransfer.ids import Ids, encode
from spptransfer.spec import FeatureSpec

FORMAT = "spptransfer-features"
FORMAT_VERSION = 4

# HDF5's part begins behind so many bytes, and larger datasets on a page of their own.
PAGE = 4096
CHECKSUM_BYTES = 16
ERROR_BYTES = 160
COMPUTED_BY_BYTES = 256
# Datasets that lie in the head, besides the labels.
HEAD = {"computed_by", "probe", "rows/stamp", "rows/checksum"}
_SEAL = re.compile(rb"spptransfer-features (\d{1,9}) (?:(\d{1,18}) (\d{1,18}) ([0-9a-f]{64})\n)?")
_PIECE = 1 << 20
_RUN_BYTES = 1 << 22
_RUN_ROWS = 256

Shape = tuple[int, ...]


class ForeignFileError(CacheError):
    """A file that does not begin as ours do."""


class DamagedFileError(CacheError):
    """A file that is not what was written."""

    def __init__(self, path: Path, reason: object) -> None:
        way_out = "copy it anew if it is a copy, or remove it and extract again"
        super().__init__(f"'{path}' is damaged: {' '.join(str(reason).split())}; {way_out}")


@dataclass(frozen=True)
class Block:
    """Stored numbers of a layer at one scale: a determining level, or a vector (`level` None).

    Examples
    --------
    >>> Block(layer="spp", scale=224, level=6, channels=256).name
    'features/spp/scale_224/level_6'
    """

    layer: str
    scale: int
    level: int | None
    channels: int

    @property
    def name(self) -> str:
        """Name of the dataset in the file."""
        part = "vector" if self.level is None else f"level_{self.level}"
        return f"features/{quote(self.layer, safe='')}/scale_{self.scale}/{part}"

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


def blocks_of(spec: FeatureSpec, channels: Mapping[str, int]) -> tuple[Block, ...]:
    """List the blocks that a file of this spec holds, in the order in which they are stored."""
    return tuple(
        Block(layer, scale, level, channels[layer])
        for layer in spec.layers
        for scale in spec.scales
        for level in spec.levels_of(layer)
    )


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


def datasets_of(count: int, storage: str, blocks: Sequence[Block]) -> dict[str, tuple[Shape, str]]:
    """Return shape and type of all datasets but ids and labels, those of the head first."""
    return {
        "computed_by": ((), f"|S{COMPUTED_BY_BYTES}"),
        "probe": ((len({block.layer for block in blocks}), PROBE_NUMBERS), "<f4"),
        "rows/stamp": ((count, 3), "<i8"),
        "rows/checksum": ((count, CHECKSUM_BYTES), "|u1"),
        "rows/digest": ((count,), "|S64"),
        "rows/height": ((count,), "<i4"),
        "rows/width": ((count,), "<i4"),
        "rows/error": ((count,), f"|S{ERROR_BYTES}"),
        "rows/status": ((count,), "|u1"),
        **{block.name: ((count, block.width), np.dtype(storage).str) for block in blocks},
    }


def short_text(text: str, room: int = ERROR_BYTES) -> str:
    """Cut a text to what its column holds, an ellipsis at the end.

    Examples
    --------
    >>> short_text("too long", 6)
    'too...'
    """
    raw = text.encode("utf-8", "backslashreplace")
    if len(raw) <= room:
        return raw.decode()
    return raw[: room - 3].decode("utf-8", "ignore") + "..."


@dataclass
class Layout:
    """All that is known of a file before its first row; parameters as of `CacheWriter`."""

    spec: FeatureSpec
    channels: Mapping[str, int]
    dataset: str
    ids: Ids
    labels: Labels | None = None

    def __post_init__(self) -> None:
        self.ids = self.ids.narrow()
        if self.labels is not None:
            self.labels = _storable(self.labels, len(self.ids))
        blocks = blocks_of(self.spec, self.channels)
        self._datasets = datasets_of(len(self.ids), self.spec.storage, blocks)
        # Room for HDF5's own description of the file: it must not need a second piece.
        estimate = (1 << 14) + 2 * len(json.dumps(self.spec.to_dict())) + 4096 * len(blocks)
        self._metadata_bytes = 1 << (estimate - 1).bit_length()
        # Bytes that the file will have, about.
        self.needed = 3 * self._metadata_bytes + self.ids.encoded.nbytes
        for shape, dtype in self._datasets.values():
            self.needed += math.prod(shape) * np.dtype(dtype).itemsize

    @cached_property
    def digest(self) -> str:
        """Hash of it; where it is the same an unfinished file can be gone on with."""
        channels = [self.channels[layer] for layer in self.spec.layers]
        hasher = hashlib.sha256(f"{self.spec.fingerprint} {channels}".encode())
        hasher.update(json.dumps([self.dataset, self.ids.sha256()]).encode())
        if self.labels is not None:
            hasher.update(json.dumps(list(self.labels.classes)).encode())
            hasher.update(np.ascontiguousarray(self.labels.targets).tobytes())
        return hasher.hexdigest()

    def create(self, path: Path) -> None:
        """Make a file with room for every row, which takes nothing on the disk yet."""
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
                channels=[self.channels[layer] for layer in self.spec.layers],
                dataset=self.dataset,
                written_by=f"spptransfer {__version__}",
            )
            if self.labels is not None:
                file["labels/classes"] = encode(self.labels.classes)
                file["labels/targets"] = self.labels.targets
            file["computed_by"] = np.zeros((), f"S{COMPUTED_BY_BYTES}")
            file["probe"] = np.zeros(*self._datasets["probe"])
            for name in ("rows/stamp", "rows/checksum"):
                file.create_dataset(name, *self._datasets[name], dcpl=room)
        # HDF5 puts small datasets into what is left of a block of small ones. Closing the file
        # ends that block, so that from here on all rows come to lie behind the head.
        with h5py.File(path, "r+", **options) as file:
            for name in self._datasets:
                if name.startswith("features/"):
                    file.require_group(name.rpartition("/")[0])
            ids = file.create_dataset("rows/id", len(self.ids), self.ids.encoded.dtype, dcpl=room)
            for name, (shape, dtype) in self._datasets.items():
                if name not in HEAD:
                    file.create_dataset(name, shape, dtype, dcpl=room)
            for run in row_runs(len(self.ids), ids.dtype.itemsize):
                ids[run] = self.ids.encoded[run]


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


def seal_of(file: IO[bytes], head_bytes: int) -> bytes:
    """Compute the first page of a file whose rows are complete.

    As the head holds the checksums of all rows, its SHA-256 identifies the whole content.
    """
    size, hasher, position = file.seek(0, 2), hashlib.sha256(), file.seek(PAGE)
    while piece := file.read(min(_PIECE, max(0, head_bytes - position))):
        hasher.update(piece)
        position += len(piece)
    line = f"{FORMAT} {FORMAT_VERSION} {size} {head_bytes} {hasher.hexdigest()}\n"
    return line.encode().ljust(PAGE, b"\0")


def check_seal(file: IO[bytes], path: Path) -> str:
    """Compare a file with its first page, without trusting what that says; return the hash."""
    file.seek(0)
    page = file.read(PAGE)
    seal = _SEAL.match(page)
    if seal is None:
        raise ForeignFileError(f"'{path}' is no feature cache of spptransfer: {_guess(page)}")
    if int(seal[1]) != FORMAT_VERSION:
        version = int(seal[1])
        raise CacheError(
            f"'{path}' has format version {version}; this release reads {FORMAT_VERSION}"
        )
    if not seal[4]:
        raise DamagedFileError(path, "its first page is not what was written")
    size, head_bytes = int(seal[2]), int(seal[3])
    if (found := file.seek(0, 2)) != size:
        what = f"it is truncated or was added to ({found:,} of {size:,} bytes)"
        raise DamagedFileError(path, what)
    if seal_of(file, head_bytes) != page:
        raise DamagedFileError(path, "its head is not what was written")
    return seal[4].decode()


def _guess(page: bytes) -> str:
    """Say what a foreign file probably is."""
    if not page:
        return "it is empty"
    if not page.strip(b"\0"):
        return "it is not finished yet; run the command that makes it again"
    if page.startswith(b"\x89HDF"):
        return "it is an HDF5 file of another program"
    return "it is another kind of file"
