"""Reading a finished cache: rows by id, any level and scale that the stored ones determine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spptransfer.cache.layout import row_runs
from spptransfer.cache.rows import FAILED, OK
from spptransfer.cache.seal import Seal
from spptransfer.cache.selection import Column, Combine, Selection, derived_levels
from spptransfer.cache.stored import RowFile, as_slice, decode_loosely
from spptransfer.cache.view import FeatureView
from spptransfer.errors import CacheError, SpecMismatchError
from spptransfer.ids import Ids, decode
from spptransfer.spec import FeatureSpec


class FeatureCache(RowFile):
    """A finished feature cache, read by id.

    Open it with `FeatureCache.open`. Features stay on the disk until asked for; an instance can
    be pickled and is opened anew in the other process.

    Attributes
    ----------
    path : Path
        The HDF5 file.
    spec : FeatureSpec
        What determines the values.
    fingerprint : str
        Hash of the spec.
    sha256 : str
        Identifies the content of the file.
    dataset : str
        Name of the dataset.
    classes : tuple of str
        Names of the classes, empty if the dataset has no labels.
    channels : int
        Channels of the layer.
    computed_by : tuple of str
        Names and versions of what computed the rows.
    blocks : tuple of Block
        What is stored of every row.
    count : int
        Number of all rows, failed ones included.

    Examples
    --------
    >>> cache = FeatureCache.open("cache/demo.h5")              # doctest: +SKIP
    >>> X, y = cache.matrix(levels=[3, 1]), cache.labels()      # doctest: +SKIP
    """

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

    def _check_start(self) -> None:
        self.sha256 = Seal.read(self._raw, self.path).sha256

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self.sha256)

    def __len__(self) -> int:
        """Number of rows that hold features."""
        return int(np.count_nonzero(self.column("status") == OK))

    def __contains__(self, id: object) -> bool:
        position = self.find([str(id)])[0]
        return bool(position >= 0 and self.column("status")[position] == OK)

    def __repr__(self) -> str:
        spec = self.spec
        levels = f", levels={list(spec.levels)}" if spec.levels else ""
        if derived := derived_levels(spec):
            levels += f" (and {', '.join(map(str, derived))})"
        failed = f", failed={self.count - len(self)}" if self.count > len(self) else ""
        return (
            f"<FeatureCache '{self.path.name}': {len(self)} rows of {self.dataset}{failed}; "
            f"{spec.backbone} {spec.layer}, scales={list(spec.scales)}{levels}, "
            f"{self.channels} channels, {spec.storage}>"
        )

    @property
    def ids(self) -> list[str]:
        """Ids of the rows that hold features, in the order of the dataset."""
        return decode(self.column("id")[self.column("status") == OK])

    @cached_property
    def _all_ids(self) -> Ids:
        return Ids.from_encoded(self.column("id"))

    @property
    def failures(self) -> dict[str, str]:
        """Reason for every row that has no features, by id."""
        failed = np.flatnonzero(self.column("status") == FAILED)
        errors = decode_loosely(self._rows("rows/error", failed))
        return dict(zip(self.ids_at(failed), errors, strict=True))

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of the image file of every row that holds features, by id."""
        good = self.column("status") == OK
        return dict(zip(self.ids, decode(self.column("digest")[good]), strict=True))

    def find(self, ids: Iterable[str]) -> npt.NDArray[np.intp]:
        """Find rows, failed ones included.

        Parameters
        ----------
        ids : iterable of str
            Ids in any order.

        Returns
        -------
        ndarray of intp, shape (n_ids,)
            Positions in the file, -1 for ids that are unknown.
        """
        return self._all_ids.find(ids)

    def columns(
        self,
        levels: Sequence[int] | None = None,
        scales: Sequence[int] | None = None,
        combine: Combine = "concat",
    ) -> tuple[Column, ...]:
        """Describe the columns of a matrix of such levels and scales.

        Parameters
        ----------
        levels, scales, combine
            As in `matrix`.

        Returns
        -------
        tuple of Column
            Scale by scale, within each level by level.

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
        """Make a matrix that stays on the disk until it is sliced.

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
        """Return labels as they were when the cache was written, by id.

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
        targets = self.targets
        if targets is None:
            raise CacheError(f"'{self.path}' holds no labels: the dataset has none")
        targets = targets[self._positions(ids)]
        if targets.ndim == 2:
            return targets
        if len(targets) and not (targets.min() >= 0 and targets.max() < len(self.classes)):
            raise CacheError(f"'{self.path}' is damaged: a label is of no class")
        return np.array(self.classes)[targets]

    def read_selected(
        self, positions: npt.NDArray[np.intp], selection: Selection, dtype: np.dtype[Any]
    ) -> npt.NDArray[Any]:
        """Read chosen columns of rows by position; `matrix` and `FeatureView` do so."""
        out = np.empty((len(positions), selection.width), dtype)
        run = as_slice(positions)
        if run is not None and selection.only_block and dtype == self.spec.storage:
            self._read_into(selection.only_block.name, run.start, out)
            return out
        for part in row_runs(len(positions), out.itemsize * selection.width):
            selection.fill(out[part], partial(self.read, positions=positions[part]))
        return out

    def _select(
        self, levels: Sequence[int] | None, scales: Sequence[int] | None, combine: Combine
    ) -> Selection:
        return Selection.choose(self.spec, self.channels, levels, scales, combine)

    def _positions(self, ids: Iterable[str] | None) -> npt.NDArray[np.intp]:
        """Find rows that hold features; an id without any is an error."""
        status = self.column("status")
        if ids is None:
            return np.flatnonzero(status == OK)
        wanted = ids if isinstance(ids, Ids) else list(ids)
        positions = self.find(wanted)
        for unknown in np.flatnonzero(positions < 0)[:1]:
            raise CacheError(f"'{self.path}' has no row '{wanted[unknown]}'")
        for failed in np.flatnonzero(status[positions] != OK)[:1]:
            reason = self.rows_at(positions[failed : failed + 1]).error[0]
            raise CacheError(f"row '{wanted[failed]}' has no features: {reason}")
        return positions


def _reopen(path: Path, sha256: str) -> FeatureCache:
    cache = FeatureCache(path)
    if cache.sha256 != sha256:
        raise CacheError(f"'{path}' was replaced by another cache since it was opened")
    return cache
