from __future__ import annotations

import pytest
import torch

from spptransfer import backbones, datasets


def test_backbones_are_listed_with_what_one_chooses_by(cli, tmp_path):
    done = cli("backbones", "--weights-dir", tmp_path)
    lines = done.out.splitlines()
    assert lines[0].split() == ["backbone", "channels", "stride", "weights", "layers"]
    assert [line.split()[0] for line in lines[1:-2]] == list(backbones.names())
    assert "any model of timm: spptransfer backbones 'timm/" in lines[-1]
    (alexnet,) = [line for line in lines if line.startswith("alexnet ")]
    assert "imagenet (absent)" in alexnet
    assert alexnet.endswith("conv5, spp, fc6, fc7")
    (zf5,) = [line for line in lines if line.startswith("zf5 ")]
    assert "none: use your own file" in zf5


def test_one_backbone_is_shown_with_all_its_layers(cli, tmp_path):
    done = cli("backbones", "alexnet", "--weights-dir", tmp_path)
    for layer in backbones.describe("alexnet").layers:
        assert f"\n{layer.name} " in done.out
    assert "input: any sides, from 31 pixels on" in done.out
    assert str(tmp_path) in done.out
    assert "fetched on first use" in done.out


def test_weights_that_are_present_are_said_to_be(cli, tmp_path):
    path = backbones.BackboneRef("alexnet", "imagenet", tmp_path).path()
    path.write_bytes(b"")
    lines = cli("backbones", "--weights-dir", tmp_path).out.splitlines()
    (alexnet,) = [line for line in lines if line.startswith("alexnet ")]
    assert "absent" not in alexnet
    listed = cli("backbones", "--json", "--weights-dir", tmp_path).json["backbones"]
    here = {entry["name"]: entry["weights"] for entry in listed}
    assert here["alexnet"] == {"imagenet": True}
    assert here["vgg16"] == {"imagenet": False}
    assert here["spp-mini"] == {"embedded": True}


def test_an_unknown_backbone_gets_the_nearest_name(cli):
    refused = cli("backbones", "sqeezenet1_1")
    assert refused.status == 2
    assert "did you mean 'squeezenet1_1'" in refused.complaint


def test_datasets_say_how_to_get_what_is_absent(cli, tmp_path):
    done = cli("datasets", "--data-root", tmp_path)
    assert done.status == 0
    for name in ("caltech101", "voc2007", "folder", "csv", "demo", "coco", "yolo", "scenes", "tar"):
        assert f"\n{name} " in done.out
        assert f"\n  {name}: " in done.out
    listed = {entry["name"]: entry for entry in cli("datasets", "--json").json["datasets"]}
    assert listed["caltech101"]["present"] is False
    assert "--fetch caltech101" in listed["caltech101"]["how"]


def test_datasets_that_are_here_are_counted(cli, caltech101_root):
    done = cli("datasets", "--data-root", caltech101_root)
    (line,) = [line for line in done.out.splitlines() if line.startswith("caltech101 ")]
    assert "9,144" in line
    assert "\n  caltech101: " not in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fetch", "nope"], "nothing to fetch for 'nope'; allowed: caltech101, voc2007"),
        (["--fetch", "voc2007", "--from", "nowhere.tar"], "nowhere.tar"),
        (["--from", "some.tar"], "--from needs --fetch NAME"),
    ],
)
def test_a_fetch_that_cannot_be_gets_one_line(cli, tmp_path, arguments, message):
    refused = cli("datasets", "--data-root", tmp_path, *arguments)
    assert refused.status == 2
    assert message in refused.complaint
    assert list(tmp_path.iterdir()) == []


def test_what_was_registered_is_listed_too(cli, tmp_path):
    conv = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=4), torch.nn.ReLU())
    mean = [0.5, 0.5, 0.5]
    backbones.register("my-net", lambda _: backbones.from_module(conv, "1", mean=mean, std=mean))
    datasets.register("my-photos", lambda root: None, how="ask me")
    try:
        (line,) = [x for x in cli("backbones").out.splitlines() if x.startswith("my-net ")]
        assert line.split()[1:3] == ["8", "4"]
        assert "\n  my-photos: ask me\n" in cli("datasets", "--data-root", tmp_path).out
    finally:
        datasets.unregister("my-photos")
