"""Commands on several finished runs: their combination, and their comparison."""

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
    named_run,
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
        folders_of_runs = [named_run(run, runs_dir) for run in runs]
        done = combine_runs(folders_of_runs, machine, command, concat=concat, nms=nms)
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


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN", help="Folders of runs, or of a table of runs; the others against one."
        ),
    ],
    output: Output,
    runs_dir: RunsDir = RUNS_DIR,
    format: Annotated[str, choice("text, markdown, latex, csv or json.")] = "text",
    classes: Annotated[
        bool, typer.Option("--classes", help="Print what each class gains or loses instead.")
    ] = False,
    html: Annotated[
        Path | None, choice("Page with plots to write as well.", "none", metavar="FILE")
    ] = None,
) -> int:
    """Compare finished runs: what differs between them, and what each gains on the first.

    Differences are paired where the splits are the same, with the name of the test behind p.
    CSV and JSON have fractions of 1, the other formats percent.
    """
    from spptransfer.report.comparing import compare_page, compare_runs
    from spptransfer.report.tables import write_table
    from spptransfer.report.template import write_page

    found = compare_runs([named_run(run, runs_dir) for run in runs])
    output.say(write_table(found.class_table() if classes else found.table(), format))
    if html is not None:
        write_page(compare_page(found), html)
        if format == "text":  # others may go into a file
            output.say(f"\npage: {short_path(html)}")
    return output.finish(report=None if html is None else str(html.resolve()), **found.as_json())
