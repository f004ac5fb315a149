"""Commands on a pipeline file: run, extract, train."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spptransfer.cli import grids
from spptransfer.cli.options import (
    CACHE_DIR,
    RUNS_DIR,
    CacheDir,
    DataRoot,
    Device,
    Jobs,
    Json,
    Overrides,
    PipelineFile,
    Quiet,
    RunsDir,
    Runtime,
    WeightsDir,
)
from spptransfer.cli.output import Output, counts, effort, printable, short_path, tell_failures
from spptransfer.cli.signals import stopping
from spptransfer.text import plural

if TYPE_CHECKING:
    from spptransfer.config import Pipeline
    from spptransfer.experiment import Experiment, Machine, RunResult


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(short_help="From images to results, a model and a report.")(run)
    app.command(short_help="Fill the feature cache.")(extract)
    app.command(short_help="Like run, from a cache that is there already.")(train)


def run(
    pipeline: PipelineFile,
    data_root: DataRoot = None,
    cache_dir: CacheDir = CACHE_DIR,
    runs_dir: RunsDir = RUNS_DIR,
    weights_dir: WeightsDir = None,
    device: Device = "auto",
    runtime: Runtime = "torch",
    jobs: Jobs = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """From images to a results table, a saved model and an HTML report.

    What the feature cache holds already is not computed again. A file with a grid makes a table
    of runs, from one pass over the images.
    """
    from spptransfer.experiment import Machine
    from spptransfer.experiment import run as run_experiment

    output = Output(quiet, json)
    checked = _read(pipeline, overrides)
    machine = Machine(
        data_root=data_root,
        cache_dir=cache_dir,
        runs_dir=runs_dir,
        weights_dir=weights_dir,
        device=device,
        runtime=runtime,
        jobs=jobs,
        progress=not quiet,
    )
    if checked.grid is not None:
        with stopping(machine):
            return grids.run(pipeline.stem, checked, machine, output, command())
    experiment = _prepare(pipeline, checked, machine, output)
    with stopping(machine):
        result = run_experiment(experiment, command(), output.tell)
    return _tell_run(result, output)


def train(
    pipeline: PipelineFile,
    data_root: DataRoot = None,
    cache_dir: CacheDir = CACHE_DIR,
    runs_dir: RunsDir = RUNS_DIR,
    weights_dir: WeightsDir = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """Like run, from a cache that is there already; no image is looked at."""
    from spptransfer.experiment import Machine
    from spptransfer.experiment import train as train_experiment

    output = Output(quiet, json)
    checked = _read(pipeline, overrides)
    machine = Machine(
        data_root=data_root,
        cache_dir=cache_dir,
        runs_dir=runs_dir,
        weights_dir=weights_dir,
        progress=not quiet,
    )
    if checked.grid is not None:
        return grids.run(pipeline.stem, checked, machine, output, command(), from_caches=True)
    experiment = _prepare(pipeline, checked, machine, output)
    return _tell_run(train_experiment(experiment, command()), output)


def extract(
    pipeline: PipelineFile,
    data_root: DataRoot = None,
    cache_dir: CacheDir = CACHE_DIR,
    weights_dir: WeightsDir = None,
    device: Device = "auto",
    runtime: Runtime = "torch",
    jobs: Jobs = None,
    engine: Annotated[
        str,
        typer.Option(
            help="Who computes: threads, processes (for a GPU they read), dask (a cluster), or "
            "auto: on a CPU processes if --jobs asks for several, else threads."
        ),
    ] = "auto",
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Dask's scheduler, as tcp://10.0.0.1:8786.",
            show_default="a cluster on this machine",
        ),
    ] = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """Fill the feature cache, and say what went in, came out and failed.

    Interrupted or killed, the same command goes on where it stopped.
    """
    from spptransfer.experiment import Machine, extract_features

    output = Output(quiet, json)
    checked = _read(pipeline, overrides)
    machine = Machine(
        data_root=data_root,
        cache_dir=cache_dir,
        weights_dir=weights_dir,
        device=device,
        runtime=runtime,
        jobs=jobs,
        engine=engine,
        scheduler=scheduler,
        progress=not quiet,
    )
    if checked.grid is not None:
        with stopping(machine):
            return grids.extract(pipeline.stem, checked, machine, output)
    experiment = _prepare(pipeline, checked, machine, output)
    with stopping(machine):
        result = extract_features(experiment, output.tell)
    total, failed = len(experiment.dataset), len(result.failures)
    output.say(counts(total, result))
    if result.batches:
        output.say(effort(result))
    tell_failures(result.failures, output)
    output.say(f"cache: {short_path(result.path)}")
    output.finish(
        status="incomplete" if failed else "ok",
        rows={"ok": total - failed, "failed": failed, "reused": result.reused},
        cache=str(result.path.resolve()),
    )
    return 1 if failed else 0


def _read(path: Path, overrides: list[str] | None) -> Pipeline:
    from spptransfer.config import read_pipeline

    return read_pipeline(path, overrides or ())


def _prepare(path: Path, pipeline: Pipeline, machine: Machine, output: Output) -> Experiment:
    """Check the pipeline against this machine, and say what is about to happen."""
    from spptransfer.experiment import prepare

    experiment = prepare(path.stem, pipeline, machine)
    spec, section = experiment.wanted, experiment.pipeline.features
    levels = f"levels {list(experiment.levels)}, " if experiment.levels else ""
    output.say(
        f"{printable(path.stem)}: {plural(len(experiment.dataset), 'image')} of "
        f"{experiment.dataset.name}; "
        f"{spec.backbone} {spec.layer} (weights {spec.weights_sha256[:8]}), {levels}"
        f"scales {list(section.scales)}, view {spec.view}"
    )
    return experiment


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
    failures = {row["id"]: row["error"] for row in results["rows"]["failures"]}
    tell_failures(failures, output)
    output.finish(
        status="incomplete" if failures else "ok",
        headline=results["headline"],
        metrics={name: metric["value"] for name, metric in results["metrics"].items()},
        rows={key: results["rows"][key] for key in ("ok", "failed", "reused")},
        run=str(result.folder.resolve()),
        cache=results["features"]["cache"],
        report=str(result.report.resolve()),
        model=str(result.model.resolve()),
    )
    return 1 if failures else 0


def command() -> str:
    """The command as the user gave it."""
    return shlex.join(["spptransfer", *sys.argv[1:]])
