"""Which columns a feature matrix has: levels and scales chosen among those that are stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from spptransfer.cache.layout import Block
from spptransfer.errors import CacheError, suggestion
from spptransfer.pyramid import check_levels, derive_level
from spptransfer.spec import FeatureSpec, check_scales

Combine = Literal["concat", "mean", "max"]
COMBINES: tuple[Combine, ...] = get_args(Combine)

ReadBlock = Callable[[Block], npt.NDArray[Any]]


@dataclass(frozen=True)
class Column:
    """A run of columns of a feature matrix that belong to one level at one scale.

    `level` is None for fully connected layers, `scale` None where scales were combined. Inside,
    numbers are channel-major: channel, then bin row, then bin column.
    """

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
    """Levels and scales of a spec, checked, and how several scales are combined."""

    spec: FeatureSpec
    channels: int
    levels: tuple[int | None, ...]
    scales: tuple[int, ...]
    combine: Combine

    @classmethod
    def choose(
        cls,
        spec: FeatureSpec,
        channels: int,
        levels: Sequence[int] | None = None,
        scales: Sequence[int] | None = None,
        combine: Combine = "concat",
    ) -> Selection:
        """Check a choice against what is stored; None stands for everything stored."""
        if combine not in COMBINES:
            raise CacheError(f"combine: {combine!r} is unknown; {suggestion(combine, COMBINES)}")
        chosen = spec.scales if scales is None else check_scales(scales)
        for scale in chosen:
            if scale not in spec.scales:
                raise CacheError(f"scale {scale} is not stored; allowed: {list(spec.scales)}")
        return cls(spec, channels, _choose_levels(spec, levels), chosen, combine)

    @property
    def columns(self) -> tuple[Column, ...]:
        """Scale by scale, within each level by level."""
        shown: Sequence[int | None] = self.scales if self.combine == "concat" else (None,)
        columns, start = [], 0
        for scale in shown:
            for level in self.levels:
                stop = start + self.channels * (1 if level is None else level**2)
                columns.append(Column(scale, level, start, stop))
                start = stop
        return tuple(columns)

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.columns[-1].stop

    @property
    def only_block(self) -> Block | None:
        """The block that is the whole matrix as stored, if the choice comes down to that."""
        if len(self.scales) > 1 or len(self.levels) > 1:
            return None
        level = self.levels[0]
        block = self._source(self.scales[0], level)
        return block if block.level == level else None

    def fill(self, out: npt.NDArray[Any], read: ReadBlock) -> None:
        """Derive the chosen columns from stored blocks, as `read` gives them, into `out`."""
        if self.combine == "concat":
            for column in self.columns:
                assert column.scale is not None
                out[:, column.start : column.stop] = self._level(column.scale, column.level, read)
            return
        reduce = np.mean if self.combine == "mean" else np.max
        for column in self.columns:
            levels = [self._level(scale, column.level, read) for scale in self.scales]
            stacked = np.stack(levels, dtype=np.float32)
            out[:, column.start : column.stop] = reduce(stacked, axis=0)

    def _level(self, scale: int, level: int | None, read: ReadBlock) -> npt.NDArray[Any]:
        source = self._source(scale, level)
        rows = read(source)
        if level is None or source.level is None:
            return rows
        return derive_level(rows, source.level, level)

    def _source(self, scale: int, level: int | None) -> Block:
        return Block(scale, level and self.spec.source_of(level), self.channels)


def feature_names(selection: Selection, *, whole_map: bool = False) -> list[str]:
    """Name every column, as ``"scale224_level6_channel0_bin0_5"``.

    For whole maps (``levels: []``) it is ``"scale224_conv4_channel0_row0_column5"``, for vectors
    ``"scale224_unit0"``.
    """
    layer = selection.spec.layer
    names = []
    for column in selection.columns:
        scale = selection.combine if column.scale is None else f"scale{column.scale}"
        if column.level is None:
            names += [f"{scale}_unit{unit}" for unit in range(selection.channels)]
            continue
        block = layer if whole_map else f"level{column.level}"
        cell = "row{}_column{}" if whole_map else "bin{}_{}"
        names += [
            f"{scale}_{block}_channel{channel}_{cell.format(row, side)}"
            for channel in range(selection.channels)
            for row in range(column.level)
            for side in range(column.level)
        ]
    return names


def derived_levels(spec: FeatureSpec) -> tuple[int, ...]:
    """Levels that follow from the stored ones, the finest first.

    Examples
    --------
    >>> derived_levels(FeatureSpec(backbone="a", weights_sha256="0", layer="spp", levels=(6, 4)))
    (3, 2, 1)
    """
    coarser = range(max(spec.levels, default=1) - 1, 0, -1)
    return tuple(n for n in coarser if n not in spec.levels and spec.source_of(n))


def _choose_levels(spec: FeatureSpec, levels: Sequence[int] | None) -> tuple[int | None, ...]:
    if not spec.levels:
        if levels:
            raise CacheError(f"layer '{spec.layer}' is a vector; it has no levels")
        return (None,)
    chosen = spec.levels if levels is None else check_levels(levels)
    for level in chosen:
        if spec.source_of(level) is None:
            raise CacheError(
                f"level {level} does not follow from the stored levels {list(spec.levels)}"
            )
    return chosen
