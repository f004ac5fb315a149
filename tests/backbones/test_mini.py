from __future__ import annotations

import importlib.util
import json
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC
from torch import nn

from spptransfer import backbones
from spptransfer.backbones import weights
from spptransfer.backbones.mini import MiniNet
from spptransfer.datasets.drawing import draw
from spptransfer.datasets.generated import DEMO_CLASSES, TRAINING_CLASSES
from spptransfer.pyramid import SpatialPyramidPooling

INFO = backbones.describe("spp-mini")
FILE = Path(backbones.__file__).parent / "spp_mini.safetensors"


def normalized(images):
    """N x H x W x 3 pixels as the network takes them."""
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([INFO.mean, INFO.std])[:, :, None, None]
    return (pixels - mean) / std


def drawn(classes, count, size=(96, 96), seed=0):
    rng = np.random.default_rng(seed)
    names = [name for name in classes for _ in range(count)]
    images = [np.asarray(draw(*name.split("_"), size, rng)) for name in names]
    return normalized(images), np.array([classes.index(name) for name in names])


# The network -------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [layer for layer in INFO.layers if layer.kind == "map"])
@pytest.mark.parametrize("size", [(96, 96), (64, 112)])
def test_maps_have_the_channels_and_the_stride_of_the_catalogue(layer, size):
    maps = backbones.load("spp-mini", "random", layer=layer.name)(torch.zeros(1, 3, *size))
    assert maps.shape == (1, layer.channels, size[0] // layer.stride, size[1] // layer.stride)


@pytest.mark.parametrize("layer", [layer for layer in INFO.layers if layer.kind == "vector"])
@pytest.mark.parametrize("size", [(1, 1), (64, 64), (96, 150)])
def test_vectors_are_as_long_as_the_catalogue_says_at_any_size(layer, size):
    backbone = backbones.load("spp-mini", "random", layer=layer.name)
    assert backbone(torch.zeros(2, 3, *size)).shape == (2, layer.channels)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (7, 5)])
def test_the_smallest_images_have_a_map(size):
    assert INFO.min_side == 1
    maps = backbones.load("spp-mini", "random").maps(torch.zeros(1, 3, *size))
    assert min(maps.shape) >= 1


def test_spp_is_conv5():
    images = drawn(["striped_disc"], 2)[0]
    maps = [backbones.load("spp-mini", "embedded", layer=name)(images) for name in ("spp", "conv5")]
    torch.testing.assert_close(*maps, rtol=0, atol=0)


def test_the_trunk_has_up_to_a_million_parameters():
    network = backbones.network("spp-mini", num_classes=INFO.num_classes)
    assert 200_000 <= sum(tensor.numel() for tensor in network.features.parameters()) <= 1_000_000


def test_five_convolutions_of_zf5s_filter_sizes_each_normalised_and_rectified():
    network = backbones.network("spp-mini")
    modules = list(network.features)
    convolutions = [i for i, module in enumerate(modules) if isinstance(module, nn.Conv2d)]
    assert [modules[i].kernel_size[0] for i in convolutions] == [7, 5, 3, 3, 3]
    for i in convolutions:
        assert isinstance(modules[i + 1], nn.BatchNorm2d)
        assert isinstance(modules[i + 2], nn.ReLU)


def test_cut_and_whole_network_agree():
    network = backbones.network("spp-mini", num_classes=7).eval()
    images = drawn(["striped_disc"], 3, size=(80, 64))[0]
    fc7 = network.head("fc7")(network.trunk("spp")(images))
    torch.testing.assert_close(network.classifier[-1](fc7), network(images))


def test_the_classes_can_be_any_number_and_gradients_reach_the_first_layer():
    network = MiniNet((2, 1), width=8, num_classes=3)
    images, _ = drawn(["striped_disc"], 4, size=(64, 64))
    network(images).square().sum().backward()
    assert network.features[0].weight.grad.abs().sum() > 0


# The embedded weights ----------------------------------------------------------------------


def test_the_file_is_small_half_precision_and_says_what_it_is():
    assert FILE.stat().st_size < 2_000_000
    with safe_open(FILE, "pt") as file:
        about = json.loads(file.metadata()["spptransfer"])
    assert about["licence"] == "BSD-3-Clause"
    assert "train_spp_mini.py" in about["recipe"]
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
    assert {key: tensor.shape for key, tensor in load_file(FILE).items()} == expected
    assert INFO.num_classes == len(TRAINING_CLASSES)


def test_the_catalogue_and_the_model_card_name_the_file_that_is_shipped():
    sha256 = weights.sha256_of(FILE)
    assert INFO.weights["embedded"].sha256 == sha256
    assert sha256 in FILE.with_suffix(".md").read_text(encoding="utf-8")


def test_loading_opens_no_connection(monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("opened a socket"))
    backbone = backbones.load("spp-mini", "embedded")
    assert backbone.weights_sha256 == weights.sha256_of(FILE)


def test_folded_features_match_the_network_as_trained():
    network = backbones.network("spp-mini", num_classes=INFO.num_classes).eval()
    tensors = {key: tensor.float() for key, tensor in load_file(FILE).items()}
    network.load_state_dict(tensors, strict=False)
    images = drawn(DEMO_CLASSES, 1)[0]
    expected = network.features(images)
    found = backbones.load("spp-mini", "embedded").maps(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [64, 96])
def test_the_embedded_network_knows_its_training_classes(size):
    # Seeds of the training script start elsewhere: these images are new.
    network = backbones.network("spp-mini", num_classes=INFO.num_classes).eval()
    tensors = {key: tensor.float() for key, tensor in load_file(FILE).items()}
    network.load_state_dict(tensors, strict=False)
    images, labels = drawn(TRAINING_CLASSES, 4, size=(size, size), seed=99)
    with torch.inference_mode():
        predicted = network(images).argmax(1).numpy()
    assert (predicted == labels).mean() > 0.6


def test_embedded_features_transfer_and_random_ones_do_not():
    images, labels = drawn(DEMO_CLASSES, 30, size=(120, 96), seed=1)
    pyramid = SpatialPyramidPooling(INFO.levels)
    splits = StratifiedShuffleSplit(2, test_size=0.5, random_state=0)
    accuracy = {}
    for name in ("embedded", "random"):
        backbone = backbones.load("spp-mini", name)
        features = normalize(pyramid(backbone.maps(images)).numpy())
        scores = cross_val_score(LinearSVC(C=10), features, labels, cv=splits)
        accuracy[name] = scores.mean()
    assert accuracy["embedded"] > 0.8
    assert accuracy["random"] < 0.4


def test_the_training_script_writes_weights_that_load_and_a_card_that_names_them(
    tmp_path, monkeypatch
):
    path = Path(__file__).parents[2] / "tools" / "train_spp_mini.py"
    spec = importlib.util.spec_from_file_location("train_spp_mini", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    # SVMs on hardly trained features take a minute to converge.
    figures = dict.fromkeys(["transfer_trained", "transfer_random", "transfer_colour"], 0.5)
    monkeypatch.setattr(script, "transfer", lambda _: figures)
    arguments = ["", "--epochs", "2", "--images-per-class", "4", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with torch.random.fork_rng():
        script.main()
    written = tmp_path / "spp_mini.safetensors"
    fc7 = backbones.load("spp-mini", written, layer="fc7")
    assert fc7(drawn(["striped_disc"], 1)[0]).isfinite().all()
    card = (tmp_path / "spp_mini.md").read_text(encoding="utf-8")
    assert weights.sha256_of(written) in card
    assert "$" not in card
