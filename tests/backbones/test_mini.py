from __future__ import annotations

import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_network import as_input
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score
from sklearn.preprocessing import normalize

from spptransfer import backbones
from spptransfer.backbones import weights
from spptransfer.datasets.generated import DEMO_CLASSES, draw
from spptransfer.pyramid import SpatialPyramidPooling
from spptransfer.svm import LinearSVM

INFO = backbones.describe("spp-mini")
FILE = Path(backbones.__file__).parent / "spp_mini.safetensors"


def drawn(classes, count, size=(96, 96), seed=0):
    rng = np.random.default_rng(seed)
    names = [name for name in classes for _ in range(count)]
    images = [np.asarray(draw(*name.split("_"), size, rng)) for name in names]
    return as_input(np.stack(images)), np.array([classes.index(name) for name in names])


def test_the_file_is_small_half_precision_and_says_what_it_is():
    assert FILE.stat().st_size < 6_000_000
    with safe_open(FILE, "pt") as file:
        about = json.loads(file.metadata()["spptransfer"])
    assert about["network"] == "spp-mini"
    assert about["data"]["name"] == "tiny-imagenet-40k.zip"
    assert len(about["classes"]) == INFO.num_classes
    tensors = load_file(FILE).values()
    assert {tensor.dtype for tensor in tensors} == {torch.float16}
    assert all(tensor.isfinite().all() for tensor in tensors)


def test_the_catalogue_and_the_model_card_name_the_file_that_is_shipped():
    sha256 = weights.sha256_of(FILE)
    assert INFO.weights["embedded"].sha256 == sha256
    assert sha256 in FILE.with_suffix(".md").read_text(encoding="utf-8")


def test_the_recipe_that_is_shipped_is_the_one_it_was_trained_by():
    from spptransfer.pretraining.config import read_pipeline

    with safe_open(FILE, "pt") as file:
        about = json.loads(file.metadata()["spptransfer"])["pipeline"]
    recipe = Path(__file__).parents[2] / "pipelines" / "pretrain-spp-mini.yaml"
    stated = json.loads(read_pipeline(recipe).model_dump_json())
    # The teacher's weights may be named or given as a file.
    assert stated.pop("distill") | {"weights": None} == about.pop("distill") | {"weights": None}
    assert stated == about


def test_loading_opens_no_connection(monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("opened a socket"))
    backbone = backbones.load("spp-mini", "embedded")
    assert backbone.weights_sha256 == weights.sha256_of(FILE)


def test_embedded_features_tell_drawings_apart_far_better_than_random_ones():
    images, labels = drawn(DEMO_CLASSES, 16, size=(96, 80), seed=1)
    pyramid = SpatialPyramidPooling(INFO.levels)
    splits = StratifiedShuffleSplit(2, test_size=0.5, random_state=0)
    accuracy = {}
    for name in ("embedded", "random"):
        backbone = backbones.load("spp-mini", name)
        features = normalize(pyramid(backbone(images)).numpy())
        scores = cross_val_score(LinearSVM(C=10), features, labels, cv=splits)
        accuracy[name] = scores.mean()
    assert accuracy["embedded"] > 0.7
    assert accuracy["embedded"] > accuracy["random"] + 0.2
