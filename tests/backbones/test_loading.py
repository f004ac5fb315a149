from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from spptransfer import backbones
from spptransfer.backbones import BackboneRef, loading
from spptransfer.errors import ConfigError, WeightsError
from spptransfer.pyramid import SpatialPyramidPooling


@pytest.fixture
def resnet_file(trained, tmp_path):
    path = tmp_path / "resnet18.safetensors"
    save_file(trained("resnet18"), path)
    return path


def images(height=40, width=53, count=2):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


# --- what a backbone is -----------------------------------------------------------------------


def test_a_backbone_is_frozen_and_evaluating(resnet_file):
    backbone = backbones.load("resnet18", resnet_file)
    assert not backbone.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(module.training for module in backbone.modules())
    assert {parameter.device.type for parameter in backbone.parameters()} == {"cpu"}
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}


def test_a_backbone_knows_what_it_is(resnet_file):
    backbone = backbones.load("resnet18", resnet_file, layer="layer2")
    assert backbone.info == backbones.describe("resnet18")
    assert backbone.layer == "layer2"
    assert backbone.weights_sha256 == hashlib.sha256(resnet_file.read_bytes()).hexdigest()
    assert backbone.head is None


@pytest.mark.parametrize("layer", ["conv1", "layer1", "layer3", "spp"])
def test_a_loaded_backbone_equals_the_network_it_was_cut_from(layer, resnet_file, trained):
    network = backbones.network("resnet18", num_classes=10)
    network.load_state_dict(trained("resnet18"))
    expected = network.eval().trunk(layer)(images())
    found = backbones.load("resnet18", resnet_file, layer=layer)(images())
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_no_batch_norm_is_left(name):
    backbone = backbones.load(name, "random")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())


def test_only_the_modules_up_to_the_layer_exist():
    layers = ("conv1", "fire2", "fire5", "fire9")
    sizes = [
        sum(p.numel() for p in backbones.load("squeezenet1_1", "random", layer=layer).parameters())
        for layer in layers
    ]
    assert sizes == sorted(set(sizes))
    assert sizes[0] == 64 * 3 * 3 * 3 + 64
    assert sizes[-1] == 1_235_496 - (512 + 1) * 1000


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v2", "resnet18"])
def test_the_channels_last_layout_changes_no_values(name):
    backbone = backbones.load(name, "random")
    expected = backbone(images())
    backbone.to(memory_format=torch.channels_last)
    found = backbone(images().contiguous(memory_format=torch.channels_last))
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v2", "resnet18"])
def test_the_smallest_image_is_enough(name):
    backbone = backbones.load(name, "random")
    side = backbone.info.min_side
    assert backbone(images(side, side)).shape[2:] == (1, 1)
    assert backbone(images(side, side + 200)).isfinite().all()


def test_an_image_is_left_as_it_was():
    batch = images()
    before = batch.clone()
    backbones.load("squeezenet1_1", "random")(batch)
    assert batch.equal(before)


def test_a_backbone_survives_pickling_for_other_processes():
    backbone = backbones.load("squeezenet1_1", "random", layer="fire2")
    copy = pickle.loads(pickle.dumps(backbone))
    assert copy(images()).equal(backbone(images()))


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


def test_a_trained_network_of_the_paper_is_cut_into_trunk_and_head(tmp_path):
    torch.manual_seed(0)
    network = backbones.network("zf5-no-spp", num_classes=3).eval()
    torch.save(network.state_dict(), tmp_path / "zf5.pth")
    batch = images(64, 80, count=1)
    backbone = backbones.load("zf5-no-spp", tmp_path / "zf5.pth", layer="fc6")
    expected = batch
    for name, module in network.named_children():
        expected = module(expected)
        if name == "relu6":
            break
    assert torch.allclose(backbone(batch), expected, rtol=1e-4, atol=1e-5)


# --- random weights ---------------------------------------------------------------------------


def test_a_seed_gives_the_same_weights_again():
    one, other = (backbones.load("squeezenet1_1", "random:5") for _ in range(2))
    assert one.weights_sha256 == other.weights_sha256
    assert one(images()).equal(other(images()))


def test_another_seed_gives_other_weights():
    hashes = {
        backbones.load("squeezenet1_1", text).weights_sha256
        for text in ("random", "random:0", "random:1")
    }
    assert len(hashes) == 2


def test_the_identity_of_random_weights_does_not_depend_on_the_layer():
    one, other = (
        backbones.load("squeezenet1_1", "random:5", layer=name) for name in ("conv1", "spp")
    )
    assert one.weights_sha256 == other.weights_sha256
    assert BackboneRef("squeezenet1_1", "random:5").weights_sha256() == one.weights_sha256


def test_drawing_weights_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    backbones.load("squeezenet1_1", "random:5")
    assert torch.rand(4).equal(expected)


# --- what can go wrong ------------------------------------------------------------------------


def test_a_wrong_name_or_layer_is_told_before_any_weights_are_sought():
    with pytest.raises(ConfigError, match="unknown backbone"):
        backbones.load("alexnext", "absent.pth")
    with pytest.raises(ConfigError, match="unknown layer 'conv6'"):
        backbones.load("alexnet", "absent.pth", layer="conv6")


def test_weights_of_another_network_are_named(resnet_file):
    with pytest.raises(WeightsError, match="do not fit 'squeezenet1_1'") as caught:
        backbones.load("squeezenet1_1", resnet_file)
    assert str(resnet_file) in str(caught.value)


def test_the_hash_is_remembered_by_load_too(resnet_file, tmp_path):
    os.utime(resnet_file, (1e9, 1e9))
    folder = tmp_path / "hashes"
    backbones.load("resnet18", resnet_file, layer="conv1", hash_cache_dir=folder)
    assert (folder / "weights-sha256.json").exists()


# --- real weights -----------------------------------------------------------------------------


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


def test_a_trunk_without_classifier_says_which_layers_it_suffices_for(alexnet_weights):
    with pytest.raises(WeightsError, match="suffice for conv1, conv2, conv3, conv4, conv5, spp"):
        backbones.load("alexnet", alexnet_weights, layer="fc7")


@pytest.mark.parametrize(
    ("name", "file"),
    [("squeezenet1_1", "squeezenet1_1.pth"), ("mobilenet_v2", "mobilenet_v2_trunk.pth")],
)
def test_real_files_tell_categories_apart(name, file, alexnet_weights, caltech101_root):
    # Three images of each category make its mean, three more are classified by the nearest one.
    categories = ("accordion", "dalmatian", "pizza", "sunflower", "revolver")
    backbone = backbones.load(name, alexnet_weights.parent / file)
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (backbone.info.mean, backbone.info.std))

    def vector(path):
        image = np.array(Image.open(path).convert("RGB").resize((128, 128)), dtype=np.float32)
        pixels = torch.from_numpy(image).permute(2, 0, 1) / 255
        maps = backbone(((pixels - mean) / std)[None])
        return nn.functional.normalize(maps.mean((2, 3))[0], dim=0)

    def vectors(category):
        folder = caltech101_root / "101_ObjectCategories" / category
        return torch.stack([vector(path) for path in sorted(folder.glob("*.jpg"))[:6]])

    found = torch.stack([vectors(category) for category in categories])
    means, others = found[:, :3].mean(1), found[:, 3:]
    correct = (others @ means.T).argmax(-1) == torch.arange(len(categories))[:, None]
    assert correct.float().mean() >= 0.9


# --- several layers ---------------------------------------------------------------------------


def test_several_layers_come_in_the_order_of_computation():
    backbone = backbones.load("alexnet", "random", layer=["fc6", "conv2", "spp"])
    assert backbone.layers == ("conv2", "spp", "fc6")
    assert backbone.layer == "fc6"
    assert len(backbone.trunk) == 12


def test_maps_alone_need_no_head_and_nothing_beyond_the_deepest():
    backbone = backbones.load("alexnet", "random", layer=("conv1", "conv3"))
    assert backbone.head is None
    assert len(backbone.trunk) == 8
    assert backbone.vectors_of({}, []) == {}


def test_weights_need_to_suffice_for_the_deepest_layer_only(trained, tmp_path):
    tensors = {key: value for key, value in trained("alexnet").items() if "features" in key}
    torch.save(tensors, tmp_path / "trunk.pth")
    backbones.load("alexnet", tmp_path / "trunk.pth", layer=["conv1", "spp"])
    with pytest.raises(WeightsError, match="up to layer 'fc6'"):
        backbones.load("alexnet", tmp_path / "trunk.pth", layer=["conv1", "fc6"])


def test_a_request_for_no_layer_is_refused():
    with pytest.raises(ConfigError, match="layer: at least one of conv1, conv2"):
        backbones.load("alexnet", "random", layer=[])


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


@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_1", "resnet18", "zf5", "spp-mini"])
def test_the_side_of_a_map_is_known_without_weights(name):
    backbone = backbones.load(name, "random", layer=[at.name for at in maps_of(name)])
    for layer in backbone.layers:
        for side in (64, 97):
            maps = backbone.maps_of(torch.zeros(1, 3, side, side), [layer])[layer]
            reference = BackboneRef(name, "random")
            assert maps.shape[2:] == (backbones.map_side(reference, layer, side),) * 2
            assert maps.shape[2:] == (backbones.map_side(backbone, layer, side),) * 2


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18", "mobilenet_v2", "zf5"])
def test_a_hollow_trunk_has_the_shape_of_the_network_and_lets_nan_through(name):
    trunk = loading.hollow_trunk(name)
    batch = torch.zeros(1, 3, 64, 80)
    maps = trunk(batch)
    assert maps.shape == backbones.load(name, "random")(batch).shape
    assert not maps.isnan().any()
    batch[..., 40] = torch.nan
    assert trunk(batch).isnan().any()


def maps_of(name):
    return [layer for layer in backbones.describe(name).layers if layer.kind == "map"]


@pytest.mark.parametrize("name", ["spp-mini", "alexnet", "zf5"])
def test_a_network_without_numbers_is_built_without_torchs_compiler(name):
    # Its import takes more than a second, at every start of a command.
    code = (
        "import sys, torch; from spptransfer import backbones\n"
        f"with torch.device('meta'): backbones.network('{name}')\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
