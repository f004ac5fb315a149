"""Rows of features in one HDF5 file that appears whole or not at all."""

from __future__ import annotations

from spptransfer.cache.layout import Labels
from spptransfer.cache.reading import Column, FeatureCache, FeatureView

__all__ = ["Column", "FeatureCache", "FeatureView", "Labels"]
