"""A table of experiments: one pass over the images for all of them, then each is trained."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from spptransfer import backbones
from spptransfer._version import __version__
from spptransfer.cache import FeatureCache
from spptransfer.config import GridSection, Pipeline, cell_pipeline, read_pipeline
from spptransfer.datasets import Dataset
from spptransfer.errors import ConfigError
from spptransfer.experiment.preparation import (
    Experiment,
    Machine,
    plain_name,
    prepare,
    resolve_precision,
    steps,
)
from spptransfer.experiment.results import (
    REPORT,
    RESULTS,
    describe_same_images,
    machine_facts,
    run_folder,
    versions,
)
from spptransfer.experiment.running import (
    RunResult,
    check,
    extract_features,
    finish_run,
    use_cache,
    write_report_of,
)
from spptransfer.extraction import Extraction
from spptransfer.files import exclusive_lock, make_folder, write_text
from spptransfer.protocols import splits_checksum

logger = logging.getLogger(__name__)

FORMAT = "spptransfer-grid"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Cell:
    """One experiment of a table; `missing` says why it cannot be done, if so."""

    row: str
    column: str
    experiment: Experiment
    missing: str = ""

    @property
    def name(self) -> str:
        """Row and column."""
        return f"{self.row}, {self.column}"


@dataclass(frozen=True)
class Grid:
    """A checked table of experiments on this machine, row by row."""

    name: str
    pipeline: Pipeline
    section: GridSection
    machine: Machine
    cells: tuple[Cell, ...]

    @property
    def experiments(self) -> list[Experiment]:
        """Those of the cells that can be computed."""
        return [cell.experiment for cell in self.cells if not cell.missing]

    @cached_property
    def folder(self) -> Path:
        """Where its runs and its table land: the same settings always meet the same folder."""
        settings = [self.pipeline.model_dump_json()]
        settings += sorted({cell.experiment.wanted.weights_sha256 for cell in self.cells})
        digest = hashlib.sha256("\n".join(settings).encode("utf-8", "surrogateescape"))
        return self.machine.runs_dir / plain_name(f"{self.name}-{digest.hexdigest()[:8]}")


def prepare_grid(name: str, pipeline: Pipeline, machine: Machine) -> Grid:
    """Check every cell of a table before the first image is opened.

    A cell whose layer the weights lack is missing; a cache that is there needs no weights.
    """
    assert pipeline.grid is not None
    layers_within = cache(backbones.layers_within)  # several cells ask for the same weights
    opened: dict[str, Dataset] = {}
    cells = []
    for row, column in pipeline.grid.cells():
        slug = f"{_slug(row.label)}--{_slug(column.label)}"
        try:
            section = cell_pipeline(pipeline, row, column)
            key = section.dataset.model_dump_json()
            experiment = prepare(slug, section, machine, dataset=opened.get(key))
            check(experiment)
        except ConfigError as error:
            raise ConfigError(f"grid cell '{row.label}' x '{column.label}': {error}") from error
        opened[key], missing = experiment.dataset, ""
        if not experiment.cache[0].exists():
            within = layers_within(experiment.backbone)
            lacking = [layer for layer in experiment.wanted.layers if layer not in within]
            missing = f"weights lack {', '.join(lacking)}" if lacking else ""
        cells.append(Cell(row.label, column.label, experiment, missing))
    if all(cell.missing for cell in cells):
        raise ConfigError(f"no cell of the grid can be computed: {cells[0].missing}")
    return Grid(name, pipeline, pipeline.grid, machine, tuple(cells))


def prepare_file(file: Path, machine: Machine, overrides: Sequence[str] = ()) -> Experiment | Grid:
    """Check a pipeline file, with a grid in it or not, before the first image is opened."""
    pipeline = read_pipeline(file, overrides)
    make = prepare if pipeline.grid is None else prepare_grid
    return make(file.stem, pipeline, machine)


def _slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", label).strip("_") or "cell"


def run_grid(grid: Grid, command: str, *, from_cache: bool = False) -> RunResult:
    """Extract what is missing, train every cell, write the table.

    A cell that was finished with the same settings, splits and features is not trained again.
    """
    from spptransfer.report import write_report

    started = datetime.now(UTC)
    make_folder(grid.folder)
    with exclusive_lock(grid.folder / "lock", f"the table '{grid.folder}'"):
        _remove_killed(grid)
        if from_cache:
            each_once = {each.cache[0]: each for each in grid.experiments}
            extractions = [use_cache(each) for each in each_once.values()]
        else:
            grid = _decided(grid)
            extractions = extract_features(grid.experiments)
        by_path = {extraction.path: extraction for extraction in extractions}
        runs = {
            cell.name: _run_cell(grid, cell, by_path[cell.experiment.cache[0]], command)
            for cell in grid.cells
            if not cell.missing
        }
        results = describe_grid(grid, runs, extractions, command, started)
        write_text(grid.folder / RESULTS, json.dumps(results, indent=1))
        write_report(grid.folder)
        for told in results["same_images"]:
            logger.warning("%s", told)
    return RunResult(grid.folder, results)


def _remove_killed(grid: Grid) -> None:
    """Remove the folders of runs that were killed; whoever calls this holds the lock."""
    for cell in grid.cells:
        for path in grid.folder.glob(f"{cell.experiment.name}*/"):
            if not (path / RESULTS).exists():
                shutil.rmtree(path, ignore_errors=True)


def _decided(grid: Grid) -> Grid:
    """Return the grid with a precision for every cell that can be computed."""
    chosen = iter(resolve_precision(grid.experiments))
    cells = (
        cell if cell.missing else replace(cell, experiment=next(chosen)) for cell in grid.cells
    )
    return replace(grid, cells=tuple(cells))


def _run_cell(grid: Grid, cell: Cell, extraction: Extraction, command: str) -> Path:
    """Return the folder of a cell's run: an earlier one with the same settings, or a new one."""
    experiment = cell.experiment
    key = _key(experiment, extraction.path)
    found = _finished(grid.folder, experiment.name, key)
    if found is not None:
        steps.info("%s: finished before", cell.name)
        if not (found / REPORT).exists():  # the disk was full
            write_report_of(found)
        return found
    there = replace(experiment, machine=replace(grid.machine, runs_dir=grid.folder))
    notes = {"cell": {"row": cell.row, "column": cell.column, "key": key}}
    started = datetime.now(UTC)
    with run_folder(there, started, command, experiment.name) as folder:
        results = finish_run(folder, there, extraction, command, started, notes).results
    headline, seconds = results["headline"], results["timings"]["train"]
    percent, metric = 100 * headline["value"], headline["metric"]
    steps.info("%s: %.2f %% %s (%.0f s)", cell.name, percent, metric, seconds)
    return folder


def _key(experiment: Experiment, features: Path) -> str:
    """Hash all that a cell's numbers depend on."""
    pipeline = experiment.pipeline
    everything = {
        "version": __version__,
        "features": pipeline.features.model_dump(mode="json", exclude={"weights"}),
        "spec": experiment.wanted.to_dict(),
        "classifier": pipeline.classifier.model_dump(mode="json"),
        "protocol": [experiment.protocol.name, {k: str(v) for k, v in experiment.settings.items()}],
        "splits": splits_checksum(experiment.splits),
        "cache": FeatureCache.open(features).sha256,
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def _finished(folder: Path, name: str, key: str) -> Path | None:
    """Find the folder of a cell's run with a key."""
    for path in sorted(folder.glob(f"{name}*/{RESULTS}")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if json.loads(path.read_text("utf-8"))["cell"]["key"] == key:
                return path.parent
    return None


def describe_grid(
    grid: Grid,
    runs: Mapping[str, Path],
    extractions: Sequence[Extraction],
    command: str,
    started: datetime,
) -> dict[str, Any]:
    """Return the contents of a table's ``results.json``: plain JSON values.

    `runs` has the folder of every cell's run by the cell's name.
    """
    finished = datetime.now(UTC)
    results = {
        name: json.loads((folder / RESULTS).read_text("utf-8")) for name, folder in runs.items()
    }
    first = next(iter(results.values()))
    failures = {id: error for done in extractions for id, error in done.failures.items()}
    total = max(len(cell.experiment.dataset) for cell in grid.cells)
    reused = min(extraction.reused for extraction in extractions)
    specs = [run["features"]["spec"] for run in results.values()]
    networks = dict.fromkeys((spec["backbone"], spec["weights_sha256"]) for spec in specs)
    section = grid.section.model_dump(mode="json")
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": grid.name,
        "title": section["title"],
        "pipeline": grid.pipeline.model_dump(mode="json"),
        "command": command,
        "started": started.isoformat(timespec="seconds"),
        "finished": finished.isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": machine_facts(),
        "metric": first["headline"]["metric"],
        "protocol": first["protocol"]["description"],
        "n_splits": len(first["splits"]),
        "networks": [{"backbone": name, "weights_sha256": sha256} for name, sha256 in networks],
        "rows": [row["label"] for row in section["rows"]],
        "columns": [{key: line[key] for key in ("label", "paper")} for line in section["columns"]],
        "cells": [_describe_cell(cell, results.get(cell.name), runs) for cell in grid.cells],
        "images": {
            "total": total,
            "reused": min(reused, total - len(failures)),
            "failures": [{"id": id, "error": error} for id, error in failures.items()],
        },
        "same_images": [
            told for told in dict.fromkeys(map(describe_same_images, results.values())) if told
        ],
        "timings": {
            "train": round(sum(run["timings"]["train"] for run in results.values()), 3),
            "total": round((finished - started).total_seconds(), 3),
        },
    }


def _describe_cell(
    cell: Cell, run: Mapping[str, Any] | None, runs: Mapping[str, Path]
) -> dict[str, Any]:
    told: dict[str, Any] = {"value": None, "std": None, "metrics": {}, "dimension": None}
    told |= {"row": cell.row, "column": cell.column, "missing": cell.missing or None, "run": None}
    if run is not None:
        told |= {"value": run["headline"]["value"], "std": run["headline"]["std"]}
        told |= {"dimension": run["features"]["dimension"], "run": runs[cell.name].name}
        for name, metric in run["metrics"].items():
            told["metrics"][name] = {"value": metric["value"], "std": metric["std"]}
    return told
