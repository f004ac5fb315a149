"""One pipeline file becomes one run, or a table of them: dataset, cache, splits, results."""

from __future__ import annotations

from spptransfer.experiment.grid import Grid, GridResult, extract_grid, prepare_grid, run_grid
from spptransfer.experiment.prepare import Experiment, Machine, prepare
from spptransfer.experiment.running import RunResult, extract_features, run, train

__all__ = [
    "Experiment",
    "Grid",
    "GridResult",
    "Machine",
    "RunResult",
    "extract_features",
    "extract_grid",
    "prepare",
    "prepare_grid",
    "run",
    "run_grid",
    "train",
]
