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


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(arranged_module, "_WANTED", {})


class Convolution:
    """8 filters of 3 x 3 on maps of 3 channels, with whatever order of weights it is told."""

    def __init__(self, padding=(1, 1), **settings):
        self.weights = ArrangedWeights(padding=padding, alike=ALIKE, **settings)
        self.plain = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0))
        self.arranged = self.made = 0
        arrange = self.weights._arrange

        def counted(*given):
            self.arranged += 1
            return arrange(*given)

        self.weights._arrange = counted

    def make(self):
        self.made += 1
        return self.plain

    @torch.inference_mode()
    def filter(self, height, width):
        """Filtered maps of a new shape, as they are and as torch has them."""
        drawn = torch.Generator().manual_seed(1)
        maps = torch.randn(1, height, width, 3, generator=drawn).permute(0, 3, 1, 2)

        def filtered(weight):
            return torch.ops.mkldnn._convolution_pointwise(
                maps, weight, None, *self.weights.geometry, "none", [], ""
            )

        weight, found = self.weights.first_use(maps.shape, self.make, filtered)
        padding, stride, dilation, groups = self.weights.geometry
        expected = nn.functional.conv2d(maps, self.plain, None, stride, padding, dilation, groups)
        torch.testing.assert_close(filtered(weight), found, rtol=0, atol=0)
        return found, expected

    def error(self, height, width):
        """How far the filtered maps of a new shape are from torch's."""
        found, expected = self.filter(height, width)
        return float((found - expected).norm() / expected.norm())


def test_every_shape_is_filtered_right_and_orders_are_few():
    convolution = Convolution()
    for width in range(5, 200, 7):
        assert convolution.error(11, width) < 1e-6
    assert len(convolution.weights._by_order) <= arranged_module._MAX_ORDERS


def test_convolutions_of_a_kind_learn_from_each_other_which_order_a_shape_wants():
    teacher, learner = Convolution(), Convolution()
    teacher.error(9, 20)
    assert learner.error(9, 20) < 1e-6  # arranged: its own weights are not there yet
    for width in range(21, 21 + ALIKE):
        teacher.error(9, width)
        assert learner.error(9, width) < 1e-6
    assert list(learner.weights._by_order) == list(teacher.weights._by_order)
    assert len(learner.weights._by_order) == 1
    assert learner.arranged == 1


@pytest.mark.parametrize(
    "other",
    [{"stride": (2, 2)}, {"dilation": (2, 2)}, {"padding": (0, 0)}],
    ids=lambda other: next(iter(other)),
)
def test_what_another_kind_wants_is_not_taken_over(other):
    Convolution().error(9, 20)
    known = dict(arranged_module._WANTED)
    Convolution(**other).filter(9, 20)
    assert len(arranged_module._WANTED) == len(known) + 1
    assert known.items() <= arranged_module._WANTED.items()


def test_what_is_known_is_forgotten_before_it_gets_too_much(monkeypatch):
    monkeypatch.setattr(arranged_module, "_MAX_SIZES", 3)
    convolution = Convolution()
    for width in range(20, 40):
        assert convolution.error(9, width) < 1e-6
        assert len(arranged_module._WANTED) <= 3


def test_after_some_shapes_of_one_order_it_is_guessed(monkeypatch):
    monkeypatch.setattr(arranged_module, "_SETTING_UP", 60.0)  # no call seems slow
    convolution = Convolution()
    for width in range(20, 40):
        convolution.error(9, width)
    assert convolution.arranged == ALIKE


def test_weights_are_made_once_for_each_shape_whose_order_is_asked_for():
    convolution = Convolution()
    convolution.error(9, 20)
    assert convolution.made == convolution.arranged == 1


def test_a_guess_that_takes_long_is_noticed(monkeypatch):
    convolution = Convolution()
    for width in range(20, 40):
        convolution.error(9, width)
    made = convolution.arranged
    monkeypatch.setattr(arranged_module, "_SETTING_UP", -60.0)  # any call seems slow
    assert convolution.error(9, 50) < 1e-6
    assert convolution.arranged == made + 1


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
