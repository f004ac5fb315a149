"""Where in the image each class looks: the linear weights' energy over the pyramid's bins."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt


def overlap(finest: int, level: int) -> npt.NDArray[np.float64]:
    """Share of each of a coarse level's bins that falls into each cell of a finer grid.

    Parameters
    ----------
    finest : int
        Cells per side of the fine grid.
    level : int
        Bins per side of the coarse one; it need not divide `finest`.

    Returns
    -------
    ndarray of float64, shape (finest, level)
        Every column sums to 1.

    Examples
    --------
    >>> overlap(4, 2)
    array([[0.5, 0. ],
           [0.5, 0. ],
           [0. , 0.5],
           [0. , 0.5]])
    """
    fine, coarse = np.arange(finest + 1) / finest, np.arange(level + 1) / level
    upper = np.minimum(fine[1:, None], coarse[None, 1:])
    lower = np.maximum(fine[:-1, None], coarse[None, :-1])
    return np.clip(upper - lower, 0, None) * level


def attention_maps(
    blocks: Iterable[tuple[int | None, npt.NDArray[np.floating]]], finest: int
) -> npt.NDArray[np.float64]:
    """Spread every class's squared positive weights over the image.

    Each bin's energy (the sum over channels, scales and levels of the squared positive weights)
    is spread evenly over the area the bin covers.

    Parameters
    ----------
    blocks : iterable of (level, weights)
        Weights of shape (n_classes, channels · level²), channel-major. Blocks without a grid
        (level None) have no place in the image and are left out.
    finest : int
        Cells per side of the map, normally the finest level.

    Returns
    -------
    ndarray of float64, shape (n_classes, finest, finest)
        Energy relative to an even spread: 1 everywhere if a class looks everywhere alike.

    Raises
    ------
    ValueError
        If a block's width is not a multiple of its number of bins.

    Examples
    --------
    >>> weights = np.array([[3.0, 0.0, -5.0, 1.0]])    # one class, one channel, a 2×2 level
    >>> attention_maps([(2, weights)], finest=2)
    array([[[3.6, 0. ],
            [0. , 0.4]]])
    """
    total: npt.NDArray[np.float64] | None = None
    for level, weights in blocks:
        if level is None:
            continue
        if weights.shape[1] % level**2:
            raise ValueError(f"a block of width {weights.shape[1]} has no {level}×{level} bins")
        spread = overlap(finest, level)
        energy = np.einsum("fn,cnm,gm->cfg", spread, _positive_energy(weights, level), spread)
        total = energy if total is None else total + energy
    if total is None:
        return np.ones((0, finest, finest))
    mean = total.mean(axis=(1, 2), keepdims=True)
    return np.divide(total, mean, out=np.ones_like(total), where=mean > 0)


def _positive_energy(weights: npt.NDArray[np.floating], level: int) -> npt.NDArray[np.float64]:
    """Sum the squared positive weights over the channels: (n_classes, level, level)."""
    grid = np.maximum(weights, 0).reshape(len(weights), -1, level, level)
    return np.einsum("kcij,kcij->kij", grid, grid, dtype=np.float64)
