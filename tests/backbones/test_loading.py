from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest
import torch
from conftest import python
from safetensors.torch import save_file
from torch import nn

from spptransfer import backbones
from spptransfer.backbones import BackboneRef
from spptransfer.errors import ConfigError, WeightsError
from spptransfer.pyramid import SpatialPyramidPooling


def images(height=40, width=53, count=2):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_a_backbone_is_frozen_evaluating_and_known_by_its_file(trained, tmp_path):
    save_file(trained("resnet18"), tmp_path / "w.safetensors")
    backbone = backbones.load("resnet18", tmp_path / "w.safetensors", layer="layer2")
    assert not any(module.training for module in backbone.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    assert {(p.requires_grad, p.dtype) for p in backbone.parameters()} == {(False, torch.float32)}
    assert backbone.info == backbones.describe("resnet18")
    content = (tmp_path / "w.safetensors").read_bytes()
    assert backbone.weights_sha256 == hashlib.sha256(content).hexdigest()
    batch, before = images(), images()
    assert backbone(batch).equal(pickle.loads(pickle.dumps(backbone))(batch))
    assert batch.equal(before)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("resnet18", "conv1"), ("resnet18", "layer3"), ("resnet18", "spp"), ("mobilenet_v2", "spp")],
)
def test_a_loaded_backbone_equals_the_network_it_was_cut_from(name, layer, trained, tmp_path):
    network = backbones.network(name, num_classes=10)
    network.load_state_dict(trained(name))
    save_file(trained(name), tmp_path / "w.safetensors")
    expected = network.eval().trunk(layer)(images())
    found = backbones.load(name, tmp_path / "w.safetensors", layer=layer)(images())
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_only_the_modules_up_to_the_layer_exist():
    layers = ("conv1", "fire2", "fire5", "fire9")
    sizes = [
        sum(p.numel() for p in backbones.load("squeezenet1_1", "random", layer=layer).parameters())
        for layer in layers
    ]
    assert sizes == sorted(set(sizes))
    assert sizes[0] == 64 * 3 * 3 * 3 + 64
    assert sizes[-1] == 1_235_496 - (512 + 1) * 1000


def test_a_vector_layer_is_computed_on_the_pyramid_it_was_trained_with(trained, tmp_path):
    tensors = trained("alexnet")
    torch.save(tensors, tmp_path / "alexnet.pth")
    backbone = backbones.load("alexnet", tmp_path / "alexnet.pth", layer="fc6")
    trunk = backbones.load("alexnet", tmp_path / "alexnet.pth", layer="conv5")
    maps = trunk(images(100, 131))
    assert backbone.maps_of(images(100, 131), ["fc6"])["fc6"].equal(maps)
    pooled = SpatialPyramidPooling([6])(maps)
    expected = (pooled @ tensors["classifier.1.weight"].T + tensors["classifier.1.bias"]).relu()
    assert torch.allclose(backbone(images(100, 131)), expected, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, nn.Dropout) for module in backbone.modules())


def test_a_seed_gives_the_same_weights_again_whatever_the_layer():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    one, other, another, deeper = (
        backbones.load("squeezenet1_1", weights, layer=layer)
        for weights, layer in (
            ("random", "fire2"),
            ("random:0", "fire2"),
            ("random:1", "fire2"),
            ("random", "spp"),
        )
    )
    assert one.weights_sha256 == other.weights_sha256 == deeper.weights_sha256
    assert one.weights_sha256 == BackboneRef("squeezenet1_1", "random").weights_sha256()
    assert one.weights_sha256 != another.weights_sha256
    assert one(images()).equal(other(images()))
    assert torch.rand(4).equal(expected)  # torch's own generator is left alone


def test_a_wrong_name_or_layer_is_told_before_any_weights_are_sought():
    with pytest.raises(ConfigError, match="unknown backbone"):
        backbones.load("alexnext", "absent.pth")
    with pytest.raises(ConfigError, match="unknown layer 'conv6'"):
        backbones.load("alexnet", "absent.pth", layer="conv6")


def recorded(folder, name, shape):
    return torch.from_numpy(np.fromfile(folder / f"{name}.bin", "<f4").reshape(shape))


def test_alexnet_reproduces_activations_recorded_elsewhere(alexnet_weights):
    folder = alexnet_weights.parent.parent / "reference" / "alexnet"
    if not folder.exists():
        pytest.skip("recorded activations are not on this machine")
    backbone = backbones.load("alexnet", alexnet_weights)
    maps = backbone(recorded(folder, "input", (1, 3, 227, 227)))
    assert (maps - recorded(folder, "relu5", (1, 256, 13, 13))).abs().max() < 1e-4
    pooled = SpatialPyramidPooling([6])(maps).reshape(1, 256, 6, 6)
    assert (pooled - recorded(folder, "pool5", (1, 256, 6, 6))).abs().max() < 1e-4


def test_several_layers_come_in_the_order_of_computation_and_nothing_beyond_them():
    backbone = backbones.load("spp-mini", "random", layer=["fc6", "conv2", "spp"])
    assert (backbone.layers, backbone.layer) == (("conv2", "spp", "fc6"), "fc6")
    maps = backbones.load("spp-mini", "random", layer=("conv3", "conv1"))
    assert (maps.layers, maps.head, maps.vectors_of({}, [])) == (("conv1", "conv3"), None, {})
    with pytest.raises(ConfigError, match="layer: at least one of conv1, conv2"):
        backbones.load("spp-mini", "random", layer=[])


def test_the_layers_that_weights_suffice_for_are_known_without_loading_them(trained, tmp_path):
    tensors = trained("alexnet")
    maps = ("conv1", "conv2", "conv3", "conv4", "conv5", "spp")
    for count, expected in (
        (None, (*maps, "fc6", "fc7")),
        (10, maps),
        (4, ("conv1", "conv2")),
    ):
        some = dict(list(tensors.items())[:count])
        torch.save(some, tmp_path / "some.pth")
        assert backbones.layers_within(BackboneRef("alexnet", tmp_path / "some.pth")) == expected
    assert backbones.layers_within(BackboneRef("alexnet", "random")) == (*maps, "fc6", "fc7")
    torch.save({"features.0.weight": torch.zeros(2)}, tmp_path / "some.pth")
    with pytest.raises(WeightsError, match="they suffice for no layer"):
        backbones.layers_within(BackboneRef("alexnet", tmp_path / "some.pth"))


def test_a_network_without_numbers_is_built_without_torchs_compiler():
    # Its import takes more than a second, at every start of a command.
    code = (
        "import sys, torch; from spptransfer import backbones\n"
        "with torch.device('meta'): backbones.network('spp-mini'), backbones.network('zf5')\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    python(code)
