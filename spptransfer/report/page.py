"""View model to page: one self-contained HTML file."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup, escape

from spptransfer.report import (
    confusion_figure,
    curve_figure,
    curves,
    examples,
    figures,
    formatting,
    view,
)
from spptransfer.report.confusion import Confusion
from spptransfer.report.files import asset, inline_source, templates, write_page
from spptransfer.report.run_folder import RunFolder
from spptransfer.text import plural

FAILURES_SHOWN = 200
CAPTION_LIMIT = 60  # characters of a class name below an image


def write_report(run: Path, *, output: Path | None = None) -> Path:
    """Write a run's report as one HTML file that needs nothing else.

    Parameters
    ----------
    run : Path
        A run folder: ``results.json``, and where present ``predictions.npz``,
        ``model.safetensors`` and the dataset's images.
    output : Path or None, default=None
        The file to write; ``report.html`` in the run folder when None. It is replaced in one
        step, so a reader never sees half a page.

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
    >>> write_report(Path("no such run"))
    Traceback (most recent call last):
        ...
    spptransfer.errors.ConfigError: 'no such run' is not a run folder: it has no results.json
    """
    folder = RunFolder.open(Path(run))
    target = folder.path / "report.html" if output is None else Path(output)
    write_page(target, render(folder))
    return target


def render(run: RunFolder) -> str:
    """Make a run's page.

    Parameters
    ----------
    run : RunFolder
        The run.

    Returns
    -------
    str
        The HTML text.
    """
    style, script = asset("report.css"), asset("report.js")
    shown = view.build_view(run)
    return (
        _environment()
        .get_template("report.html")
        .render(
            results=run.results,
            folder=run.path.resolve().name,
            view=shown,
            confusion_data=_confusion_data(shown.confusion.content),
            style=style,
            script=script,
            policy=_content_policy(style, script),
        )
    )


@cache
def _environment() -> Environment:
    """Jinja with the drawing functions and the number formats."""
    environment = templates()
    environment.filters.update(
        percent=formatting.percent,
        duration=formatting.duration,
        count=formatting.count,
        signed=formatting.signed,
        flatten=formatting.flatten,
        soft=_soft,
        brief=partial(formatting.clean, width=CAPTION_LIMIT),
        envelope=curves.envelope,
    )
    environment.globals.update(
        figures=figures,
        confusion_matrix=confusion_figure.confusion_matrix,
        right_shades=confusion_figure.RIGHT_SHADES,
        wrong_shades=confusion_figure.WRONG_SHADES,
        validation_curves=curve_figure.validation_curves,
        missing_pictures=view.missing_pictures,
        plural=plural,
        pick=formatting.pick,
        failures_shown=FAILURES_SHOWN,
        limit_per_class=examples.limit_per_class,
    )
    return environment


def _soft(name: str) -> Markup:
    """Let a long name break after its underscores and slashes rather than anywhere."""
    text = str(escape(name))
    return Markup(text.replace("_", "_<wbr>").replace("/", "/<wbr>"))


def _content_policy(style: str, script: str) -> str:
    """Forbid the page everything but its own style, its own script and embedded images.

    Should a hostile name ever slip through the escaping, the browser still runs nothing of it.
    """
    return (
        f"default-src 'none'; img-src data:; style-src {inline_source(style)}; "
        f"script-src {inline_source(script)}; base-uri 'none'; form-action 'none'"
    )


def _confusion_data(confusion: Confusion | None) -> dict[str, Any] | None:
    """Give the script what it says about a cell: names, class sizes, the cells with images."""
    if confusion is None or len(confusion.labels) > view.MATRIX_LIMIT:
        return None
    rows, columns = confusion.counts.nonzero()
    n_classes = len(confusion.labels)
    return {
        "labels": confusion.labels,
        "totals": confusion.counts.sum(axis=1).tolist(),
        "cells": (rows * n_classes + columns).tolist(),
        "counts": confusion.counts[rows, columns].tolist(),
    }
