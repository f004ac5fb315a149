"""The command that measures a trained network's errors on labelled images."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spptransfer.cli.options import Device, Json, Quiet, Runtime, Threads, WeightsDir, numbers
from spptransfer.cli.output import Output, table, tell_failures
from spptransfer.text import plural

if TYPE_CHECKING:
    from spptransfer.pretraining.evaluation import Classifier, Evaluation, SchemeErrors
    from spptransfer.pretraining.evaluation_data import LabelledFiles
    from spptransfer.pretraining.views import Scheme

_VIEWS = "center_crop,full,10-crops,10-maps"
_HEADER = ["views", "per image", "top-1 error %", "top-5 error %", "images", "seconds"]

Weights = Annotated[
    list[str],
    typer.Option(
        metavar="FILE",
        help="Weights with all layers, a file or a catalogue name; of several the class "
        "probabilities are averaged.",
        show_default=False,
    ),
]
Data = Annotated[
    str,
    typer.Option(metavar="PATH", help="Folder or .zip file of labelled images."),
]
Split = Annotated[str, typer.Option(help="Folder in it that holds a folder per class; '' is all.")]
Views = Annotated[
    str,
    typer.Option(
        metavar="NAME,NAME,...",
        help="center_crop, full, 10-crops, 10-maps, 96-maps, 98-maps.",
    ),
]
Scales = Annotated[
    str | None,
    typer.Option(
        metavar="S,S,...",
        help="Smaller sides in 96-maps and 98-maps.",
        show_default="224,256,300,360,448,560 in proportion to the size",
    ),
]
Size = Annotated[
    int | None,
    typer.Option(
        min=1, help="Side of crops and windows, in pixels.", show_default="as trained, else 224"
    ),
]
Resize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Smaller side of the image in all other views.",
        show_default="as trained, else 256 in proportion to the size",
    ),
]
Levels = Annotated[
    str | None,
    typer.Option(metavar="N,N,...", help="Pyramid.", show_default="as trained, else the network's"),
]
Precision = Annotated[str, typer.Option(help="float32 or bfloat16.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(short_help="Measure a trained network's errors on labelled images.")(
        evaluate_backbone
    )


def evaluate_backbone(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A backbone's name.")],
    weights: Weights,
    data: Data,
    split: Split = "val",
    views: Views = _VIEWS,
    scales: Scales = None,
    size: Size = None,
    resize: Resize = None,
    levels: Levels = None,
    precision: Precision = "float32",
    weights_dir: WeightsDir = None,
    device: Device = "cpu",
    runtime: Runtime = "torch",
    jobs: Threads = None,
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """Measure a trained network's top-1 and top-5 errors, averaged over views of each image.

    Crops go through the whole network; views on maps are cut from the map of the whole image.
    """
    from spptransfer.backbones.weights import path_of
    from spptransfer.pretraining.evaluation import evaluate, load_classifier
    from spptransfer.pretraining.evaluation_data import LabelledFiles

    output = Output(quiet, json)
    pyramid = numbers("levels", levels, "6,3,2,1")
    networks = [
        load_classifier(name, file, levels=pyramid, weights_dir=weights_dir) for file in weights
    ]
    schemes = _schemes(views, networks[0], size, resize, numbers("scales", scales, "6,3,2,1"))
    files = LabelledFiles.open(data, split)
    output.say(
        f"{name}: {plural(len(files), 'image')} of "
        f"{plural(len(files.classes), 'class', 'classes')}, windows of {schemes[0].size} pixels"
    )
    if networks[0].about.classes is None:
        output.say("the weights name no classes: taken to be the folders, sorted by name")
    with _bar(len(files) * len(schemes), quiet) as bar:
        found = evaluate(
            networks,
            files,
            schemes,
            device=device,
            precision=precision,
            runtime=runtime,
            jobs=jobs,
            note=bar.update,
        )
    output.say(table([_row(errors) for errors in found.errors], _HEADER))
    output.say(f"computed by: {', '.join(found.computed_by)}")
    paths = [str(path_of(name, file, weights_dir).resolve()) for file in weights]
    return _finish(found, files, paths, output)


def _schemes(
    views: str,
    network: Classifier,
    size: int | None,
    resize: int | None,
    scales: tuple[int, ...] | None,
) -> list[Scheme]:
    """Lay out the views, by default at the sizes that the network was trained at."""
    from spptransfer.pretraining.views import PAPER_SIZE, make_scheme

    about = network.about
    size = size or about.size or PAPER_SIZE
    if size == about.size:
        resize = resize or about.resize
    names = list(dict.fromkeys(name.strip() for name in views.split(",")))
    return [make_scheme(name, size=size, resize=resize, scales=scales) for name in names]


def _bar(images: int, quiet: bool) -> Any:
    from tqdm import tqdm

    hidden = quiet or not sys.stderr.isatty()
    return tqdm(total=images, unit="image", disable=hidden, leave=False)


def _row(errors: SchemeErrors) -> list[Any]:
    return [
        errors.scheme.name,
        errors.scheme.views,
        round(100 * errors.top1_error, 2),
        round(100 * errors.top5_error, 2),
        errors.images,
        round(errors.seconds, 1),
    ]


def _finish(found: Evaluation, files: LabelledFiles, weights: list[str], output: Output) -> int:
    failures = {files.names[position]: reason for position, reason in found.failures.items()}
    tell_failures(failures, output, shown=20, hint="")
    last = found.errors[-1]
    metric = f"top-1 accuracy, {last.scheme.name}"
    output.finish(
        status="incomplete" if failures else "ok",
        headline={"metric": metric, "value": last.top1_accuracy, "std": None},
        metrics=_metrics(found),
        rows={"ok": len(files) - len(failures), "failed": len(failures), "reused": 0},
        model=weights[0],
        weights=weights,
        computed_by=list(found.computed_by),
        views=[_as_json(errors) for errors in found.errors],
        failures=failures,
    )
    return 1 if failures else 0


def _metrics(found: Evaluation) -> dict[str, float]:
    accuracies = {}
    for errors in found.errors:
        accuracies[f"top-1 accuracy, {errors.scheme.name}"] = errors.top1_accuracy
        accuracies[f"top-5 accuracy, {errors.scheme.name}"] = errors.top5_accuracy
    return accuracies


def _as_json(errors: SchemeErrors) -> dict[str, Any]:
    scheme = errors.scheme
    return {
        "name": scheme.name,
        "views": scheme.views,
        "size": scheme.size,
        "scales": [at.scale for at in scheme.scales],
        "top1_error": errors.top1_error,
        "top5_error": errors.top5_error,
        "top1_accuracy": errors.top1_accuracy,
        "top5_accuracy": errors.top5_accuracy,
        "images": errors.images,
        "seconds": errors.seconds,
    }
