"""Commands on windows: what a pipeline proposes, and objects found in new images."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spptransfer.cli.options import (
    Compute,
    Folders,
    Output,
    Overrides,
    PipelineFile,
    Weights,
    WeightsDir,
    choice,
    latest,
    logged,
    printable,
    short_path,
    table,
)
from spptransfer.cli.process import interruptible
from spptransfer.errors import ConfigError
from spptransfer.text import plural

if TYPE_CHECKING:
    from spptransfer.detection.detections import Detections
    from spptransfer.detection.detector import Found, TransferDetector


def proposals(
    pipeline: PipelineFile, folders: Folders, output: Output, overrides: Overrides = None
) -> int:
    """Measure the recall of a pipeline's proposals: no detector on them finds more objects.

    By the most windows of an image and the least intersection over union with an object. The
    proposals are kept for the run.
    """
    from spptransfer.experiment import Grid, Machine, prepare_file
    from spptransfer.experiment.detection import measure_proposals
    from spptransfer.experiment.preparation import STEPS
    from spptransfer.experiment.results import count_rows, plain

    machine = Machine(**vars(folders), progress=not output.quiet)
    prepared = prepare_file(pipeline, machine, overrides or ())
    if isinstance(prepared, Grid):
        raise ConfigError(f"'{prepared.name}' has a grid; give the pipeline of one run")
    kept = "interrupted; proposals that were finished are kept: run the same command again to go on"
    with interruptible(kept), logged(STEPS, logging.INFO, output.say):
        found = measure_proposals(prepared)
    rows: list[list[Any]] = []
    said: dict[str, Any] = {}
    for part, one in found.items():
        shares = [[f"{share:.1%}" for share in row] for row in one.found]
        rows += [[part, *row] for row in zip(one.counts, *zip(*shares, strict=True), strict=True)]
        by_count = zip(one.counts, one.found, strict=True)
        recall = {
            str(count): dict(zip(map(str, one.thresholds), row, strict=True))
            for count, row in by_count
        }
        said[part] = {"recall": recall, "objects": one.objects, "windows": one.windows}
        output.say(
            f"{part}: {one.objects:,} objects in {plural(one.images, 'image')}, "
            f"{one.windows:,.0f} windows in each on average; {one.empty:,} images failed"
        )
    limits = next(iter(found.values())).thresholds
    output.say(table(rows, ["images", "windows", *(f"IoU {limit:g}" for limit in limits)]))
    failed = sum(one.empty for one in found.values())
    total = sum(one.images for one in found.values())
    return output.finish(failed > 0, rows=count_rows(total, failed, 0), proposals=plain(said))


def detect(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="A detector's file, the folder of a run, or of runs for the latest.",
        ),
    ],
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", help="Images, and folders that are searched for some."),
    ],
    compute: Compute,
    output: Output,
    weights: Weights = None,
    weights_dir: WeightsDir = None,
    confidence: Annotated[
        float, choice("The least confidence of a detection that is told.", min=0, max=1)
    ] = 0.5,
    coco: Annotated[
        Path | None, choice("Write COCO's results JSON.", "none", metavar="FILE")
    ] = None,
    yolo: Annotated[
        Path | None, choice("Write YOLO's text, a file for each image.", "none", metavar="DIR")
    ] = None,
    voc: Annotated[
        Path | None, choice("Write VOC's XML, a file for each image.", "none", metavar="DIR")
    ] = None,
    draw: Annotated[
        Path | None, choice("Write the images with the boxes drawn.", "none", metavar="DIR")
    ] = None,
) -> int:
    """Find objects in new images: their class, confidence and box, in pixels.

    With --json one line per image, then one for the whole.
    """
    from spptransfer.datasets.folder import gather_images
    from spptransfer.detection.detector import TransferDetector
    from spptransfer.model_file import NAME

    model = latest(model, NAME, output)
    detector, files = TransferDetector.load(model), gather_images(paths)
    given: dict[str, Any] = {"weights": weights, "weights_dir": weights_dir}
    ids, found = _ids(files), []
    with (
        interruptible("interrupted; what was printed is all: no files are written"),
        detector.open(options=compute.options(), **given) as extractor,
    ):
        searched = detector.detect(files, extractor)
        for id, file, one in zip(ids, files, searched, strict=True):
            kept = _confident(detector, one, confidence)
            found.append(kept)
            _tell(detector, one, kept, output)
            if draw is not None and kept is not None:
                _draw(draw, id, file, detector, kept)
    failed = sum(kept is None for kept in found)
    _write_files(detector, ids, files, found, {"coco": coco, "yolo": yolo, "voc": voc})
    rows = {"ok": len(files) - failed, "failed": failed, "reused": 0}
    objects = sum(len(kept.labels) for kept in found if kept is not None)
    output.say(f"{plural(objects, 'object')} in {plural(len(files), 'image')}; {failed:,} failed")
    for place in filter(None, (coco, yolo, voc, draw)):
        output.say(f"written: {short_path(place)}")
    return output.finish(failed > 0, rows=rows, model=str(model.resolve()))


def _ids(files: Sequence[Path]) -> list[str]:
    """Name images by their paths below the folder that holds them all."""
    folders = {file.absolute().parent for file in files}
    common = os.path.commonpath(folders)
    return [file.absolute().relative_to(common).as_posix() for file in files]


def _confident(detector: TransferDetector, one: Found, least: float) -> Detections | None:
    if one.detections is None:
        return None
    found = one.detections
    return found.take(detector.confidences(found.labels, found.scores) >= least)


def _tell(detector: TransferDetector, one: Found, kept: Detections | None, output: Output) -> None:
    """Print what was found in one image."""
    if kept is None:
        if output.json:
            output.emit({"path": str(one.path), "error": one.error})
        else:
            output.complain(f"{printable(one.path)}  failed: {printable(one.error)}")
        return
    confidences = detector.confidences(kept.labels, kept.scores).tolist()
    objects = []
    for (_, box, label, score), sure in zip(zip(*kept, strict=True), confidences, strict=True):
        known = {"class": detector.classes[label], "confidence": sure}
        objects.append({**known, "decision_value": float(score), "box": box.tolist()})
    if output.json:
        width, height = one.size
        size = {"width": width, "height": height}
        output.emit({"path": str(one.path), **size, "objects": objects})
        return
    output.say(f"{printable(one.path)}: {plural(len(objects), 'object')}")
    for each in objects:
        box = " ".join(f"{corner:.0f}" for corner in each["box"])
        output.say(f"  {printable(each['class']):20} {each['confidence']:4.0%}  [{box}]")


def _draw(folder: Path, id: str, path: Path, detector: TransferDetector, kept: Detections) -> None:
    """Write an image with its boxes, as JPEG."""
    from spptransfer.detection.drawing import draw_detections
    from spptransfer.detection.formats import file_of
    from spptransfer.files import atomic_write, make_folder
    from spptransfer.images import decode, read_bytes

    drawn = draw_detections(
        decode(read_bytes(path)),
        kept.boxes,
        [detector.classes[label] for label in kept.labels],
        detector.confidences(kept.labels, kept.scores),
        classes=detector.classes,
    )
    place = file_of(folder, id, ".jpg")
    make_folder(place.parent)
    with atomic_write(place) as temporary:
        drawn.save(temporary, "JPEG", quality=92)


def _write_files(
    detector: TransferDetector,
    ids: Sequence[str],
    files: Sequence[Path],
    found: Sequence[Detections | None],
    places: dict[str, Path | None],
) -> None:
    """Write the files that were asked for, of the images that could be read."""
    import numpy as np

    from spptransfer.detection import formats
    from spptransfer.detection.detections import Detections
    from spptransfer.images import read_bytes, upright_size

    if not any(places.values()):
        return
    kept = [one for one in found if one is not None]
    names = [id for id, one in zip(ids, found, strict=True) if one is not None]
    paths = [path for path, one in zip(files, found, strict=True) if one is not None]
    sizes = [upright_size(read_bytes(path))[::-1] for path in paths]
    images = np.repeat(np.arange(len(kept)), [len(one.labels) for one in kept])
    joined = [np.concatenate(arrays) for arrays in zip(*kept, strict=True)] if kept else []
    together = Detections(*joined)._replace(images=images) if kept else Detections.empty()
    together = together._replace(scores=detector.confidences(together.labels, together.scores))
    given: Any = (together, names, detector.classes, sizes)
    if places["coco"] is not None:
        formats.write_coco_results(places["coco"], *given)
    if places["yolo"] is not None:
        formats.write_yolo(places["yolo"], together, names, sizes)
    if places["voc"] is not None:
        formats.write_voc_annotations(places["voc"], *given)
