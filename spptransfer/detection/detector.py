"""A trained detector on the disk: everything needed to find objects in an image again."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from spptransfer.backbones import BackboneRef
from spptransfer.backbones.probe import PROBE_NUMBERS, Probe
from spptransfer.datasets.annotations import Objects
from spptransfer.detection.boxes import Boxes
from spptransfer.detection.detections import Detections
from spptransfer.detection.features import WindowFeatures
from spptransfer.detection.fitting import (
    open_maps,
    open_proposals,
    train_detector,
    windows_in,
)
from spptransfer.detection.objectness import Objectness
from spptransfer.detection.proposer import Proposer
from spptransfer.detection.selection import select_detections
from spptransfer.detection.settings import DetectionSection
from spptransfer.detection.training import Plan, Trained
from spptransfer.errors import ConfigError, ImageError, ModelError, SPPTransferError
from spptransfer.extraction.maps import FeatureMaps, MapExtractor
from spptransfer.extraction.reading import Source
from spptransfer.model_file import read_model, write_model
from spptransfer.normalization import PyramidNormalizer
from spptransfer.runtimes import ComputeOptions
from spptransfer.runtimes.devices import limit_threads
from spptransfer.sections import check
from spptransfer.spec import FeatureSpec
from spptransfer.specify import check_probe, find_backbone
from spptransfer.text import plural

FORMAT = "spptransfer-detector"
FORMAT_VERSION = 1
_TENSORS = ("coef", "intercept", "box_coef", "box_intercept", "sigmoids", "probe", "objectness")
_FACTS = ("weights", "layers", "levels", "classes", "C", "protocol")

# Images whose detections each thread may have ready.
_AHEAD = 8

Floats = npt.NDArray[np.float32]


class Found(NamedTuple):
    """What was found in one image, or why nothing could be.

    Attributes
    ----------
    path : Path or None
        The image's file; None of an array.
    detections : Detections or None
        By falling score; None where the image cannot be read.
    size : (int, int)
        Width and height of the upright image, in pixels.
    error : str
        Why there are no detections, else empty.
    """

    path: Path | None
    detections: Detections | None
    size: tuple[int, int]
    error: str


@dataclasses.dataclass(repr=False)
class TransferDetector:
    """Linear SVMs and box regressors on windows of a frozen backbone's maps.

    Parameters
    ----------
    spec : FeatureSpec
        How maps are computed; its hash tells the backbone's weights.
    weights : str
        Name in the catalogue or path of the weights that were used, as the user gave it.
    weights_path : Path or None
        Where they lay then, absolute; None for random ones.
    layers : tuple of str
        Layers in the order of the columns.
    levels : tuple of int
        Levels in the order of the columns.
    settings : DetectionSection
        How windows are proposed, and become detections.
    normalizer : PyramidNormalizer
        Fitted on windows of the training images.
    coef : ndarray of float32, shape (n_classes, n_features)
        Weights.
    intercept : ndarray of float32, shape (n_classes,)
        Biases.
    box_coef, box_intercept : ndarray of float32, shape (n_classes, 4, n_features), (n_classes, 4)
        Box regression; no numbers where there is none.
    sigmoids : ndarray of float32, shape (n_classes, 2)
        Slope and offset of the confidence as a function of the decision value.
    classes : tuple of str
        Names of the classes.
    C : float
        The C trained with.
    protocol : str
        What the detector was trained on, in words.
    probe : ndarray of float32, shape (n_layers, 64), optional
        What the backbone made of a fixed image when the detector was trained.
    objectness : ndarray of float32, optional
        What the proposals were fitted to, where they are ``objectness``.
    """

    spec: FeatureSpec
    weights: str
    weights_path: Path | None
    layers: tuple[str, ...]
    levels: tuple[int, ...]
    settings: DetectionSection
    normalizer: PyramidNormalizer
    coef: Floats
    intercept: Floats
    box_coef: Floats
    box_intercept: Floats
    sigmoids: Floats
    classes: tuple[str, ...]
    C: float
    protocol: str
    probe: Probe | None = None
    objectness: Floats = dataclasses.field(default_factory=lambda: np.empty(0, np.float32))

    def __post_init__(self) -> None:
        if self.probe is None:
            self.probe = np.zeros((len(self.spec.layers), PROBE_NUMBERS), np.float32)

    def __repr__(self) -> str:
        return (
            f"<TransferDetector: {len(self.classes)} classes; {self.spec.origin}, "
            f"scales={list(self.spec.scales)}, levels={list(self.levels)}>"
        )

    @property
    def features(self) -> WindowFeatures:
        """Which features windows have."""
        info = BackboneRef(self.spec.backbone, self.weights).info
        channels = info.channels_of(self.layers)
        return WindowFeatures(channels, self.levels, self.settings.context)

    def open(
        self,
        *,
        options: ComputeOptions = ComputeOptions(),
        weights: str | os.PathLike[str] | None = None,
        weights_dir: Path | None = None,
    ) -> MapExtractor:
        """Load the backbone that the detector was trained with, ready to compute maps.

        Raises
        ------
        ModelError
            If the weights found are not those of the training, or compute other features now.
        """
        known = (self.weights_path, self.weights)
        backbone = find_backbone(self.spec, weights, *known, weights_dir).load(self.layers)
        check_probe(backbone, self.spec, self.probe)
        return open_maps(backbone, self.spec, self.layers, self.settings, options)

    def confidences(self, labels: npt.NDArray[np.integer], scores: Floats) -> Floats:
        """Return the probabilities that detections of decision values are right, by Platt scaling.

        Parameters
        ----------
        labels : ndarray of int, shape (n,)
            Classes of the detections.
        scores : ndarray of float32, shape (n,)
            Their decision values.
        """
        slope, offset = self.sigmoids[labels].T
        probability: Floats = expit(slope * scores + offset)
        return probability

    def detect_windows(self, maps: Sequence[FeatureMaps], boxes: Boxes) -> Detections:
        """Score windows of an image, move them towards objects, and select detections.

        Parameters
        ----------
        maps : sequence of FeatureMaps
            Of the image, a scale each, from `open`.
        boxes : ndarray of shape (n, 4)
            Windows in pixels of the image.

        Returns
        -------
        Detections
            By falling score; `images` are 0.
        """
        models = (self.coef, self.intercept), (self.box_coef, self.box_intercept)
        scores, changes = self.features.score(maps, boxes, self.normalizer, *models)
        size = (maps[0].size[1], maps[0].size[0])
        return select_detections(boxes, scores, changes, size, self.settings)

    def detect(
        self,
        images: Sequence[Source],
        extractor: MapExtractor,
        proposer: Proposer | None = None,
    ) -> Iterator[Found]:
        """Find objects in images, in bounded memory.

        Parameters
        ----------
        images : sequence of Path or ndarray of uint8
            Files, or arrays of shape (H, W), (H, W, 3) or (H, W, 4).
        extractor : MapExtractor
            From `open`, and open still.
        proposer : Proposer, optional
            What proposes windows, by default the method that the detector was trained with.

        Yields
        ------
        Found
            In the order of the images.
        """
        proposer = proposer or open_proposals(self.settings, self.objectness)
        step = _AHEAD * extractor.workers
        with ThreadPoolExecutor(extractor.workers, "detect", limit_threads) as threads:
            for start in range(0, len(images), step):
                find = partial(self._find, extractor, proposer)
                yield from threads.map(find, images[start : start + step])

    def _find(self, extractor: MapExtractor, proposer: Proposer, image: Source) -> Found:
        path = None if isinstance(image, np.ndarray) else image
        try:
            maps = extractor.maps_of(image)
            windows = windows_in(image, proposer, maps)
        except ImageError as error:
            return Found(path, None, (0, 0), str(error).removeprefix(f"'{path}': "))
        found = self.detect_windows(maps, windows)
        return Found(path, found, (maps[0].size[1], maps[0].size[0]), "")

    def with_class(
        self,
        name: str,
        images: Sequence[Source],
        objects: Sequence[Objects],
        extractor: MapExtractor,
        *,
        held_out: float = 0.2,
        loss: Literal["squared_hinge", "hinge"] = "squared_hinge",
        class_weight: Any = None,
        cache_dir: Path | None = None,
        progress: bool = False,
    ) -> TransferDetector:
        """Train one more class, at the same settings and C; no number of another changes.

        Parameters
        ----------
        name : str
            Of the class.
        images : sequence of Path or ndarray of uint8
            Images that show it and some that do not; what else is in them is background to it.
        objects : sequence of Objects
            The objects of the class in each image; their labels do not count.
        extractor : MapExtractor
            From `open`, and open still.
        held_out : float, default=0.2
            Share of the images that its confidences are fitted on.
        loss, class_weight
            As in `LinearSVM`; those that the detector was trained with.
        cache_dir : Path, optional
            Where proposals and a training that was stopped are kept.
        progress : bool, default=False
            Whether to show progress bars.

        Returns
        -------
        TransferDetector
            With one class more, the last.

        Raises
        ------
        ConfigError
            If there is such a class already.
        DatasetError
            If images and objects do not fit, or no image shows an object that is not difficult.
        """
        if name in self.classes:
            raise ConfigError(f"the detector has a class '{name}' already")
        alike = [each._replace(labels=np.zeros_like(each.labels)) for each in objects]
        plan = Plan(
            features=self.features,
            settings=self.settings,
            n_classes=1,
            normalize=tuple(self.normalizer.steps),
            C=(self.C,),
            loss=loss,
            class_weight=class_weight,
            normalizer=self.normalizer,
        )
        proposer = open_proposals(self.settings, self.objectness)
        one = train_detector(
            plan,
            self.spec,
            proposer,
            images,
            alike,
            held_out,
            extractor,
            cache_dir=cache_dir,
            progress=progress,
        )
        return dataclasses.replace(
            self,
            classes=(*self.classes, name),
            coef=np.concatenate([self.coef, one.coef]),
            intercept=np.concatenate([self.intercept, one.intercept]),
            box_coef=np.concatenate([self.box_coef, one.regression[0]]),
            box_intercept=np.concatenate([self.box_intercept, one.regression[1]]),
            sigmoids=np.concatenate([self.sigmoids, one.sigmoids]),
            protocol=f"{self.protocol} '{name}' was added, from {plural(len(images), 'image')}.",
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the detector to one file, whole or not at all.

        Raises
        ------
        CacheError
            If the file cannot be written.
        """
        known = {f"normalizer.{name}": each for name, each in self.normalizer.learnt().items()}
        known |= {name: np.asarray(getattr(self, name), np.float32) for name in _TENSORS}
        facts = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "spec": self.spec.to_dict(),
            "settings": self.settings.model_dump(),
            "weights_path": None if self.weights_path is None else str(self.weights_path),
            "normalize": list(self.normalizer.steps),
            **{name: getattr(self, name) for name in _FACTS},
        }
        write_model(Path(path), known, facts)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TransferDetector:
        """Read a detector's file, or that in the folder of a run.

        Raises
        ------
        ModelError
            If it is missing, damaged, or no detector of this package.
        """
        tensors, facts = read_model(path, FORMAT, FORMAT_VERSION)
        try:
            return _build(facts, tensors)
        except (KeyError, TypeError, ValueError, AttributeError, SPPTransferError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"'{path}' is damaged: {reason}") from error


def detector_of(
    plan: Plan,
    trained: Trained,
    *,
    spec: FeatureSpec,
    backbone: BackboneRef,
    layers: tuple[str, ...],
    classes: tuple[str, ...],
    proposer: Proposer,
    protocol: str,
    probe: Probe,
) -> TransferDetector:
    """Put together what was trained and what it was trained with."""
    weights = backbone.path()
    return TransferDetector(
        spec=spec,
        weights=backbone.weights,
        weights_path=None if weights is None else weights.resolve(),
        layers=layers,
        levels=plan.features.levels,
        settings=plan.settings,
        normalizer=trained.normalizer,
        coef=trained.coef,
        intercept=trained.intercept,
        box_coef=trained.regression[0],
        box_intercept=trained.regression[1],
        sigmoids=trained.sigmoids,
        classes=classes,
        C=trained.C,
        protocol=protocol,
        probe=probe,
        objectness=getattr(proposer, "coef", np.empty(0, np.float32)),
    )


def _build(facts: dict[str, Any], tensors: dict[str, npt.NDArray[Any]]) -> TransferDetector:
    """Put a detector together, and make sure that all parts fit before an image is looked at."""
    known = facts["weights_path"]
    given = {name: facts[name] for name in _FACTS} | {name: tensors[name] for name in _TENSORS}
    given |= {name: tuple(facts[name]) for name in ("layers", "levels", "classes")}
    detector = TransferDetector(
        spec=FeatureSpec.from_dict(facts["spec"]),
        settings=check(DetectionSection, facts["settings"], "detection"),
        weights_path=None if known is None else Path(known),
        normalizer=PyramidNormalizer(facts["normalize"]),
        **given,
    )
    features, n_classes = detector.features, len(detector.classes)
    detector.normalizer.block_sizes = features.block_sizes
    moving = n_classes if detector.settings.box_regression else 0
    expected = {
        "coef": (n_classes, features.width),
        "intercept": (n_classes,),
        "box_coef": (moving, 4, features.width),
        "box_intercept": (moving, 4),
        "sigmoids": (n_classes, 2),
        "probe": (len(detector.spec.layers), PROBE_NUMBERS),
    }
    if detector.settings.proposals.name != Objectness.name:
        expected["objectness"] = (0,)
    for name, shape in expected.items():
        array = tensors[name]
        if array.shape != shape or array.dtype != np.float32:
            raise ValueError(f"'{name}' is {array.shape} {array.dtype}, not {shape} float32")
    learnt = {name.removeprefix("normalizer."): array for name, array in tensors.items()}
    detector.normalizer.restore(learnt, features.width)
    return detector
