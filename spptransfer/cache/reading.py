"""Reading a finished cache: rows by id, any level and scale that the stored ones determine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spptransfer.cache.ids import SortedIndex, decode
from spptransfer.cache.layout import Block, Header, blocks_of, row_runs
from spptransfer.cache.mapped import MappedFile, as_slice, check_extents
from spptransfer.cache.rows import COLUMNS, OK, Rows
from spptransfer.cache.selection import Column, Combine, Selection, derived_levels
from spptransfer.cache.view import FeatureView
from spptransfer.errors import CacheError, SpecMismatchError
from spptransfer.ids import TextById
from spptransfer.spec import FeatureSpec


class FeatureCache:
    """A finished feature cache, read by id.

    Open it with `FeatureCache.open`. Features stay on the disk until asked for; an instance can
    be pickled and is opened anew in the other process.

    Attributes
    ----------
    path : Path
        The HDF5 file.
    file : MappedFile
        Its datasets as they are stored.
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
    computed_by : tuple of str
        Names and versions of what computed the rows; empty in older files.
    blocks : tuple of Block
        What is stored of every row.

    Examples
    --------
    >>> cache = FeatureCache.open("cache/demo.h5")              # doctest: +SKIP
    >>> X, y = cache.matrix(levels=[3, 1]), cache.labels()      # doctest: +SKIP
    """

    def __init__(self, path: str | os.PathLike[str], header: Header | None = None) -> None:
        self.path = Path(path)
        self.file = MappedFile(self.path, header)
        try:
            self._read_identity(self.file.header.attributes)
            check_extents(self.file.header.extents, self.spec, self.blocks)
        except (CacheError, KeyError, TypeError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise CacheError(f"'{self.path}' is damaged: {reason}") from error

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

    def _read_identity(self, attributes: Mapping[str, Any]) -> None:
        self.spec = FeatureSpec.from_dict(json.loads(attributes["spec"]))
        self.fingerprint = str(attributes["fingerprint"])
        self.dataset = str(attributes["dataset"])
        self.channels = int(attributes["channels"])
        self.computed_by = tuple(filter(None, str(attributes.get("computed_by", "")).split(", ")))
        self.blocks: tuple[Block, ...] = blocks_of(self.spec, self.channels)
        if self.fingerprint != self.spec.fingerprint:
            raise CacheError("its fingerprint is not that of its spec")

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self.header.sha256)

    def __len__(self) -> int:
        """Number of rows that hold features."""
        return int(np.count_nonzero(self.column("status") == OK))

    def __contains__(self, id: object) -> bool:
        position = self._index.find([str(id)])[0]
        return bool(position >= 0 and self.column("status")[position] == OK)

    def __repr__(self) -> str:
        spec = self.spec
        levels = f", levels={list(spec.levels)}" if spec.levels else ""
        if derived := derived_levels(spec):
            levels += f" (and {', '.join(map(str, derived))})"
        failed = f", failed={len(self.failures)}" if self.failures else ""
        return (
            f"<FeatureCache '{self.path.name}': {len(self)} rows of {self.dataset}{failed}; "
            f"{spec.backbone} {spec.layer}, scales={list(spec.scales)}{levels}, "
            f"{self.channels} channels, {spec.storage}>"
        )

    def column(self, name: str) -> npt.NDArray[Any]:
        """Map of a column of the table of rows, such as ``"digest"``, as it is stored."""
        return self.file.array(f"rows/{name}")

    @cached_property
    def _index(self) -> SortedIndex:
        return SortedIndex(self.column("id"), self.file.row_numbers("rows/by_id"))

    @property
    def count(self) -> int:
        """Number of all rows, failed ones included."""
        return len(self.column("id"))

    @property
    def ids(self) -> list[str]:
        """Ids of the rows that hold features, in the order of the dataset."""
        return decode(self.column("id")[self.column("status") == OK])

    @cached_property
    def failures(self) -> TextById:
        """Reason for every row that has no features, by id."""
        return self.file.failures()

    def ids_at(self, positions: slice | npt.NDArray[np.intp]) -> list[str]:
        """Ids of rows by position in the file."""
        return decode(self.file.rows("rows/id", positions))

    @property
    def rows(self) -> Rows:
        """The table of all rows, failed ones included: ids, digests, sizes, status."""
        return self.rows_at(slice(None))

    def rows_at(self, positions: slice | npt.NDArray[np.intp]) -> Rows:
        """Part of the table of rows.

        Parameters
        ----------
        positions : slice or ndarray of int
            Positions in the file.
        """
        ids = self.ids_at(positions)
        columns = {name: self.file.rows(f"rows/{name}", positions) for name in COLUMNS}
        error = self.failures.texts_of(ids) if (columns["status"] != OK).any() else [""] * len(ids)
        return Rows(ids=ids, error=error, **columns)

    def digests(self) -> dict[str, str]:
        """SHA-256 of the image file of every row that holds features, by id."""
        good = self.column("status") == OK
        ids, digests = decode(self.column("id")[good]), decode(self.column("digest")[good])
        return dict(zip(ids, digests, strict=True))

    def find(self, ids: Sequence[str]) -> npt.NDArray[np.intp]:
        """Positions of ids among all rows, -1 for those that are unknown."""
        return self._index.find(ids)

    def read(self, block: Block, positions: slice | npt.NDArray[np.intp]) -> npt.NDArray[Any]:
        """Read a block as it is stored.

        Parameters
        ----------
        block : Block
            One of `blocks`.
        positions : slice or ndarray of int
            Positions among all rows; those of failed ones hold NaN.

        Returns
        -------
        ndarray of the stored type, shape (n_rows, block.width)
        """
        return self.file.rows(block.name, positions)

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
        return self._select(levels, scales, combine).columns

    def matrix(
        self,
        ids: Iterable[str] | None = None,
        *,
        levels: Sequence[int] | None = None,
        scales: Sequence[int] | None = None,
        combine: Combine = "concat",
        dtype: npt.DTypeLike = np.float32,
    ) -> npt.NDArray[Any]:
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
        dtype : dtype, default=float32
            Type of the matrix; ``"float16"`` halves what a float16 cache needs.

        Returns
        -------
        ndarray of shape (n_rows, n_features)
            `columns` says what its columns are.

        Raises
        ------
        CacheError
            If an id is unknown or its row failed, or a level or scale does not follow from what
            is stored.
        """
        selection = self._select(levels, scales, combine)
        return self.read_selected(self._positions(ids), selection, np.dtype(dtype))

    def view(
        self,
        ids: Iterable[str] | None = None,
        *,
        levels: Sequence[int] | None = None,
        scales: Sequence[int] | None = None,
        combine: Combine = "concat",
        dtype: npt.DTypeLike = np.float32,
    ) -> FeatureView:
        """Features as a matrix that stays on the disk until it is sliced.

        Parameters
        ----------
        ids, levels, scales, combine, dtype
            As in `matrix`.

        Returns
        -------
        FeatureView
            scikit-learn's cross-validation and joblib's workers take it like an array; pickled,
            it is a path and row numbers.

        Raises
        ------
        CacheError
            As in `matrix`.
        """
        selection = self._select(levels, scales, combine)
        return FeatureView(self, self._positions(ids), selection, np.dtype(dtype))

    def iter_blocks(
        self, rows: int = 1024, **selected: Any
    ) -> Iterator[tuple[list[str], npt.NDArray[Any]]]:
        """Go through the features some rows at a time, for training out of core.

        Parameters
        ----------
        rows : int, default=1024
            Rows per block.
        **selected
            As in `matrix`.

        Yields
        ------
        (list of str, ndarray of shape (up to `rows`, n_features))
            Ids and their features.
        """
        view = self.view(**selected)
        for start in range(0, len(view), rows):
            block = slice(start, start + rows)
            yield self.ids_at(view.positions[block]), view[block]

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
        if self.targets is None:
            raise CacheError(f"'{self.path}' holds no labels: the dataset has none")
        targets = self.targets[self._positions(ids)]
        if targets.ndim == 2:
            return targets
        if len(targets) and not (targets.min() >= 0 and targets.max() < len(self.classes)):
            raise CacheError(f"'{self.path}' is damaged: a label is of no class")
        return np.array(self.classes)[targets]

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, empty if the dataset has no labels."""
        has = "labels/classes" in self.file.header.extents
        return tuple(decode(self.file.array("labels/classes"))) if has else ()

    @property
    def targets(self) -> npt.NDArray[Any] | None:
        """Labels of all rows as the dataset has them, failed rows included."""
        has = "labels/targets" in self.file.header.extents
        return self.file.array("labels/targets") if has else None

    @property
    def header(self) -> Header:
        """What the file says about itself before its HDF5 part begins."""
        return self.file.header

    def read_selected(
        self, positions: npt.NDArray[np.intp], selection: Selection, dtype: np.dtype[Any]
    ) -> npt.NDArray[Any]:
        """Read chosen columns of rows by position; `matrix` and `FeatureView` do so."""
        out = np.empty((len(positions), selection.width), dtype)
        run = as_slice(positions)
        if run is not None and selection.only_block and dtype == self.spec.storage:
            self.file.read_into(selection.only_block.name, run.start, out)
            return out
        for part in row_runs(len(positions), out.itemsize * selection.width):
            selection.fill(out[part], partial(self.read, positions=positions[part]))
        return out

    def _select(
        self, levels: Sequence[int] | None, scales: Sequence[int] | None, combine: Combine
    ) -> Selection:
        return Selection.choose(self.spec, self.channels, levels, scales, combine)

    def _positions(self, ids: Iterable[str] | None) -> npt.NDArray[np.intp]:
        """Positions of rows that hold features; an id without any is an error."""
        status = self.column("status")
        if ids is None:
            return np.flatnonzero(status == OK)
        wanted = list(ids)
        positions = self.find(wanted)
        for unknown in np.flatnonzero(positions < 0)[:1]:
            raise CacheError(f"'{self.path}' has no row '{wanted[unknown]}'")
        for failed in np.flatnonzero(status[positions] != OK)[:1]:
            reason = self.failures.get(wanted[failed], "")
            raise CacheError(f"row '{wanted[failed]}' has no features: {reason}")
        return positions


def _reopen(path: Path, sha256: str) -> FeatureCache:
    cache = FeatureCache(path)
    if cache.header.sha256 != sha256:
        raise CacheError(f"'{path}' was replaced by another cache since it was opened")
    return cache
