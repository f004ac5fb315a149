"""A table of runs in the layout of a paper, its numbers beside ours: columns, and plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

from spptransfer.metrics import metrics_of
from spptransfer.report.formatting import clean
from spptransfer.report.tables import WIDTH, Measured
from spptransfer.text import plural

OURS = "ours"


class Column(NamedTuple):
    """One printed column: ours, or one of the paper's, below the label of its group."""

    group: str
    name: str
    numbers: list[Measured]
    runs: list[str | None]

    @property
    def values(self) -> list[str]:
        """The numbers in percent; a dash stands where there is none."""
        return list(map(str, self.numbers))

    @property
    def is_ours(self) -> bool:
        """Whether its numbers are ours."""
        return self.name == OURS


def shown_metrics(results: Mapping[str, Any]) -> list[str]:
    """Return the metrics to print a table of: the headline, and of the two accuracies both.

    Papers often do not say which of the two accuracies they mean.
    """
    headline = str(results["metric"])
    accuracies = metrics_of(multi_label=False)
    return list(dict.fromkeys([headline, *(accuracies if headline in accuracies else ())]))


def grid_columns(results: Mapping[str, Any], metric: str) -> list[Column]:
    """Return the columns of a table of a metric, group by group."""
    cells = {(cell["row"], cell["column"]): cell for cell in results["cells"]}
    columns = []
    for column in results["columns"]:
        label, numbers, runs = column["label"], [], []
        for row in results["rows"]:
            cell = cells.get((row, label), {})
            found = cell.get("metrics", {}).get(metric)
            numbers.append(Measured(found["value"], found["std"]) if found else Measured(None))
            runs.append(cell.get("run"))
        columns.append(Column(label, OURS, numbers, runs))
        for name, printed in column["paper"].items():
            # The paper prints percent.
            theirs = [[n / 100 for n in printed.get(row) or ()] for row in results["rows"]]
            columns.append(Column(label, name, [Measured(*(n or [None])) for n in theirs], []))
    return columns


def caption(results: Mapping[str, Any], metric: str) -> list[str]:
    """Say what our numbers are, and whose the others are if there are any."""
    networks = " and ".join(
        f"{network['backbone']} (weights {network['weights_sha256'][:8]})"
        for network in results["networks"]
    )
    count = results["n_splits"]
    spread = f", mean ± standard deviation of {plural(count, 'split')}" if count > 1 else ""
    lines = [f"ours: {networks}, {metric}{spread}"]
    if any(column["paper"] for column in results["columns"]):
        lines.append("other columns: the paper's own numbers, under the names of its networks")
    return lines


def missing_notes(results: Mapping[str, Any]) -> list[str]:
    """Say why cells are empty that were asked for, one line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for cell in results["cells"]:
        if cell["missing"]:
            by_reason.setdefault(cell["missing"], []).append(f"{cell['row']}, {cell['column']}")
    return [f"{reason}: {'; '.join(cells)}" for reason, cells in by_reason.items()]


def grid_table(results: Mapping[str, Any], metric: str | None = None) -> str:
    """Write a table of runs as plain text.

    Parameters
    ----------
    results : mapping
        Contents of a table's ``results.json``.
    metric : str, optional
        Full name of the metric of our numbers, by default the protocol's headline.

    Returns
    -------
    str
        Lines without a trailing newline.

    Examples
    --------
    >>> print(grid_table({
    ...     "title": "Accuracy on made-up images, %",
    ...     "metric": "overall accuracy",
    ...     "n_splits": 2,
    ...     "networks": [{"backbone": "alexnet", "weights_sha256": "e7811f103c38"}],
    ...     "rows": ["conv5", "fc6"],
    ...     "columns": [{"label": "full 224", "paper": {"ZF-5": {"fc6": [89.5]}}}],
    ...     "cells": [
    ...         {"row": "conv5", "column": "full 224", "missing": None,
    ...          "metrics": {"overall accuracy": {"value": 0.9, "std": 0.01}}},
    ...         {"row": "fc6", "column": "full 224", "missing": "weights lack fc6", "metrics": {}},
    ...     ],
    ... }))  # doctest: -NORMALIZE_WHITESPACE
    Accuracy on made-up images, %
    ours: alexnet (weights e7811f10), overall accuracy, mean ± standard deviation of 2 splits
    other columns: the paper's own numbers, under the names of its networks
    <BLANKLINE>
               full 224
               ours          ZF-5
    conv5      90.00 ± 1.00  –
    fc6        –             89.50
    <BLANKLINE>
    weights lack fc6: fc6, full 224
    """
    metric = metric or str(results["metric"])
    columns = grid_columns(results, metric)
    names = [textwrap.wrap(clean(column.name), _width(column)) for column in columns]
    height = max(map(len, names))
    groups, lines = "", [*[""] * height, *map(clean, results["rows"])]
    for number, (column, name) in enumerate(zip(columns, names, strict=True)):
        start = max(map(len, lines)) + (6 if number == 0 else 4 if column.is_ours else 2)
        texts = [*name, *[""] * (height - len(name)), *column.values]
        lines = [line.ljust(start) + text for line, text in zip(lines, texts, strict=True)]
        groups = groups.ljust(start) + clean(column.group) if column.is_ours else groups
    notes = [line for note in missing_notes(results) for line in textwrap.wrap(clean(note), WIDTH)]
    above = [*([results["title"]] if results["title"] else []), *caption(results, metric)]
    return "\n".join(
        line.rstrip()
        for line in [*map(clean, above), "", groups, *lines, *([""] if notes else []), *notes]
    )


def _width(column: Column) -> int:
    """Room for the values and for the longest word of the name."""
    return max(map(len, [*column.values, *clean(column.name).split()]))
