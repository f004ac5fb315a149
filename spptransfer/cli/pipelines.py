"""Commands on a pipeline file, with a grid in it or not, and on what its run leaves."""

from __future__ import annotations

import contextlib
import logging
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spptransfer.cli.options import (
    RUNS_DIR,
    ComputeMany,
    Folders,
    Output,
    Overrides,
    PipelineFile,
    PipelineOrNone,
    RunsDir,
    choice,
    latest,
    list_shipped,
    logged,
    named_run,
    printable,
    short_path,
)
from spptransfer.cli.process import stopping
from spptransfer.errors import ConfigError, OutputError, one_of, suggestion
from spptransfer.text import plural

if TYPE_CHECKING:
    from spptransfer.experiment import Experiment, Grid, Machine, RunResult, Shards
    from spptransfer.extraction import Extraction


def run(
    pipeline: PipelineOrNone = None,
    *,
    folders: Folders,
    compute: ComputeMany,
    output: Output,
    runs_dir: RunsDir = RUNS_DIR,
    overrides: Overrides = None,
) -> int:
    """From images to a results table, a saved model and an HTML report.

    What the feature cache holds already is not computed again. A file with a grid makes a table
    of runs, from one pass over the images. Without a pipeline it lists those that are shipped.
    """
    if pipeline is None:
        return list_shipped("run", output)
    given = {"runs_dir": runs_dir, "compute": compute.options()}
    return _run(pipeline, overrides, folders, output, given)


def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A shipped pipeline file.")],
    output: Output,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="What to write; NAME.yaml if absent."),
    ] = None,
) -> int:
    """Write a copy of a shipped pipeline file, comments and all, to edit.

    `spptransfer run` lists those that there are.
    """
    from spptransfer.sections import shipped

    found = shipped()
    if name not in found:
        raise ConfigError(f"no pipeline file '{name}' is shipped; {suggestion(name, found)}")
    file = file or Path(f"{name}.yaml")
    try:
        with file.open("xb") as copy:
            copy.write(found[name].read_bytes())
    except OSError as error:
        raise OutputError(f"cannot write '{file}': {error.strerror}") from error
    command = "pretrain" if name.startswith("pretrain-") else "run"
    next_step = shlex.join(["spptransfer", command, str(file)])
    output.say(f"{short_path(file)}: edit it, then `{next_step}`")
    return output.finish(file=str(file.resolve()))


def train(
    pipeline: PipelineFile,
    folders: Folders,
    output: Output,
    runs_dir: RunsDir = RUNS_DIR,
    overrides: Overrides = None,
) -> int:
    """Like run, from a cache that is there already; no image is looked at."""
    return _run(pipeline, overrides, folders, output, {"runs_dir": runs_dir}, from_cache=True)


def _run(
    file: Path,
    overrides: list[str] | None,
    folders: Folders,
    output: Output,
    given: dict[str, Any],
    *,
    from_cache: bool = False,
) -> int:
    from spptransfer import experiment

    machine = experiment.Machine(**vars(folders), **given, progress=not output.quiet)
    prepared = _prepare(file, overrides, machine, output)
    command = shlex.join(["spptransfer", *sys.argv[1:]])
    with _working(machine, output):
        if isinstance(prepared, experiment.Grid):
            result = experiment.run_grid(prepared, command, from_cache=from_cache)
            return _tell_table(result, output)
        return _tell_run(experiment.run(prepared, command, from_cache=from_cache), output)


@contextlib.contextmanager
def _working(machine: Machine, output: Output) -> Iterator[None]:
    """Answer signals, and say what steps are taken."""
    from spptransfer.experiment.preparation import STEPS

    with stopping(machine.stop), logged(STEPS, logging.INFO, output.say):
        yield


def extract(
    pipeline: PipelineFile,
    folders: Folders,
    compute: ComputeMany,
    output: Output,
    shards: Annotated[
        int | None, choice("Divide the images among processes, a shard at a time each.", min=1)
    ] = None,
    scheduler: Annotated[
        str | None,
        choice(
            "With --shards: Dask's scheduler, as tcp://10.0.0.1:8786.",
            "processes of this machine",
            metavar="ADDRESS",
        ),
    ] = None,
    shard: Annotated[
        str | None,
        choice(
            "Make shard I of N alone, as 2/8, in a cache of its own; `spptransfer cache "
            "merge` joins them.",
            metavar="I/N",
        ),
    ] = None,
    overrides: Overrides = None,
) -> int:
    """Fill the feature cache, and say what went in, came out and failed.

    Interrupted or killed, the same command goes on where it stopped.
    """
    from spptransfer.experiment import Machine, extract_features

    options, divided = compute.options(), _shards(shards, shard, scheduler)
    machine = Machine(**vars(folders), compute=options, progress=not output.quiet)
    experiments = _prepare(pipeline, overrides, machine, output).experiments
    with _working(machine, output):
        extractions = extract_features(experiments, divided)
    return _tell_extractions(extractions, machine, output)


def _shards(count: int | None, one: str | None, scheduler: str | None) -> Shards | None:
    """Read the options that divide an extraction."""
    from spptransfer.experiment import Shards

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
    from spptransfer.experiment import Grid, prepare_file

    prepared = prepare_file(file, machine, overrides or ())
    first = prepared.experiments[0]
    about = f"{plural(len(first.dataset), 'image')} of {first.dataset.name}; "
    missing: list[str] = []
    if isinstance(prepared, Grid):
        rows, columns = (
            plural(len(prepared.section.rows), "row"),
            plural(len(prepared.section.columns), "column"),
        )
        about += (
            f"a table of {rows} and {columns}, "
            f"{len(prepared.experiments)} of {len(prepared.cells)} cells can be computed"
        )
        missing += [cell.missing for cell in prepared.cells if cell.missing]
    else:
        spec, chosen = first.wanted, first.selection
        levels = f"levels {list(chosen['levels'])}, " if chosen["levels"] else ""
        about += (
            f"{spec.origin} (weights {spec.weights_sha256[:8]}), {levels}"
            f"scales {list(chosen['scales'])}, view {spec.view}"
        )
    output.say(f"{printable(prepared.name)}: {about}")
    for reason in dict.fromkeys(missing):
        output.say(f"  {printable(reason)}")
    return prepared


def counts(extraction: Extraction) -> str:
    """Say how many images went in, and what became of them."""
    total = extraction.added + extraction.changed + extraction.unchanged
    return (
        f"{plural(total, 'image')}: {extraction.added:,} added, {extraction.changed:,} changed, "
        f"{extraction.unchanged:,} unchanged, {extraction.removed:,} removed, "
        f"{len(extraction.failures):,} failed"
    )


def _tell_extractions(extractions: Sequence[Extraction], machine: Machine, output: Output) -> int:
    from spptransfer.experiment.results import count_rows

    for done in extractions:
        output.say(f"{counts(done)}: {short_path(done.path)}")
    first = extractions[0]
    if first.batches:
        spent = ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in first.seconds.items())
        output.say(
            f"{spent}; {first.batches:,} batches of images of one size, "
            f"{first.full_batches / first.batches:.0%} of them full"
        )
    failures = {id: error for done in extractions for id, error in done.failures.items()}
    output.tell_failures(failures)
    total = max(done.added + done.changed + done.unchanged for done in extractions)
    rows = count_rows(total, len(failures), min(done.reused for done in extractions))
    cache = first.path if len(extractions) == 1 else machine.cache_dir
    return output.finish(bool(failures), rows=rows, cache=str(cache.resolve()))


def _tell_run(result: RunResult, output: Output) -> int:
    from spptransfer.report import terminal_table

    results = result.results
    cache = results["features"].get("cache")
    files = {
        "report": short_path(result.report),
        "model": short_path(result.model),
        **({"cache": short_path(Path(cache))} if cache else {}),
        "log": short_path(result.folder / "log.txt"),
    }
    output.say(terminal_table({**results, "files": files}))
    metrics = {name: metric["value"] for name, metric in results["metrics"].items()}
    found = {"headline": results["headline"], "metrics": metrics}
    found |= {"cache": cache, "model": str(result.model.resolve())}
    return _finish_run(result, output, results["rows"], **found)


def _tell_table(result: RunResult, output: Output) -> int:
    from spptransfer.experiment.results import count_rows
    from spptransfer.report.grid import grid_table, shown_metrics

    results, images = result.results, result.results["images"]
    for metric in shown_metrics(results):
        output.say(f"\n{grid_table(results, metric)}")
    output.say(f"\ntable: {short_path(result.folder / 'results.json')}")
    output.say(f"report: {short_path(result.report)}")
    cells = [cell for cell in results["cells"] if not cell["missing"]]
    metrics = {f"{cell['row']}, {cell['column']}": cell["value"] for cell in cells}
    rows = count_rows(images["total"], len(images["failures"]), images["reused"])
    rows["failures"] = images["failures"]
    return _finish_run(result, output, rows, metrics=metrics)


def _finish_run(result: RunResult, output: Output, rows: dict[str, Any], **found: Any) -> int:
    failures = {row["id"]: row["error"] for row in rows["failures"]}
    output.tell_failures(failures)
    found["rows"] = {key: count for key, count in rows.items() if key != "failures"}
    places = {"run": str(result.folder.resolve()), "report": str(result.report.resolve())}
    return output.finish(bool(failures), **found, **places)


def report(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run, or of runs for the latest.")
    ],
    words: Output,
    output: Annotated[
        Path | None, choice("File to write.", "RUN/report.html, or none", metavar="FILE")
    ] = None,
    format: Annotated[str, choice("html, text, markdown, latex, csv or json.")] = "html",
    runs_dir: RunsDir = RUNS_DIR,
) -> int:
    """Write the HTML report of a run, or of a table of runs, anew: one file without others.

    The other formats have the metrics alone, or the table; without --output they are printed.
    CSV and JSON have fractions of 1, the others percent.
    """
    from spptransfer.experiment.results import RESULTS
    from spptransfer.report import write_report
    from spptransfer.report.run_folder import read_results
    from spptransfer.report.summary import summary_table
    from spptransfer.report.tables import FORMATS, write_table
    from spptransfer.report.template import write_page

    one_of("--format", format, ["html", *FORMATS])
    aside = words if format == "html" else Output(words.quiet, json=True)  # not into a table
    run, written = latest(named_run(run, runs_dir), RESULTS, aside), output
    if format == "html":
        written = write_report(run, output=output)
    else:
        text = write_table(summary_table(read_results(run)), format)
        if output is None:
            words.say(text)
        else:
            write_page(f"{text}\n", output)
    if written is not None:
        words.say(f"report: {short_path(written)}")
    return words.finish(
        run=str(run.resolve()), report=None if written is None else str(written.resolve())
    )
