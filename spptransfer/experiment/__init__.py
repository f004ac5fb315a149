"""One pipeline file becomes one run, or a table of them: dataset, cache, splits, results.

What an extraction does not need is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Experiment": "preparation",
    "Grid": "grid",
    "Machine": "preparation",
    "RunResult": "running",
    "Shards": "features",
    "extract_features": "features",
    "prepare": "preparation",
    "prepare_grid": "grid",
    "run": "running",
    "run_grid": "grid",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        found = getattr(importlib.import_module(f"spptransfer.experiment.{_HOMES[name]}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module 'spptransfer.experiment' has no attribute '{name}'")
