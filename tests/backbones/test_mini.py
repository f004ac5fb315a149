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
from torch import nn

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


def trained():
    network = backbones.network("spp-mini", num_classes=INFO.num_classes).eval()
    tensors = {key: tensor.float() for key, tensor in load_file(FILE).items()}
    network.load_state_dict(tensors, strict=False)
    return network


# The network -------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [layer for layer in INFO.layers if layer.kind == "map"])
@pytest.mark.parametrize("size", [(96, 96), (64, 112)])
def test_maps_have_the_channels_and_the_stride_of_the_catalogue(layer, size):
    maps = backbones.load("spp-mini", "random", layer=layer.name)(torch.zeros(1, 3, *size))
    assert maps.shape == (1, layer.channels, size[0] // layer.stride, size[1] // layer.stride)


@pytest.mark.parametrize("layer", [layer for layer in INFO.layers if layer.kind == "vector"])
@pytest.mark.parametrize("size", [(1, 1), (64, 64), (96, 150)])
def test_vectors_are_as_long_as_the_catalogue_says_at_any_size(layer, size):
    backbone = backbones.load("spp-mini", "embedded", layer=layer.name)
    assert backbone(torch.zeros(2, 3, *size)).shape == (2, layer.channels)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (7, 5)])
def test_the_smallest_images_have_a_map(size):
    assert INFO.min_side == 1
    maps = backbones.load("spp-mini", "embedded")(torch.zeros(1, 3, *size))
    assert min(maps.shape) >= 1
    assert maps.isfinite().all()


def test_spp_is_conv5():
    images = drawn(["striped_disc"], 2)[0]
    maps = [backbones.load("spp-mini", "embedded", layer=name)(images) for name in ("spp", "conv5")]
    torch.testing.assert_close(*maps, rtol=0, atol=0)


def test_the_trunk_has_one_to_three_million_parameters():
    trunk = backbones.network("spp-mini", num_classes=INFO.num_classes).trunk("spp")
    assert 1_000_000 <= sum(tensor.numel() for tensor in trunk.parameters()) <= 3_000_000


def test_five_convolutions_of_zf5s_filter_sizes_each_normalised_and_rectified():
    modules = list(backbones.network("spp-mini").trunk("spp"))
    convolutions = [i for i, module in enumerate(modules) if isinstance(module, nn.Conv2d)]
    assert [modules[i].kernel_size[0] for i in convolutions] == [7, 5, 3, 3, 3]
    for i in convolutions:
        assert isinstance(modules[i + 1], nn.BatchNorm2d)
        assert isinstance(modules[i + 2], nn.ReLU)


def test_cut_and_whole_network_agree():
    network = backbones.network("spp-mini", num_classes=7).eval()
    images = drawn(["striped_disc"], 3, size=(80, 64))[0]
    fc7 = network.head("fc7")(network.trunk("spp")(images))
    torch.testing.assert_close(network.fc8(fc7), network(images))


# The embedded weights ----------------------------------------------------------------------


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


def test_the_file_fits_the_whole_network():
    network = backbones.network("spp-mini", num_classes=INFO.num_classes)
    expected = {
        key: tensor.shape
        for key, tensor in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    found = {
        key: tensor.shape
        for key, tensor in load_file(FILE).items()
        if not key.endswith("num_batches_tracked")
    }
    assert found == expected


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


def test_folded_features_match_the_network_as_trained():
    images = drawn(DEMO_CLASSES, 1)[0]
    expected = trained().trunk("spp")(images)
    found = backbones.load("spp-mini", "embedded")(images)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


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


@pytest.mark.slow
def test_photographs_are_told_apart_far_better_than_with_random_weights(caltech101_root):
    from spptransfer import SPPFeatures

    root = caltech101_root / "101_ObjectCategories"
    folders = sorted(p for p in root.iterdir() if p.is_dir() and len(list(p.iterdir())) >= 60)[:20]
    paths = [path for folder in folders for path in sorted(folder.glob("*.jpg"))[:30]]
    labels = [path.parent.name for path in paths]
    accuracies = {}
    for name in ("embedded", "random:0"):
        features = SPPFeatures(backbone="spp-mini", weights=name, scales=[96])
        X = normalize(features.fit_transform(paths))
        splits = StratifiedShuffleSplit(3, test_size=0.5, random_state=0)
        accuracies[name] = np.mean(cross_val_score(LinearSVM(C=10), X, labels, cv=splits))
    assert accuracies["embedded"] > 0.75
    assert accuracies["embedded"] > accuracies["random:0"] + 0.15
