"""The page of a detector's run: how it does class by class, what it finds and what it misses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from spptransfer.detection.boxes import areas
from spptransfer.detection.drawing import draw_detections
from spptransfer.detection.evaluation import (
    FALSE_KINDS,
    SIMILAR_CLASSES,
    TRUE,
    DetectionEvaluation,
    false_kinds,
)
from spptransfer.report.analysis import limited
from spptransfer.report.run_folder import MissingPartError, RunFolder, said_in_results
from spptransfer.report.template import fill, thumbnail
from spptransfer.text import plural

_MEANINGS = {
    "wrong place": "The box has an IoU of 0.1 or more with an object of its class, but less than "
    "0.5, or a detection of a higher score has found that object.",
    "similar class": "The box has an IoU of 0.1 or more with an object of a similar class.",
    "other class": "The box has an IoU of 0.1 or more with an object of another class.",
    "background": "The box has an IoU of 0.1 with no object.",
}


def detection_page(run: RunFolder) -> str:
    """Fill the page of a detector's run; without its detections it says that they lack."""
    lacking, groups = {}, None
    try:
        groups = _shown_groups(run)
    except MissingPartError as error:
        lacking = {"detections": f"Not shown: {error}."}
    found = run.results["detection"]
    return fill(
        "detection",
        "report",
        **said_in_results(run),
        found=found,
        shares=_shares(found.get("best") or {}),
        curves={name: np.array(curve) for name, curve in (found.get("curves") or {}).items()},
        groups=groups,
        lacking=lacking,
    )


def _shares(counts: Mapping[str, int]) -> list[tuple[str, int, float]]:
    """Return each kind of detection with its number and share."""
    total = sum(counts.values())
    return [(kind, number, number / total) for kind, number in counts.items() if number]


class Group(NamedTuple):
    """Detections or objects with something in common, by position; the most extreme first."""

    title: str
    meaning: str
    chosen: npt.NDArray[np.intp]
    images: npt.NDArray[np.intp]
    labels: npt.NDArray[np.int32]
    describe: Callable[[int], Finding]


class Finding(NamedTuple):
    """A detection or an object to be shown: what is said of it, and what is drawn."""

    said: str
    score: float | None
    boxes: npt.NDArray[np.float64]
    truth: npt.NDArray[np.float64]


class Picture(NamedTuple):
    """A finding as the page shows it."""

    image_id: str
    named: str
    said: str
    score: float | None
    thumbnail: str | None
    link: str | None


def _shown_groups(run: RunFolder) -> list[tuple[Group, list[Picture]]]:
    """Show the best detections, the most confident false ones of each kind, and what is missed."""
    ids, evaluation = run.tested()
    groups = []
    for group in _groups(evaluation, run.results["detection"].get("similar", SIMILAR_CLASSES)):
        names = zip(group.chosen.tolist(), group.images, group.labels.tolist(), strict=True)
        candidates = (((one, ids[image], k), ids[image], k) for one, image, k in names)
        pictures = []
        for one, image_id, label in limited(candidates, len(run.classes)):
            pictures.append(_picture(run, str(image_id), run.classes[label], group.describe(one)))
        if pictures:
            groups.append((group, pictures))
    return groups


def _groups(evaluation: DetectionEvaluation, similar: Any) -> Iterator[Group]:
    """Choose what to show, by falling score and the missed objects by falling size."""
    (_, _, labels, _), ranking = evaluation.detections, evaluation.ranking
    kinds, objects = false_kinds(evaluation, similar)
    titles = {"Best detections": "True detections of the highest scores."}
    titles |= {f"Most confident false: {kind}": _MEANINGS[kind] for kind in FALSE_KINDS}
    objects[evaluation.outcomes == TRUE] = evaluation.nearest[evaluation.outcomes == TRUE]
    for code, (title, meaning) in enumerate(titles.items(), start=-1):
        chosen = ranking[kinds[ranking] == code]
        describe = partial(_detection, evaluation, objects)
        yield Group(
            title, meaning, chosen, evaluation.detections.images[chosen], labels[chosen], describe
        )
    truth, missed = evaluation.objects.objects, evaluation.missed
    chosen = missed[np.argsort(-areas(truth.boxes[missed]), kind="stable")]
    yield Group(
        "Largest missed objects",
        "Objects that no detection found, whatever its score.",
        chosen,
        evaluation.object_images()[chosen],
        truth.labels[chosen],
        lambda one: _missed(truth.boxes[one]),
    )


def _detection(evaluation: DetectionEvaluation, objects: npt.NDArray[np.intp], one: int) -> Finding:
    """Describe a detection and the object it was drawn to, if there is one."""
    (_, boxes, labels, scores), truth = evaluation.detections, evaluation.objects.objects
    thing = objects[one]
    if thing < 0:
        said = "no object"
    elif truth.labels[thing] != labels[one]:
        said = f"is {evaluation.classes[truth.labels[thing]]}"
    else:
        said = f"IoU {evaluation.overlaps[one]:.2f}"
        if evaluation.outcomes[one] != TRUE and evaluation.matched[one] >= 0:
            said += ", found before"
    around = truth.boxes[[thing] if thing >= 0 else []]
    return Finding(said, float(scores[one]), boxes[[one]], around)


def _missed(box: npt.NDArray[np.float64]) -> Finding:
    width, height = (box[2:] - box[:2]).round().astype(int).tolist()
    return Finding(f"{width} × {plural(height, 'pixel')}", None, np.empty((0, 4)), box[None])


def _picture(run: RunFolder, image_id: str, name: str, finding: Finding) -> Picture:
    """Draw a finding into a thumbnail of its image."""
    path = run.image_path(image_id)

    def draw(small: Image.Image, scale: float) -> Image.Image:
        boxes, truth = finding.boxes * scale, finding.truth * scale
        return draw_detections(small, boxes, [name] * len(boxes), None, truth, classes=run.classes)

    shown = None if path is None else thumbnail(path, draw)
    link = None if path is None or shown is None else path.absolute().as_uri()
    return Picture(image_id, name, finding.said, finding.score, shown, link)
