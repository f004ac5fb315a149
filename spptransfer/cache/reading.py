"""Reading a finished cache: rows by id, any level and scale that the stored ones determine."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from spptransfer.cache.layout import Block, row_runs
from spptransfer.cache.rows import OK, RowFile
from spptransfer.errors import CacheError, SpecMismatchError, suggestion
from spptransfer.ids import Ids, decode
from spptransfer.pyramid import check_levels, derive_level
from spptransfer.spec import FeatureSpec, check_layers, check_scales

Combine = Literal["concat", "mean", "max"]
COMBINES: tuple[Combine, ...] = get_args(Combine)


@dataclass(frozen=True)
class Column:
    """A run of columns of a feature matrix that belong to one level of a layer at one scale.

    `level` is None for vector layers, `scale` None where scales were combined. Inside, numbers
    are channel-major: channel, then bin row, then bin column.
    """

    layer: str
    scale: int | None
    level: int | None
    start: int
    stop: int

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.stop - self.start


@dataclass(frozen=True)
class Selection:
    """Layers, levels and scales of a spec, checked, and how several scales are combined.

    `columns` come layer by layer, within each scale by scale, within each level by level.
    """

    spec: FeatureSpec
    channels: Mapping[str, int]
    layers: tuple[str, ...]
    scales: tuple[int, ...]
    combine: Combine
    columns: tuple[Column, ...]

    @classmethod
    def choose(
        cls,
        spec: FeatureSpec,
        channels: Mapping[str, int],
        levels: Sequence[int] | None = None,
        scales: Sequence[int] | None = None,
        combine: Combine = "concat",
        layers: str | Sequence[str] | None = None,
    ) -> Selection:
        """Check a choice against what is stored; None stands for everything stored."""
        if combine not in COMBINES:
            raise CacheError(f"combine: {combine!r} is unknown; {suggestion(combine, COMBINES)}")
        chosen = spec.scales if scales is None else check_scales(scales)
        for scale in chosen:
            if scale not in spec.scales:
                raise CacheError(f"scale {scale} is not stored; allowed: {list(spec.scales)}")
        named = spec.layers if layers is None else check_layers(layers)
        for layer in named:
            if layer not in spec.layers:
                raise CacheError(f"layer {layer!r} is not stored; allowed: {list(spec.layers)}")
        wanted = _choose_levels(spec, named, levels)
        shown: Sequence[int | None] = chosen if combine == "concat" else (None,)
        columns: list[Column] = []
        for layer in named:
            of_layer = (None,) if layer in spec.vectors else wanted
            for of_scale, level in itertools.product(shown, of_layer):
                start = columns[-1].stop if columns else 0
                width = channels[layer] * (1 if level is None else level**2)
                columns.append(Column(layer, of_scale, level, start, start + width))
        return cls(spec, channels, named, chosen, combine, tuple(columns))

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.columns[-1].stop

    @property
    def only_block(self) -> Block | None:
        """The block that is the whole matrix as stored, if the choice comes down to that."""
        first = self.columns[0]
        block = self._source(first, self.scales[0])
        is_stored = len(self.columns) == len(self.scales) == 1 and block.level == first.level
        return block if is_stored else None

    def fill(self, out: npt.NDArray[Any], read: Callable[[Block], npt.NDArray[Any]]) -> None:
        """Derive the chosen columns from stored blocks, as `read` gives them, into `out`."""
        for column in self.columns:
            levels = []
            for scale in self.scales if column.scale is None else (column.scale,):
                source = self._source(column, scale)
                rows = read(source)
                if source.level is not None and column.level is not None:
                    rows = derive_level(rows, source.level, column.level)
                levels.append(rows)
            if self.combine == "concat":
                out[:, column.start : column.stop] = levels[0]
            else:
                reduce = np.mean if self.combine == "mean" else np.max
                stacked = np.stack(levels, dtype=np.float32)
                out[:, column.start : column.stop] = reduce(stacked, axis=0)

    def _source(self, column: Column, scale: int) -> Block:
        level = column.level and self.spec.source_of(column.level)
        return Block(column.layer, scale, level, self.channels[column.layer])


def _choose_levels(
    spec: FeatureSpec, layers: Sequence[str], levels: Sequence[int] | None
) -> tuple[int, ...]:
    if levels and set(layers) <= set(spec.vectors):
        raise CacheError(f"layer '{layers[0]}' is a vector; it has no levels")
    if not spec.levels:
        return ()
    chosen = spec.levels if levels is None else check_levels(levels)
    for level in chosen:
        if spec.source_of(level) is None:
            raise CacheError(
                f"level {level} does not follow from the stored levels {list(spec.levels)}"
            )
    return chosen


def feature_names(selection: Selection, *, whole_map: bool = False) -> list[str]:
    """Name every column, as ``"scale224_level6_channel0_bin0_5"``.

    For whole maps (``levels: []``) it is ``"scale224_conv4_channel0_row0_column5"``, for vectors
    ``"scale224_unit0"``. Where there are several layers the layer goes first.
    """
    names = []
    for column in selection.columns:
        scale = selection.combine if column.scale is None else f"scale{column.scale}"
        if len(selection.layers) > 1:
            scale = f"{column.layer}_{scale}"
        channels = selection.channels[column.layer]
        if column.level is None:
            names += [f"{scale}_unit{unit}" for unit in range(channels)]
            continue
        block = column.layer if whole_map else f"level{column.level}"
        cell = "row{}_column{}" if whole_map else "bin{}_{}"
        names += [
            f"{scale}_{block}_channel{channel}_{cell.format(row, side)}"
            for channel in range(channels)
            for row in range(column.level)
            for side in range(column.level)
        ]
    return names


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
    channels : dict of str to int
        Channels of every layer, or the length of a vector.
    computed_by : tuple of str
        Names and versions of what computed the rows.
    probe : ndarray of float32, shape (n_layers, 64)
        What the backbone makes of a fixed image; zeros where it was not recorded.
    blocks : tuple of Block
        What is stored of every row.
    count : int
        Number of all rows, failed ones included.

    Examples
    --------
    >>> cache = FeatureCache.open("cache/demo.h5")              # doctest: +SKIP
    >>> X, y = cache.matrix(levels=[3, 1]), cache.labels()      # doctest: +SKIP
    """

    _is_sealed = True

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

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self.sha256)

    def __len__(self) -> int:
        """Number of rows that hold features."""
        return int(np.count_nonzero(self.column("rows/status") == OK))

    def __contains__(self, id: object) -> bool:
        position = self.find([str(id)])[0]
        return bool(position >= 0 and self.column("rows/status")[position] == OK)

    def __repr__(self) -> str:
        spec = self.spec
        levels = f", levels={list(spec.levels)}" if spec.levels else ""
        coarser = range(max(spec.levels, default=1) - 1, 0, -1)
        derived = [n for n in coarser if n not in spec.levels and spec.source_of(n)]
        if derived:
            levels += f" (and {', '.join(map(str, derived))})"
        failed = f", failed={self.count - len(self)}" if self.count > len(self) else ""
        return (
            f"<FeatureCache '{self.path.name}': {len(self)} rows of {self.dataset}{failed}; "
            f"{spec.origin}, scales={list(spec.scales)}{levels}, "
            f"{' + '.join(map(str, self.channels.values()))} channels, {spec.storage}>"
        )

    @property
    def ids(self) -> list[str]:
        """Ids of the rows that hold features, in the order of the dataset."""
        return decode(self.column("rows/id")[self.column("rows/status") == OK])

    @cached_property
    def _all_ids(self) -> Ids:
        return Ids(self.column("rows/id"))

    @property
    def failures(self) -> dict[str, str]:
        """Reason for every row that has no features, by id."""
        return self.failures_at(np.arange(self.count))

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of the image file of every row that holds features, by id."""
        good = self.column("rows/status") == OK
        return dict(zip(self.ids, decode(self.column("rows/digest")[good]), strict=True))

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
        layers: str | Sequence[str] | None = None,
    ) -> tuple[Column, ...]:
        """Describe the columns of a matrix of such layers, levels and scales.

        Parameters
        ----------
        levels, scales, combine, layers
            As in `matrix`.

        Returns
        -------
        tuple of Column
            Layer by layer, within each scale by scale, within each level by level.

        Raises
        ------
        CacheError
            If a layer, level or scale does not follow from what is stored.
        """
        return Selection.choose(self.spec, self.channels, levels, scales, combine, layers).columns

    def matrix(
        self,
        ids: Iterable[str] | None = None,
        *,
        levels: Sequence[int] | None = None,
        scales: Sequence[int] | None = None,
        combine: Combine = "concat",
        layers: str | Sequence[str] | None = None,
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
        layers : str or sequence of str, optional
            Layers, in this order; by default all that are stored.
        dtype : dtype, default=float32
            Type of the matrix; ``"float16"`` halves what a float16 cache needs.

        Returns
        -------
        ndarray of shape (n_rows, n_features)
            `columns` says what its columns are.

        Raises
        ------
        CacheError
            If an id is unknown or its row failed, or a layer, level or scale does not follow from
            what is stored.
        """
        chosen: Any = {"levels": levels, "scales": scales, "combine": combine, "layers": layers}
        return np.asarray(self.view(ids, **chosen, dtype=dtype))

    def view(
        self,
        ids: Iterable[str] | None = None,
        *,
        levels: Sequence[int] | None = None,
        scales: Sequence[int] | None = None,
        combine: Combine = "concat",
        layers: str | Sequence[str] | None = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> FeatureView:
        """Make a matrix that stays on the disk until it is sliced.

        Parameters
        ----------
        ids, levels, scales, combine, layers, dtype
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
        selection = Selection.choose(self.spec, self.channels, levels, scales, combine, layers)
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

    def _positions(self, ids: Iterable[str] | None) -> npt.NDArray[np.intp]:
        """Find rows that hold features; an id without any is an error."""
        status = self.column("rows/status")
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


class FeatureView:
    """Rows of a cache that behave like a read-only matrix.

    Made by `FeatureCache.view`. Slicing reads just the rows asked for; a pickle holds the
    file's path and row numbers, never features. scikit-learn's cross-validation slices it like
    an array, and ``np.asarray`` reads all of it.

    Attributes
    ----------
    shape : (int, int)
        Rows and columns.
    dtype : dtype
        Type of what slicing gives.
    positions : ndarray of int, shape (n_rows,)
        Where the rows are in the file.
    selection : Selection
        What its columns are.

    Examples
    --------
    >>> X = FeatureCache.open("cache/demo.h5").view(levels=[1])         # doctest: +SKIP
    >>> cross_val_score(LinearSVC(), X, y, n_jobs=4)                    # doctest: +SKIP
    """

    ndim = 2

    def __init__(
        self,
        cache: FeatureCache,
        positions: npt.NDArray[np.intp],
        selection: Selection,
        dtype: np.dtype[Any],
    ) -> None:
        self._cache = cache
        self.positions = positions
        self.selection = selection
        self.dtype = dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.positions), self.selection.width

    @property
    def nbytes(self) -> int:
        """Bytes that the whole matrix takes once read."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.positions)

    def __repr__(self) -> str:
        return f"<FeatureView {self.shape[0]} x {self.shape[1]} {self.dtype} of {self._cache!r}>"

    def __getitem__(self, key: Any) -> Any:
        """Read rows, and of these columns, by whatever indexes a numpy matrix."""
        rows, *rest = key if isinstance(key, tuple) else (key,)
        chosen = self.positions[rows]
        values = self._read(np.atleast_1d(chosen)).reshape(*np.shape(chosen), self.shape[1])
        return values[..., *(part for part in rest if part is not Ellipsis)]

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        """Read everything; every call reads anew, so ``copy=False`` is refused."""
        if copy is False:
            raise ValueError("a FeatureView cannot become an array without being read")
        values = self._read(self.positions)
        return values if dtype is None else values.astype(dtype, copy=False)

    def _read(self, positions: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
        cache, block = self._cache, self.selection.only_block
        if block is not None and self.dtype == cache.spec.storage:
            return cache.read(block, positions)
        out = np.empty((len(positions), self.selection.width), self.dtype)
        for run in row_runs(len(positions), out.itemsize * self.selection.width):
            self.selection.fill(out[run], partial(cache.read, positions=positions[run]))
        return out
