"""A table of experiments in the layout of the paper, with the paper's numbers beside ours."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spptransfer.metrics import metrics_of
from spptransfer.report.formatting import NOTHING, clean, plus_minus
from spptransfer.text import plural

WIDTH = 100
OURS = "ours"
THEIRS = "other columns: the paper's own numbers, under the names of its networks"
_GAP = "  "
_GROUP_GAP = "    "


@dataclass(frozen=True)
class Column:
    """One printed column: ours, or one of the paper's, below the label of its group."""

    group: str
    name: str
    values: tuple[str, ...]

    @property
    def is_ours(self) -> bool:
        """Whether its numbers are ours."""
        return self.name == OURS


def shown_metrics(results: Mapping[str, Any]) -> list[str]:
    """Metrics to print a table of: the headline, and for accuracies the other one too.

    Papers often do not say which of the two accuracies they mean.

    Parameters
    ----------
    results : mapping
        Contents of a table's ``results.json``.

    Returns
    -------
    list of str
        Full names.
    """
    headline = str(results["metric"])
    others = metrics_of(multi_label=False)
    if headline not in others:
        return [headline]
    return [headline, *(metric for metric in others if metric != headline)]


def grid_columns(results: Mapping[str, Any], metric: str) -> list[Column]:
    """Columns of a table with their values as text, group by group.

    Parameters
    ----------
    results : mapping
        Contents of a table's ``results.json``.
    metric : str
        Full name of the metric of our columns.

    Returns
    -------
    list of Column
        Values are in percent; a dash stands where there is none.
    """
    cells = {(cell["row"], cell["column"]): cell for cell in results["cells"]}
    columns = []
    for column in results["columns"]:
        label = column["label"]
        ours = tuple(_ours(cells.get((row, label)), metric) for row in results["rows"])
        columns.append(Column(label, OURS, ours))
        for name, printed in column["paper"].items():
            theirs = tuple(_theirs(printed.get(row)) for row in results["rows"])
            columns.append(Column(label, name, theirs))
    return columns


def _ours(cell: Mapping[str, Any] | None, metric: str) -> str:
    found = (cell or {}).get("metrics", {}).get(metric)
    return NOTHING if found is None else plus_minus(found["value"], found["std"])


def _theirs(value: Sequence[float] | None) -> str:
    """The paper's number as it prints it, which is in percent already."""
    return NOTHING if value is None else " ± ".join(f"{number:.2f}" for number in value)


def missing_notes(results: Mapping[str, Any]) -> list[str]:
    """Why cells are empty that were asked for, one line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for cell in results["cells"]:
        if cell["missing"]:
            by_reason.setdefault(cell["missing"], []).append(f"{cell['row']}, {cell['column']}")
    return [f"{reason}: {'; '.join(cells)}" for reason, cells in by_reason.items()]


def grid_table(results: Mapping[str, Any], metric: str | None = None) -> str:
    """Write a table of experiments as plain text.

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
    labels = [clean(row) for row in results["rows"]]
    widths = [_width(column) for column in columns]
    first = max(map(len, labels)) + len(_GROUP_GAP) + 2
    lines = [clean(results["title"])] if results["title"] else []
    lines.append(clean(caption(results, metric)))
    if any(not column.is_ours for column in columns):
        lines.append(THEIRS)
    lines.append("")
    lines.append(_group_line(columns, widths, first))
    for names in _wrapped_names(columns, widths):
        lines.append(" " * first + _line(columns, names, widths))
    for row, label in enumerate(labels):
        values = [column.values[row] for column in columns]
        lines.append(label.ljust(first) + _line(columns, values, widths))
    notes = [line for note in missing_notes(results) for line in textwrap.wrap(clean(note), WIDTH)]
    return "\n".join(line.rstrip() for line in [*lines, *([""] if notes else []), *notes])


def caption(results: Mapping[str, Any], metric: str) -> str:
    """Say what our numbers are.

    Parameters
    ----------
    results, metric
        As in `grid_table`.

    Returns
    -------
    str
        Networks, weights, metric and number of splits.
    """
    networks = " and ".join(
        f"{network['backbone']} (weights {network['weights_sha256'][:8]})"
        for network in results["networks"]
    )
    count = results["n_splits"]
    spread = f", mean ± standard deviation of {plural(count, 'split')}" if count > 1 else ""
    return f"ours: {networks}, {metric}{spread}"


def _width(column: Column) -> int:
    """Room for the values and for the longest word of the name."""
    words = [len(word) for word in column.name.split()]
    return max([*map(len, column.values), *words])


def _group_line(columns: Sequence[Column], widths: Sequence[int], first: int) -> str:
    """Labels of the groups, each above its first column."""
    line = " " * first
    position = first
    for number, (column, width) in enumerate(zip(columns, widths, strict=True)):
        if column.is_ours:
            line = line.ljust(position) + clean(column.group)
        position += width + len(_gap(columns, number))
    return line


def _wrapped_names(columns: Sequence[Column], widths: Sequence[int]) -> list[list[str]]:
    """Names of the columns, broken into lines as wide as the values."""
    wrapped = [
        textwrap.wrap(clean(column.name), width)
        for column, width in zip(columns, widths, strict=True)
    ]
    height = max(map(len, wrapped))
    return [[(lines[i : i + 1] or [""])[0] for lines in wrapped] for i in range(height)]


def _line(columns: Sequence[Column], texts: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(
        text.ljust(width) + _gap(columns, number)
        for number, (text, width) in enumerate(zip(texts, widths, strict=True))
    )


def _gap(columns: Sequence[Column], number: int) -> str:
    """What follows a column: more where the next one begins a group."""
    ends = number + 1 < len(columns) and columns[number + 1].is_ours
    return _GROUP_GAP if ends else _GAP
