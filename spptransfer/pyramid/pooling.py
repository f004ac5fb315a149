"""The SPP layer as a torch module."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional

from spptransfer.pyramid.bins import (
    check_levels,
    check_pooling,
    count_bins,
    source_level,
)


class SpatialPyramidPooling(nn.Module):
    """Pool a map of any size into a vector of fixed length.

    Parameters
    ----------
    levels : iterable of int, default=(6, 3, 2, 1)
        Level n is the n x n grid of bins; see `spptransfer.pyramid.bin_bounds`.
    pooling : {"max", "mean"}, default="max"
        What is taken over the cells of a bin.

    Raises
    ------
    ConfigError
        If the levels or the pooling are not valid.

    Notes
    -----
    Input is N x C x H x W with H, W >= 1, output N x (C * bins): level by level in the order
    given, each level channel-major. A level that divides a finer one is taken from that level's
    bins, which is exact for the maximum. NaN in a bin makes the bin NaN. Gradients flow, so the
    layer can be trained with.

    References
    ----------
    He et al., TPAMI 2015, section 2.2 and appendix A.

    Examples
    --------
    >>> import torch
    >>> spp = SpatialPyramidPooling([2, 1])
    >>> spp(torch.arange(6.0).reshape(1, 1, 2, 3))
    tensor([[1., 2., 4., 5., 5.]])
    """

    def __init__(self, levels: Iterable[int] = (6, 3, 2, 1), pooling: str = "max") -> None:
        super().__init__()
        self.levels = check_levels(levels)
        self.pooling = check_pooling(pooling)

    @property
    def bins(self) -> int:
        """Number of bins of the pyramid."""
        return count_bins(self.levels)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Pool a batch of maps.

        Parameters
        ----------
        maps : Tensor of shape (N, C, H, W)
            Maps of one size, at least 1 x 1.

        Returns
        -------
        Tensor of shape (N, C * bins)
            One vector per map.
        """
        if maps.dim() != 4 or min(maps.shape[2:]) < 1:
            raise ValueError(f"maps must be N x C x H x W with H, W >= 1, got {tuple(maps.shape)}")
        exported = torch.onnx.is_in_onnx_export()
        if maps.device.type == "cpu" and not exported:  # torch pools several times as fast so
            maps = maps.contiguous(memory_format=torch.channels_last)
        grids: dict[int, torch.Tensor] = {}
        for level in sorted(self.levels, reverse=True):
            finer = source_level(level, list(grids), self.pooling)
            pool = self._pool_by_slices if exported else self._pool
            grids[level] = pool(maps if finer is None else grids[finer], level)
        return torch.cat([grids[level].flatten(1) for level in self.levels], dim=1)

    def _pool(self, maps: torch.Tensor, level: int) -> torch.Tensor:
        if self.pooling == "mean":
            return functional.adaptive_avg_pool2d(maps, level)
        # Torch cuts adaptive windows by the same floor/ceil rule.
        return functional.adaptive_max_pool2d(maps, level)

    def _pool_by_slices(self, maps: torch.Tensor, level: int) -> torch.Tensor:
        """Pool in operators that ONNX has for maps of any size, along one side, then the other."""
        for axis in (2, 3):
            side = maps.shape[axis]  # in an export no number, but what the map's will be
            bins = []
            for i in range(level):
                start, stop = i * side // level, ((i + 1) * side + level - 1) // level
                cells = maps[:, :, start:stop] if axis == 2 else maps[..., start:stop]
                bins.append(cells.amax(axis) if self.pooling == "max" else cells.mean(axis))
            maps = torch.stack(bins, axis)
        return maps

    def extra_repr(self) -> str:
        """Show levels and pooling in the module's repr."""
        return f"levels={list(self.levels)}, pooling='{self.pooling}'"
