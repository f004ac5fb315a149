"""Weights are brought into few orders, mostly guessed; a wrong guess costs time, not accuracy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spptransfer.backbones import arranged as arranged_module
from spptransfer.backbones.arranged import ArrangedWeights
from spptransfer.backbones.fused import FusedConvolution
from spptransfer.backbones.fusing import fuse

PROBE = nn.Sequential(nn.Conv2d(3, 8, 3)).requires_grad_(False).eval()
pytestmark = pytest.mark.skipif(
    not isinstance(fuse(PROBE)[0], FusedConvolution),
    reason="this torch has no fused convolutions for this processor",
)
ALIKE = 4


class Convolution:
    """8 filters of 3 x 3 on maps of 3 channels, with whatever order of weights it is told."""

    def __init__(self, **settings):
        self.weights = ArrangedWeights(padding=(1, 1), alike=ALIKE, **settings)
        self.plain = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0))
        self.made = 0

    def make(self):
        self.made += 1
        return self.plain

    @torch.inference_mode()
    def error(self, height, width):
        """How far the filtered maps of a new shape are from torch's."""
        drawn = torch.Generator().manual_seed(1)
        maps = torch.randn(1, height, width, 3, generator=drawn).permute(0, 3, 1, 2)

        def filtered(weight):
            return torch.ops.mkldnn._convolution_pointwise(
                maps, weight, None, *self.weights.geometry, "none", [], ""
            )

        weight, found = self.weights.first_use(maps.shape, self.make, filtered)
        expected = nn.functional.conv2d(maps, self.plain, padding=1)
        torch.testing.assert_close(filtered(weight), found, rtol=0, atol=0)
        return float((found - expected).norm() / expected.norm())


def test_every_shape_is_filtered_right_and_orders_are_few():
    convolution = Convolution()
    for width in range(5, 200, 7):
        assert convolution.error(11, width) < 1e-6
    assert len(convolution.weights._by_order) <= arranged_module._MAX_ORDERS


def test_after_some_shapes_of_one_order_it_is_guessed(monkeypatch):
    monkeypatch.setattr(arranged_module, "_SETTING_UP", 60.0)  # no call seems slow
    convolution = Convolution()
    for width in range(20, 40):
        convolution.error(9, width)
    assert convolution.made == ALIKE


def test_a_guess_that_takes_long_is_noticed(monkeypatch):
    convolution = Convolution()
    for width in range(20, 40):
        convolution.error(9, width)
    made = convolution.made
    monkeypatch.setattr(arranged_module, "_SETTING_UP", -60.0)  # any call seems slow
    assert convolution.error(9, 50) < 1e-6
    assert convolution.made == made + 1


def test_a_wrong_guess_costs_no_accuracy():
    convolution = Convolution()
    other = torch.ops.mkldnn._reorder_convolution_weight(
        convolution.plain, *convolution.weights.geometry, []
    )
    convolution.weights._by_order = {b"wrong": other}
    convolution.weights._arranged = ALIKE
    assert convolution.error(40, 50) < 1e-6


def test_too_many_orders_are_forgotten():
    convolution = Convolution()
    convolution.error(40, 50)
    (order,) = convolution.weights._by_order.values()
    convolution.weights._by_order = {bytes([n]): order for n in range(arranged_module._MAX_ORDERS)}
    assert convolution.error(40, 60) < 1e-6
    assert len(convolution.weights._by_order) == 1
