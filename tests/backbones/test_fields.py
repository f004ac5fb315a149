"""Centres of receptive fields are measured as they follow from kernels, strides and padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import pad

from spptransfer import backbones
from spptransfer.backbones.dilation import dilate
from spptransfer.backbones.fields import receptive_centres


def wrapped(module, layers):
    return backbones.from_module(module, layers, mean=[0.5] * 3, std=[0.25] * 3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("alexnet", {"conv1": (4, 3.5), "conv3": (16, 15.5), "conv5": (16, 15.5)}),
        ("mobilenet_v2", {"stage3": (8, 0.5), "stage5": (16, 0.5), "spp": (32, 0.5)}),
        pytest.param("vgg16", {"conv4_3": (8, 4), "conv5_3": (16, 8)}, marks=pytest.mark.slow),
        pytest.param("resnet50", {"layer3": (16, 0.5), "spp": (32, 0.5)}, marks=pytest.mark.slow),
    ],
)
def test_networks_of_this_package(name, expected):
    backbone = backbones.load(name, "random", layer=list(expected))
    assert receptive_centres(backbone, tuple(expected)) == expected


def test_a_dilated_network_keeps_its_centres():
    fine = dilate(backbones.load("mobilenet_v2", "random"), 16)
    assert receptive_centres(fine, ["spp"]) == {"spp": (16, 0.5)}


LAYERS = st.tuples(
    st.sampled_from(["convolution", "largest", "mean"]),
    st.integers(1, 7),  # kernel
    st.integers(1, 3),  # stride
    st.integers(0, 3),  # padding
    st.booleans(),  # an activation
)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(layers=st.lists(LAYERS, min_size=1, max_size=4), ceil=st.booleans())
@example(layers=[("convolution", 3, 3, 0, False)] * 3, ceil=False)  # a stride of 27
@example(  # no padding
    layers=[("convolution", kernel, 2, 0, False) for kernel in (1, 5, 7, 7)], ceil=False
)
def test_a_network_of_the_users(layers, ceil):
    modules, stride, offset = [], 1, 0.5
    for kind, kernel, step, padding, active in layers:
        padding = min(padding, kernel // 2)
        if kind == "convolution":
            modules.append(nn.Conv2d(3, 3, kernel, step, padding))
        else:
            pooling = nn.MaxPool2d if kind == "largest" else nn.AvgPool2d
            modules.append(pooling(kernel, step, padding, ceil_mode=ceil))
        modules.append(nn.ReLU() if active else nn.Identity())
        offset += stride * ((kernel - 1) / 2 - padding)
        stride *= step
    assume(stride <= 32)
    layer = str(len(modules) - 1)
    backbone = wrapped(nn.Sequential(*modules), [layer])
    assert receptive_centres(backbone, [layer]) == {layer: (stride, offset)}


class Padded(nn.Module):
    """Pads as far as the size of its input needs, as tensorflow's networks do."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)

    def forward(self, images):
        sides = [max(0, (-(-side // 2) - 1) * 2 + 3 - side) for side in images.shape[:1:-1]]
        return self.conv(pad(images, [half for x in sides for half in (x // 2, x - x // 2)]))


class Global(nn.Module):
    """Adds to each cell what all of the image has."""

    def __init__(self):
        super().__init__()
        self.near = nn.Conv2d(3, 4, 3, stride=4)
        self.both = nn.Identity()

    def forward(self, images):
        near = self.near(images)
        return self.both(near + near.mean((2, 3), keepdim=True))


def test_where_there_is_no_centre_of_its_own_none_is_told():
    padded = wrapped(Padded(), ["conv"])
    assert receptive_centres(padded, ["conv"]) == {}
    both = wrapped(Global(), ["near", "both"])
    assert receptive_centres(both, ["near", "both"]) == {"near": (4, 1.5)}


def test_what_a_network_computes_is_as_it_was_before():
    backbone = backbones.load("squeezenet1_1", "random:1")
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = backbone.maps_of(image, ["spp"])["spp"]
    receptive_centres(backbone, ["spp"])
    assert backbone.maps_of(image, ["spp"])["spp"].equal(before)
