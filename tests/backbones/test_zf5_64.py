from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC

from spptransfer import SPPFeatures, backbones
from spptransfer.backbones import weights
from spptransfer.errors import SPPTransferError

FILE = Path(backbones.__file__).parent / "zf5_64.safetensors"


def test_the_embedded_weights_are_float16_and_those_of_the_catalogue():
    source = backbones.describe("zf5-64").weights["embedded"]
    assert weights.sha256_of(FILE) == source.sha256
    assert FILE.stat().st_size < 6e6
    with safe_open(FILE, framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118


def test_the_model_card_names_the_hash_of_the_file():
    card = FILE.with_suffix(".md").read_text()
    assert weights.sha256_of(FILE) in card


@pytest.mark.parametrize("size", [(64, 64), (48, 97)])
def test_the_embedded_trunk_makes_maps_of_any_size(size):
    maps = backbones.load("zf5-64", "embedded")(torch.zeros(1, 3, *size))
    assert maps.shape[:2] == (1, 192)
    assert torch.isfinite(maps).all()


def test_a_fully_connected_layer_of_the_embedded_weights_is_refused_in_one_line():
    with pytest.raises(SPPTransferError, match="fc6") as caught:
        backbones.load("zf5-64", "embedded", layer="fc6")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_photographs_are_told_apart_far_better_than_with_random_weights(caltech101_root):
    root = caltech101_root / "101_ObjectCategories"
    folders = sorted(p for p in root.iterdir() if p.is_dir() and len(list(p.iterdir())) >= 60)[:20]
    paths = [path for folder in folders for path in sorted(folder.glob("*.jpg"))[:30]]
    labels = [path.parent.name for path in paths]
    accuracies = {}
    for name in ("embedded", "random:0"):
        features = SPPFeatures(backbone="zf5-64", weights=name, scales=[96])
        X = normalize(features.fit_transform(paths))
        splits = StratifiedShuffleSplit(3, test_size=0.5, random_state=0)
        accuracies[name] = np.mean(cross_val_score(LinearSVC(C=10), X, labels, cv=splits))
    assert accuracies["embedded"] > 0.75
    assert accuracies["embedded"] > accuracies["random:0"] + 0.15
