"""Commands on what a run left behind: predict and report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spptransfer.cli.options import Compute, WeightsDir, add_command
from spptransfer.cli.output import Output, printable, short_path
from spptransfer.text import plural

if TYPE_CHECKING:
    from spptransfer.models import Scores, TransferModel

_SHOWN_CLASSES = 3
_NAME_WIDTHS = (5, 60)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    add_command(app, predict, "Score new images with a saved model.")
    add_command(app, report, "Write the HTML report of a run anew.")


def predict(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A model file, or the folder of a run.")
    ],
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", help="Images, and folders that are searched for some."),
    ],
    compute: Compute,
    output: Output,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Where the backbone's weights are now.",
            show_default="where they were in training",
        ),
    ] = None,
    weights_dir: WeightsDir = None,
    top: Annotated[int, typer.Option(min=1, help="Classes shown per image.")] = _SHOWN_CLASSES,
) -> int:
    """Score new images with a saved model: the nearest classes with their decision values.

    With --json one line per image with all decision values, then one for the whole.
    """
    from tqdm import tqdm

    from spptransfer.datasets.folder import gather_images
    from spptransfer.models import TransferModel

    loaded = TransferModel.load(model)
    files = gather_images(paths)
    width = _name_width(files)
    scored = loaded.score(
        files, options=compute.options(), weights=weights, weights_dir=weights_dir
    )
    failed = 0
    # A table on the screen is its own progress bar; one that goes into a file needs another.
    silent = output.quiet or sys.stdout.isatty() or not sys.stderr.isatty()
    for number, scores in enumerate(tqdm(scored, total=len(files), unit="image", disable=silent)):
        if not number and not output.json:
            output.say(f"{'image':{width}}  predicted (decision values)")
        failed += scores.values is None
        if output.json:
            output.emit(_as_json(loaded, scores))
        else:
            _tell_scores(loaded, scores, top, width, output)
    rows = {"ok": len(files) - failed, "failed": failed, "reused": 0}
    if failed:
        output.say(f"{plural(len(files), 'image')}: {rows['ok']:,} scored, {failed:,} failed")
    return output.finish(failed > 0, rows=rows, model=str(model.resolve()))


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    words: Output,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File to write.", show_default="RUN/report.html"),
    ] = None,
) -> int:
    """Write the HTML report of a run, or of a table of runs, anew: one file without others."""
    from spptransfer.report import write_report
    from spptransfer.report.grid_page import is_grid, write_grid_page

    write = write_grid_page if is_grid(run) else write_report
    written = write(run, output=output)
    words.say(f"report: {short_path(written)}")
    return words.finish(run=str(run.resolve()), report=str(written.resolve()))


def _name_width(files: list[Path]) -> int:
    """Return the width of the column of names; a few long ones stand out of it."""
    shortest, longest = _NAME_WIDTHS
    return min(longest, max([shortest, *(len(printable(file)) for file in files)]))


def _tell_scores(
    model: TransferModel, scores: Scores, top: int, width: int, output: Output
) -> None:
    name = f"{printable(scores.path):{width}}"
    if scores.values is None:
        output.complain(f"{name}  failed: {printable(scores.error)}")
    else:
        output.say(f"{name}  {_in_words(model, scores.values, top)}")


def _in_words(model: TransferModel, values: Any, top: int) -> str:
    best = (-values).argsort(kind="stable")[:top]
    shown = ", ".join(f"{printable(model.classes[i])} ({values[i]:+.2f})" for i in best)
    if not model.multi_label:
        return shown
    labels = "; ".join(map(printable, model.labels(values)))
    return f"{labels or 'none'}   [{shown}]"


def _as_json(model: TransferModel, scores: Scores) -> dict[str, Any]:
    if scores.values is None:
        return {"path": str(scores.path), "error": scores.error}
    values = {name: float(v) for name, v in zip(model.classes, scores.values, strict=True)}
    labels = model.labels(scores.values)
    return {"path": str(scores.path), "labels": labels, "decision_values": values}
