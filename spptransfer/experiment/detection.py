"""A detector from one pipeline: proposals, training, test, results."""

from __future__ import annotations

import importlib.util
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from spptransfer.backbones.probe import probe
from spptransfer.datasets.annotations import Annotations, Objects
from spptransfer.detection.boxes import Boxes
from spptransfer.detection.coco import coco_average_precision
from spptransfer.detection.detections import Detections, save_detections
from spptransfer.detection.detector import TransferDetector, detector_of
from spptransfer.detection.evaluation import describe_evaluation, evaluate_detections
from spptransfer.detection.features import WindowFeatures
from spptransfer.detection.fitting import (
    DEFAULT_C,
    FITTED,
    check_overlaps,
    fit_proposals,
    image_key,
    kept_until_done,
    open_maps,
    open_proposals,
    propose_in,
    training_key,
)
from spptransfer.detection.formats import write_voc_results
from spptransfer.detection.passes import Arrays, Passes, join_arrays
from spptransfer.detection.proposal_cache import ProposalCache, windows_of
from spptransfer.detection.proposer import Proposer
from spptransfer.detection.recall import COUNTS, Recall, recall
from spptransfer.detection.settings import DetectionSection
from spptransfer.detection.training import Plan, Propose, Trained, Trainer
from spptransfer.errors import ConfigError, ImageError
from spptransfer.experiment.preparation import Experiment, steps
from spptransfer.experiment.results import (
    MODEL,
    RESULTS,
    RunResult,
    describe_dataset,
    describe_execution,
    describe_protocol,
    describe_rows,
    headline_of,
    plain,
    run_folder,
    write_report_of,
)
from spptransfer.extraction.maps import MapExtractor
from spptransfer.files import write_text
from spptransfer.protocols import Split, write_splits
from spptransfer.text import plural

logger = logging.getLogger(__name__)

DETECTIONS = "detections.npz"
# The protocol whose results the VOC devkit reads.
DEVKIT = "voc2007-detection"


@dataclass
class _Work:
    """What a detection experiment works with, found out once."""

    experiment: Experiment
    settings: DetectionSection
    seconds: dict[str, float] = field(default_factory=dict)

    @cached_property
    def split(self) -> Split:
        return self.experiment.splits[0]

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """The training images, then the test images."""
        return (*self.split.train, *self.split.test)

    @cached_property
    def paths(self) -> list[Path]:
        dataset = self.experiment.dataset
        return list(dataset.iter_paths(dataset.positions(self.ids)))

    @cached_property
    def objects(self) -> Annotations:
        dataset = self.experiment.dataset
        return dataset.subset(dataset.positions(self.ids)).annotations()

    @cached_property
    def proposer(self) -> Proposer:
        return open_proposals(self.settings)

    @property
    def cache(self) -> ProposalCache:
        """Where proposals are kept."""
        return ProposalCache(self.experiment.machine.cache_dir / "proposals")

    @cached_property
    def plan(self) -> Plan:
        pipeline, backbone = self.experiment.pipeline, self.experiment.backbone
        section, layers = pipeline.classifier, pipeline.features.layer
        levels = tuple(pipeline.features.levels or ())
        return Plan(
            features=WindowFeatures(
                backbone.info.channels_of(layers), levels, self.settings.context
            ),
            settings=self.settings,
            n_classes=len(self.experiment.dataset.classes),
            normalize=section.normalize or (),
            C=section.C or DEFAULT_C,
            loss=section.loss,
            class_weight=section.class_weight,
        )

    @property
    def held_out(self) -> list[int]:
        """Positions of the training images that C and confidences are chosen on."""
        position = {id: index for index, id in enumerate(self.split.train)}
        return [position[id] for id in self.split.folds[0]] if self.split.folds else []

    @property
    def key(self) -> str:
        """Identity of training and test: equal keys end in the same detector and detections."""
        count = len(self.split.train)
        return training_key(
            self.plan,
            self.experiment.wanted,
            self.proposer,
            self.paths[:count],
            self.objects[:count],
            self.held_out,
            [self.ids, list(map(image_key, self.paths[count:]))],
        )


def check_detection(experiment: Experiment) -> None:
    """Tell before anything is computed what a detector cannot be trained with."""
    pipeline = experiment.pipeline
    for key, value, allowed in (
        ("features.view", pipeline.features.view, "full"),
        ("features.pooling", pipeline.features.pooling, "max"),
        ("features.flip", pipeline.features.flip, False),
        ("classifier.solver", pipeline.classifier.solver, "spptransfer"),
        ("classifier.engine", pipeline.classifier.engine, "local"),
        ("protocol.choose_C", experiment.settings["choose_C"], "shared"),
    ):
        if value != allowed:
            given = " only, not ".join(map(json.dumps, (allowed, value)))
            raise ConfigError(f"{key}: a detector takes {given}")
    for layer in map(experiment.backbone.info.layer, pipeline.features.layer):
        if layer.kind != "map":
            raise ConfigError(f"features.layer: '{layer.name}' is a vector, which has no windows")
    section = pipeline.detection
    assert section is not None
    check_overlaps(section, "detection.")
    C = pipeline.classifier.C or DEFAULT_C
    if len(C) > 1 and not experiment.splits[0].folds:
        raise ConfigError(
            f"classifier.C: {list(C)} are to be chosen from, but protocol.folds is 0: "
            "give one C, or at least 2 folds"
        )


def run_detection(experiment: Experiment, command: str) -> RunResult:
    """Train a detector, test it, and write results, detector and report."""
    check_detection(experiment)
    assert experiment.pipeline.detection is not None
    started = datetime.now(UTC)
    work = _Work(experiment, experiment.pipeline.detection)
    experiment.dataset.check_images()
    objects, n_train, key = work.objects, len(work.split.train), work.key
    with (
        run_folder(experiment, started, command) as folder,
        kept_until_done(experiment.machine.cache_dir, key) as kept,
    ):
        begun = time.perf_counter()
        backbone = experiment.backbone.load(experiment.pipeline.features.layer)
        machine, layers = experiment.machine, experiment.pipeline.features.layer
        with open_maps(
            backbone, experiment.wanted, layers, work.settings, machine.compute
        ) as extractor:
            work.seconds["load"] = time.perf_counter() - begun
            propose = _propose(work, extractor)
            passes = Passes(kept, extractor.workers, progress=machine.progress, stop=machine.stop)
            machine.stop.extracting = True
            try:
                trained = _train(work, propose, extractor, passes)
                detector = _detector(work, trained, probe(backbone, experiment.wanted.layers))
                found, tested, failures = _test(work, propose, detector, extractor, passes)
            finally:
                machine.stop.extracting = False
        detector.save(folder / MODEL)
        evaluation = evaluate_detections(found, objects[n_train:], experiment.dataset.classes)
        proposed = _describe_proposals(work, tested)
        said = describe_evaluation(
            evaluation,
            coco=coco_if_installed(found, objects[n_train:], experiment.dataset.classes),
            proposals=proposed,
        )
        failures |= {
            work.ids[at]: _reason(error, work.paths[at]) for at, error in trained.failures.items()
        }
        work.seconds |= passes.seconds
        results = _describe(work, trained, said, failures, command, started)
        save_detections(folder / DETECTIONS, work.split.test, found, objects[n_train:])
        if experiment.protocol.name == DEVKIT:
            names = (work.split.test, experiment.dataset.classes, experiment.settings["test"])
            write_voc_results(folder / "devkit", found, *names)
        write_splits(folder / "splits.json", [work.split], description=_description(experiment))
        write_text(folder / RESULTS, json.dumps(results, indent=1))
        write_report_of(folder)
    return RunResult(folder, results)


def measure_proposals(experiment: Experiment) -> dict[str, Recall]:
    """Measure what a pipeline's proposals find of the objects, which bounds any detector on them.

    Returns
    -------
    dict of str to Recall
        Of the training images, ``"train"``, and of the test images, ``"test"``.

    Raises
    ------
    ConfigError
        If the pipeline trains no detector.
    """
    section = experiment.pipeline.detection
    if section is None:
        raise ConfigError(f"'{experiment.name}' trains no detector: it has no section detection")
    work = _Work(experiment, section)
    if work.proposer.needs_maps:
        raise ConfigError(
            f"proposals: {work.proposer.name} needs the images' maps; `spptransfer run` tells "
            "their recall"
        )
    experiment.dataset.check_images()
    objects, n_train = work.objects, len(work.split.train)
    progress = experiment.machine.progress
    steps.info("proposals: %s", work.proposer.key)
    found = windows_of(work.paths, work.proposer, work.cache, ids=work.ids, progress=progress)
    windows = list(found)
    counts = [*(count for count in COUNTS if count < section.max_windows), section.max_windows]
    parts = {"train": slice(n_train), "test": slice(n_train, None)}
    return {name: recall(windows[part], objects[part], counts) for name, part in parts.items()}


def _propose(work: _Work, extractor: MapExtractor) -> Propose:
    """Propose the windows of all images, or fit what proposes them to some training images."""
    begun, count = time.perf_counter(), len(work.split.train)
    if work.proposer.needs_maps:
        steps.info("proposals: fitted to objects of %s", plural(FITTED, "image"))
        images, objects = work.paths[:count], work.objects[:count]
        work.proposer = fit_proposals(work.proposer, images, objects, extractor)
    else:
        steps.info("proposals: %s", work.proposer.key)
    progress = work.experiment.machine.progress
    propose = propose_in(work.paths, work.proposer, work.cache, ids=work.ids, progress=progress)
    work.seconds["proposals"] = time.perf_counter() - begun
    return propose


def _train(work: _Work, propose: Propose, extractor: MapExtractor, passes: Passes) -> Trained:
    count = len(work.split.train)
    steps.info("training on %s", plural(count, "image"))
    images, objects = work.paths[:count], work.objects[:count]
    return Trainer(work.plan, images, objects, propose, work.held_out, extractor, passes).train()


def _detector(work: _Work, trained: Trained, probed: Any) -> TransferDetector:
    experiment, count = work.experiment, plural(len(work.split.train), "image")
    return detector_of(
        work.plan,
        trained,
        spec=experiment.wanted,
        backbone=experiment.backbone,
        layers=experiment.pipeline.features.layer,
        classes=experiment.dataset.classes,
        proposer=work.proposer,
        protocol=f"Trained on {count}. {_description(experiment)}",
        probe=probed,
    )


def _test(
    work: _Work,
    propose: Propose,
    detector: TransferDetector,
    extractor: MapExtractor,
    passes: Passes,
) -> tuple[Detections, list[Boxes], dict[str, str]]:
    """Detect objects in the test images; return them, the windows, and what failed."""
    first, count = len(work.split.train), len(work.split.test)
    steps.info("testing on %s", plural(count, "image"))

    def one(position: int) -> Arrays:
        index = first + position
        try:
            maps = extractor.maps_of(work.paths[index])
        except ImageError as error:
            reason = _reason(error, work.paths[index])
            return {"failures": np.array([f"{position} {reason}"])}
        windows = propose(index, maps)
        found = detector.detect_windows(maps, windows)
        proposed = {"windows": windows, "counts": np.array([[position, len(windows)]])}
        return proposed | found._replace(images=found.images + position)._asdict()

    joined = join_arrays(list(passes.run("test", range(count), one)))
    failures = {}
    for failure in joined.pop("failures", ()):
        position, _, error = str(failure).partition(" ")
        failures[work.split.test[int(position)]] = error
    counts = dict(joined.pop("counts", np.empty((0, 2), int)).tolist())
    windows = joined.pop("windows", np.empty((0, 4)))
    stops = np.cumsum([counts.get(position, 0) for position in range(count)])
    found = Detections(**joined) if joined else Detections.empty()
    return found, np.split(windows, stops[:-1]), failures


def _reason(error: object, path: Path) -> str:
    """Return why an image cannot be read, without its path."""
    return str(error).removeprefix(f"'{path}': ")


def coco_if_installed(
    found: Detections, objects: Sequence[Objects], classes: Sequence[str]
) -> dict[str, float] | None:
    """Return COCO's average precisions, where its code is installed."""
    if importlib.util.find_spec("pycocotools") is None:
        return None
    return coco_average_precision(found, objects, classes)


def _describe_proposals(work: _Work, windows: Sequence[Boxes]) -> dict[str, Any]:
    """Describe the windows of the test images and the recall that bounds any detector on them."""
    objects = work.objects[len(work.split.train) :]
    found = recall(windows, objects, counts=(work.settings.max_windows,))
    thresholds = zip(found.thresholds, found.found[0], strict=True)
    return {
        "method": work.proposer.key,
        "windows": found.windows,
        "recall": {f"{threshold:g}": float(share) for threshold, share in thresholds},
    }


def _description(experiment: Experiment) -> str:
    return experiment.protocol.description(experiment.settings, experiment.dataset)


def _describe(
    work: _Work,
    trained: Trained,
    said: Mapping[str, Any],
    failures: Mapping[str, str],
    command: str,
    started: datetime,
) -> dict[str, Any]:
    """Return the contents of ``results.json``."""
    experiment, pipeline = work.experiment, work.experiment.pipeline
    headline = experiment.protocol.headline(multi_label=True)
    results: dict[str, Any] = plain(
        {
            **describe_execution(experiment.name, command, started, work.seconds),
            "pipeline": pipeline.model_dump(mode="json", exclude={"grid"}),
            "dataset": {**describe_dataset(experiment.dataset), "multi_label": True},
            "features": {
                "spec": experiment.wanted.to_dict(),
                "fingerprint": experiment.wanted.fingerprint,
                "weights": pipeline.features.weights,
                "layers": pipeline.features.layer,
                "levels": work.plan.features.levels,
                "scales": pipeline.features.scales,
                "dimension": work.plan.features.width,
            },
            "rows": describe_rows(len(work.ids), failures),
            "classifier": pipeline.classifier.model_dump(mode="json"),
            "protocol": describe_protocol(
                experiment, headline, _description(experiment), [work.split]
            ),
            "model": {**trained.counts, "images": len(work.split.train), "C": trained.C},
            **said,
            "headline": headline_of(headline, said["metrics"]),
            "splits": [
                {
                    "name": work.split.name,
                    "train": len(work.split.train),
                    "test": len(work.split.test),
                    "checksum": work.split.checksum,
                    "C": trained.C,
                    "validation": trained.heldout,
                    "metrics": {name: one["value"] for name, one in said["metrics"].items()},
                }
            ],
        }
    )
    return results
