"""From stored blocks to the columns of a feature matrix: levels, scales, how they combine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from spptransfer.cache.layout import Block
from spptransfer.errors import CacheError, suggestion
from spptransfer.pyramid import check_levels, derive_level
from spptransfer.spec import FeatureSpec, check_scales

Combine = Literal["concat", "mean", "max"]
COMBINES: tuple[Combine, ...] = ("concat", "mean", "max")


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


@dataclass(frozen=True)
class Assembly:
    """A choice of levels and scales out of those that a spec determines.

    Make it with `choose`, which checks the choice.

    Examples
    --------
    >>> spec = FeatureSpec(backbone="alexnet", weights_sha256="e7", layer="spp", levels=(6,))
    >>> choose(spec, channels=256, levels=[2, 1]).width
    1280
    """

    spec: FeatureSpec
    channels: int
    levels: tuple[int | None, ...]
    scales: tuple[int, ...]
    combine: Combine

    @property
    def columns(self) -> tuple[Column, ...]:
        """What the columns mean: scale by scale, within each level by level."""
        shown: Sequence[int | None] = self.scales if self.combine == "concat" else (None,)
        columns, start = [], 0
        for scale in shown:
            for level in self.levels:
                stop = start + Block(0, level, self.channels).width
                columns.append(Column(scale, level, start, stop))
                start = stop
        return tuple(columns)

    @property
    def width(self) -> int:
        """Length of a feature vector."""
        return self.columns[-1].stop

    def feature_names(self) -> list[str]:
        """Name every column by scale, level, channel, bin row and bin column.

        Examples
        --------
        >>> spec = FeatureSpec(backbone="alexnet", weights_sha256="e7", layer="spp", levels=(6,))
        >>> choose(spec, channels=256, levels=[2]).feature_names()[:3]
        ['s224_l2_c0_r0_b0', 's224_l2_c0_r0_b1', 's224_l2_c0_r1_b0']
        """
        names = []
        for column in self.columns:
            scale = f"s{column.scale}" if column.scale else self.combine
            if column.level is None:
                names += [f"{scale}_{i}" for i in range(self.channels)]
                continue
            bins = range(column.level)
            prefix = f"{scale}_l{column.level}"
            names += [
                f"{prefix}_c{c}_r{r}_b{b}" for c in range(self.channels) for r in bins for b in bins
            ]
        return names

    def build(
        self, rows_of: Callable[[Block], npt.NDArray[Any]], out: npt.NDArray[np.float32]
    ) -> None:
        """Fill a matrix from stored blocks.

        Parameters
        ----------
        rows_of : callable
            Gives the rows of a stored block, (n_rows, block.width).
        out : ndarray of float32, shape (n_rows, width)
            Where the features go.
        """
        vectors = [self._vectors(rows_of, scale) for scale in self.scales]
        if self.combine == "concat":
            np.concatenate([part for parts in vectors for part in parts], axis=1, out=out)
            return
        whole = np.stack([np.concatenate(parts, axis=1, dtype=np.float32) for parts in vectors])
        (np.mean if self.combine == "mean" else np.max)(whole, axis=0, out=out)

    def _vectors(
        self, rows_of: Callable[[Block], npt.NDArray[Any]], scale: int
    ) -> list[npt.NDArray[Any]]:
        """Features at one scale, level by level; every stored block is asked for once."""
        read: dict[int | None, npt.NDArray[Any]] = {}
        parts = []
        for level in self.levels:
            source = None if level is None else self.spec.source_of(level)
            if source not in read:
                read[source] = rows_of(Block(scale, source, self.channels))
            rows = read[source]
            parts.append(
                rows if level is None or source is None else derive_level(rows, source, level)
            )
        return parts


def choose(
    spec: FeatureSpec,
    channels: int,
    levels: Sequence[int] | None = None,
    scales: Sequence[int] | None = None,
    combine: str = "concat",
) -> Assembly:
    """Check a choice of levels and scales against what a spec determines.

    Parameters
    ----------
    spec : FeatureSpec
        What is stored.
    channels : int
        Channels of the layer.
    levels, scales : sequence of int, optional
        In the order wanted; by default all that are stored.
    combine : {"concat", "mean", "max"}
        What becomes of several scales.

    Raises
    ------
    CacheError
        If a level or scale does not follow from what is stored.
    """
    known = [name for name in COMBINES if name == combine]
    if not known:
        raise CacheError(f"combine: {combine!r} is unknown; {suggestion(combine, COMBINES)}")
    chosen_scales = spec.scales if scales is None else check_scales(scales)
    for scale in chosen_scales:
        if scale not in spec.scales:
            raise CacheError(f"scale {scale} is not stored; allowed: {list(spec.scales)}")
    return Assembly(spec, channels, _choose_levels(spec, levels), chosen_scales, known[0])


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
