"""Commands on a pipeline file, with a grid in it or not: run, extract, train."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spptransfer.cli.options import (
    RUNS_DIR,
    ComputeMany,
    Folders,
    Overrides,
    PipelineFile,
    RunsDir,
    add_command,
)
from spptransfer.cli.output import Output, printable, short_path
from spptransfer.cli.process import stopping
from spptransfer.errors import ConfigError
from spptransfer.text import plural

if TYPE_CHECKING:
    from spptransfer.experiment.features import Shards
    from spptransfer.experiment.grid import Grid
    from spptransfer.experiment.preparation import Experiment, Machine
    from spptransfer.experiment.running import RunResult
    from spptransfer.extraction import Extraction


def register(app: typer.Typer) -> None:
    """Add the commands."""
    add_command(app, run, "From images to results, a model and a report.")
    add_command(app, extract, "Fill the feature cache.")
    add_command(app, train, "Like run, from a cache that is there already.")


def run(
    pipeline: PipelineFile,
    folders: Folders,
    compute: ComputeMany,
    output: Output,
    runs_dir: RunsDir = RUNS_DIR,
    overrides: Overrides = None,
) -> int:
    """From images to a results table, a saved model and an HTML report.

    What the feature cache holds already is not computed again. A file with a grid makes a table
    of runs, from one pass over the images.
    """
    from spptransfer.experiment.preparation import Machine

    options, shown = compute.options(), not output.quiet
    machine = Machine(**vars(folders), runs_dir=runs_dir, compute=options, progress=shown)
    return _run(pipeline, overrides, machine, output)


def train(
    pipeline: PipelineFile,
    folders: Folders,
    output: Output,
    runs_dir: RunsDir = RUNS_DIR,
    overrides: Overrides = None,
) -> int:
    """Like run, from a cache that is there already; no image is looked at."""
    from spptransfer.experiment.preparation import Machine

    machine = Machine(**vars(folders), runs_dir=runs_dir, progress=not output.quiet)
    return _run(pipeline, overrides, machine, output, from_cache=True)


def _run(
    file: Path,
    overrides: list[str] | None,
    machine: Machine,
    output: Output,
    *,
    from_cache: bool = False,
) -> int:
    from spptransfer.experiment.grid import Grid, run_grid
    from spptransfer.experiment.running import run as run_experiment

    prepared = _prepare(file, overrides, machine, output)
    command = shlex.join(["spptransfer", *sys.argv[1:]])
    with stopping(machine.stop), output.steps():
        if isinstance(prepared, Grid):
            return _tell_table(run_grid(prepared, command, from_cache=from_cache), output)
        return _tell_run(run_experiment(prepared, command, from_cache=from_cache), output)


def extract(
    pipeline: PipelineFile,
    folders: Folders,
    compute: ComputeMany,
    output: Output,
    shards: Annotated[
        int | None,
        typer.Option(min=1, help="Divide the images among processes, a shard at a time each."),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="With --shards: Dask's scheduler, as tcp://10.0.0.1:8786.",
            show_default="processes of this machine",
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Make shard I of N alone, as 2/8, in a cache of its own; `spptransfer cache "
            "merge` joins them.",
        ),
    ] = None,
    overrides: Overrides = None,
) -> int:
    """Fill the feature cache, and say what went in, came out and failed.

    Interrupted or killed, the same command goes on where it stopped.
    """
    from spptransfer.experiment.features import extract_features
    from spptransfer.experiment.preparation import Experiment, Machine

    options, shown = compute.options(), not output.quiet
    divided = _shards(shards, shard, scheduler)
    machine = Machine(**vars(folders), compute=options, progress=shown)
    prepared = _prepare(pipeline, overrides, machine, output)
    experiments = [prepared] if isinstance(prepared, Experiment) else prepared.experiments
    with stopping(machine.stop), output.steps():
        extractions = extract_features(experiments, divided)
    return _tell_extractions(extractions, machine, output)


def _shards(count: int | None, one: str | None, scheduler: str | None) -> Shards | None:
    """Read the options that divide an extraction."""
    from spptransfer.experiment.features import Shards

    if count is not None and one is not None:
        raise ConfigError("--shards N makes all shards, --shard I/N a single one: give one of both")
    if scheduler is not None and count is None:
        raise ConfigError("--scheduler ADDRESS needs --shards N: how many shards are to be made?")
    if one is None:
        return None if count is None else Shards(count, scheduler=scheduler)
    found = re.fullmatch(r"([1-9][0-9]*)/([1-9][0-9]*)", one)
    if found is None or int(found[1]) > int(found[2]):
        raise ConfigError(f"--shard: '{one}' must be I/N with I from 1 to N, as 2/8")
    return Shards(int(found[2]), int(found[1]))


def _prepare(
    file: Path, overrides: list[str] | None, machine: Machine, output: Output
) -> Experiment | Grid:
    """Check the pipeline against this machine, and say what is about to happen."""
    from spptransfer.config import read_pipeline
    from spptransfer.experiment.preparation import prepare

    pipeline = read_pipeline(file, overrides or ())
    if pipeline.grid is None:
        experiment = prepare(file.stem, pipeline, machine)
        output.say(f"{printable(file.stem)}: {_describe(experiment)}")
        return experiment
    from spptransfer.experiment.grid import prepare_grid

    grid = prepare_grid(file.stem, pipeline, machine)
    output.say(f"{printable(file.stem)}: {_describe_table(grid)}")
    for reason in dict.fromkeys(cell.missing for cell in grid.cells if cell.missing):
        output.say(f"  {printable(reason)}")
    return grid


def _describe(experiment: Experiment) -> str:
    spec, section = experiment.wanted, experiment.pipeline.features
    levels = f"levels {list(experiment.levels)}, " if experiment.levels else ""
    return (
        f"{plural(len(experiment.dataset), 'image')} of {experiment.dataset.name}; "
        f"{spec.backbone} {spec.layer} (weights {spec.weights_sha256[:8]}), {levels}"
        f"scales {list(section.scales)}, view {spec.view}"
    )


def _describe_table(grid: Grid) -> str:
    dataset, section = grid.experiments[0].dataset, grid.section
    return (
        f"{plural(len(dataset), 'image')} of {dataset.name}; a table of "
        f"{plural(len(section.rows), 'row')} and {plural(len(section.columns), 'column')}, "
        f"{len(grid.experiments)} of {len(grid.cells)} cells can be computed"
    )


def counts(extraction: Extraction) -> str:
    """Say how many images went in, and what became of them."""
    total = extraction.added + extraction.changed + extraction.unchanged
    return (
        f"{plural(total, 'image')}: {extraction.added:,} added, {extraction.changed:,} changed, "
        f"{extraction.unchanged:,} unchanged, {extraction.removed:,} removed, "
        f"{len(extraction.failures):,} failed"
    )


def _effort(extraction: Extraction) -> str:
    """Say where the time went, and how many batches were as large as they may be."""
    spent = ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in extraction.seconds.items())
    return (
        f"{spent}; {extraction.batches:,} batches of images of one size, "
        f"{extraction.full_batches / extraction.batches:.0%} of them full"
    )


def _tell_extractions(extractions: Sequence[Extraction], machine: Machine, output: Output) -> int:
    for done in extractions:
        output.say(f"{counts(done)}: {short_path(done.path)}")
    if extractions[0].batches:
        output.say(_effort(extractions[0]))
    failures = {id: error for done in extractions for id, error in done.failures.items()}
    output.tell_failures(failures)
    total = max(done.added + done.changed + done.unchanged for done in extractions)
    reused = min(done.reused for done in extractions)
    cache = extractions[0].path if len(extractions) == 1 else machine.cache_dir
    return output.finish(
        bool(failures), rows=_rows(total, len(failures), reused), cache=str(cache.resolve())
    )


def _rows(total: int, failed: int, reused: int) -> dict[str, int]:
    """Count images by what became of them; reused are those that no cache lacked."""
    return {"ok": total - failed, "failed": failed, "reused": min(reused, total - failed)}


def _tell_run(result: RunResult, output: Output) -> int:
    from spptransfer.report import terminal_table

    results = result.results
    files = {
        "report": short_path(result.report),
        "model": short_path(result.model),
        "cache": short_path(Path(results["features"]["cache"])),
        "log": short_path(result.folder / "log.txt"),
    }
    output.say(terminal_table({**results, "files": files}))
    return _finish_run(
        result,
        output,
        results["rows"]["failures"],
        headline=results["headline"],
        metrics={name: metric["value"] for name, metric in results["metrics"].items()},
        rows={key: results["rows"][key] for key in ("ok", "failed", "reused")},
        cache=results["features"]["cache"],
        model=str(result.model.resolve()),
    )


def _tell_table(result: RunResult, output: Output) -> int:
    from spptransfer.report.grid import grid_table, shown_metrics

    results, images = result.results, result.results["images"]
    for metric in shown_metrics(results):
        output.say(f"\n{grid_table(results, metric)}")
    output.say(f"\ntable: {short_path(result.folder / 'results.json')}")
    output.say(f"report: {short_path(result.report)}")
    cells = [cell for cell in results["cells"] if not cell["missing"]]
    return _finish_run(
        result,
        output,
        images["failures"],
        metrics={f"{cell['row']}, {cell['column']}": cell["value"] for cell in cells},
        rows=_rows(images["total"], len(images["failures"]), images["reused"]),
    )


def _finish_run(
    result: RunResult, output: Output, failed: list[dict[str, str]], **values: Any
) -> int:
    output.tell_failures({row["id"]: row["error"] for row in failed})
    places = {"run": str(result.folder.resolve()), "report": str(result.report.resolve())}
    return output.finish(bool(failed), **values, **places)
