"""What a table of experiments writes down: every cell's numbers beside the paper's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spptransfer.experiment.results import RESULTS, machine_facts, versions
from spptransfer.extraction import Extraction

if TYPE_CHECKING:
    from spptransfer.experiment.grid import Cell, Grid

FORMAT = "spptransfer-grid"
FORMAT_VERSION = 1


def describe_grid(
    grid: Grid,
    runs: Mapping[str, Path],
    extractions: Sequence[Extraction],
    command: str,
    started: datetime,
) -> dict[str, Any]:
    """Contents of a table's ``results.json``: plain JSON values, metrics as fractions of 1.

    Parameters
    ----------
    grid : Grid
        What was run.
    runs : mapping of str to Path
        Folder of every cell's run, by the cell's name.
    extractions : sequence of Extraction
        What was done for each cache.
    command : str
        The command as the user gave it.
    started : datetime
        When.

    Returns
    -------
    dict
    """
    finished = datetime.now(UTC)
    results = {
        name: json.loads((folder / RESULTS).read_text("utf-8")) for name, folder in runs.items()
    }
    first = next(iter(results.values()))
    failures: dict[str, str] = {}
    for extraction in extractions:
        failures |= extraction.failures
    total = max(len(cell.experiment.dataset) for cell in grid.cells)
    reused = min(extraction.reused for extraction in extractions)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": grid.name,
        "title": grid.section.title,
        "pipeline": grid.pipeline.model_dump(mode="json"),
        "command": command,
        "started": started.isoformat(timespec="seconds"),
        "finished": finished.isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": machine_facts(),
        "metric": first["headline"]["metric"],
        "protocol": first["protocol"]["description"],
        "n_splits": len(first["splits"]),
        "networks": _networks(results.values()),
        "rows": [row.label for row in grid.section.rows],
        "columns": [
            {"label": column.label, "paper": column.model_dump(mode="json")["paper"]}
            for column in grid.section.columns
        ],
        "cells": [_describe_cell(cell, results.get(cell.name), runs) for cell in grid.cells],
        "images": {
            "total": total,
            "reused": min(reused, total - len(failures)),
            "failures": [{"id": id, "error": error} for id, error in failures.items()],
        },
        "timings": {
            "train": round(sum(r["timings"]["train"] for r in results.values()), 3),
            "total": round((finished - started).total_seconds(), 3),
        },
    }


def _networks(results: Any) -> list[dict[str, str]]:
    """Networks and weights that the cells use, each once."""
    specs = [run["features"]["spec"] for run in results]
    pairs = dict.fromkeys((spec["backbone"], spec["weights_sha256"]) for spec in specs)
    return [{"backbone": name, "weights_sha256": sha256} for name, sha256 in pairs]


def _describe_cell(
    cell: Cell, run: Mapping[str, Any] | None, runs: Mapping[str, Path]
) -> dict[str, Any]:
    known = {"row": cell.row, "column": cell.column, "missing": cell.missing or None}
    if run is None:
        return {**known, "value": None, "std": None, "metrics": {}, "dimension": None, "run": None}
    return {
        **known,
        "value": run["headline"]["value"],
        "std": run["headline"]["std"],
        "metrics": {
            name: {"value": metric["value"], "std": metric["std"]}
            for name, metric in run["metrics"].items()
        },
        "dimension": run["features"]["dimension"],
        "run": runs[cell.name].name,
    }
