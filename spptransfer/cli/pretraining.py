"""Commands on whole networks: one trains one, one measures its errors."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spptransfer.cli.options import (
    RUNS_DIR,
    Compute,
    DataRoot,
    Device,
    Output,
    PipelineOrNone,
    Threads,
    TrainingOverrides,
    WeightsDir,
    choice,
    list_shipped,
    numbers,
    short_path,
    table,
)
from spptransfer.cli.process import interruptible, stopping_training
from spptransfer.text import plural

if TYPE_CHECKING:
    from spptransfer.pretraining.evaluation import MeasuredErrors, NetworkClassifier, SchemeErrors
    from spptransfer.pretraining.source import LabelledFiles
    from spptransfer.pretraining.views import Scheme

_VIEWS = "center_crop,full,10-crops,10-maps"
_HEADER = ["views", "per image", "top-1 error %", "top-5 error %", "images", "seconds"]


def pretrain(
    pipeline: PipelineOrNone = None,
    *,
    output: Output,
    out: Annotated[
        Path | None, choice("Folder of the run.", "runs/ and the pipeline file's name")
    ] = None,
    data_root: DataRoot = None,
    weights_dir: WeightsDir = None,
    device: Device = "auto",
    threads: Threads = None,
    jobs: Annotated[
        int | None, choice("Processes that prepare images, 0 for none.", "one per processor", min=0)
    ] = None,
    overrides: TrainingOverrides = None,
) -> int:
    """Train a network of the paper from random weights on a folder of class folders.

    Interrupted or killed, the same command goes on where its last checkpoint stands. Without a
    pipeline it lists those that are shipped.
    """
    if pipeline is None:
        return list_shipped("pretrain", output)
    from spptransfer.pretraining.config import read_pretraining
    from spptransfer.pretraining.distributed import rank
    from spptransfer.pretraining.run import TrainingMachine
    from spptransfer.pretraining.run import pretrain as run

    is_first = rank() == 0
    if not is_first:
        output = Output(quiet=True)
    settings = read_pretraining(pipeline, overrides or ())
    machine = TrainingMachine(
        folder=out or RUNS_DIR / pipeline.stem,
        data_root=data_root,
        weights_dir=weights_dir,
        device=device,
        jobs=jobs,
        threads=threads,
        progress=_training_bar(output.quiet),
        tell=output.say,
    )
    with stopping_training(machine.stop), contextlib.nullcontext() if is_first else _silent():
        outcome = run(settings, machine)
    if not outcome.finished:
        raise KeyboardInterrupt
    last = outcome.history[-1]
    if outcome.weights is not None:
        output.say(f"weights: {short_path(outcome.weights)}")
    return output.finish(
        headline={"metric": "val_top1", "value": last["val_top1"], "std": None},
        metrics={name: last[name] for name in ("loss", "val_top1", "val_top5")},
        run=str(outcome.folder.resolve()),
        model=str(outcome.weights.resolve()) if outcome.weights else None,
    )


def _training_bar(quiet: bool) -> Any:
    """Return what shows progress bars on a terminal's error stream."""
    from tqdm import tqdm

    def progress(items: Iterable[Any], total: int, label: str) -> Iterable[Any]:
        hidden = quiet or not sys.stderr.isatty()
        return tqdm(items, desc=label, total=total, disable=hidden, leave=False)

    return progress


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Leave warnings to the process that speaks for all."""
    library = logging.getLogger("spptransfer")
    level = library.level
    library.setLevel(logging.ERROR)
    try:
        yield
    finally:
        library.setLevel(level)


def evaluate_backbone(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A backbone's name.")],
    weights: Annotated[
        list[str],
        typer.Option(
            metavar="FILE",
            help="Weights with all layers, a file or a catalogue name; of several the class "
            "probabilities are averaged.",
            show_default=False,
        ),
    ],
    data: Annotated[Path, choice("Folder or .zip file of labelled images.", metavar="PATH")],
    compute: Compute,
    output: Output,
    split: Annotated[str, choice("Folder in it that holds a folder per class; '' is all.")] = "val",
    views: Annotated[
        str,
        choice("center_crop, full, 10-crops, 10-maps, 96-maps, 98-maps.", metavar="NAME,NAME,..."),
    ] = _VIEWS,
    scales: Annotated[
        str | None,
        choice(
            "Smaller sides in 96-maps and 98-maps.",
            "224,256,300,360,448,560 in proportion to the size",
            metavar="S,S,...",
        ),
    ] = None,
    size: Annotated[
        int | None, choice("Side of crops and windows, in pixels.", "as trained, else 224", min=1)
    ] = None,
    resize: Annotated[
        int | None,
        choice(
            "Smaller side of the image in all other views.",
            "as trained, else 256 in proportion to the size",
            min=1,
        ),
    ] = None,
    levels: Annotated[
        str | None, choice("Pyramid.", "as trained, else the network's", metavar="N,N,...")
    ] = None,
    precision: Annotated[str, choice("float32 or bfloat16.")] = "float32",
    weights_dir: WeightsDir = None,
) -> int:
    """Measure a trained network's top-1 and top-5 errors, averaged over views of each image.

    Crops go through the whole network; views on maps are cut from the map of the whole image.
    """
    from tqdm import tqdm

    from spptransfer.backbones import BackboneRef
    from spptransfer.pretraining.evaluation import load_classifier, measure_errors
    from spptransfer.pretraining.source import LabelledFiles

    pyramid = numbers("levels", levels, "6,3,2,1")
    networks = [
        load_classifier(name, file, levels=pyramid, weights_dir=weights_dir) for file in weights
    ]
    schemes = _schemes(views, networks[0], size, resize, numbers("scales", scales, "6,3,2,1"))
    files = LabelledFiles.open(str(data), split)
    output.say(
        f"{name}: {plural(len(files), 'image')} of "
        f"{plural(len(files.classes), 'class', 'classes')}, windows of {schemes[0].size} pixels"
    )
    if networks[0].about.classes is None:
        output.say("the weights name no classes: taken to be the folders, sorted by name")
    total, hidden = len(files) * len(schemes), output.quiet or not sys.stderr.isatty()
    nothing = "interrupted; of an evaluation that does not end nothing is kept"
    with (
        interruptible(nothing),
        tqdm(total=total, unit="image", disable=hidden, leave=False) as bar,
    ):
        asked: dict[str, Any] = {"options": compute.options(), "precision": precision}
        found = measure_errors(networks, files, schemes, **asked, note=bar.update)
    rows = [
        [
            errors.scheme.name,
            errors.scheme.views,
            round(100 * errors.top1_error, 2),
            round(100 * errors.top5_error, 2),
            errors.images,
            round(errors.seconds, 1),
        ]
        for errors in found.errors
    ]
    output.say(table(rows, _HEADER))
    output.say(f"computed by: {', '.join(found.computed_by)}")
    paths = [
        str(BackboneRef(name, file, weights_dir).ensure_downloaded().resolve()) for file in weights
    ]
    return _tell_errors(found, files, paths, output)


def _schemes(
    views: str,
    network: NetworkClassifier,
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


def _tell_errors(
    found: MeasuredErrors, files: LabelledFiles, weights: list[str], output: Output
) -> int:
    failures = {files.names[position]: reason for position, reason in found.failures.items()}
    output.tell_failures(failures, shown=20, hint="")
    metrics = {}
    for errors in found.errors:
        metrics[f"top-1 accuracy, {errors.scheme.name}"] = errors.top1_accuracy
        metrics[f"top-5 accuracy, {errors.scheme.name}"] = errors.top5_accuracy
    last = found.errors[-1]
    headline = {"metric": f"top-1 accuracy, {last.scheme.name}", "value": last.top1_accuracy}
    return output.finish(
        bool(failures),
        headline={**headline, "std": None},
        metrics=metrics,
        rows={"ok": len(files) - len(failures), "failed": len(failures), "reused": 0},
        model=weights[0],
        weights=weights,
        computed_by=list(found.computed_by),
        views=[_as_json(errors) for errors in found.errors],
        failures=failures,
    )


def _as_json(errors: SchemeErrors) -> dict[str, Any]:
    scheme = errors.scheme
    names = ("top1_error", "top5_error", "top1_accuracy", "top5_accuracy", "images", "seconds")
    return {
        "name": scheme.name,
        "views": scheme.views,
        "size": scheme.size,
        "scales": [at.scale for at in scheme.scales],
        **{name: getattr(errors, name) for name in names},
    }
