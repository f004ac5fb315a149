"""Results to one self-contained HTML file, of a run or of a table of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from spptransfer.metrics import METRICS
from spptransfer.report import analysis, formatting, grid
from spptransfer.report.detection import detection_page
from spptransfer.report.run_folder import (
    DETECTION,
    GRID,
    MissingPartError,
    Predictions,
    RunFolder,
    coverage,
    per_class_metric,
    read_results,
    said_in_results,
)
from spptransfer.report.template import CLASS_LIMIT, NAME_LIMIT, fill, thumbnail, write_page

PAIRS_SHOWN = 10


def write_report(run: Path, *, output: Path | None = None) -> Path:
    """Write the report of a run, or of a table of runs, as one HTML file that needs nothing else.

    Parameters
    ----------
    run : Path
        A run folder: ``results.json``, and where present ``predictions.npz`` or
        ``detections.npz``, ``model.safetensors`` and the dataset's images. The page follows the
        results' kind. Or the folder of a table of runs.
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
    run = Path(run)
    results = read_results(run)
    if results["format"] == GRID:
        page = grid_page(results)
    else:
        is_detection = results.get("kind") == DETECTION
        page = (detection_page if is_detection else run_page)(RunFolder.of(run, results))
    return write_page(page, run / "report.html" if output is None else Path(output))


def grid_page(results: dict[str, Any]) -> str:
    """Fill the page of a table of runs from the contents of its ``results.json``."""
    metrics = grid.shown_metrics(results)
    return fill("grid", "grid", results=results, metrics=metrics, notes=grid.missing_notes(results))


def run_page(run: RunFolder) -> str:
    """Fill the page of a run; sections without their part of the folder say what they lack."""
    splits, maps = None, None
    lacking: dict[str, str] = {}
    try:
        splits = run.predictions()
    except MissingPartError as error:
        lacking["predictions"] = f"Not shown: {error}."
    try:
        maps = _weight_maps(run)
    except MissingPartError as error:
        lacking["maps"] = f"Not shown: {error}."
    return fill(
        "report",
        "report",
        **said_in_results(run),
        classes=_class_table(run, splits),
        **({} if splits is None else _seen_in_predictions(run, splits)),
        maps=maps,
        lacking=lacking,
    )


def _class_table(run: RunFolder, splits: list[Predictions] | None) -> dict[str, Any] | None:
    """Every class's value and its range over the splits, by rising value; NaN for what is not."""
    name = per_class_metric(run.results)
    if name is None:
        return None
    by_class, metric = run.results["metrics"][name]["per_class"], METRICS.get(name)
    values = np.array(list(map(by_class.get, run.classes)), dtype=float)
    ranges = np.full((2, len(values)), np.nan)
    if metric is not None and splits is not None and len(splits) > 1:
        per_split = [metric.compute(split.targets, split.scores)[1] for split in splits]
        ranges = np.array([np.fmin.reduce(per_split), np.fmax.reduce(per_split)])
    order = np.argsort(values, kind="stable")
    return {
        "metric": name,
        "rows": [(run.classes[i], values[i], *ranges[:, i]) for i in order],
        "coverage": coverage(run.results, name),
    }


def _seen_in_predictions(run: RunFolder, splits: list[Predictions]) -> dict[str, Any]:
    """Confusions or curves, and examples."""
    shown: dict[str, Any] = {"groups": _pictures(run, splits)}
    if run.multi_label:
        return {**shown, "curves": analysis.class_curves(splits, run.classes)}
    counts = analysis.count_confusions(splits, len(run.classes))
    order = analysis.similarity_order(counts)
    arranged = counts[np.ix_(order, order)]
    labels = [formatting.cut(run.classes[index], NAME_LIMIT) for index in order]
    cells = np.flatnonzero(arranged)
    shown["confusion"] = {
        "labels": labels,
        "counts": arranged,
        "pairs": analysis.most_confused(arranged, PAIRS_SHOWN),
        "data": {  # what the script tells about a cell
            "labels": labels,
            "totals": arranged.sum(axis=1).tolist(),
            "cells": cells.tolist(),
            "counts": arranged.flat[cells].tolist(),
        },
    }
    return shown


def _weight_maps(run: RunFolder) -> dict[str, Any]:
    """Where the classes look, and a colour scale that all of them share."""
    finest = 1
    for block in run.results["features"].get("blocks") or []:
        finest = max(finest, block.get("level") or 1)
    if finest == 1:
        raise MissingPartError("these features have no grid of bins")
    if len(run.classes) > CLASS_LIMIT:
        raise MissingPartError(f"maps are drawn for up to {CLASS_LIMIT} classes")
    maps = analysis.attention_maps(run.weight_blocks(), finest)
    # The scale ends at percentiles: one odd bin would leave every other map without contrast.
    domain = np.percentile(maps, (1, 99)).tolist()
    return {"overall": maps.mean(axis=0), "by_class": maps, "domain": domain}


def _pictures(run: RunFolder, splits: list[Predictions]) -> dict[str, Any]:
    """Groups of examples, each with its thumbnail and the address of its file."""
    groups = analysis.example_groups(splits, run.classes)
    shown, total, missing = [], 0, 0
    for group in groups:
        pictures = []
        for example in group.examples:
            path = run.image_path(example.image_id)
            uri = None if path is None else thumbnail(path)
            link = None if path is None or uri is None else path.absolute().as_uri()
            pictures.append((example, uri, link))
            missing += uri is None
        total += len(pictures)
        shown.append((group, pictures))
    return {"shown": shown, "total": total, "missing": missing}
