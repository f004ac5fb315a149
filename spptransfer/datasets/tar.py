"""Tar shards of WebDataset's layout, whose images are read where they lie in them."""

from __future__ import annotations

import json
import re
import tarfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from spptransfer.datasets.base import UNLABELLED, Dataset, number_labels
from spptransfer.errors import DatasetError
from spptransfer.ids import Ids
from spptransfer.images import SUFFIXES, FilePart
from spptransfer.sections import PathText

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_LABEL_BYTES = 1 << 20
_MOST_SHARDS = 1_000_000
_ROOT = "a tar file, a folder of some, or a pattern as shards-{0000..0099}.tar"


class TarOptions(BaseModel):
    """Keys of the section of a ``tar`` dataset."""

    root: PathText = Field(description=_ROOT)
    label: str = Field("label", description="key of the label, or of a list of some, in .json")


@dataclass(frozen=True)
class Members:
    """Where each image's bytes lie; one entry per image, in the order of `ids`."""

    shards: tuple[Path, ...]
    ids: Ids
    shard: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TarDataset(Dataset):
    """A dataset whose images are parts of tar files."""

    members: Members | None = field(default=None, repr=False)

    def iter_paths(self, positions: Iterable[int]) -> Iterator[FilePart]:  # type: ignore[override]
        """Yield the places of some images by position."""
        assert self.members is not None
        at, ids = self.members, Ids.of(self.ids).take(positions)
        for id, row in zip(ids, at.ids.find(ids).tolist(), strict=True):
            yield FilePart(at.shards[at.shard[row]], int(at.offset[row]), int(at.size[row]), id)

    def check_images(self) -> None:
        """Do nothing: the shards were read a moment ago."""


def read_tar(root: Path, label: str | None = "label") -> Dataset:
    """Read tar shards: files of one key are one sample, an image and what is said of it.

    The key is a member's path up to the first dot of its name, and the image's id. The label
    stands in ``KEY.cls`` as text, or in ``KEY.json``. Nothing is unpacked: the headers of all
    members are read once, the images when they are needed.

    Parameters
    ----------
    root : Path
        A tar file without compression, a folder of some, or a pattern with a range of numbers.
    label : str or None, default="label"
        Key of the label in ``KEY.json``; a list there is several labels. With None no label is
        read at all.

    Returns
    -------
    Dataset
        With one label per image, several, or none.

    Raises
    ------
    DatasetError
        If a shard is missing, damaged or cut short, a key is no plain relative path or occurs
        twice, or some images have labels and others do not.
    """
    shards = tuple(find_shards(root))
    for shard in shards:
        if not shard.is_file():
            raise DatasetError(f"there is no tar file '{shard}'")
    ids, number, offset, size = [], array("i"), array("q"), array("q")
    labels: list[list[str] | None] = []
    is_list = False
    for index, shard in enumerate(shards):
        for sample in _samples(shard):
            if sample.image is None:
                continue
            found = None if label is None else sample.label(shard, label)
            is_list |= isinstance(found, list)
            labels.append([found] if isinstance(found, str) else found)
            ids.append(sample.key)
            number.append(index)
            offset.append(sample.image[0])
            size.append(sample.image[1])
    if not ids:
        raise DatasetError(f"no images in {root}; looked for {', '.join(sorted(SUFFIXES))}")
    for id, times in Counter(ids).most_common(1):
        if times > 1:
            raise DatasetError(f"{root}: the key '{id}' has more than one sample")
    classes, targets = _targets(root, ids, labels, str(label), several=is_list)
    order = np.argsort(np.array(ids, dtype=object), kind="stable")
    kept = Ids([ids[i] for i in order])
    members = Members(
        shards,
        kept,
        np.asarray(number, np.int32)[order],
        np.asarray(offset, np.int64)[order],
        np.asarray(size, np.int64)[order],
    )
    return TarDataset("tar", root, kept, classes, targets[order], members=members)


def find_shards(root: Path) -> list[Path]:
    """List the shards that a root stands for, whether they are there or not.

    Examples
    --------
    >>> [path.name for path in find_shards(Path("shards-{08..10}.tar"))]
    ['shards-08.tar', 'shards-09.tar', 'shards-10.tar']
    """
    if root.is_dir():
        return sorted(root.glob("*.tar"))
    found = _RANGE.search(str(root))
    if found is None:
        return [root]
    first, last = found.groups()
    numbers = range(int(first), int(last) + 1)
    if len(numbers) > _MOST_SHARDS:
        raise DatasetError(f"{root}: {len(numbers):,} tar files; allowed: {_MOST_SHARDS:,}")
    text = str(root)
    return [
        Path(f"{text[: found.start()]}{number:0{len(first)}d}{text[found.end() :]}")
        for number in numbers
    ]


def find_tar(place: Path) -> Path | None:
    """Return a place where there is a shard at all."""
    return place if any(path.is_file() for path in find_shards(place)) else None


def place_in_tar(root: Path, id: str) -> FilePart | None:
    """Find an image by its id, as a report does long after the dataset was read."""
    try:
        stamps = [shard.stat().st_mtime_ns for shard in find_shards(root)]
        return cast(FilePart, _places(root, *stamps).path(id))
    except (OSError, DatasetError):
        return None


@lru_cache(maxsize=1)
def _places(root: Path, *_stamps: int) -> Dataset:
    return read_tar(root, label=None)


class _Sample:
    """What the members of one key hold: places of the image and of what is said of it."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.image: tuple[int, int] | None = None
        self.texts: dict[str, tuple[int, int]] = {}

    def label(self, shard: Path, name: str) -> str | list[str] | None:
        """Read the label, or a list of some; None where there is none."""
        if "cls" in self.texts:
            return self._read(shard, "cls").strip()
        if "json" not in self.texts:
            return None
        try:
            found = json.loads(self._read(shard, "json"))
        except ValueError as error:
            raise DatasetError(f"{shard}: '{self.key}.json' is no JSON: {error}") from error
        value = found.get(name) if isinstance(found, dict) else None
        if isinstance(value, list):
            return [str(each) for each in value]
        return None if value is None else str(value)

    def _read(self, shard: Path, kind: str) -> str:
        offset, size = self.texts[kind]
        if size > _LABEL_BYTES:
            raise DatasetError(f"{shard}: '{self.key}.{kind}' has {size:,} bytes, too many")
        with open(shard, "rb") as file:
            file.seek(offset)
            try:
                return file.read(size).decode("utf-8-sig")
            except UnicodeDecodeError as error:
                message = f"{shard}: '{self.key}.{kind}' is not UTF-8: {error.reason}"
                raise DatasetError(message) from error


def _samples(shard: Path) -> Iterator[_Sample]:
    """Group the members of a shard by their keys."""
    samples: dict[str, _Sample] = {}
    for name, offset, size in _members(shard):
        path = PurePosixPath(name)
        stem, _, kind = path.name.partition(".")
        if not stem:  # hidden, as what macOS puts beside files
            continue
        if path.is_absolute() or ".." in path.parts:
            raise DatasetError(f"{shard}: the member '{name}' leads out of the archive")
        key = str(path.with_name(stem))
        sample, kind = samples.setdefault(key, _Sample(key)), kind.lower()
        if f".{kind}" in SUFFIXES:
            sample.image = sample.image or (offset, size)
        elif kind in ("cls", "json"):
            sample.texts[kind] = (offset, size)
    yield from samples.values()


def _members(shard: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and size of the files in a tar, and refuse one that is damaged."""
    at = 0
    try:
        total = shard.stat().st_size
        with tarfile.open(shard, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
                at = member.offset_data + member.size
                if member.isreg() and not member.issparse():
                    if at > total:
                        raise tarfile.ReadError("unexpected end of data")
                    yield member.name, member.offset_data, member.size
            at = tar.offset
        with open(shard, "rb") as file:
            file.seek(at)
            block = file.read(tarfile.BLOCKSIZE)
        if block.strip(b"\0"):  # a bad header ends the loop, too
            raise tarfile.ReadError("no header where one should be")
        if len(block) < tarfile.BLOCKSIZE:  # cut short behind a member
            raise tarfile.ReadError("the mark at its end is missing")
    except tarfile.TarError as error:
        is_packed = "" if at else "; compressed ones must be unpacked first, as with gunzip"
        raise DatasetError(
            f"{shard}: no whole tar file, byte {at:,}: {error}{is_packed}"
        ) from error
    except OSError as error:
        raise DatasetError(f"cannot read {shard}: {error.strerror or error}") from error


def _targets(
    root: Path, ids: list[str], labels: list[list[str] | None], name: str, *, several: bool
) -> tuple[tuple[str, ...], npt.NDArray[Any]]:
    """Number the labels, in the order of their values where all are whole numbers."""
    lacking = [id for id, found in zip(ids, labels, strict=True) if found is None]
    if len(lacking) == len(ids):
        return (), np.full(len(ids), UNLABELLED)
    if lacking:
        raise DatasetError(
            f"{root}: {len(lacking):,} of {len(ids):,} images have no label, as '{lacking[0]}': "
            f"neither .cls nor the key '{name}' in .json"
        )
    given = [found for found in labels if found is not None]
    flat = [each for found in given for each in found]
    classes, numbers = number_labels(flat)
    if all(each.isdecimal() for each in classes):
        order = sorted(range(len(classes)), key=lambda k: int(classes[k]))
        numbers = np.argsort(order)[numbers].astype(np.int32)
        classes = tuple(classes[k] for k in order)
    if not several:
        return classes, numbers
    targets = np.full((len(ids), len(classes)), -1, np.int8)
    targets[np.repeat(np.arange(len(ids)), [len(found) for found in given]), numbers] = 1
    return classes, targets
