"""Results to one self-contained HTML file, of a run or of a table of runs."""

from __future__ import annotations

import base64
import hashlib
import io
import logging
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from spptransfer.errors import ImageError
from spptransfer.files import atomic_write, make_folder
from spptransfer.images import decode, read_bytes, reduction_of, upright_size
from spptransfer.metrics import METRICS
from spptransfer.report import analysis, figures, formatting, grid
from spptransfer.report.run_folder import (
    GRID,
    MissingPartError,
    Predictions,
    RunFolder,
    chosen_C,
    coverage,
    dataset_title,
    metrics_of,
    per_class_metric,
    read_results,
    stages,
    validation_curves,
)
from spptransfer.text import plural

# Beyond these a page would grow past a few megabytes and no eye would follow.
CLASS_LIMIT = 250  # of the matrix and of the maps
FAILURES_SHOWN = 200
PAIRS_SHOWN = 10
NAME_LIMIT = 200  # characters, of what may be as long as a user likes
TEXT_LIMIT = 2000
CAPTION_LIMIT = 60  # of a class below an image
THUMBNAIL_SIDE = 240
THUMBNAIL_BYTES = 24_000

_HERE = Path(__file__).parent
logger = logging.getLogger(__name__)


def write_report(run: Path, *, output: Path | None = None) -> Path:
    """Write the report of a run, or of a table of runs, as one HTML file that needs nothing else.

    Parameters
    ----------
    run : Path
        A run folder: ``results.json``, and where present ``predictions.npz``,
        ``model.safetensors`` and the dataset's images. Or the folder of a table of runs.
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
    page = grid_page(results) if results["format"] == GRID else run_page(RunFolder.of(run, results))
    target = run / "report.html" if output is None else Path(output)
    make_folder(target.parent)
    with atomic_write(target) as temporary:
        # A file name that is no valid UTF-8 arrives as lone surrogates, which have no encoding.
        temporary.write_bytes(page.encode("utf-8", errors="replace"))
    return target


def grid_page(results: dict[str, Any]) -> str:
    """Fill the page of a table of runs from the contents of its ``results.json``."""
    metrics = grid.shown_metrics(results)
    return _fill("grid", results=results, metrics=metrics, notes=grid.missing_notes(results))


def run_page(run: RunFolder) -> str:
    """Fill the page of a run; sections without their part of the folder say what they lack."""
    results = run.results
    chosen, validation = chosen_C(results), validation_curves(results)
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
    return _fill(
        "report",
        run=run,
        results=results,
        dataset=dataset_title(results),
        metrics=metrics_of(results),
        classes=_class_table(run, splits),
        **({} if splits is None else _seen_in_predictions(run, splits)),
        maps=maps,
        chosen=chosen,
        validation=validation,
        candidates=sorted(set().union(*chosen.values(), *map(dict, validation))),
        stages=stages(results["timings"]),
        lacking=lacking,
    )


def _fill(name: str, **values: Any) -> str:
    """Fill a template, with the style and the script that lie beside it.

    Its content policy forbids the page everything but these and embedded images: should a hostile
    name ever slip through the escaping, the browser still runs nothing of it.
    """
    policy = "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'"
    for kind, suffix in (("style", "css"), ("script", "js")):
        file = _HERE / f"{name}.{suffix}"
        if file.exists():
            values[kind] = Markup(file.read_text(encoding="utf-8"))
            digest = hashlib.sha256(values[kind].encode("utf-8")).digest()
            policy += f"; {kind}-src 'sha256-{base64.b64encode(digest).decode('ascii')}'"
    return _environment().get_template(f"{name}.html").render(policy=policy, **values)


@cache
def _environment() -> Environment:
    """Jinja, with escaping on, the number formats and the drawing functions."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(
        percent=formatting.percent,
        duration=formatting.duration,
        count=formatting.count,
        signed=formatting.signed,
        flatten=formatting.flatten,
        name=partial(formatting.cut, width=NAME_LIMIT),
        text=partial(formatting.cut, width=TEXT_LIMIT),
        brief=partial(formatting.clean, width=CAPTION_LIMIT),
        envelope=analysis.envelope,
    )
    environment.globals.update(
        figures=figures,
        grid=grid,
        plural=plural,
        failures_shown=FAILURES_SHOWN,
        class_limit=CLASS_LIMIT,
        limit_per_class=analysis.limit_per_class,
    )
    return environment


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


def thumbnail(path: Path) -> str | None:
    """Make a small upright JPEG of an image file, as the network saw it.

    Parameters
    ----------
    path : Path
        The image.

    Returns
    -------
    str or None
        A ``data:image/jpeg;base64,…`` URI of at most `THUMBNAIL_SIDE` pixels a side and about
        `THUMBNAIL_BYTES` · 4/3 characters; None if there is no readable image.
    """
    try:
        data = read_bytes(path)
        image = decode(data, reduction_of(min(upright_size(data)), THUMBNAIL_SIDE))
    except ImageError as error:
        logger.info("no thumbnail of '%s': %s", path, error)
        return None
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    for quality in (80, 65, 45, 25):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= THUMBNAIL_BYTES:
            break
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
