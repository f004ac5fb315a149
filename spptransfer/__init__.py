"""Spatial-pyramid features from a frozen convolutional network, and linear SVMs on top.

Nothing heavy is imported until it is used: ``import spptransfer`` loads neither torch nor
scikit-learn.
"""

from __future__ import annotations

import importlib
from typing import Any

from spptransfer._version import __version__

_HOMES = {
    "FeatureCache": "spptransfer.cache",
    "LinearSVM": "spptransfer.svm",
    "LinearSVMCV": "spptransfer.svm",
    "PyramidNormalizer": "spptransfer.normalization",
    "SPPDetector": "spptransfer.detection.estimator",
    "SPPFeatures": "spptransfer.features",
    "SPPTransferError": "spptransfer.errors",
    "TransferDetector": "spptransfer.detection.detector",
    "TransferModel": "spptransfer.models",
}
_MODULES = ("backbones", "datasets", "metrics", "protocols", "pyramid")

__all__ = ["__version__", *sorted(_HOMES), *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"spptransfer.{name}")
    raise AttributeError(f"module 'spptransfer' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
