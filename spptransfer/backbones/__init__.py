"""Frozen networks that compute named layers: those of this package, and a user's own.

Listing and describing them needs no torch; `network` and `from_module` import it when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spptransfer.backbones.info import Backbone, BackboneInfo, LayerInfo, WeightsSource
from spptransfer.backbones.registry import describe, is_timm, names, register
from spptransfer.backbones.weights import BackboneRef, layers_within, load, map_side

if TYPE_CHECKING:
    from spptransfer.backbones.loading import ConvBackbone
    from spptransfer.backbones.modules import from_module
    from spptransfer.backbones.networks import network

__all__ = [
    "Backbone",
    "BackboneInfo",
    "BackboneRef",
    "ConvBackbone",
    "LayerInfo",
    "WeightsSource",
    "describe",
    "from_module",
    "is_timm",
    "layers_within",
    "load",
    "map_side",
    "names",
    "network",
    "register",
]

_NEEDS_TORCH = {"ConvBackbone": "loading", "from_module": "modules", "network": "networks"}


def __getattr__(name: str) -> Any:
    if name in _NEEDS_TORCH:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_NEEDS_TORCH[name]}"), name)
    raise AttributeError(f"module 'spptransfer.backbones' has no attribute '{name}'")
