"""A small table of experiments, quickly run."""

from __future__ import annotations

from pathlib import Path

from small_projects import machine_in, values

from spptransfer.config import parse_pipeline
from spptransfer.experiment import prepare_grid

ROWS = [
    {"label": "conv4", "set": {"features.layer": "conv4", "features.levels": []}, "only": ["crop"]},
    {"label": "levels 3, 1", "set": {"features.levels": [3, 1]}},
    {"label": "level 1", "set": {"features.levels": [1]}},
    {"label": "fc6", "set": {"features.layer": "fc6"}},
]
COLUMNS = [
    {"label": "crop", "set": {"features.view": "center_crop"}, "paper": {"ZF-5": {"fc6": 88.54}}},
    {"label": "full 64"},
    {"label": "full 72", "set": {"features.scales": [72]}},
]


def grid_values(root: Path, rows=ROWS, columns=COLUMNS, **sections):
    """The table's pipeline as a mapping; `sections` change single values of its sections."""
    given = values(root, **sections)
    given["features"].pop("levels")
    return {**given, "grid": {"title": "Stripes", "rows": rows, "columns": columns}}


def grid_of(root: Path, work: Path, **given):
    return prepare_grid("table", parse_pipeline(grid_values(root, **given)), machine_in(work))
