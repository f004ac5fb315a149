"""A table of experiments: one pass over the images for all of them, then each is trained."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from spptransfer._version import __version__
from spptransfer.cache import FeatureCache
from spptransfer.files import make_folder
from spptransfer.cache.lock import Lock
from spptransfer.config import GridSection, Pipeline, cell_pipeline
from spptransfer.datasets import Dataset
from spptransfer.errors import ConfigError
from spptransfer.experiment.cached import use_cache
from spptransfer.experiment.grid_results import describe_grid
from spptransfer.experiment.precision import Tell, decide
from spptransfer.experiment.prepare import Experiment, Machine, prepare
from spptransfer.experiment.results import REPORT, RESULTS, write_text
from spptransfer.experiment.running import check, extract_together_for, report_on, run_with
from spptransfer.extraction import Extraction
from spptransfer.extraction.joint import shared_part
from spptransfer.protocols.splits import splits_checksum
from spptransfer.text import plural

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """One experiment of a table.

    Attributes
    ----------
    row, column : str
        Labels.
    experiment : Experiment
        What it does.
    missing : str
        Why it cannot be done; empty if it can.
    """

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
    """A checked table of experiments on this machine.

    Attributes
    ----------
    name : str
        Name of the pipeline, such as that of its file.
    pipeline : Pipeline
        As the user wrote it.
    machine : Machine
        Where it runs.
    cells : tuple of Cell
        Row by row.
    """

    name: str
    pipeline: Pipeline
    machine: Machine
    cells: tuple[Cell, ...]

    @property
    def section(self) -> GridSection:
        """Rows and columns."""
        assert self.pipeline.grid is not None
        return self.pipeline.grid

    @property
    def possible(self) -> list[Cell]:
        """Cells that can be computed."""
        return [cell for cell in self.cells if not cell.missing]

    @cached_property
    def folder(self) -> Path:
        """Where its runs and its table land: the same settings always meet the same folder."""
        settings = [self.pipeline.model_dump_json()]
        settings += sorted({cell.experiment.wanted.weights_sha256 for cell in self.cells})
        digest = hashlib.sha256("\n".join(settings).encode("utf-8", "surrogateescape"))
        return self.machine.runs_dir / f"{self.name}-{digest.hexdigest()[:8]}"

    def passes(self) -> list[list[Experiment]]:
        """Experiments by the pass over the images that serves them; one for every cache."""
        groups: dict[Any, dict[Path, Experiment]] = {}
        for cell in self.possible:
            experiment = cell.experiment
            path, spec = experiment.cache
            section = experiment.pipeline
            key = (
                section.dataset.model_dump_json(),
                section.features.weights,
                json.dumps(shared_part(spec).to_dict()),
            )
            groups.setdefault(key, {}).setdefault(path, experiment)
        return [list(group.values()) for group in groups.values()]


@dataclass
class GridResult:
    """What a table of experiments left behind.

    Attributes
    ----------
    folder : Path
        The table's folder, with one run per cell in it.
    results : dict
        Contents of its ``results.json``.
    report : Path
        The HTML page.
    extractions : list of Extraction
        What was done for each cache.
    """

    folder: Path
    results: dict[str, Any]
    report: Path
    extractions: list[Extraction] = field(default_factory=list)


def prepare_grid(name: str, pipeline: Pipeline, machine: Machine) -> Grid:
    """Check every cell of a table before the first image is opened.

    Parameters
    ----------
    name : str
        Name of the pipeline.
    pipeline : Pipeline
        With a grid.
    machine : Machine
        Where it runs.

    Returns
    -------
    Grid
        Cells whose layer the weights lack are in it, and say so.

    Raises
    ------
    ConfigError
        If a value of a cell is not allowed (the message names the cell), or no cell can be
        computed.
    DatasetError, WeightsError
        As in `prepare`.
    """
    assert pipeline.grid is not None
    opened: dict[str, Dataset] = {}
    cells = []
    for row, column in pipeline.grid.cells():
        section = cell_pipeline(pipeline, row, column)
        key = section.dataset.model_dump_json()
        slug = f"{_slug(row.label)}--{_slug(column.label)}"
        try:
            experiment = prepare(slug, section, machine, dataset=opened.get(key))
            check(experiment)
        except ConfigError as error:
            raise ConfigError(f"grid cell '{row.label}' x '{column.label}': {error}") from error
        opened[key] = experiment.dataset
        cells.append(Cell(row.label, column.label, experiment))
    return Grid(name, pipeline, machine, tuple(_mark_missing(cells)))


def _mark_missing(cells: Sequence[Cell]) -> list[Cell]:
    """Say of which cells the weights lack the layer; a cache that is there needs no weights."""
    layers_within = cache(_layers_within)  # several cells ask for the same weights
    marked = [replace(cell, missing=_missing(cell.experiment, layers_within)) for cell in cells]
    if all(cell.missing for cell in marked):
        raise ConfigError(f"no cell of the grid can be computed: {marked[0].missing}")
    return marked


def _missing(experiment: Experiment, layers_within: Callable[..., tuple[str, ...]]) -> str:
    if experiment.cache[0].exists():
        return ""
    section = experiment.pipeline.features
    layers = layers_within(section.backbone, section.weights, experiment.machine.weights_dir)
    return "" if section.layer in layers else f"weights lack {section.layer}"


def extract_grid(grid: Grid, tell: Tell = lambda line: None) -> list[Extraction]:
    """Fill the caches of all cells: every image is decoded once for the cells of one network.

    Parameters
    ----------
    grid : Grid
        From `prepare_grid`.
    tell : callable
        Is told what is about to happen, line by line.

    Returns
    -------
    list of Extraction
        One for each cache.
    """
    done = []
    for experiments in _decided(grid, tell).passes():
        layers = list(dict.fromkeys(each.wanted.layer for each in experiments))
        views = sorted(
            {
                f"{each.wanted.view} {scale}"
                for each in experiments
                for scale in each.cache[1].scales
            }
        )
        tell(
            f"one pass of {experiments[0].wanted.backbone} for {', '.join(layers)} at "
            f"{', '.join(views)}: {plural(len(experiments), 'cache')}"
        )
        done += extract_together_for(experiments)
    return done


def _decided(grid: Grid, tell: Tell) -> Grid:
    """The same grid with a precision for every cell that can be computed."""
    chosen = iter(decide([cell.experiment for cell in grid.possible], tell))
    cells = (
        cell if cell.missing else replace(cell, experiment=next(chosen)) for cell in grid.cells
    )
    return replace(grid, cells=tuple(cells))


def run_grid(
    grid: Grid, command: str, tell: Tell = lambda line: None, *, from_caches: bool = False
) -> GridResult:
    """Extract what is missing, train every cell, write the table.

    A cell that was finished with the same settings, splits and features is not trained again.

    Parameters
    ----------
    grid : Grid
        From `prepare_grid`.
    command : str
        The command as the user gave it, for the record.
    tell : callable
        Is told of every step, line by line.
    from_caches : bool, default=False
        Look at no image; all caches must be complete.

    Returns
    -------
    GridResult

    Raises
    ------
    CacheError
        If somebody else runs the same table, or a cache is missing.
    DatasetError, Interrupted
        As in `run`.
    """
    from spptransfer.report.grid_page import write_grid_page

    started = datetime.now(UTC)
    with _held(grid):
        if from_caches:
            extractions = [use_cache(each) for group in grid.passes() for each in group]
        else:
            grid = _decided(grid, tell)
            extractions = extract_grid(grid, tell)
        by_path = {extraction.path: extraction for extraction in extractions}
        runs = {cell.name: _run_cell(grid, cell, by_path, command, tell) for cell in grid.possible}
        results = describe_grid(grid, runs, extractions, command, started)
        write_text(grid.folder / RESULTS, json.dumps(results, indent=1))
        report = write_grid_page(grid.folder)
    return GridResult(grid.folder, results, report, extractions)


def _run_cell(
    grid: Grid, cell: Cell, extractions: Mapping[Path, Extraction], command: str, tell: Tell
) -> Path:
    """Folder of a cell's run: an earlier one with the same settings, or a new one."""
    extraction = extractions[cell.experiment.cache[0]]
    key = _key(cell.experiment, extraction.path)
    found = _finished(grid.folder, cell.experiment.name, key)
    if found is not None:
        tell(f"{cell.name}: finished before")
        if not (found / REPORT).exists():  # the disk was full
            report_on(found)
        return found
    machine = replace(grid.machine, runs_dir=grid.folder)
    done = run_with(
        replace(cell.experiment, machine=machine),
        command,
        lambda experiment: extraction,
        folder_name=cell.experiment.name,
        notes={"cell": {"row": cell.row, "column": cell.column, "key": key}},
    )
    headline, seconds = done.results["headline"], done.results["timings"]["train"]
    tell(f"{cell.name}: {100 * headline['value']:.2f} % {headline['metric']} ({seconds:.0f} s)")
    return done.folder


def _key(experiment: Experiment, features: Path) -> str:
    """Hash of all that a cell's numbers depend on."""
    pipeline = experiment.pipeline
    everything = {
        "version": __version__,
        "features": pipeline.features.model_dump(mode="json", exclude={"weights"}),
        "spec": experiment.wanted.to_dict(),
        "classifier": pipeline.classifier.model_dump(mode="json"),
        "protocol": [experiment.protocol.name, {k: str(v) for k, v in experiment.settings.items()}],
        "splits": splits_checksum(experiment.splits),
        "cache": FeatureCache.open(features).header.sha256,
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def _finished(folder: Path, name: str, key: str) -> Path | None:
    """Folder of a run of a cell with a key."""
    for path in sorted(folder.glob(f"{name}*/{RESULTS}")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if json.loads(path.read_text("utf-8"))["cell"]["key"] == key:
                return path.parent
    return None


@contextlib.contextmanager
def _held(grid: Grid) -> Iterator[None]:
    """Keep the folder to ourselves, without the runs that were killed in it."""
    folder = grid.folder
    make_folder(folder)
    lock = Lock(folder / "lock", folder)
    lock.acquire()
    try:
        for cell in grid.cells:
            for path in folder.glob(f"{cell.experiment.name}*/"):
                if not (path / RESULTS).exists():
                    shutil.rmtree(path, ignore_errors=True)
        yield
    finally:
        lock.release()
        with contextlib.suppress(OSError):
            (folder / "lock").unlink(missing_ok=True)


def _layers_within(backbone: str, weights: str, folder: Path | None) -> tuple[str, ...]:
    from spptransfer.backbones.loading import layers_within

    return layers_within(backbone, weights, folder)


def _slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", label).strip("_") or "cell"
