"""A dilated backbone has the cells of the one it was made of, and others between them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from spptransfer import backbones
from spptransfer.backbones.dilation import dilate
from spptransfer.errors import ConfigError


def images(*size: int) -> torch.Tensor:
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))


def assert_has_the_cells(fine: torch.Tensor, coarse: torch.Tensor, step: int) -> None:
    """Every cell of a map is that of the finer one which lies where it lies."""
    found = fine[:, :, ::step, ::step]
    assert found.shape == coarse.shape
    torch.testing.assert_close(found, coarse, rtol=0, atol=1e-4 * float(coarse.abs().max()))


# Of SqueezeNet's, whose borders are not padded, sides at which no pooling goes over the edge.
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mobilenet_v2", (64, 96)),
        ("resnet18", (64, 96)),
        ("resnet50", (64, 64)),
        ("squeezenet1_1", (95, 127)),
    ],
)
@pytest.mark.parametrize("stride", [8, 16])
def test_the_cells_of_a_map_are_cells_of_the_dilated_one(name, size, stride):
    backbone = backbones.load(name, "random")
    finer, before = dilate(backbone, stride), backbone.info.layer("spp").stride
    given = images(*size)
    coarse, fine = (one.maps_of(given, ["spp"])["spp"] for one in (backbone, finer))
    assert_has_the_cells(fine, coarse, max(1, before // stride))
    assert finer.info.layer("spp").stride == min(before, stride)


def test_maps_below_the_stride_stay_as_they_are():
    backbone = backbones.load("resnet18", "random", layer=["layer2", "layer3", "spp"])
    finer, given = dilate(backbone, 8), images(64, 64)
    coarse = backbone.maps_of(given, ["layer2", "layer3", "spp"])
    fine = finer.maps_of(given, ["layer2", "layer3", "spp"])
    for layer, step in {"layer2": 1, "layer3": 2, "spp": 4}.items():
        assert_has_the_cells(fine[layer], coarse[layer], step)
        assert finer.info.layer(layer).stride == 8


def test_the_backbone_that_was_given_stays_as_it_is():
    backbone = backbones.load("mobilenet_v2", "random")
    info, given = copy.deepcopy(backbone.info), images(64, 64)
    before = backbone.maps_of(given, ["spp"])["spp"]
    dilate(backbone, 8)
    assert backbone.info == info
    assert backbone.maps_of(given, ["spp"])["spp"].equal(before)


@pytest.mark.parametrize("stride", [32, 64])
def test_a_backbone_that_is_fine_enough_is_given_back(stride):
    backbone = backbones.load("mobilenet_v2", "random")
    assert dilate(backbone, stride) is backbone


def test_a_stride_between_powers_of_two_gives_the_smaller_one():
    finer = dilate(backbones.load("mobilenet_v2", "random"), 12)
    assert finer.info.layer("spp").stride == 8
    assert finer.maps_of(images(64, 96), ["spp"])["spp"].shape[2:] == (8, 12)


class Averaging(nn.Module):
    """A network that coarsens its map by an average, after another that was taken away."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.AvgPool2d(2), nn.AvgPool2d(2))

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return self.last(given)


class Patches(nn.Module):
    """A network that cuts its input into patches by their sizes alone."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.PixelUnshuffle(4)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return self.last(given)


class Counting(nn.Module):
    """A network that knows how many patches of 4 x 4 pixels its input has, as transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.last = nn.Conv2d(3, 8, 4, stride=4), nn.Identity()

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        rows, columns = (side // 4 for side in given.shape[2:])
        return self.last(self.patches(given).flatten(2).unflatten(2, (rows, columns)))


@pytest.mark.parametrize("network", [Averaging, Patches, Counting])
@pytest.mark.parametrize("stride", [2, 3])
def test_what_cannot_be_had_is_refused_in_a_line(network, stride):
    backbone = backbones.from_module(network(), ["last"], mean=[0.5] * 3, std=[0.5] * 3, name="net")
    with pytest.raises(ConfigError, match=r"^stride: .*$"):
        dilate(backbone, stride)


@pytest.mark.parametrize("name", ["timm/resnet18", "timm/efficientnet_lite0"])
def test_models_of_timm_are_dilated(name):
    try:
        backbone = backbones.load(name, "random")
    except ConfigError as error:  # timm is not installed
        pytest.skip(str(error))
    finer, given = dilate(backbone, 16), images(96, 96)
    coarse, fine = (one.maps_of(given, ["spp"])["spp"] for one in (backbone, finer))
    assert fine.shape[2:] == (6, 6)
    assert_has_the_cells(fine, coarse, 2)
