"""A table of experiments as one HTML file that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spptransfer.errors import ConfigError
from spptransfer.report import formatting, grid
from spptransfer.report.files import asset, inline_source, templates, write_page


def is_grid(folder: Path) -> bool:
    """Whether a folder holds the results of a table of experiments, not those of one run."""
    try:
        results = json.loads((folder / "results.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(results, dict) and results.get("format") == "spptransfer-grid"


def write_grid_page(folder: Path, *, output: Path | None = None) -> Path:
    """Write the page of a table of experiments.

    Parameters
    ----------
    folder : Path
        The table's folder, with its ``results.json``.
    output : Path, optional
        The file to write, by default ``report.html`` in that folder.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    ConfigError
        If the folder holds no results.
    CacheError
        If the file cannot be written.

    Examples
    --------
    >>> write_grid_page(Path("no such table"))
    Traceback (most recent call last):
        ...
    spptransfer.errors.ConfigError: 'no such table' holds no results of a grid
    """
    if not is_grid(folder):
        raise ConfigError(f"'{folder}' holds no results of a grid")
    results = json.loads((folder / "results.json").read_text("utf-8"))
    target = folder / "report.html" if output is None else output
    write_page(target, render_grid(results))
    return target


def render_grid(results: Mapping[str, Any]) -> str:
    """Make the page of a table of experiments.

    Parameters
    ----------
    results : mapping
        Contents of the table's ``results.json``.

    Returns
    -------
    str
        The HTML text.
    """
    environment = templates()
    environment.filters.update(duration=formatting.duration, count=formatting.count)
    style = asset("grid.css")
    return environment.get_template("grid.html").render(
        results=results,
        tables=[_table(results, metric) for metric in grid.shown_metrics(results)],
        notes=grid.missing_notes(results),
        theirs=grid.THEIRS,
        style=style,
        policy=f"default-src 'none'; img-src data:; style-src {inline_source(style)}; "
        "base-uri 'none'",
    )


def _table(results: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Header cells with their spans, and rows of values with links to their runs."""
    columns = grid.grid_columns(results, metric)
    runs = {(cell["row"], cell["column"]): cell["run"] for cell in results["cells"]}
    groups = list(dict.fromkeys(column.group for column in columns))
    return {
        "caption": grid.caption(results, metric),
        "groups": [(group, sum(c.group == group for c in columns)) for group in groups],
        "names": columns,
        "rows": [
            (
                label,
                [
                    (c.values[i], c.is_ours, runs.get((label, c.group)) if c.is_ours else None)
                    for c in columns
                ],
            )
            for i, label in enumerate(results["rows"])
        ],
    }
