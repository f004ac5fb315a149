"""Spatial pyramids: how a map is cut into bins, and the layer that pools them.

This package is the only place that knows how a bin is cut. The arithmetic (`bins`) needs
numpy alone; the torch layer (`pooling`) is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spptransfer.pyramid.bins import (
    bin_bounds,
    check_levels,
    count_bins,
    derive_level,
    determining_levels,
    source_level,
)

if TYPE_CHECKING:
    from spptransfer.pyramid.pooling import SpatialPyramidPooling

__all__ = [
    "SpatialPyramidPooling",
    "bin_bounds",
    "check_levels",
    "count_bins",
    "derive_level",
    "determining_levels",
    "source_level",
]


def __getattr__(name: str) -> Any:
    if name == "SpatialPyramidPooling":
        from spptransfer.pyramid.pooling import SpatialPyramidPooling

        return SpatialPyramidPooling
    raise AttributeError(f"module 'spptransfer.pyramid' has no attribute '{name}'")
