"""A trained model on the disk: everything needed to score an image again, and no code.

Its file is that of `spptransfer.model_file`, which runs nothing that the file could name.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from sklearn.pipeline import Pipeline

from spptransfer.backbones import BackboneRef
from spptransfer.backbones.probe import PROBE_NUMBERS, Probe
from spptransfer.cache.reading import Combine, Selection
from spptransfer.calibration import probabilities
from spptransfer.errors import ImageError, ModelError, SPPTransferError
from spptransfer.model_file import read_model, write_model
from spptransfer.normalization import PyramidNormalizer
from spptransfer.runtimes import ComputeOptions
from spptransfer.spec import FeatureSpec
from spptransfer.specify import check_probe, find_backbone

FORMAT = "spptransfer-model"
FORMAT_VERSION = 3
_TENSORS = ("coef", "intercept", "thresholds", "sigmoids", "probe")
# Attributes that are in the file as they are.
_FACTS = (
    "weights",
    "layers",
    "levels",
    "scales",
    "combine",
    "classes",
    "multi_label",
    "C",
    "protocol",
)


class Scores(NamedTuple):
    """Decision values of one image, or why there are none."""

    path: Path
    values: npt.NDArray[np.float32] | None
    error: str


@dataclasses.dataclass(repr=False)
class TransferModel:
    """Linear classifiers on normalised pyramid features of a frozen backbone.

    Parameters
    ----------
    spec : FeatureSpec
        How features are computed; its hash tells the backbone's weights.
    weights : str
        Name in the catalogue or path of the weights that were used, as the user gave it.
    weights_path : Path or None
        Where they lay then, absolute; None for random ones.
    layers : tuple of str
        Layers in the order of the columns.
    levels : tuple of int or None
        Levels in the order of the columns; None if all layers are vectors.
    scales : tuple of int
        Scales in the order of the columns.
    combine : {"concat", "mean", "max"}
        What becomes of several scales.
    normalizer : PyramidNormalizer
        Fitted on the training images.
    coef : ndarray of float32, shape (n_classes, n_features)
        Weights.
    intercept : ndarray of float32, shape (n_classes,)
        Biases.
    classes : tuple of str
        Names of the classes.
    multi_label : bool
        Whether an image can be of several classes: all with a decision value above their threshold.
    C : float or list of float
        The C trained with, one per class where it was chosen so.
    protocol : str
        What the model was trained on, in words.
    thresholds : ndarray of float32, shape (n_classes,), optional
        Decision values above which an image is of a class, where it can be of several. By default
        0, the SVM's own boundary; other values trade precision for recall.
    sigmoids : ndarray of float32, shape (n_classes, 2), optional
        Slope and offset of each class's probability as a function of the decision value; NaN, by
        default, where none are known.
    probe : ndarray of float32, shape (n_layers, 64), optional
        What the backbone made of a fixed image when the model was trained; where it makes
        something else of it now, no image is scored.
    """

    spec: FeatureSpec
    weights: str
    weights_path: Path | None
    layers: tuple[str, ...]
    levels: tuple[int, ...] | None
    scales: tuple[int, ...]
    combine: Combine
    normalizer: PyramidNormalizer
    coef: npt.NDArray[np.float32]
    intercept: npt.NDArray[np.float32]
    classes: tuple[str, ...]
    multi_label: bool
    C: float | list[float]
    protocol: str
    thresholds: npt.NDArray[np.float32] | None = None
    sigmoids: npt.NDArray[np.float32] | None = None
    probe: Probe | None = None

    def __post_init__(self) -> None:
        if self.thresholds is None:
            self.thresholds = np.zeros(len(self.classes), np.float32)
        if self.sigmoids is None:
            self.sigmoids = np.full((len(self.classes), 2), np.nan, np.float32)
        if self.probe is None:
            self.probe = np.zeros((len(self.spec.layers), PROBE_NUMBERS), np.float32)

    @classmethod
    def from_pipeline(cls, pipeline: Pipeline, *, protocol: str = "") -> TransferModel:
        """Take over a fitted scikit-learn pipeline from images to classes.

        Parameters
        ----------
        pipeline : Pipeline
            Three fitted steps: `SPPFeatures`, `PyramidNormalizer`, and a `LinearSVM` or
            `LinearSVMCV` (or scikit-learn's LinearSVC) with one label per image.
        protocol : str
            What it was trained on, in words.

        Returns
        -------
        TransferModel

        Raises
        ------
        ModelError
            If the steps are others, or images have several labels.
        """
        steps = [step for _, step in pipeline.steps]
        expected = [getattr(steps[0], "spec_", None), hasattr(steps[-1], "coef_")]
        if len(steps) != 3 or not all(expected) or not isinstance(steps[1], PyramidNormalizer):
            raise ModelError(
                "a model is made of three fitted steps: SPPFeatures, PyramidNormalizer, linear SVM"
            )
        features, normalizer, svm = steps
        if not isinstance(features.backbone, str):
            raise ModelError("a model names its backbone; a module of your own has no name for it")
        coef, intercept = np.asarray(svm.coef_, np.float32), np.asarray(svm.intercept_, np.float32)
        if len(svm.classes_) == 2 and len(coef) == 1:  # two classes share one hyperplane
            coef, intercept = np.concatenate([-coef, coef]), np.concatenate([-intercept, intercept])
        C = np.asarray(svm.C_ if hasattr(svm, "C_") else svm.C, dtype=float)
        return cls(
            spec=features.spec_,
            weights=BackboneRef(features.backbone, features.weights or "").weights,
            weights_path=None,
            layers=features.layers_,
            levels=(features.levels_ or features.spec_.levels) if features.spec_.levels else None,
            scales=features.scales_,
            combine=features.combine,
            normalizer=normalizer,
            coef=coef,
            intercept=np.broadcast_to(intercept, (len(coef),)).copy(),
            classes=tuple(str(name) for name in svm.classes_),
            multi_label=False,
            C=float(C) if C.ndim == 0 else C.tolist(),
            protocol=protocol,
            probe=getattr(features, "probe_", None),
        )

    def __repr__(self) -> str:
        spec = self.spec
        levels = f", levels={list(self.levels)}" if self.levels else ""
        return (
            f"<TransferModel: {len(self.classes)} classes; {spec.origin}, "
            f"scales={list(self.scales)}{levels}, normalize={list(self.normalizer.steps)}>"
        )

    def selection(self) -> Selection:
        """Say which layers, levels and scales make up the columns, put together in which way."""
        info = BackboneRef(self.spec.backbone, self.weights).info
        channels = info.channels_of(self.layers)
        chosen = (self.levels, self.scales, self.combine, self.layers)
        return Selection.choose(self.spec, channels, *chosen)

    def decision_function(self, X: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Decision values of features as a cache gives them, not yet normalised.

        Parameters
        ----------
        X : ndarray of shape (n_images, n_features)
            Features.

        Returns
        -------
        ndarray of float32, shape (n_images, n_classes)
        """
        return np.asarray(self.normalizer.transform(X), np.float32) @ self.coef.T + self.intercept

    def probabilities(self, values: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Probabilities of decision values, by Platt scaling.

        Parameters
        ----------
        values : ndarray of shape (n_images, n_classes)
            Decision values.

        Returns
        -------
        ndarray of float32, shape (n_images, n_classes)
            Of one label per image they add up to 1. NaN where the model was not calibrated.
        """
        return probabilities(values, np.asarray(self.sigmoids), multi_label=self.multi_label)

    def labels(self, values: npt.NDArray[np.floating]) -> list[str]:
        """Names of the classes that one image's decision values stand for.

        Parameters
        ----------
        values : ndarray of shape (n_classes,)
            Decision values.

        Returns
        -------
        list of str
            The class of the largest value; with several labels per image all above their threshold.
        """
        if not self.multi_label:
            return [self.classes[int(np.argmax(values))]]
        above = values > np.asarray(self.thresholds)
        return [self.classes[i] for i in np.argsort(-values, kind="stable") if above[i]]

    def score(
        self,
        paths: Iterable[Path],
        *,
        options: ComputeOptions = ComputeOptions(),
        weights: str | os.PathLike[str] | None = None,
        weights_dir: Path | None = None,
    ) -> Iterator[Scores]:
        """Score image files one after the other, in bounded memory.

        Parameters
        ----------
        paths : iterable of Path
            Image files.
        options : ComputeOptions, optional
            Device, runtime and threads.
        weights : str or path-like, optional
            Where the backbone's weights are now, by default where they were in training.
        weights_dir : Path, optional
            Folder of official weights.

        Yields
        ------
        Scores
            In the order of the paths.

        Raises
        ------
        ModelError
            If the weights found are not those that the model was trained with.
        ImageError
            If `paths` is a single path.
        """
        from spptransfer.extraction.extractor import Extractor  # imports torch
        from spptransfer.features import stream_features

        if isinstance(paths, (str, os.PathLike)):
            raise ImageError(f"paths must be a list of images, as ['{paths}']")
        known = (self.weights_path, self.weights)
        backbone = find_backbone(self.spec, weights, *known, weights_dir)
        with Extractor([self.spec], backbone, options) as extractor:
            check_probe(extractor.runtime.backbone, self.spec, self.probe)
            for chunk in stream_features(map(Path, paths), self.selection(), extractor):
                for position, path in enumerate(cast(tuple[Path, ...], chunk.sources)):
                    if position in chunk.errors:
                        yield Scores(path, None, chunk.errors[position])
                        continue
                    row = chunk.matrix[position : position + 1]
                    yield Scores(path, self.decision_function(row)[0], "")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to one file, whole or not at all.

        Parameters
        ----------
        path : path-like
            Such as ``model.safetensors``.

        Raises
        ------
        CacheError
            If the file cannot be written.
        """
        known = {f"normalizer.{name}": each for name, each in self.normalizer.learnt().items()}
        known |= {name: np.asarray(getattr(self, name), np.float32) for name in _TENSORS}
        blocks = self.normalizer.block_sizes
        facts = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "spec": self.spec.to_dict(),
            "weights_path": None if self.weights_path is None else str(self.weights_path),
            "normalize": list(self.normalizer.steps),
            "block_sizes": None if blocks is None else [int(size) for size in blocks],
            **{name: getattr(self, name) for name in _FACTS},
        }
        write_model(Path(path), known, facts)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TransferModel:
        """Read a model file.

        Parameters
        ----------
        path : path-like
            The file, or the folder of a run that holds ``model.safetensors``.

        Returns
        -------
        TransferModel

        Raises
        ------
        ModelError
            If it is missing, damaged, or no model of this package.
        """
        tensors, facts = read_model(path, FORMAT, FORMAT_VERSION)
        try:
            return _build(facts, tensors)
        except (KeyError, TypeError, ValueError, AttributeError, SPPTransferError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"'{path}' is damaged: {reason}") from error


def _build(facts: dict[str, Any], tensors: dict[str, npt.NDArray[Any]]) -> TransferModel:
    """Put a model together, and make sure that all parts fit before an image is scored."""
    normalizer = PyramidNormalizer(facts["normalize"], block_sizes=facts["block_sizes"])
    known, levels = facts["weights_path"], facts["levels"]
    given = {name: facts[name] for name in _FACTS} | {name: tensors[name] for name in _TENSORS}
    given |= {name: tuple(facts[name]) for name in ("layers", "scales", "classes")}
    given["levels"] = None if levels is None else tuple(levels)
    model = TransferModel(
        spec=FeatureSpec.from_dict(facts["spec"]),
        weights_path=None if known is None else Path(known),
        normalizer=normalizer,
        **given,
    )
    width, n_classes = model.selection().width, len(model.classes)
    expected = {"coef": (n_classes, width), "intercept": (n_classes,), "thresholds": (n_classes,)}
    expected |= {"sigmoids": (n_classes, 2), "probe": (len(model.spec.layers), PROBE_NUMBERS)}
    for name, shape in expected.items():
        array = tensors[name]
        if array.shape != shape or array.dtype.kind != "f":
            raise ValueError(f"'{name}' is {array.shape} {array.dtype}, not {shape} float32")
    learnt = {name.removeprefix("normalizer."): array for name, array in tensors.items()}
    normalizer.restore(learnt, width)
    return model
