"""A detector as a scikit-learn estimator: fitted to images and boxes."""

from __future__ import annotations

import dataclasses
import tempfile
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from spptransfer.backbones import BackboneRef
from spptransfer.backbones.probe import probe
from spptransfer.datasets.annotations import Annotations, Objects
from spptransfer.datasets.base import number_labels
from spptransfer.detection.detections import Detections
from spptransfer.detection.detector import (
    TransferDetector,
    open_maps,
    open_proposals,
    windows_in,
)
from spptransfer.detection.evaluation import evaluate_detections
from spptransfer.detection.features import WindowFeatures
from spptransfer.detection.passes import Passes
from spptransfer.detection.settings import DetectionSection
from spptransfer.detection.training import Plan, Trained, Trainer
from spptransfer.errors import ConfigError, DatasetError
from spptransfer.extraction.maps import MapExtractor
from spptransfer.runtimes import ComputeOptions
from spptransfer.sections import check
from spptransfer.specify import feature_spec, levels_and_scales
from spptransfer.text import plural

Image = Any
_Labelled = Objects | tuple[Any, Any]


class SPPDetector(BaseEstimator):
    """Detect objects by linear SVMs on windows of one feature map per image.

    Parameters
    ----------
    backbone, weights, layer, levels, scales
        As in `SPPFeatures`; each window takes its features from one of the scales.
    normalize : sequence of str, default=("l2",)
        Steps of `PyramidNormalizer`.
    C : float or sequence of float, default=(0.3, 1.0, 3.0)
        Values to choose from by average precision on images held out.
    loss, class_weight
        As in `LinearSVM`.
    held_out : float, default=0.2
        Share of the images that C and the confidences are chosen on.
    settings : dict, optional
        Keys of the section ``detection`` of a pipeline file, such as
        ``{"proposals": "grid", "stride": 16}``.
    device, runtime, threads
        As in `SPPFeatures`.
    weights_dir : Path, optional
        Folder of official weights.
    progress : bool, default=False
        Whether to show progress bars.

    Attributes
    ----------
    classes_ : tuple of str
        Names of the classes.
    detector_ : TransferDetector
        To be saved with its ``save``, and loaded by `TransferDetector.load`.
    C_ : float
        The C that was chosen.

    Examples
    --------
    >>> images = [np.full((96, 128, 3), 90, np.uint8) for _ in range(6)]
    >>> for image in images:
    ...     image[20:60, 30:80] = [200, 40, 40]
    >>> objects = [([[30, 20, 80, 60]], ["red"])] * 6
    >>> settings = {"proposals": "grid", "max_windows": 60}
    >>> detector = SPPDetector("spp-mini", levels=[2, 1], scales=[96], C=1.0, settings=settings)
    >>> found = detector.fit(images, objects).predict(images[:1])
    >>> detector.classes_, len(found)
    (('red',), 1)
    """

    def __init__(
        self,
        backbone: str = "mobilenet_v2",
        weights: str | None = None,
        *,
        layer: str | Sequence[str] = "spp",
        levels: Sequence[int] | None = None,
        scales: Sequence[int] | None = None,
        normalize: Sequence[str] = ("l2",),
        C: float | Sequence[float] = (0.3, 1.0, 3.0),
        loss: Literal["squared_hinge", "hinge"] = "squared_hinge",
        class_weight: Any = None,
        held_out: float = 0.2,
        settings: dict[str, Any] | None = None,
        device: str = "auto",
        runtime: str = "auto",
        threads: int | None = None,
        weights_dir: Path | None = None,
        progress: bool = False,
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.layer = layer
        self.levels = levels
        self.scales = scales
        self.normalize = normalize
        self.C = C
        self.loss = loss
        self.class_weight = class_weight
        self.held_out = held_out
        self.settings = settings
        self.device = device
        self.runtime = runtime
        self.threads = threads
        self.weights_dir = weights_dir
        self.progress = progress

    def fit(
        self,
        images: Sequence[Image],
        objects: Sequence[_Labelled],
        classes: Sequence[str] | None = None,
    ) -> Self:
        """Train on images and the objects in them.

        Parameters
        ----------
        images : sequence of path-like or ndarray of uint8
            Files, or arrays of shape (H, W, 3).
        objects : sequence of (boxes, labels) or Objects
            Of each image: boxes of shape (n, 4), ``x0, y0, x1, y1`` in pixels of the upright
            image, and names of classes, or their numbers where `classes` are given.
        classes : sequence of str, optional
            Names of the classes, by default all that occur, sorted.

        Returns
        -------
        SPPDetector
            Itself.

        Raises
        ------
        DatasetError
            If images and objects do not fit, or no image shows an object.
        ConfigError
            If a parameter is not valid.
        """
        settings = check(DetectionSection, self.settings or {}, "settings")
        truth, names = _read_objects(images, objects, classes)
        reference = BackboneRef(self.backbone, self.weights or "", self.weights_dir)
        layers = (self.layer,) if isinstance(self.layer, str) else tuple(self.layer)
        levels, scales = levels_and_scales(reference.info, layers, self.levels, self.scales)
        spec = feature_spec(reference, layer=layers, levels=levels, scales=scales)
        backbone = reference.load(layers)
        costs = (float(self.C),) if np.isscalar(self.C) else tuple(map(float, self.C))  # type: ignore[arg-type]
        plan = Plan(
            WindowFeatures(reference.info.channels_of(layers), levels, settings.context),
            settings,
            len(names),
            tuple(self.normalize),
            costs,
            self.loss,
            self.class_weight,
        )
        with open_maps(backbone, spec, layers, settings, self._options()) as extractor:
            trained = _train(plan, images, truth, self.held_out, extractor, self.progress)
        path = reference.path()
        self.detector_ = TransferDetector(
            spec=spec,
            weights=reference.weights,
            weights_path=None if path is None else path.resolve(),
            layers=layers,
            levels=levels,
            settings=settings,
            normalizer=trained.normalizer,
            coef=trained.coef,
            intercept=trained.intercept,
            box_coef=trained.regression[0],
            box_intercept=trained.regression[1],
            sigmoids=trained.sigmoids,
            classes=names,
            C=trained.C,
            protocol=f"Trained on {plural(len(images), 'image')}.",
            probe=probe(backbone, spec.layers),
        )
        self.classes_, self.C_ = names, trained.C
        return self

    def predict(self, images: Iterable[Image]) -> list[Detections]:
        """Find the objects in images.

        Parameters
        ----------
        images : iterable of path-like or ndarray of uint8
            As in `fit`.

        Returns
        -------
        list of Detections
            Of each image, by falling score; labels are indices into `classes_`.

        Raises
        ------
        ImageError
            If an image cannot be read.
        """
        check_is_fitted(self, "detector_")
        proposer = open_proposals(self.detector_.settings)
        with self.detector_.open(
            options=self._options(), weights_dir=self.weights_dir
        ) as extractor:
            found = []
            for image in images:
                maps = extractor.maps_of(image)
                found.append(self.detector_.detect_windows(maps, windows_in(image, proposer, maps)))
        return found

    def score(self, images: Sequence[Image], objects: Sequence[_Labelled]) -> float:
        """Return the mean average precision (area, intersection over union of at least 0.5)."""
        found = self.predict(images)
        truth, _ = _read_objects(images, objects, self.classes_)
        parts = [one._replace(images=one.images + at) for at, one in enumerate(found)]
        joined = Detections(*map(np.concatenate, zip(*parts, strict=True)))
        return evaluate_detections(joined, truth, self.classes_).mean("area")

    def add_class(self, name: str, images: Sequence[Image], boxes: Sequence[npt.ArrayLike]) -> Self:
        """Train one more class on images of its own, and touch no other.

        Parameters
        ----------
        name : str
            Of the class.
        images : sequence of path-like or ndarray of uint8
            Images that show it, and some that do not.
        boxes : sequence of array-like of shape (n, 4)
            Of each image the boxes of the new class; what they do not cover is not of the class.

        Returns
        -------
        SPPDetector
            Itself, with one class more, at the end of `classes_`.
        """
        check_is_fitted(self, "detector_")
        self.detector_ = with_class(
            self.detector_,
            name,
            images,
            boxes,
            held_out=self.held_out,
            loss=self.loss,
            class_weight=self.class_weight,
            options=self._options(),
            weights_dir=self.weights_dir,
            progress=self.progress,
        )
        self.classes_ = self.detector_.classes
        return self

    def _options(self) -> ComputeOptions:
        return ComputeOptions(device=self.device, runtime=self.runtime, threads=self.threads)


def with_class(
    detector: TransferDetector,
    name: str,
    images: Sequence[Image],
    boxes: Sequence[npt.ArrayLike],
    *,
    held_out: float = 0.2,
    loss: Literal["squared_hinge", "hinge"] = "squared_hinge",
    class_weight: Any = None,
    options: ComputeOptions = ComputeOptions(),
    weights_dir: Path | None = None,
    progress: bool = False,
) -> TransferDetector:
    """Return a detector with one class more, whose others are as they were, to the bit.

    Parameters are those of `SPPDetector` and `SPPDetector.add_class`; C and normalisation are the
    detector's.
    """
    if name in detector.classes:
        raise ConfigError(f"the detector has a class '{name}' already")
    objects = [(each, [0] * len(np.reshape(each, (-1, 4)))) for each in boxes]
    truth, _ = _read_objects(images, objects, [name])
    plan = Plan(
        detector.features,
        detector.settings,
        1,
        tuple(detector.normalizer.steps),
        (detector.C,),
        loss,
        class_weight,
        detector.normalizer,
    )
    with detector.open(options=options, weights_dir=weights_dir) as extractor:
        trained = _train(plan, images, truth, held_out, extractor, progress)
    return dataclasses.replace(
        detector,
        classes=(*detector.classes, name),
        coef=np.concatenate([detector.coef, trained.coef]),
        intercept=np.concatenate([detector.intercept, trained.intercept]),
        box_coef=np.concatenate([detector.box_coef, trained.regression[0]]),
        box_intercept=np.concatenate([detector.box_intercept, trained.regression[1]]),
        sigmoids=np.concatenate([detector.sigmoids, trained.sigmoids]),
    )


def _train(
    plan: Plan,
    images: Sequence[Image],
    truth: Annotations,
    held_out: float,
    extractor: MapExtractor,
    progress: bool,
) -> Trained:
    if not 0 < held_out < 1:
        raise ConfigError(f"held_out: {held_out} must be a share between 0 and 1")
    proposer = open_proposals(plan.settings)
    if proposer.needs_maps:
        raise ConfigError(f"proposals: {proposer.name} is fitted by pipelines only")
    order = np.random.default_rng(plan.settings.seed).permutation(len(images))
    count = min(len(images) - 1, max(1, round(held_out * len(images))))
    with tempfile.TemporaryDirectory() as folder:
        passes = Passes(Path(folder), extractor.workers, progress=progress, stop=threading.Event())
        return Trainer(
            plan,
            images,
            truth,
            lambda position, maps: windows_in(images[position], proposer, maps),
            order[:count].tolist(),
            extractor,
            passes,
        ).train()


def _read_objects(
    images: Sequence[Image], objects: Sequence[_Labelled], classes: Sequence[str] | None
) -> tuple[Annotations, tuple[str, ...]]:
    """Return the objects of images, and the names of their classes."""
    if len(images) != len(objects):
        raise DatasetError(f"{len(images)} images need as many objects, not {len(objects)}")
    each = [one if isinstance(one, Objects) else (*one, None) for one in objects]
    given = [label for _, labels, _ in each for label in labels]
    named = any(isinstance(label, str) for label in given)
    if classes is None:
        names, numbers = number_labels(map(str, given))
    elif named:
        names = tuple(classes)
        unknown = sorted({str(label) for label in given} - set(names))
        if unknown:
            raise DatasetError(f"objects of unknown classes: {', '.join(unknown)}")
        numbers = np.array([names.index(str(label)) for label in given], np.int32)
    else:
        names, numbers = tuple(classes), np.array(given, np.int32)
    stops = np.cumsum([len(labels) for _, labels, _ in each])[:-1]
    parts = zip(each, np.split(numbers, stops), strict=True)
    return Annotations.of(Objects.of(one[0], part, one[2]) for one, part in parts), names
