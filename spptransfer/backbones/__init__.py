"""Pretrained convolutional networks up to a chosen layer, frozen.

Listing and describing them needs no torch; `load` and `network` import it when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spptransfer.backbones.catalogue import describe, names
from spptransfer.backbones.info import BackboneInfo, LayerInfo, WeightsSource

if TYPE_CHECKING:
    from spptransfer.backbones.loading import Backbone, load, network

__all__ = [
    "Backbone",
    "BackboneInfo",
    "LayerInfo",
    "WeightsSource",
    "describe",
    "load",
    "names",
    "network",
]

_NEEDS_TORCH = ("Backbone", "load", "network")


def __getattr__(name: str) -> Any:
    if name in _NEEDS_TORCH:
        from spptransfer.backbones import loading

        return getattr(loading, name)
    raise AttributeError(f"module 'spptransfer.backbones' has no attribute '{name}'")
