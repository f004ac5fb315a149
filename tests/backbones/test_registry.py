"""A backbone from outside the package: registered once, known by its name everywhere."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from spptransfer import backbones
from spptransfer.backbones import BackboneInfo, BackboneRef, LayerInfo
from spptransfer.errors import ConfigError
from spptransfer.runtimes import ComputeOptions
from spptransfer.runtimes.runtime import open_runtime


def build(weights):
    """What a user writes for a module of torch's."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    if weights != "random":
        module.load_state_dict(torch.load(weights, weights_only=True))
    return backbones.from_module(module, ["1", "2"], mean=[0.5] * 3, std=[0.5] * 3)


class Own(nn.Module):
    """What a user writes without any help: the protocol, member by member."""

    layers = ("patches", "token")

    def __init__(self, weights):
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Conv2d(3, 6, 16, stride=16)
        self.weights_sha256 = f"own {weights}"
        layers = (LayerInfo("patches", "map", 6, 16), LayerInfo("token", "vector", 4, None))
        mean = std = (0.5, 0.5, 0.5)
        self.info = BackboneInfo("own", layers, mean, std, 16, grid=16)
        self.eval().requires_grad_(False)

    def maps_of(self, images, layers):
        maps = self.embed(images)
        return {layer: maps if layer == "patches" else maps.mean((2, 3)) for layer in layers}

    def vectors_of(self, maps, layers):
        return {layer: maps[layer][:, :4] for layer in layers}


@pytest.fixture(autouse=True)
def _registered():
    backbones.register("mine", build)
    backbones.register("own", Own)


def test_a_registered_name_is_listed_and_described():
    assert {"mine", "own"} <= set(backbones.names())
    assert backbones.describe("mine").name == "mine"
    assert [layer.name for layer in backbones.describe("own").layers] == ["patches", "token"]
    with pytest.raises(ConfigError, match="unknown backbone 'minne': did you mean 'mine'"):
        backbones.describe("minne")


def test_it_is_loaded_like_any_other(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    torch.save(module.state_dict(), tmp_path / "mine.pth")
    reference = BackboneRef("mine", tmp_path / "mine.pth")
    backbone = reference.load(["1"])
    batch = torch.randn(1, 3, 40, 60)
    torch.testing.assert_close(backbone.maps_of(batch, ["1"])["1"], module[:2](batch))
    assert reference.weights_sha256() == backbone.weights_sha256
    assert reference.weights_sha256() != BackboneRef("mine", "random").weights_sha256()
    assert reference.path() == tmp_path / "mine.pth"
    assert BackboneRef("mine", "random").path() is None
    assert backbones.layers_within(reference) == ("1", "2")
    assert backbones.map_side(reference, "1", 64) == 16
    with pytest.raises(ConfigError, match="unknown layer '7' of backbone 'mine'"):
        backbones.load("mine", "random", layer="7")


def test_a_file_that_changes_has_another_identity(tmp_path):
    reference, identities = BackboneRef("mine", tmp_path / "mine.pth"), set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        torch.save(module.state_dict(), reference.weights)
        identities.add(reference.weights_sha256())
    assert len(identities) == 2


@pytest.mark.parametrize("runtime", ["torch", "auto"])
def test_a_protocol_of_ones_own_is_computed(runtime):
    backbone = backbones.load("own", "any word", layer="token")
    options = ComputeOptions("cpu", runtime)
    pixels = torch.randint(0, 256, (2, 32, 48, 3), dtype=torch.uint8)
    opened = open_runtime(backbone, ["patches", "token"], precision="float32", options=options)
    with opened as running, running.session():
        maps = running.maps(running.upload(pixels.numpy()), ["patches", "token"])
        vectors = running.vectors(maps, ["token"])
    expected = backbone.embed((pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)
    torch.testing.assert_close(maps["patches"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vectors["token"], expected.mean((2, 3))[:, :4], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["alexnet", "", None, 7])
def test_a_name_that_is_taken_or_none_is_refused(name):
    with pytest.raises(ConfigError, match="cannot be registered"):
        backbones.register(name, build)


def test_what_builds_no_backbone_is_named():
    backbones.register("broken", lambda weights: nn.ReLU())
    with pytest.raises(ConfigError, match="'broken': what was built has no info, weights_sha256,"):
        backbones.describe("broken")
    with pytest.raises(ConfigError, match="must be a function of the weights"):
        backbones.register("broken", "module")
    backbones.register("broken", build)


def test_a_process_that_has_not_heard_of_it_learns_of_it_with_the_reference(tmp_path, monkeypatch):
    (tmp_path / "users_code.py").write_text(
        "import torch\n"
        "from spptransfer import backbones\n"
        "def build(weights):\n"
        "    torch.manual_seed(0)\n"
        "    module = torch.nn.Conv2d(3, 2, 5, stride=2)\n"
        "    return backbones.from_module(module, 'output', mean=[0] * 3, std=[1] * 3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    backbones.register("theirs", importlib.import_module("users_code").build)
    reference = BackboneRef("theirs", "random")
    there = (
        f"import pickle, sys; sys.path[:0] = [{str(tmp_path)!r}]\n"
        "reference, expected = pickle.load(sys.stdin.buffer)\n"
        "assert reference.load(['output']).weights_sha256 == expected"
    )
    sent = pickle.dumps((reference, reference.weights_sha256()))
    subprocess.run([sys.executable, "-c", there], input=sent, check=True)


def test_a_registered_backbone_is_no_network_to_be_trained():
    assert pickle.loads(pickle.dumps(BackboneRef("mine", "random"))).info.name == "mine"
    with pytest.raises(ConfigError, match="unknown backbone 'mine'"):
        backbones.network("mine")
