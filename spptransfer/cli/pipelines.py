"""Commands on a pipeline file: run, extract, train."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

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
    WeightsDir,
)
from spptransfer.cli.output import Output, log_warnings

if TYPE_CHECKING:
    from spptransfer.experiment import Experiment, Machine, RunResult

_SHOWN_FAILURES = 10


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(run)
    app.command()(extract)
    app.command()(train)


def run(
    pipeline: PipelineFile,
    data_root: DataRoot = None,
    cache_dir: CacheDir = CACHE_DIR,
    runs_dir: RunsDir = RUNS_DIR,
    weights_dir: WeightsDir = None,
    device: Device = "auto",
    jobs: Jobs = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """From images to a results table, a saved model and an HTML report."""
    from spptransfer.experiment import run as run_experiment

    output = Output(quiet, json)
    machine = _machine(data_root, cache_dir, runs_dir, weights_dir, device, jobs, quiet)
    experiment = _prepare(pipeline, overrides, machine, output)
    with _stopping(machine):
        result = run_experiment(experiment, _command())
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
    from spptransfer.experiment import train as train_experiment

    output = Output(quiet, json)
    machine = _machine(data_root, cache_dir, runs_dir, weights_dir, "cpu", None, quiet)
    experiment = _prepare(pipeline, overrides, machine, output)
    return _tell_run(train_experiment(experiment, _command()), output)


def extract(
    pipeline: PipelineFile,
    data_root: DataRoot = None,
    cache_dir: CacheDir = CACHE_DIR,
    weights_dir: WeightsDir = None,
    device: Device = "auto",
    jobs: Jobs = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """Fill the feature cache and say what came in, out, and failed."""
    from spptransfer.experiment import extract_features

    output = Output(quiet, json)
    machine = _machine(data_root, cache_dir, RUNS_DIR, weights_dir, device, jobs, quiet)
    experiment = _prepare(pipeline, overrides, machine, output)
    with _stopping(machine):
        result = extract_features(experiment)
    total, failed = len(experiment.dataset), len(result.failures)
    output.say(
        f"{total:,} images: {result.added:,} added, {result.changed:,} changed, "
        f"{result.unchanged:,} unchanged, {result.removed:,} removed, {failed:,} failed"
    )
    _tell_failures(dict(result.failures), output)
    output.say(f"cache: {result.path}")
    output.finish(
        status="incomplete" if failed else "ok",
        rows={"ok": total - failed, "failed": failed, "reused": result.unchanged},
        cache=str(result.path.resolve()),
    )
    return 1 if failed else 0


def _machine(
    data_root: Path | None,
    cache_dir: Path,
    runs_dir: Path,
    weights_dir: Path | None,
    device: str,
    jobs: int | None,
    quiet: bool,
) -> Machine:
    from spptransfer.experiment import Machine

    return Machine(
        data_root=data_root,
        cache_dir=cache_dir,
        runs_dir=runs_dir,
        weights_dir=weights_dir,
        device=device,
        jobs=jobs,
        progress=not quiet,
    )


def _prepare(
    path: Path, overrides: list[str] | None, machine: Machine, output: Output
) -> Experiment:
    from spptransfer.config import read_pipeline
    from spptransfer.experiment import prepare

    log_warnings()
    pipeline = read_pipeline(path, overrides or ())
    experiment = prepare(path.stem, pipeline, machine)
    spec = experiment.wanted
    output.say(
        f"{path.stem}: {len(experiment.dataset):,} images of {experiment.dataset.name}; "
        f"{spec.backbone} {spec.layer} ({spec.weights_sha256[:8]}), "
        f"scales {list(spec.scales)}, view {spec.view}"
    )
    return experiment


@contextlib.contextmanager
def _stopping(machine: Machine) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM finish the parts in work, the second one stop at once."""

    def ask(signum: int, frame: Any) -> None:
        if not machine.stop.extracting or machine.stop.is_set():
            raise KeyboardInterrupt
        machine.stop.set()
        print(
            "\nspptransfer: finishing the parts in work; once more to stop at once",
            file=sys.stderr,
        )

    previous: dict[int, Callable[..., Any] | int | None] = {
        number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _tell_run(result: RunResult, output: Output) -> int:
    from spptransfer.report import terminal_table

    results = result.results
    files = {
        "report": _shown(result.report),
        "model": _shown(result.model),
        "cache": _shown(Path(results["features"]["cache"])),
    }
    output.say(terminal_table({**results, "files": files}))
    failures = {row["id"]: row["error"] for row in results["rows"]["failures"]}
    _tell_failures(failures, output)
    rows = {key: results["rows"][key] for key in ("ok", "failed", "reused")}
    output.finish(
        status="incomplete" if failures else "ok",
        headline=results["headline"],
        metrics={name: metric["value"] for name, metric in results["metrics"].items()},
        rows=rows,
        run=str(result.folder.resolve()),
        cache=results["features"]["cache"],
        report=str(result.report.resolve()),
        model=str(result.model.resolve()),
    )
    return 1 if failures else 0


def _shown(path: Path) -> str:
    """Path as short as it can be told from here."""
    path = path.resolve()
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _tell_failures(failures: dict[str, str], output: Output) -> None:
    for id, error in list(failures.items())[:_SHOWN_FAILURES]:
        output.say(f"  failed: {id!r}: {error}")
    if len(failures) > _SHOWN_FAILURES:
        output.say(f"  ... and {len(failures) - _SHOWN_FAILURES:,} more, listed by `cache info`")


def _command() -> str:
    return shlex.join(["spptransfer", *sys.argv[1:]])
