"""A trained model as one ONNX file, which classifies without torch and without this package."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image
from torch import nn

from spptransfer import classify_onnx
from spptransfer._version import __version__
from spptransfer.backbones import Backbone, BackboneRef
from spptransfer.errors import ModelError, SPPTransferError
from spptransfer.files import atomic_write
from spptransfer.images import Rendering, view_size
from spptransfer.models import Scores, TransferModel
from spptransfer.pyramid import SpatialPyramidPooling
from spptransfer.runtimes import ComputeOptions
from spptransfer.runtimes.graph import PIXELS, Graph, Trunk, reason_of
from spptransfer.specify import find_backbone

# Largest difference from the decision values of `predict`, in units of the largest if above 1.
TOLERANCE = 1e-4
# Height and width of the images on which both are compared.
_SHAPES = ((240, 320), (330, 250), (256, 256), (150, 510), (97, 131))
DECISION_VALUES, PROBABILITIES = "decision_values", "probabilities"
_ERRORS_ONLY = 3


def export_onnx(
    model: TransferModel,
    path: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    weights_dir: Path | None = None,
    threads: int | None = None,
) -> float:
    """Write a model as one ONNX file, from the pixels of a resized image to probabilities.

    The file holds the network, the pyramid, the normalisation and the classifier. Its inputs are
    N x H x W x 3 bytes, one for each scale, its outputs ``decision_values`` and, of a calibrated
    model, ``probabilities``, N x classes. Its metadata say how an image is resized, in words and as
    a Python program. It is written if it gives what `TransferModel.score` gives for image
    files of five shapes. Both are computed in float32 for that, as the file always is, whatever
    the model was trained in.

    Parameters
    ----------
    model : TransferModel
        A trained model.
    path : path-like
        The file to write.
    weights : str or path-like, optional
        Where the backbone's weights are now, by default where they were in training.
    weights_dir : Path, optional
        Folder of official weights.
    threads : int, optional
        Threads of the comparison, by default one per processor.

    Returns
    -------
    float
        Largest difference between outputs, decision values in units of the largest if above 1.

    Raises
    ------
    ModelError
        If the weights are others than in training, ONNX lacks an operator of the network, or
        what was written computes something else than the model.
    CacheError
        If the file cannot be written.

    Examples
    --------
    >>> model = TransferModel.load("runs/mine")                 # doctest: +SKIP
    >>> export_onnx(model, "classifier.onnx")                   # doctest: +SKIP
    """
    model = dataclasses.replace(model, spec=dataclasses.replace(model.spec, precision="float32"))
    known = (model.weights_path, model.weights)
    backbone = find_backbone(model.spec, weights, *known, weights_dir).load(model.layers)
    with _refusing(model):
        content = _content(model, backbone)
    options = ComputeOptions(device="cpu", runtime="torch", threads=threads)
    with tempfile.TemporaryDirectory() as folder, atomic_write(Path(path), len(content)) as file:
        file.write_bytes(content)
        del content
        images = _draw_images(Path(folder))
        scores = model.score(images, options=options, weights=weights, weights_dir=weights_dir)
        return _largest_difference(model, file, list(scores), threads)


@contextmanager
def _refusing(model: TransferModel) -> Iterator[None]:
    """Tell of what torch's exporter and ONNX Runtime have against a network."""
    try:
        yield
    except (MemoryError, SPPTransferError):
        raise
    except Exception as error:  # whatever users' classes, the exporter and the runtime raise
        raise _refusal(model, f"cannot be computed by ONNX Runtime: {reason_of(error)}") from error


def _refusal(model: TransferModel, why: str) -> ModelError:
    spec, hint = model.spec, ""
    native = BackboneRef(spec.backbone, model.weights).info.default_scales[0]
    if spec.view == "full" or model.scales != (native,):
        hint = f"; images of one size may do: view: warp or center_crop, scales: [{native}]"
    return ModelError(f"no ONNX file is written: '{spec.backbone}' {why}{hint}")


def _content(model: TransferModel, backbone: Backbone) -> bytes:
    """Follow a classifier on noise, and say beside it what goes in and what comes out."""
    drawn, full = np.random.default_rng(0), model.spec.view == "full"
    names = [PIXELS] if len(model.scales) == 1 else [f"{PIXELS}_{s}" for s in model.scales]
    inputs: dict[str, torch.Tensor] = {}
    free: dict[str, dict[int, str]] = {}
    for name, rendering in zip(names, _renderings(model), strict=True):
        size = view_size(240, 331, *rendering)
        inputs[name] = torch.from_numpy(drawn.integers(0, 256, (2, *size, 3), np.uint8))
        sides = {1: f"height{name[6:]}", 2: f"width{name[6:]}"} if full else {}
        free[name] = {0: "images"} | sides
    for name in _outputs(model):
        free[name] = {0: "images"}
    return Graph(_Classifier(model, backbone), inputs, free).model(
        embedded=True, about=_about(model)
    )


def _outputs(model: TransferModel) -> tuple[str, ...]:
    calibrated = np.isfinite(np.asarray(model.sigmoids)).all()
    return (DECISION_VALUES, PROBABILITIES) if calibrated else (DECISION_VALUES,)


def _renderings(model: TransferModel) -> list[Rendering]:
    spec = model.spec
    return [Rendering(scale, spec.view, spec.grid, spec.longest) for scale in model.scales]


def _about(model: TransferModel) -> dict[str, str]:
    """Describe inputs and outputs: JSON by name, and the Python that makes inputs of files."""
    spec = model.spec
    facts = {
        **{name: getattr(model, name) for name in ("scales", "classes", "multi_label", "protocol")},
        **{name: getattr(spec, name) for name in ("view", "grid", "longest", "preprocessing")},
        "thresholds": np.asarray(model.thresholds).tolist(),
        "spec": spec.to_dict(),
        "spptransfer": __version__,
    }
    about = {name: json.dumps(fact) for name, fact in facts.items()}
    return about | {"python": inspect.getsource(classify_onnx)}


class _Classifier(nn.Module):
    """From the views of images at each scale, N x H x W x 3 bytes, to all outputs."""

    coef: torch.Tensor
    intercept: torch.Tensor
    sigmoids: torch.Tensor
    mean_: torch.Tensor
    scale_: torch.Tensor

    def __init__(self, model: TransferModel, backbone: Backbone) -> None:
        super().__init__()
        self.trunk, self.model = Trunk(backbone, model.layers), model
        self.pyramid = (
            SpatialPyramidPooling(model.levels, model.spec.pooling) if model.levels else None
        )
        for name in ("coef", "intercept", "sigmoids"):
            self.register_buffer(name, torch.tensor(getattr(model, name), dtype=torch.float32))
        for name, values in model.normalizer.learnt().items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64))
        self.eval()

    def forward(self, *views: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute decision values, and probabilities if the model is calibrated."""
        values = nn.functional.linear(self._rows(views), self.coef, self.intercept)
        if PROBABILITIES not in _outputs(self.model):
            return (values,)
        log_odds = values.double() * self.sigmoids[:, 0] + self.sigmoids[:, 1]
        if self.model.multi_label:
            return values, log_odds.sigmoid().float()
        # As `spptransfer.calibration.probabilities` has it.
        shared = 2 if len(self.model.classes) == 2 else 1
        return values, (log_odds / shared).softmax(1).float()

    def _rows(self, views: Sequence[torch.Tensor]) -> torch.Tensor:
        """Compute normalised features of all layers and scales."""
        of_scales, columns = [self._stored(view) for view in views], []
        for layer in self.model.layers:
            rows = [found[layer] for found in of_scales]
            if self.model.combine == "mean":
                rows = [torch.stack(rows).mean(0)]
            elif self.model.combine == "max":
                rows = [torch.stack(rows).amax(0)]
            columns += rows
        return self._normalized(torch.cat(columns, 1))

    def _stored(self, view: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the features of a view as a cache has them, by layer."""
        found = self._features(view)
        if self.model.spec.flip:
            mirrored = self._features(view.flip(2))
            found = {layer: (rows + mirrored[layer]) / 2 for layer, rows in found.items()}
        if self.model.spec.storage == "float16":
            found = {layer: rows.half().float() for layer, rows in found.items()}
        return found

    def _features(self, view: torch.Tensor) -> dict[str, torch.Tensor]:
        maps, vectors = self.trunk.maps(view), self.model.spec.vectors
        flat = [layer for layer in self.model.layers if layer in vectors]
        found = dict(self.trunk.backbone.vectors_of(maps, flat)) if flat else {}
        for layer in self.model.layers:
            if layer not in vectors:
                assert self.pyramid is not None
                found[layer] = self.pyramid(maps[layer])
        return found

    def _normalized(self, rows: torch.Tensor) -> torch.Tensor:
        """Take the steps of `PyramidNormalizer`, which sums and divides in float64."""
        for step in self.model.normalizer.steps:
            if step == "signed_sqrt":
                rows = rows.sign() * rows.abs().sqrt()
            elif step == "mean_length":
                rows = (rows.double() / (self.model.normalizer.length_[0] or 1.0)).float()
            elif step == "standardize":
                rows = ((rows.double() - self.mean_).float().double() / self.scale_).float()
            else:
                sizes = self.model.normalizer.block_sizes if step == "l2_block" else None
                sizes = list(sizes) if sizes is not None else [self.coef.shape[1]]
                rows = torch.cat([_of_unit_length(part) for part in rows.split(sizes, 1)], 1)
        return rows


def _of_unit_length(rows: torch.Tensor) -> torch.Tensor:
    exact = rows.double()
    lengths = exact.square().sum(1, keepdim=True).sqrt()
    return (exact / torch.where(lengths == 0, 1.0, lengths)).float()


def _draw_images(folder: Path) -> list[Path]:
    """Draw smooth noise of several shapes, with a bit of rough one on it."""
    drawn, paths = np.random.default_rng(0), []
    for height, width in _SHAPES:
        small = Image.fromarray(drawn.integers(0, 256, (5, 7, 3), np.uint8))
        smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float64)
        samples = smooth + drawn.normal(0, 12, smooth.shape)
        paths.append(folder / f"{height}x{width}.png")
        Image.fromarray(np.clip(samples, 0, 255).astype(np.uint8)).save(paths[-1])
    return paths


def _largest_difference(
    model: TransferModel, file: Path, expected: Sequence[Scores], threads: int | None
) -> float:
    """Compare a file with the model on images; refuse it where they disagree."""
    options, largest = onnxruntime.SessionOptions(), 0.0
    options.log_severity_level, options.intra_op_num_threads = _ERRORS_ONLY, threads or 0
    with _refusing(model):
        session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
    for (path, values, error), (height, width) in zip(expected, _SHAPES, strict=True):
        if values is None:
            raise _refusal(model, f"fails on an image of {height} x {width} pixels: {error}")
        with _refusing(model):
            found = classify_onnx.classify(session, str(path))
        known = {DECISION_VALUES: values, PROBABILITIES: model.probabilities(values[None])[0]}
        for name, each in found.items():
            difference = float(np.abs(each - known[name]).max() / max(1.0, np.abs(each).max()))
            if not difference <= TOLERANCE:
                raise _refusal(
                    model,
                    f"gives other {name.replace('_', ' ')} there for {height} x {width} pixels "
                    f"(they differ by {difference:.1g}; allowed {TOLERANCE:.0e})",
                )
            largest = max(largest, difference)
    return largest
