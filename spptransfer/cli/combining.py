"""The command that combines the models of finished runs."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from spptransfer.cli.options import (
    RUNS_DIR,
    Folders,
    Output,
    RunsDir,
    choice,
    printable,
    short_path,
    table,
)
from spptransfer.cli.process import interruptible


def combine(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Folders of two runs or more, on the same splits."),
    ],
    folders: Folders,
    output: Output,
    runs_dir: RunsDir = RUNS_DIR,
    concat: Annotated[
        bool,
        typer.Option(
            "--concat", help="Train one classifier on the caches of all runs side by side."
        ),
    ] = False,
    nms: Annotated[
        float | None,
        choice("The most that detections of a class overlap.", "that of the first run"),
    ] = None,
) -> int:
    """Combine the models of finished runs, and measure what that gains.

    Of detectors the detections are joined, by their confidences, and thinned out. Of classifiers
    the probabilities are averaged; with --concat one is trained on the features
    of all. The splits must be the same.
    """
    from spptransfer.experiment import Machine
    from spptransfer.experiment.combining import combine_runs

    machine = Machine(**vars(folders), runs_dir=runs_dir, progress=not output.quiet)
    command = shlex.join(["spptransfer", *sys.argv[1:]])
    with interruptible("interrupted; nothing was written"):
        done = combine_runs(runs, machine, command, concat=concat, nms=nms)
    results, metric = done.results, done.results["headline"]["metric"]
    rows = [[short_path(Path(one["run"])), one["headline"]] for one in results["combined"]]
    rows.append(["combined", results["headline"]])
    output.say(table([[name, _percent(headline)] for name, headline in rows], ["run", metric]))
    output.say(f"\nresults: {short_path(done.folder / 'results.json')}")
    output.say(f"report: {printable(short_path(done.report))}")
    counts = results["rows"]
    output.tell_failures({row["id"]: row["error"] for row in counts["failures"]})
    found: dict[str, Any] = {name: one["value"] for name, one in results["metrics"].items()}
    return output.finish(
        bool(counts["failed"]),
        headline=results["headline"],
        metrics=found,
        rows={key: counts[key] for key in ("ok", "failed", "reused")},
        run=str(done.folder.resolve()),
        report=str(done.report.resolve()),
        combined=results["combined"],
    )


def _percent(headline: Any) -> str:
    value, std = headline["value"], headline["std"]
    if value is None:
        return "-"
    return f"{value:.2%}" + (f" ± {100 * std:.2f}" if std is not None else "")
