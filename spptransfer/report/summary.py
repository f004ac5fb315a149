"""The numbers of a run, or of a table of runs, as one table that other documents can take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spptransfer.report.grid import caption, grid_columns, missing_notes
from spptransfer.report.run_folder import GRID, coverage, metrics_of
from spptransfer.report.tables import Cell, Measured, Table


def summary_table(results: Mapping[str, Any]) -> Table:
    """Return every metric of a run, or a table of runs as it is printed, by its headline.

    Parameters
    ----------
    results : mapping
        Contents of ``results.json``.

    Returns
    -------
    Table
        For `write_table`.

    Examples
    --------
    >>> from spptransfer.report.tables import write_table
    >>> headline = {"metric": "overall accuracy", "value": 0.9, "std": 0.02}
    >>> results = {"format": "spptransfer-results", "headline": headline, "protocol": {}}
    >>> print(write_table(summary_table(results), "csv"))
    metric,value,value std
    overall accuracy,0.9,0.02
    """
    if results["format"] == GRID:
        metric = str(results["metric"])
        columns = grid_columns(results, metric)
        header = ["", *(f"{column.group}: {column.name}" for column in columns)]
        values = zip(results["rows"], *(column.numbers for column in columns), strict=True)
        notes = [*caption(results, metric), *missing_notes(results)]
        return Table(header, list(values), notes)
    if curve := results.get("learning_curve"):
        lines: list[list[Cell]] = []
        for name in metrics_of(results):
            found = (point["metrics"][name] for point in curve)
            lines.append([name, *(Measured(one["value"], one["std"]) for one in found)])
        sizes = [str(point["train_per_class"]) for point in curve]
        note = "columns: images of each class in training"
        return Table(["metric", *sizes], lines, [note, results["protocol"]["description"]])
    metrics, notes = metrics_of(results), [results["protocol"].get("description") or ""]
    rows: list[list[Cell]] = [
        [name, Measured(one.get("value"), one.get("std"))] for name, one in metrics.items()
    ]
    notes += [coverage(results, name) for name in metrics]
    return Table(["metric", "value"], rows, [note for note in dict.fromkeys(notes) if note])
