"""Drawn images in memory and what a network makes of their views, shared by tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from drawn_network import CLASSES, drawings, drawn_tensors
from image_files import picture
from safetensors.torch import save_file

from spptransfer import backbones
from spptransfer.pretraining.evaluation import NetworkClassifier, ViewAverager
from spptransfer.pretraining.evaluation_views import render_scales
from spptransfer.runtimes import ComputeOptions

INFO = backbones.describe("spp-mini")


class Labelled(list):
    """Images in memory."""

    classes = CLASSES


def drawn(count: int, sides=(80, 150), seed: int = 0) -> Labelled:
    """Images of every class that the network knows."""
    return Labelled(drawings(count, sides, seed))


def wave(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.asarray(picture(height, width, seed))


def computing(runtime: str = "torch", threads: int = 2) -> ComputeOptions:
    return ComputeOptions("cpu", runtime, threads)


def averaged(
    classifier: NetworkClassifier, originals, scheme, runtime="torch", precision="float32"
) -> np.ndarray:
    averager = ViewAverager(classifier, precision=precision, options=computing(runtime, 1))
    return averager.probabilities(render_scales(originals, scheme), scheme)


def described(path: Path, **about) -> Path:
    """The embedded weights with a description as `pretrain` writes it."""
    save_file(drawn_tensors(), path, metadata={"spptransfer": json.dumps(about)})
    return path
