from __future__ import annotations

import hashlib
import json

import pytest
import torch
from drawn_network import drawn_tensors
from evaluation_cases import INFO, described
from safetensors.torch import save_file
from torch import nn

from spptransfer import backbones
from spptransfer.errors import ConfigError, WeightsError
from spptransfer.pretraining.evaluation import (
    NetworkClassifier,
    load_classifier,
)
from spptransfer.pretraining.evaluation_network import read_about

NETWORKS = ("alexnet", "resnet18", "squeezenet1_1", "mobilenet_v2", "zf5", "zf5-no-spp", "spp-mini")


# The network in parts ----------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_the_parts_compute_what_the_network_computes(name):
    torch.manual_seed(0)
    network = backbones.network(name, num_classes=7).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    classifier = NetworkClassifier(network, backbones.describe(name))
    batch = torch.randn(2, 3, 70, 83)
    with torch.inference_mode():
        expected, found = network(batch), classifier(batch)
    assert classifier.num_classes == 7
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_taking_a_network_apart_leaves_it_whole():
    network = backbones.network("spp-mini", num_classes=4)
    before = list(network.state_dict())
    NetworkClassifier(network, INFO)
    assert list(network.state_dict()) == before
    assert network.training


@pytest.mark.parametrize("side", [64, 65, 71, 72, 73, 224])
def test_the_cells_of_a_window_are_those_of_its_own_map(mini, side):
    assert mini.cells(side) == mini.trunk(torch.zeros(1, 3, side, side)).shape[-1]


# Files -------------------------------------------------------------------------------------


def test_weights_tell_how_they_were_trained(tmp_path):
    pipeline = {"network": {"levels": [4, 2]}, "images": {"resize": 72, "size": 64, "small": 48}}
    about = read_about(described(tmp_path / "w.safetensors", network="zf5", pipeline=pipeline))
    assert (about.network, about.levels, about.resize, about.size) == ("zf5", (4, 2), 72, 64)
    assert about.classes is None


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"pipeline": 3}',
        '{"classes": 3}',
        "[" * 100_000,
        '{"pipeline": {"images": {"size": 1e999}}}',
    ],
)
def test_a_damaged_description_is_refused(tmp_path, text):
    path = tmp_path / "w.safetensors"
    save_file(drawn_tensors(), path, metadata={"spptransfer": text})
    with pytest.raises(WeightsError, match="say of themselves is damaged"):
        load_classifier("spp-mini", path)


def test_an_official_file_that_is_another_is_refused(tmp_path):
    network = backbones.network("squeezenet1_1")
    torch.save(
        network.state_dict(), backbones.BackboneRef("squeezenet1_1", "imagenet", tmp_path).path()
    )
    with pytest.raises(WeightsError, match="damaged or not the official file"):
        load_classifier("squeezenet1_1", "imagenet", weights_dir=tmp_path)


def test_a_file_of_ones_own_is_not_read_for_a_hash_that_nothing_is_compared_with(
    tmp_path, monkeypatch
):
    path = tmp_path / "w.safetensors"
    save_file(drawn_tensors(), path)
    monkeypatch.delattr(hashlib, "file_digest")
    assert load_classifier("spp-mini", path).num_classes


def test_a_network_with_another_pyramid_is_loaded_with_its_own(tmp_path):
    torch.manual_seed(0)
    network = backbones.network("zf5-64", num_classes=5, levels=(4, 1))
    path = tmp_path / "w.safetensors"
    save_file(network.state_dict(), path)
    with pytest.raises(
        WeightsError, match=r"other shapes: fc6\.weight is 512x3264 instead of 512x9600"
    ):
        load_classifier("zf5-64", path)
    assert load_classifier("zf5-64", path, levels=(4, 1)).pool.levels == (4, 1)
    about = {"pipeline": {"network": {"levels": [4, 1]}}}
    save_file(network.state_dict(), path, metadata={"spptransfer": json.dumps(about)})
    classifier = load_classifier("zf5-64", path)
    batch = torch.randn(1, 3, 64, 80)
    with torch.inference_mode():
        torch.testing.assert_close(classifier(batch), network.eval()(batch))


@pytest.mark.parametrize(("said", "trained"), [([2, 1], (2, 1)), (None, (6, 3, 2, 1))])
def test_levels_in_another_order_than_the_file_tells_are_refused(tmp_path, said, trained):
    network = backbones.network("spp-mini", num_classes=5, levels=trained)
    about = {"network": "spp-mini", "pipeline": {"network": {"levels": said}}}
    path = tmp_path / "w.safetensors"
    save_file(network.state_dict(), path, metadata={"spptransfer": json.dumps(about)})
    assert load_classifier("spp-mini", path, levels=trained).pool.levels == trained
    with pytest.raises(ConfigError, match=rf"levels: .* were trained with \[{trained[0]}, "):
        load_classifier("spp-mini", path, levels=trained[::-1])


def test_weights_that_are_not_the_whole_network_are_refused(tmp_path):
    tensors = drawn_tensors()
    path = tmp_path / "w.safetensors"

    def refused(change: dict, **about) -> str:
        kept = {key: value for key, value in (tensors | change).items() if value is not None}
        save_file(kept, path, metadata={"spptransfer": json.dumps(about)})
        with pytest.raises(WeightsError) as error:
            load_classifier("spp-mini", path)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "do not hold the classes of 'spp-mini'" in refused({"fc8.bias": None})
    assert "do not fit 'spp-mini': missing: conv1.weight;" in refused({"conv1.weight": None})
    assert "missing: fc8.weight; they suffice for" in refused({"fc8.weight": None})
    assert "unexpected: more;" in refused({"more": torch.zeros(2)})
    assert "bn1.bias is 3 instead of 64" in refused({"bn1.bias": torch.zeros(3)})
    assert "are those of 'zf5', not of 'spp-mini'" in refused({}, network="zf5")
    assert "name 2 classes, not all" in refused({}, classes=["a", "b"])
    with pytest.raises(WeightsError, match="no weights file at"):
        load_classifier("spp-mini", tmp_path / "nothing.pth")


def test_trunks_without_a_classifier_are_refused(alexnet_weights):
    with pytest.raises(WeightsError, match="do not hold the classes of 'alexnet'"):
        load_classifier("alexnet", alexnet_weights)
