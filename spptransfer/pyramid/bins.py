"""The arithmetic of a spatial pyramid, free of torch.

Level n cuts a map into n x n bins by the floor/ceil rule of the SPP-net paper's appendix: along
a side of w cells, bin i covers the cells ``floor(i w / n)`` up to but not including
``ceil((i + 1) w / n)``. Bins overlap by one cell where n does not divide w, and none is empty
even where n > w.

Because of that rule the bounds of level m are bounds of level n whenever m divides n. The
maximum over a bin of level m is then *exactly* the maximum over the bins of level n inside it,
so only the *determining* levels have to be computed and stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from spptransfer.errors import ConfigError

Pooling = Literal["max", "mean"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


def check_levels(levels: Iterable[int]) -> tuple[int, ...]:
    """Validate the levels of a pyramid and keep their order.

    Parameters
    ----------
    levels : iterable of int
        Level n is the n x n grid of bins.

    Returns
    -------
    tuple of int
        The levels in the order given.

    Raises
    ------
    ConfigError
        If there is no level, one is not a whole number of at least 1, or one is given twice.

    Examples
    --------
    >>> check_levels([6, 3, 2, 1])
    (6, 3, 2, 1)
    """
    checked = tuple(levels)
    if not checked:
        raise ConfigError("levels: a pyramid needs at least one level, such as [6, 3, 2, 1]")
    for level in checked:
        if isinstance(level, bool) or not isinstance(level, (int, np.integer)) or level < 1:
            raise ConfigError(f"levels: {level!r} is not a whole number of at least 1")
    if len(set(checked)) < len(checked):
        raise ConfigError(f"levels: {list(checked)} holds a level twice")
    return tuple(int(level) for level in checked)


def check_pooling(pooling: str) -> Pooling:
    """Validate the name of the pooling, ``"max"`` or ``"mean"``."""
    for known in POOLINGS:
        if pooling == known:
            return known
    raise ConfigError(f"pooling: {pooling!r} is unknown; allowed: {', '.join(POOLINGS)}")


def bin_bounds(side: int, level: int) -> list[tuple[int, int]]:
    """Cells covered by each bin along one side of a map.

    Parameters
    ----------
    side : int
        Length of the side in cells, at least 1.
    level : int
        Number of bins along the side.

    Returns
    -------
    list of (int, int)
        First cell and the cell after the last one, for every bin.

    References
    ----------
    He et al., "Spatial Pyramid Pooling in Deep Convolutional Networks for Visual
    Recognition", TPAMI 2015, appendix A.

    Examples
    --------
    >>> bin_bounds(13, 6)
    [(0, 3), (2, 5), (4, 7), (6, 9), (8, 11), (10, 13)]
    >>> bin_bounds(1, 3)
    [(0, 1), (0, 1), (0, 1)]
    """
    return [(i * side // level, -(-(i + 1) * side // level)) for i in range(level)]


def count_bins(levels: Iterable[int]) -> int:
    """Count the bins of a pyramid, such as 50 for (6, 3, 2, 1).

    Examples
    --------
    >>> count_bins([6, 3, 2, 1]), count_bins([4, 3, 2, 1])
    (50, 30)
    """
    return sum(level * level for level in levels)


def determining_levels(levels: Iterable[int], pooling: Pooling = "max") -> tuple[int, ...]:
    """Levels from which all the others follow exactly, finest first.

    Parameters
    ----------
    levels : iterable of int
        The pyramid.
    pooling : {"max", "mean"}
        The mean over a coarse bin does not follow from the means over finer ones, because those
        overlap and differ in size; every level then determines only itself.

    Returns
    -------
    tuple of int
        A subset of `levels` in descending order.

    Examples
    --------
    >>> determining_levels([6, 3, 2, 1])
    (6,)
    >>> determining_levels([4, 3, 2, 1])
    (4, 3)
    """
    finest_first = sorted(set(levels), reverse=True)
    if pooling == "mean":
        return tuple(finest_first)
    kept: list[int] = []
    for level in finest_first:
        if source_level(level, kept) is None:
            kept.append(level)
    return tuple(kept)


def source_level(level: int, available: Sequence[int], pooling: Pooling = "max") -> int | None:
    """Choose the level among the available ones from which `level` follows exactly.

    Parameters
    ----------
    level : int
        The level wanted.
    available : sequence of int
        Levels at hand.
    pooling : {"max", "mean"}
        With ``"mean"`` a level follows only from itself.

    Returns
    -------
    int or None
        The coarsest available multiple of `level` (the cheapest source), None where none is.

    Examples
    --------
    >>> source_level(2, [6, 4])
    4
    >>> source_level(5, [6, 4]) is None
    True
    """
    if pooling == "mean":
        return level if level in available else None
    return min((finer for finer in available if finer % level == 0), default=None)


def derive_level(
    features: npt.NDArray[np.floating], source: int, target: int
) -> npt.NDArray[np.floating]:
    """Maximum over the bins of a finer level inside each bin of a coarser one.

    Parameters
    ----------
    features : ndarray of shape (n_rows, channels * source**2)
        Max-pooled features of level `source`, channel-major.
    source : int
        The finer level.
    target : int
        The coarser level; it must divide `source`.

    Returns
    -------
    ndarray of shape (n_rows, channels * target**2)
        Exactly what max pooling the map at level `target` gives, NaN included.

    Raises
    ------
    ConfigError
        If `target` does not divide `source`.

    Examples
    --------
    >>> import numpy as np
    >>> derive_level(np.array([[1.0, 2.0, 4.0, 3.0]]), source=2, target=1)
    array([[4.]])
    """
    if source % target:
        raise ConfigError(f"level {target} does not follow from level {source}")
    if source == target:
        return features
    step = source // target
    grid = features.reshape(len(features), -1, target, step, target, step)
    # One pass per offset keeps the inner loop long; a reduction over two short axes is slower.
    pooled = grid[:, :, :, 0, :, 0].copy()
    for row in range(step):
        for column in range(step):
            np.maximum(pooled, grid[:, :, :, row, :, column], out=pooled)
    return pooled.reshape(len(features), -1)
