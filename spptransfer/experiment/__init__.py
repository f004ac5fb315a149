"""One pipeline file becomes one run: dataset, cache, splits, classifiers, results."""

from __future__ import annotations

from spptransfer.experiment.prepare import Experiment, Machine, prepare
from spptransfer.experiment.running import RunResult, extract_features, run, train

__all__ = [
    "Experiment",
    "Machine",
    "RunResult",
    "extract_features",
    "prepare",
    "run",
    "train",
]
