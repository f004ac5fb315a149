"""Reading a finished cache: rows by id, any level and scale that the stored ones determine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from spptransfer.cache.assembly import Column, Combine, choose
from spptransfer.cache.layout import (
    OK,
    Block,
    Rows,
    blocks_of,
    child,
    plain_dataset,
    read_array,
    read_header,
    read_rows,
    read_text,
    row_blocks,
)
from spptransfer.errors import CacheError, SpecMismatchError
from spptransfer.spec import FeatureSpec


class FeatureCache:
    """A finished feature cache, read by id.

    Open it with `FeatureCache.open`. Features stay on the disk until asked for and are read
    through memory maps; an instance can be pickled and is opened anew in the other process.

    Attributes
    ----------
    path : Path
        The HDF5 file.
    spec : FeatureSpec
        What determines the values.
    fingerprint : str
        Hash of the spec.
    dataset : str
        Name of the dataset.
    classes : tuple of str
        Names of the classes, empty if the dataset has no labels.
    channels : int
        Channels of the layer.

    Examples
    --------
    >>> cache = FeatureCache.open("cache/demo.h5")              # doctest: +SKIP
    >>> X, y = cache.matrix(levels=[3, 1]), cache.labels()      # doctest: +SKIP
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._digest = read_header(self.path)
        try:
            with h5py.File(self.path, "r") as file:
                self._read_identity(file)
                self._rows = read_rows(file)
                self._read_labels(file)
                offsets = {block: plain_dataset(file, block.name) for block in self.blocks}
                self._maps = {block: self._map(block, data) for block, data in offsets.items()}
        except (OSError, RuntimeError, KeyError) as error:
            raise CacheError(f"'{self.path}' is damaged: {_one_line(error)}") from error
        except CacheError as error:
            raise CacheError(f"'{self.path}' is damaged: {error}") from error
        if read_header(self.path) != self._digest:
            raise CacheError(f"'{self.path}' was replaced while it was opened; open it again")
        self._position = {id: i for i, id in enumerate(self._rows.ids)}
        if len(self._position) < len(self._rows):
            raise CacheError(f"'{self.path}' is damaged: an id occurs twice")

    @classmethod
    def open(cls, path: str | os.PathLike[str], spec: FeatureSpec | None = None) -> FeatureCache:
        """Open a cache for reading.

        Parameters
        ----------
        path : path-like
            The HDF5 file.
        spec : FeatureSpec, optional
            The spec that the rows must have; caches whose rows determine it are accepted too.

        Returns
        -------
        FeatureCache

        Raises
        ------
        CacheError
            If the file is missing, foreign, truncated or damaged.
        SpecMismatchError
            If it was made with another spec; the message names each field with both values.
        """
        cache = cls(path)
        if spec is not None and not cache.spec.covers(spec):
            differences = "; ".join(cache.spec.differences(spec))
            raise SpecMismatchError(f"'{path}' was made with another spec: {differences}")
        return cache

    def _read_identity(self, file: h5py.File) -> None:
        self.spec = FeatureSpec.from_dict(json.loads(file.attrs["spec"]))
        self.fingerprint: str = file.attrs["fingerprint"]
        self.dataset: str = file.attrs["dataset"]
        self.channels = int(file.attrs["channels"])
        self.blocks: tuple[Block, ...] = blocks_of(self.spec, self.channels)
        if self.fingerprint != self.spec.fingerprint:
            raise CacheError("its fingerprint is not that of its spec")

    def _read_labels(self, file: h5py.File) -> None:
        self.classes: tuple[str, ...] = ()
        self._targets: npt.NDArray[np.integer] | None = None
        if "labels" in file:
            group = child(file, "labels")
            self.classes = tuple(read_text(group, "classes"))
            self._targets = read_array(group, "targets")
            if len(self._targets) != len(self._rows):
                raise CacheError("labels and rows differ in length")

    def _map(self, block: Block, stored: h5py.Dataset) -> npt.NDArray[Any]:
        shape = (len(self._rows), block.width)
        if stored.shape != shape or stored.dtype != self.spec.storage:
            raise CacheError(
                f"'{block.name}' is {stored.shape} {stored.dtype}, not {shape} {self.spec.storage}"
            )
        offset = stored.id.get_offset()
        if offset is None:
            return np.zeros(shape, self.spec.storage)
        return np.memmap(self.path, self.spec.storage, "r", offset=offset, shape=shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self._digest)

    def __len__(self) -> int:
        """Number of rows that hold features."""
        return int((self._rows.status == OK).sum())

    def __contains__(self, id: object) -> bool:
        return id in self._position and self._rows.status[self._position[str(id)]] == OK

    def __repr__(self) -> str:
        spec = self.spec
        levels = f", levels={list(spec.levels)}" if spec.levels else ""
        failed = f", failed={len(self.failures)}" if self.failures else ""
        return (
            f"<FeatureCache '{self.path.name}': {len(self)} rows of {self.dataset}{failed}; "
            f"{spec.backbone} {spec.layer}, scales={list(spec.scales)}{levels}, "
            f"{self.channels} channels, {spec.storage}>"
        )

    @property
    def ids(self) -> list[str]:
        """Ids of the rows that hold features, in the order of the dataset."""
        return [
            id for id, status in zip(self._rows.ids, self._rows.status, strict=True) if not status
        ]

    @property
    def failures(self) -> Mapping[str, str]:
        """Reason for every row that has no features, by id."""
        bad = np.flatnonzero(self._rows.status != OK)
        return MappingProxyType({self._rows.ids[i]: self._rows.error[i] for i in bad})

    @property
    def rows(self) -> Rows:
        """The table of all rows: ids, digests, sizes, status."""
        return self._rows

    def digests(self) -> dict[str, str]:
        """SHA-256 of the image file of every row that holds features, by id."""
        stored = self._rows.digest
        return {id: stored[self._position[id]].decode() for id in self.ids}

    def stored(self, block: Block) -> npt.NDArray[Any]:
        """Map of a block as stored, one row per id of `rows`, failed ones included."""
        return self._maps[block]

    def columns(
        self,
        levels: Sequence[int] | None = None,
        scales: Sequence[int] | None = None,
        combine: Combine = "concat",
    ) -> tuple[Column, ...]:
        """Say what the columns of `matrix` with the same arguments mean.

        Parameters
        ----------
        levels, scales, combine
            As in `matrix`.

        Returns
        -------
        tuple of Column
            Scale by scale, within each level by level, in the order given.

        Raises
        ------
        CacheError
            If a level or scale does not follow from what is stored.
        """
        return choose(self.spec, self.channels, levels, scales, combine).columns

    def matrix(
        self,
        ids: Iterable[str] | None = None,
        *,
        levels: Sequence[int] | None = None,
        scales: Sequence[int] | None = None,
        combine: Combine = "concat",
    ) -> npt.NDArray[np.float32]:
        """Read features as a matrix.

        Parameters
        ----------
        ids : iterable of str, optional
            The rows, in this order; all that hold features by default.
        levels : sequence of int, optional
            Levels of the pyramid, in this order; by default those stored.
        scales : sequence of int, optional
            Scales, in this order; by default all that are stored.
        combine : {"concat", "mean", "max"}
            What becomes of several scales.

        Returns
        -------
        ndarray of float32, shape (n_rows, n_features)
            `columns` says what its columns are.

        Raises
        ------
        CacheError
            If an id is unknown or its row failed, or a level or scale does not follow from what
            is stored.
        """
        positions = self._positions(ids)
        assembly = choose(self.spec, self.channels, levels, scales, combine)
        matrix = np.empty((len(positions), assembly.width), dtype=np.float32)
        for run in row_blocks(len(positions)):
            assembly.build(partial(self._stored_rows, positions[run]), matrix[run])
        return matrix

    def labels(self, ids: Iterable[str] | None = None) -> npt.NDArray[Any]:
        """Labels as they were when the cache was written, by id.

        Parameters
        ----------
        ids : iterable of str, optional
            The rows, in this order; all that hold features by default.

        Returns
        -------
        ndarray
            Class names (n_rows,), or for several labels per image an indicator of int8
            (n_rows, n_classes) in {1, 0 = ignored, -1}.

        Raises
        ------
        CacheError
            If the dataset had no labels, or an id is unknown.
        """
        if self._targets is None:
            raise CacheError(f"'{self.path}' holds no labels: the dataset has none")
        targets = self._targets[self._positions(ids)]
        return targets if targets.ndim == 2 else np.array(self.classes)[targets]

    def _stored_rows(self, positions: npt.NDArray[np.intp], block: Block) -> npt.NDArray[Any]:
        return _take(self._maps[block], positions)

    def _positions(self, ids: Iterable[str] | None) -> npt.NDArray[np.intp]:
        if ids is None:
            return np.flatnonzero(self._rows.status == OK)
        positions = []
        for id in ids:
            position = self._position.get(id)
            if position is None:
                raise CacheError(f"'{self.path}' has no row '{id}'")
            if self._rows.status[position] != OK:
                raise CacheError(f"row '{id}' has no features: {self._rows.error[position]}")
            positions.append(position)
        return np.array(positions, dtype=np.intp)


def _take(stored: npt.NDArray[Any], positions: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
    """Rows of a map; neighbours are taken as one slice, which need not be gathered."""
    if len(positions) and np.array_equal(
        positions, np.arange(positions[0], positions[0] + len(positions))
    ):
        return stored[positions[0] : positions[0] + len(positions)]
    return stored[positions]


def _reopen(path: Path, digest: str) -> FeatureCache:
    cache = FeatureCache(path)
    if cache._digest != digest:
        raise CacheError(f"'{path}' was replaced by another cache since it was opened")
    return cache


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
