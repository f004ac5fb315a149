"""Commands on what a run left behind: predict and report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from spptransfer.cli.options import Device, Jobs, Json, Quiet, WeightsDir
from spptransfer.cli.output import Output

_SHOWN_CLASSES = 3


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(predict)
    app.command()(report)


def predict(
    model: Annotated[Path, typer.Argument(help="A model file, or the folder of a run.")],
    paths: Annotated[list[Path], typer.Argument(help="Images and folders of images.")],
    weights: Annotated[
        str | None,
        typer.Option(help="Where the backbone's weights are now.", show_default="as in training"),
    ] = None,
    weights_dir: WeightsDir = None,
    top: Annotated[int, typer.Option(min=1, help="Classes shown per image.")] = _SHOWN_CLASSES,
    device: Device = "auto",
    jobs: Jobs = None,
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """Score new images with a saved model; with --json one line per image, then the summary."""
    from spptransfer.images import SUFFIXES
    from spptransfer.models import TransferModel, find_images

    output = Output(quiet, json)
    loaded = TransferModel.load(model)
    files = find_images(paths, SUFFIXES)
    failed = 0
    if not json and not quiet:
        print(f"{'image':40}  predicted (decision values)")
    for scores in loaded.score(
        files, device=device, jobs=jobs, weights=weights, weights_dir=weights_dir
    ):
        failed += scores.values is None
        if json:
            _print_json(_as_json(loaded, scores))
        elif scores.values is None:
            print(f"{scores.path!s:40}  failed: {scores.error}")
        else:
            print(f"{scores.path!s:40}  {_in_words(loaded, scores.values, top)}")
    output.finish(
        status="incomplete" if failed else "ok",
        rows={"ok": len(files) - failed, "failed": failed, "reused": 0},
        model=str(model.resolve()),
    )
    return 1 if failed else 0


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    output: Annotated[
        Path | None, typer.Option(help="File to write.", show_default="RUN/report.html")
    ] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """Write the HTML report of a run anew."""
    from spptransfer.report import write_report

    words = Output(quiet, json)
    written = write_report(run, output=output)
    words.say(f"report: {written}")
    words.finish(status="ok", run=str(run.resolve()), report=str(written.resolve()))
    return 0


def _in_words(model: Any, values: Any, top: int) -> str:
    best = values.argsort()[::-1][:top]
    shown = ", ".join(f"{model.classes[i]} ({values[i]:+.2f})" for i in best)
    if not model.multi_label:
        return shown
    labels = model.labels(values)
    return f"{'; '.join(labels) or 'none'}   [{shown}]"


def _as_json(model: Any, scores: Any) -> dict[str, Any]:
    if scores.values is None:
        return {"path": str(scores.path), "error": scores.error}
    values = {name: float(v) for name, v in zip(model.classes, scores.values, strict=True)}
    labels = model.labels(scores.values)
    return {"path": str(scores.path), "labels": labels, "decision_values": values}


def _print_json(line: dict[str, Any]) -> None:
    import json

    print(json.dumps(line), flush=True)
