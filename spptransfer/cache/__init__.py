"""Rows of features in one HDF5 file that appears whole or not at all."""

from __future__ import annotations

from spptransfer.cache.assembly import Column
from spptransfer.cache.reading import FeatureCache

__all__ = ["Column", "FeatureCache"]
