"""Rows of features in one HDF5 file that appears whole or not at all."""

from __future__ import annotations

from spptransfer.cache.layout import Labels
from spptransfer.cache.reading import FeatureCache
from spptransfer.cache.selection import Column
from spptransfer.cache.view import FeatureView

__all__ = ["Column", "FeatureCache", "FeatureView", "Labels"]
