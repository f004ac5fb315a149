"""Training of a detector: windows are sampled, hard negatives mined, linear SVMs fitted.

There are two passes over the images, and one over those held out. What a pass makes of some images
goes into a file with a final name once it is complete, so that a training that was killed goes on
where it stopped and ends in the same numbers. All classes share one pool of windows, which is one
problem with one Gram matrix for the solver.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from spptransfer.calibration import fit_sigmoid
from spptransfer.datasets.annotations import Objects
from spptransfer.detection.boxes import Boxes
from spptransfer.detection.detections import Detections
from spptransfer.detection.evaluation import (
    IGNORED,
    TRUE,
    DetectionEvaluation,
    evaluate_detections,
)
from spptransfer.detection.features import Linear, WindowFeatures
from spptransfer.detection.passes import Array, Arrays, Passes, join_arrays
from spptransfer.detection.regression import encode_boxes, fit_regressors
from spptransfer.detection.sampling import best_objects, thin_out, window_targets
from spptransfer.detection.selection import select_detections
from spptransfer.detection.settings import DetectionSection
from spptransfer.errors import DatasetError, ImageError
from spptransfer.extraction.maps import FeatureMaps, MapExtractor
from spptransfer.extraction.reading import Source
from spptransfer.normalization import PyramidNormalizer
from spptransfer.svm import LinearSVM, gram_matrix

logger = logging.getLogger(__name__)

# Windows of an image, given its position and maps.
Propose = Callable[[int, Sequence[FeatureMaps]], Boxes]

# Windows of a class that are looked at for hard negatives, and that NMS is asked about.
_RANKED = 200
# Positives of an image beside its objects' own boxes, and examples of the regression, at most.
_NEARBY = 20
# Hard negatives of a class from an image at most.
_EACH = 3
# How much windows that train may overlap as negatives of a class (He et al., section 4.1).
_ALIKE = 0.7


@dataclass(frozen=True)
class Plan:
    """What is trained, and how."""

    features: WindowFeatures
    settings: DetectionSection
    n_classes: int
    normalize: tuple[str, ...] = ("l2",)
    C: tuple[float, ...] = (1.0,)
    loss: Literal["squared_hinge", "hinge"] = "squared_hinge"
    class_weight: Any = None
    normalizer: PyramidNormalizer | None = None  # where one is fitted already

    def svm(self, C: float) -> LinearSVM:
        """Return the linear SVM of all classes."""
        return LinearSVM(
            C,
            loss=self.loss,
            class_weight=self.class_weight,
            intercept_scaling=self.settings.intercept_scaling,
            tol=1e-4,  # detections do not change with more digits
            memory=self.settings.memory,
        )


@dataclass(frozen=True)
class Trained:
    """What training leaves behind.

    `sigmoids` has slope and offset of the confidence of each class; `heldout` what the choice of
    C was made by: the mean average precision of each C on the images held out.
    """

    normalizer: PyramidNormalizer
    coef: npt.NDArray[np.float32]
    intercept: npt.NDArray[np.float32]
    regression: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
    sigmoids: npt.NDArray[np.float32]
    C: float
    heldout: list[dict[str, float]]
    counts: dict[str, int]
    failures: dict[int, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class Trainer:
    """Train a detector on some images.

    Parameters
    ----------
    plan : Plan
        What is trained, and how.
    images : sequence of Path or ndarray of uint8
        Files, or their pixels.
    objects : sequence of Objects
        The objects in each.
    propose : callable
        ``propose(position, maps) -> boxes`` gives the windows of an image.
    held_out : sequence of int
        Positions of the images that C and confidences are chosen on.
    extractor : MapExtractor
        Open; computes the maps.
    passes : Passes
        Keeps what is finished.
    """

    def __init__(
        self,
        plan: Plan,
        images: Sequence[Source],
        objects: Sequence[Objects],
        propose: Propose,
        held_out: Sequence[int],
        extractor: MapExtractor,
        passes: Passes,
    ) -> None:
        self.plan, self.settings = plan, plan.settings
        self.images, self.objects, self.propose = images, objects, propose
        self.held_out = np.sort(np.asarray(held_out, np.intp))
        self.extractor, self.passes = extractor, passes
        self.failures: dict[int, str] = {}

    def train(self) -> Trained:
        """Sample, mine, choose C on images held out, and fit on all."""
        positives = sum(int((~each.difficult).sum()) for each in self.objects)
        if not positives:
            raise DatasetError("no image to train on shows an object that is not difficult")
        pool = self._merge(self.passes.run("sample", range(len(self.images)), self._sample))
        blocks = self.plan.features.block_sizes
        self.normalizer = self.plan.normalizer or PyramidNormalizer(
            self.plan.normalize, block_sizes=blocks
        ).fit(pool["rows"].astype(np.float32))
        regression = self._fit_regression(pool)
        for number in range(self.settings.mining_rounds):
            coef, intercept = self._fit(pool, self.plan.C[len(self.plan.C) // 2 :][:1])
            self._known = _by_image(pool, len(self.images))
            self._model = (coef[0], intercept[0]), self._no_regression
            mined = self.passes.run(f"mine{number}", range(len(self.images)), self._mine)
            pool = self._merge(mined, pool)
        C, sigmoids, heldout = self._choose(pool)
        coef, intercept = self._fit(pool, [C])
        targets = pool["targets"]
        counts = {
            "windows": len(targets),
            "positives": int((targets == 1).sum()),
            "regressed": len(pool["regressed"]),
        }
        return Trained(
            self.normalizer,
            coef[0],
            intercept[0],
            regression,
            sigmoids,
            C,
            heldout,
            counts,
            self.failures,
            self.passes.seconds,
        )

    # ---- passes over the images ----

    def _maps_and_boxes(self, position: int) -> tuple[list[FeatureMaps], Boxes]:
        """Return the maps of an image, and its windows: those of its objects come first."""
        maps = self.extractor.maps_of(self.images[position])
        objects = self.objects[position].boxes
        proposed = self.propose(position, maps)
        shared = (proposed[:, None] == objects[None]).all(axis=2).any(axis=1)
        return maps, np.concatenate([objects, proposed[~shared]])

    def _sample(self, position: int) -> Arrays:
        """Take the objects of an image, some negatives at random, and examples of regression."""
        try:
            maps, boxes = self._maps_and_boxes(position)
        except ImageError as error:
            return {"failures": np.array([f"{position} {error}"])}
        objects = self.objects[position]
        targets = self._targets(boxes, position)
        draw = np.random.default_rng([self.settings.seed, position])
        own = np.arange(len(boxes)) < len(objects.boxes)
        positive = (targets == 1).any(axis=1)
        negative = (targets == -1).any(axis=1) & ~positive
        nearby = draw.permutation(np.flatnonzero(positive & ~own))[:_NEARBY]
        drawn = draw.permutation(np.flatnonzero(negative))[: self.settings.negatives_per_image]
        chosen = [*np.flatnonzero(positive & own), *nearby, *drawn]
        found = self._windows(position, maps, boxes, targets, chosen)
        near, nearest = best_objects(boxes, objects, self.settings.regression_overlap)
        some = np.sort(draw.permutation(len(near))[:_NEARBY])
        near, nearest = near[some], nearest[some]
        changes = encode_boxes(boxes[near], objects.boxes[nearest])
        return found | {
            "regressed": self._features(maps, boxes[near]),
            "near": np.full(len(near), position),
            "changes": changes.astype(np.float32),
            "labels": objects.labels[nearest],
        }

    def _mine(self, position: int) -> Arrays:
        """Take the negatives of each class that its model scores highest, but for those known."""
        try:
            maps, boxes = self._maps_and_boxes(position)
        except ImageError:
            return {}
        (scores, _), targets = self._scores(maps, boxes), self._targets(boxes, position)
        known = (boxes[:, None] == self._known[position][None]).all(axis=2).any(axis=1)
        ranked = []
        for label in range(self.plan.n_classes):
            # Beyond the margin a negative changes nothing.
            wrong = (targets[:, label] == -1) & (scores[:, label] > -1) & ~known
            hard = np.flatnonzero(wrong)
            hard = hard[np.argsort(-scores[hard, label], kind="stable")][:_RANKED]
            for rank, index in enumerate(thin_out(boxes, hard, _ALIKE, _EACH)):
                ranked.append((rank, -scores[index, label], index))
        # The hardest of every class come before the second of any.
        new = list(dict.fromkeys(index for *_, index in sorted(ranked)))
        new = sorted(new[: self.settings.mined_per_image])
        return self._windows(position, maps, boxes, targets, new)

    def _detect(self, position: int) -> Arrays:
        """Detect objects in an image held out, by the models of every C."""
        try:
            maps = self.extractor.maps_of(self.images[position])
        except ImageError:
            return {}
        boxes = self.propose(position, maps)  # none of them knows of an object
        scores, changes = self._scores(maps, boxes)
        size = (maps[0].size[1], maps[0].size[0])
        found = select_detections(boxes, scores, changes, size, self.settings)
        return found._replace(images=found.images + position)._asdict()

    def _targets(self, boxes: Boxes, position: int) -> npt.NDArray[np.int8]:
        limits = self.settings.negative_overlap, self.settings.positive_overlap
        return window_targets(boxes, self.objects[position], self.plan.n_classes, *limits)

    def _features(self, maps: Sequence[FeatureMaps], boxes: Boxes) -> npt.NDArray[np.float16]:
        return self.plan.features.compute(maps, boxes).astype(np.float16)

    def _windows(
        self,
        position: int,
        maps: Sequence[FeatureMaps],
        boxes: Boxes,
        targets: npt.NDArray[np.int8],
        chosen: Sequence[int],
    ) -> Arrays:
        """Return what of some windows trains."""
        rows = np.asarray(chosen, np.intp)
        return {
            "rows": self._features(maps, boxes[rows]),
            "targets": targets[rows],
            "boxes": boxes[rows],
            "images": np.full(len(rows), position),
        }

    def _scores(self, maps: Sequence[FeatureMaps], boxes: Boxes) -> tuple[Array, Array]:
        return self.plan.features.score(maps, boxes, self.normalizer, *self._model)

    # ---- what is fitted ----

    def _merge(self, parts: Iterator[Arrays], pool: Arrays | None = None) -> Arrays:
        """Put the files of a pass together, after what is there already."""
        joined = join_arrays([pool or {}, *parts])
        for failure in joined.pop("failures", ()):
            position, _, error = str(failure).partition(" ")
            self.failures[int(position)] = error
        if "rows" not in joined:
            raise DatasetError(f"no image can be read; the first: {self.failures.get(0)}")
        return joined

    def _fit(
        self, pool: Arrays, costs: Sequence[float], kept: Array | None = None
    ) -> tuple[list[Array], list[Array]]:
        """Fit the SVMs of all classes for some C, on all windows or on some images'."""
        chosen = slice(None) if kept is None else np.isin(pool["images"], kept)
        targets = pool["targets"][chosen]
        with self.passes.timed("train"):
            rows = self.normalizer.transform(pool["rows"][chosen].astype(np.float32))
            gram, n_classes = gram_matrix(rows), self.plan.n_classes
            if n_classes == 1:  # a single column would be read as labels
                targets = np.repeat(targets, 2, axis=1)
            found = [self.plan.svm(C).fit(rows, targets, gram=gram) for C in costs]
        coefficients = [svm.coef_[:n_classes].astype(np.float32) for svm in found]
        return coefficients, [svm.intercept_[:n_classes].astype(np.float32) for svm in found]

    @property
    def _no_regression(self) -> Linear:
        return np.zeros((0, 4, self.plan.features.width), np.float32), np.zeros((0, 4), np.float32)

    def _fit_regression(self, pool: Arrays, kept: Array | None = None) -> Linear:
        """Fit the box regression of all classes, if it is asked for, on all or some images."""
        if not self.settings.box_regression:
            return self._no_regression
        chosen = slice(None) if kept is None else np.isin(pool["near"], kept)
        with self.passes.timed("train"):
            rows = self.normalizer.transform(pool["regressed"][chosen].astype(np.float32))
            penalty, n_classes = self.settings.regression_penalty, self.plan.n_classes
            known = pool["changes"][chosen], pool["labels"][chosen]
            return fit_regressors(rows, *known, n_classes, penalty)

    def _choose(
        self, pool: Arrays
    ) -> tuple[float, npt.NDArray[np.float32], list[dict[str, float]]]:
        """Choose C by the mean average precision on images held out, and fit confidences there."""
        held, n_classes = self.held_out, self.plan.n_classes
        if not len(held):
            return self.plan.C[0], np.tile(np.array([1, 0], np.float32), (n_classes, 1)), []
        kept = np.setdiff1d(np.arange(len(self.images)), held)
        coefficients, intercepts = self._fit(pool, self.plan.C, kept)
        models = np.concatenate(coefficients), np.concatenate(intercepts)
        self._model = models, self._fit_regression(pool, kept)
        found = join_arrays(list(self.passes.run("held-out", held.tolist(), self._detect)))
        if not found:
            first = self.failures.get(int(held[0]))
            raise DatasetError(f"no image held out to choose C on can be read; the first: {first}")
        objects = [self.objects[position] for position in held]
        names = list(map(str, range(n_classes)))
        best: tuple[float, float, DetectionEvaluation] | None = None
        scores = []
        for index, C in enumerate(self.plan.C):
            label = found["labels"] - index * n_classes
            mine = (label >= 0) & (label < n_classes)
            images = np.searchsorted(held, found["images"][mine])
            detections = Detections(
                images, found["boxes"][mine], label[mine], found["scores"][mine]
            )
            evaluation = evaluate_detections(detections, objects, names)
            value = float(np.nan_to_num(evaluation.mean("area")))
            scores.append({"C": C, "score": value})
            if best is None or value > best[0]:
                best = value, C, evaluation
        assert best is not None
        return best[1], fit_sigmoids(best[2]), scores


def _by_image(pool: Arrays, count: int) -> list[Boxes]:
    """Return the windows that train already, image by image."""
    order = np.argsort(pool["images"], kind="stable")
    bounds = np.searchsorted(pool["images"][order], np.arange(count + 1))
    return [pool["boxes"][order[bounds[i] : bounds[i + 1]]] for i in range(count)]


def fit_sigmoids(evaluation: DetectionEvaluation) -> npt.NDArray[np.float32]:
    """Fit slope and offset of each class's confidence to which of its detections are right.

    A class of which all are right, or none, or rather those of low scores, gets those of all
    classes together.
    """
    labels, scores = evaluation.detections.labels, evaluation.detections.scores
    used = evaluation.outcomes != IGNORED
    right = evaluation.outcomes == TRUE

    def fit(chosen: npt.NDArray[np.bool_]) -> tuple[float, float] | None:
        return fit_sigmoid(scores[chosen], right[chosen])

    common = fit(used) or (1.0, 0.0)
    each = [fit(used & (labels == label)) or common for label in range(len(evaluation.classes))]
    return np.array(each, np.float32)
