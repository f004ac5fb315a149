"""One pipeline file becomes one run, or a table of them: dataset, cache, splits, results."""

from __future__ import annotations

from spptransfer.experiment.grid import Grid, prepare_file, prepare_grid, run_grid
from spptransfer.experiment.preparation import Experiment, Machine, prepare
from spptransfer.experiment.running import RunResult, Shards, extract_features, run

__all__ = [
    "Experiment",
    "Grid",
    "Machine",
    "RunResult",
    "Shards",
    "extract_features",
    "prepare",
    "prepare_file",
    "prepare_grid",
    "run",
    "run_grid",
]
