"""A detector as a scikit-learn estimator: fitted to images and boxes."""

from __future__ import annotations

import os
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
from spptransfer.detection.detector import detector_of
from spptransfer.detection.evaluation import evaluate_detections
from spptransfer.detection.features import WindowFeatures
from spptransfer.detection.fitting import (
    check_overlaps,
    fit_proposals,
    open_maps,
    open_proposals,
    train_detector,
)
from spptransfer.detection.settings import DetectionSection
from spptransfer.detection.training import Plan
from spptransfer.errors import DatasetError, ImageError
from spptransfer.extraction.maps import MapExtractor
from spptransfer.features import as_sources
from spptransfer.runtimes import ComputeOptions
from spptransfer.sections import check
from spptransfer.spec import check_layers
from spptransfer.specify import feature_spec, levels_and_scales
from spptransfer.text import plural

Image = Any  # a path, a PIL image, an array or a tensor
_Labelled = Objects | tuple[Any, Any]


class SPPDetector(BaseEstimator):
    """Detect objects by linear SVMs on windows of one feature map per image.

    Parameters
    ----------
    backbone, weights, layer, levels, scales
        As in `SPPFeatures`; each window takes its features from one of the scales.
    normalize : sequence of str, optional
        Steps of `PyramidNormalizer`, by default ``l2``, or ``l2_block`` of several layers.
    C : float or sequence of float, default=(0.3, 1.0, 3.0)
        Values to choose from by average precision on images held out.
    loss, class_weight
        As in `LinearSVM`.
    held_out : float, default=0.2
        Share of the images that C and the confidences are chosen on. With 0, of one C,
        confidences are not calibrated.
    settings : dict, optional
        Keys of the section ``detection`` of a pipeline file, such as
        ``{"proposals": "grid", "stride": 16}``.
    device, runtime, threads
        As in `SPPFeatures`.
    weights_dir : Path, optional
        Folder of official weights.
    cache_dir : path-like, optional
        Where proposals are kept, and what is finished of a training that is stopped: the same
        `fit` goes on there.
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
        normalize: Sequence[str] | None = None,
        C: float | Sequence[float] = (0.3, 1.0, 3.0),
        loss: Literal["squared_hinge", "hinge"] = "squared_hinge",
        class_weight: Any = None,
        held_out: float = 0.2,
        settings: dict[str, Any] | None = None,
        device: str = "auto",
        runtime: str = "auto",
        threads: int | None = None,
        weights_dir: Path | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
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
        self.cache_dir = cache_dir
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
        images : sequence of path-like, PIL image, ndarray or torch.Tensor
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
        check_overlaps(settings, "settings.")
        sources = as_sources(images, "images")
        truth, names = _read_objects(sources, objects, classes)
        reference = BackboneRef(self.backbone, self.weights or "", self.weights_dir)
        layers = check_layers(self.layer)
        levels, scales = levels_and_scales(reference.info, layers, self.levels, self.scales)
        spec = feature_spec(reference, layer=layers, levels=levels, scales=scales)
        plan = Plan(
            features=WindowFeatures(reference.info.channels_of(layers), levels, settings.context),
            settings=settings,
            n_classes=len(names),
            normalize=self._steps(layers),
            C=(self.C,) if isinstance(self.C, int | float) else tuple(self.C),
            loss=self.loss,
            class_weight=self.class_weight,
        )
        proposer, backbone = open_proposals(settings), reference.load(layers)
        with open_maps(backbone, spec, layers, settings, self._options()) as extractor:
            proposer = fit_proposals(proposer, sources, truth, extractor)
            trained = train_detector(
                plan, spec, proposer, sources, truth, self.held_out, extractor, **self._keeping()
            )
        self.detector_ = detector_of(
            plan,
            trained,
            spec=spec,
            backbone=reference,
            layers=layers,
            classes=names,
            proposer=proposer,
            protocol=f"Trained on {plural(len(sources), 'image')}.",
            probe=probe(backbone, spec.layers),
        )
        self.classes_, self.C_ = names, trained.C
        return self

    def predict(self, images: Iterable[Image]) -> list[Detections]:
        """Find the objects in images.

        Parameters
        ----------
        images : iterable of path-like, PIL image, ndarray or torch.Tensor
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
        found: list[Detections] = []
        with self._open() as extractor:
            for one in self.detector_.detect(as_sources(images, "images"), extractor):
                if one.detections is None:
                    name = f"image {len(found)}" if one.path is None else f"'{one.path}'"
                    raise ImageError(f"{name}: {one.error}")
                found.append(one.detections)
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
        images : sequence of path-like, PIL image, ndarray or torch.Tensor
            Images that show it, and some that do not.
        boxes : sequence of array-like of shape (n, 4)
            Of each image the boxes of the new class; what they do not cover is not of the class.

        Returns
        -------
        SPPDetector
            Itself, with one class more, at the end of `classes_`.
        """
        check_is_fitted(self, "detector_")
        sources = as_sources(images, "images")
        objects = [Objects.of(each, [0] * len(np.reshape(each, (-1, 4)))) for each in boxes]
        _check_boxes(objects)
        with self._open() as extractor:
            self.detector_ = self.detector_.with_class(
                name,
                sources,
                objects,
                extractor,
                held_out=self.held_out,
                loss=self.loss,
                class_weight=self.class_weight,
                **self._keeping(),
            )
        self.classes_ = self.detector_.classes
        return self

    def _steps(self, layers: Sequence[str]) -> tuple[str, ...]:
        if self.normalize is None:
            return ("l2",) if len(layers) == 1 else ("l2_block",)
        return tuple(self.normalize)

    def _open(self) -> MapExtractor:
        return self.detector_.open(options=self._options(), weights_dir=self.weights_dir)

    def _options(self) -> ComputeOptions:
        return ComputeOptions(device=self.device, runtime=self.runtime, threads=self.threads)

    def _keeping(self) -> dict[str, Any]:
        folder = None if self.cache_dir is None else Path(self.cache_dir)
        return {"cache_dir": folder, "progress": self.progress}


def _read_objects(
    images: Sequence[Image], objects: Sequence[_Labelled], classes: Sequence[str] | None
) -> tuple[Annotations, tuple[str, ...]]:
    """Return the objects of images, and the names of their classes."""
    if len(images) != len(objects):
        raise DatasetError(f"{len(images)} images need as many objects, not {len(objects)}")
    each = [one if isinstance(one, Objects) else (*one, None) for one in objects]
    given = [label for _, labels, _ in each for label in labels]
    if not all(isinstance(label, str) for label in given):
        if classes is None:
            raise DatasetError("labels that are numbers need classes, the names of all in order")
        names, numbers = tuple(classes), np.array(given, np.int32)
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(names):
            raise DatasetError(f"labels of {len(names)} classes must be from 0 to {len(names) - 1}")
    elif classes is None:
        names, numbers = number_labels(given)
    else:
        names = tuple(classes)
        if unknown := sorted(set(given) - set(names)):
            raise DatasetError(f"objects of unknown classes: {', '.join(unknown)}")
        numbers = np.array([names.index(label) for label in given], np.int32)
    stops = np.cumsum([len(labels) for _, labels, _ in each])[:-1]
    parts = zip(each, np.split(numbers, stops), strict=True)
    read = [Objects.of(boxes, part, difficult) for (boxes, _, difficult), part in parts]
    _check_boxes(read)
    return Annotations.of(read), names


def _check_boxes(objects: Sequence[Objects]) -> None:
    """Refuse boxes that hold nothing before anything is computed."""
    for position, each in enumerate(objects):
        wrong = ~(each.boxes[:, :2] < each.boxes[:, 2:]).all(axis=1)  # NaN is not smaller
        wrong |= ~np.isfinite(each.boxes).all(axis=1)
        if wrong.any():
            box = each.boxes[wrong][0].tolist()
            raise DatasetError(f"image {position}: the box {box} is not x0 < x1, y0 < y1")
