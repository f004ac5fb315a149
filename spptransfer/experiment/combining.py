"""The detections of several detectors together (He et al., TPAMI 2015, section 4.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spptransfer.detection.boxes import suppress
from spptransfer.detection.detections import Detections, TestedImages, load_detections
from spptransfer.detection.detector import TransferDetector
from spptransfer.detection.evaluation import DetectionEvaluation, evaluate_detections
from spptransfer.errors import ConfigError
from spptransfer.experiment.detection import DETECTIONS
from spptransfer.report.run_folder import read_results


@dataclass(frozen=True)
class Combination:
    """How good runs are, each alone and all together."""

    each: list[DetectionEvaluation]
    together: DetectionEvaluation


def combine_detectors(folders: Sequence[Path]) -> Combination:
    """Join the detections of runs of detectors on the same test images.

    Scores become comparable as each detector's confidences; of detections of a class that overlap
    by more than the first detector allows, the most confident stays.

    Raises
    ------
    ConfigError
        If there is one run only, one trained no detector, or they were tested on other images.
    """
    if len(folders) < 2:
        raise ConfigError("combine needs the folders of at least two runs")
    results = [read_results(folder) for folder in folders]
    for folder, one in zip(folders, results, strict=True):
        if one.get("kind") != "detection":
            raise ConfigError(f"'{folder}' is no run of a detector")
        for what, found, first in (
            ("images", one["protocol"]["checksum"], results[0]["protocol"]["checksum"]),
            ("classes", one["dataset"]["classes"], results[0]["dataset"]["classes"]),
        ):
            if found != first:
                raise ConfigError(f"'{folder}' has other {what} than '{folders[0]}'")
    detectors = [TransferDetector.load(folder) for folder in folders]
    tested = [_tested(folder) for folder in folders]
    objects, classes = tested[0].objects, detectors[0].classes
    confident = [
        one.detections._replace(
            scores=detector.confidences(one.detections.labels, one.detections.scores)
        )
        for detector, one in zip(detectors, tested, strict=True)
    ]
    union = Detections(*map(np.concatenate, zip(*confident, strict=True)))
    joined = _suppressed(union, detectors[0].settings.nms)
    return Combination(
        [evaluate_detections(one.detections, objects, classes) for one in tested],
        evaluate_detections(joined, objects, classes),
    )


def _tested(folder: Path) -> TestedImages:
    try:
        return load_detections(folder / DETECTIONS)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ConfigError(f"'{folder / DETECTIONS}' cannot be read: {error}") from error


def _suppressed(union: Detections, overlap: float) -> Detections:
    """Thin out the detections of each class in each image."""
    order = np.lexsort((union.labels, union.images))
    keys: Any = np.stack([union.images, union.labels])[:, order]
    changes = np.flatnonzero((keys[:, 1:] != keys[:, :-1]).any(axis=0)) + 1
    kept = [
        part[suppress(union.boxes[part], union.scores[part], overlap)]
        for part in np.split(order, changes)
        if len(part)
    ]
    return union.take(np.concatenate(kept)) if kept else union
