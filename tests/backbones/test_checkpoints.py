from __future__ import annotations

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from spptransfer import backbones
from spptransfer.backbones.loading import load_into, read_tensors
from spptransfer.errors import WeightsError

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


class RunsWhenRead:
    """What a hostile pickle looks like: reading it would create a file."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def save(tensors, path):
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    return path


def refusal(path):
    with pytest.raises(WeightsError) as caught:
        backbones.load("squeezenet1_1", path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def fit(name, tensors, layer):
    """Load tensors into a network that knows only shapes, as `load` does."""
    info = backbones.describe(name)
    with torch.device("meta"):
        network = backbones.network(name)
    load_into(network, tensors, info, info.layer(layer), origin="file.pth")
    return network


def mismatch(name, tensors, layer="spp"):
    with pytest.raises(WeightsError, match=r"weights 'file\.pth' do not fit") as caught:
        fit(name, tensors, layer)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 800
    return message


def test_both_formats_and_that_of_old_torch_give_the_tensors_back(tmp_path):
    old = tmp_path / "old.pth"
    torch.save(TENSORS, old, _use_new_zipfile_serialization=False)
    for path in (old, *(save(TENSORS, tmp_path / name) for name in ("a.pth", "a.safetensors"))):
        tensors = read_tensors(path)
        assert tensors.keys() == TENSORS.keys()
        assert all(tensors[key].equal(TENSORS[key]) for key in TENSORS)


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(as_zip, tmp_path):
    path, trace = tmp_path / "evil.pth", tmp_path / "was-run"
    torch.save({"a": RunsWhenRead(trace)}, path, _use_new_zipfile_serialization=as_zip)
    assert "refused because reading it could run code" in refusal(path)
    assert not trace.exists()


@pytest.mark.filterwarnings("always")
def test_a_bare_pickle_is_refused_without_a_warning_and_not_run(tmp_path, recwarn):
    path, trace = tmp_path / "evil.pth", tmp_path / "was-run"
    path.write_bytes(pickle.dumps(RunsWhenRead(trace)))
    assert "refused because reading it could run code" in refusal(path)
    assert not trace.exists()
    assert not recwarn.list


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.95])
def test_a_truncated_file_is_one_clear_line(suffix, kept, tmp_path):
    path = save({"a": torch.randn(100, 100)}, tmp_path / f"weights{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    refusal(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html>Not found</html>", b"\x00" * 64, b"PK"])
def test_a_file_of_something_else_is_one_clear_line(suffix, content, tmp_path):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    refusal(path)


@pytest.mark.parametrize(
    "content",
    [[torch.ones(2)], {"epoch": 3, "state_dict": {"a": torch.ones(2)}}, {1: torch.ones(2)}, 7],
)
def test_anything_but_tensors_by_name_is_no_state_dict(content, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    assert "no state dict" in refusal(path)


@pytest.mark.parametrize(
    "odd",
    [
        torch.ones(2).to_sparse(),
        torch.ones(2, device="meta"),
        torch.ones(2, dtype=torch.complex64),
    ],
    ids=["sparse", "shape", "complex"],
)
def test_tensors_that_no_network_computes_with_are_one_clear_line(odd, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({**TENSORS, "b.bias": odd}, path)
    assert "b.bias is sparse, quantized, complex or without values" in refusal(path)


def test_a_trunk_is_enough_for_its_maps_and_says_so_for_other_layers(trained):
    tensors = {k: v for k, v in trained("alexnet").items() if k.startswith("features.")}
    assert fit("alexnet", tensors, "conv5").features[0].weight.equal(tensors["features.0.weight"])
    assert mismatch("alexnet", tensors, "fc6") == (
        "weights 'file.pth' do not fit 'alexnet' up to layer 'fc6': "
        "missing: classifier.1.weight, classifier.1.bias; "
        "they suffice for conv1, conv2, conv3, conv4, conv5, spp"
    )


def test_another_shape_is_printed_beside_the_expected_one(trained):
    tensors = trained("squeezenet1_1")
    tensors["features.0.weight"] = torch.zeros(64, 3, 7, 7)
    message = mismatch("squeezenet1_1", tensors)
    assert "other shapes: features.0.weight is 64x3x7x7 instead of 64x3x3x3;" in message
    assert message.endswith("suffice for no layer of it")


def test_long_lists_are_cut_short(trained):
    assert "and 97 more" in mismatch("resnet18", {})
    assert "unexpected" in mismatch("resnet18", trained("mobilenet_v2"))


def test_a_deeper_relative_is_not_taken_for_the_network(on_meta):
    # Each tensor that ResNet-50 needs is in ResNet-101's file, in the right shape.
    deeper = on_meta("resnet101").state_dict()
    needed = on_meta("resnet50").state_dict()
    assert all(deeper[key].shape == tensor.shape for key, tensor in needed.items())
    assert "unexpected: layer3.6.conv1.weight" in mismatch("resnet50", deeper)


def test_what_a_layer_does_not_need_may_be_absent_or_of_any_shape_and_type(trained):
    tensors = {key: tensor.double() for key, tensor in trained("resnet18").items()}
    old = {key: tensor for key, tensor in tensors.items() if "num_batches" not in key}
    old["fc.weight"] = torch.zeros(3)
    del old["layer4.0.conv1.weight"]
    network = fit("resnet18", old, "layer3")
    assert network.bn1.running_var.equal(tensors["bn1.running_var"].float())
    assert network.layer3[1].conv2.weight.dtype == torch.float32
    assert network.layer4[1].conv2.weight.device.type == "meta"


@pytest.mark.parametrize(
    ("said", "understood"),
    [
        ('{"network": "spp-mini", "levels": [2, 1]}', True),
        ('{"network": "zf5-64", "levels": [2, 1]}', False),
        ('{"network": "spp-mini", "levels": [0]}', False),
        ('{"network": "spp-mini", "levels": 3}', False),
        ('{"network": "spp-mini"}', False),
        ("[1]", False),
        ("{", False),
        (None, False),
    ],
)
def test_weights_say_which_pyramid_they_were_trained_with(tmp_path, said, understood):
    path = tmp_path / "weights.safetensors"
    network = backbones.network("spp-mini", num_classes=3, levels=(2, 1))
    save_file(network.state_dict(), path, metadata=said and {"spptransfer": said})
    layers = backbones.layers_within(backbones.BackboneRef("spp-mini", path))
    assert ("fc6" in layers) == understood
