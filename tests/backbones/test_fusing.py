from __future__ import annotations

import copy

import pytest
import torch
from drawn_weights import draw_weights
from torch import nn

from spptransfer import backbones
from spptransfer.backbones import fused as fused_module
from spptransfer.backbones import fusing
from spptransfer.backbones.arranged import ArrangedWeights
from spptransfer.backbones.fused import FusedConvolution
from spptransfer.backbones.fusing import fuse

FAMILIES = [
    "alexnet",
    "vgg11",
    "resnet18",
    "resnet50",
    "squeezenet1_1",
    "mobilenet_v2",
    "zf5",
    "overfeat-5",
]


def trunk_of(name, dtype=torch.float32):
    """The trunk alone, with weights that keep the size of the numbers."""
    with torch.device("meta"):
        trunk = backbones.network(name).trunk("spp")
    draw_weights(trunk)
    return trunk.to(dtype).to(memory_format=torch.channels_last)


def noise(*shape, dtype=torch.float32, seed=0):
    drawn = torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 4 - 2
    return drawn.to(dtype).contiguous(memory_format=torch.channels_last)


def relative_error(found, expected):
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def fused_modules(trunk):
    return [module for module in trunk.modules() if isinstance(module, FusedConvolution)]


def frozen(*modules):
    return nn.Sequential(*modules).requires_grad_(False).eval()


needs_onednn = pytest.mark.skipif(
    not fused_modules(fuse(frozen(nn.Conv2d(3, 8, 3)))),
    reason="this torch has no fused convolutions for this processor",
)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 6e-2)])
@torch.inference_mode()
def test_a_fused_trunk_computes_the_same_after_every_module(name, dtype, tolerance):
    if dtype == torch.bfloat16 and name == "overfeat-5":
        pytest.skip("torch has no LocalResponseNorm in bfloat16")
    trunk = trunk_of(name, dtype)
    fused = fuse(trunk)
    assert [name for name, _ in fused.named_children()] == [n for n, _ in trunk.named_children()]
    expected = found = noise(2, 3, 65, 97, dtype=dtype)
    kept = []
    for plain_module, module in zip(trunk, fused, strict=True):
        expected, found = plain_module(expected.clone()), module(found)
        kept.append((found, found.clone()))
        if not isinstance(plain_module, (nn.Conv2d, nn.Identity)):  # those await an activation
            assert relative_error(found, expected) <= tolerance
    assert relative_error(found, expected) <= tolerance
    for output, as_it_was in kept:
        torch.testing.assert_close(output, as_it_was, rtol=0, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_the_smallest_and_the_longest_images_are_filtered_alike(name):
    trunk, side = trunk_of(name), backbones.describe(name).min_side
    fused = fusing._fuse_sequence(trunk)
    for size in ((side, side), (side, 1500), (1500, side), (side + 1, side)):
        image = noise(1, 3, *size)
        expected, found = trunk(image.clone()), fused(image)
        assert found.shape == expected.shape
        assert relative_error(found, expected) <= 1e-4


@torch.inference_mode()
def test_layers_in_between_are_left_as_they_were_by_what_follows():
    layers = ("conv1", "conv3", "conv4", "spp")
    backbone = backbones.load("alexnet", "random", layer=layers)
    image = noise(2, 3, 80, 99)
    expected, found = backbone.maps_of(image, layers), backbone.fused().maps_of(image, layers)
    for layer in layers:
        assert relative_error(found[layer], expected[layer]) <= 1e-4


@needs_onednn
@pytest.mark.parametrize("name", FAMILIES)
def test_no_convolution_and_no_activation_after_one_is_left(name):
    fused = fuse(trunk_of(name))
    left = {type(module) for module in fused.modules()}
    assert nn.Conv2d not in left
    assert nn.ReLU6 not in left
    if name in ("alexnet", "vgg11", "resnet50"):
        assert nn.ReLU not in left


@needs_onednn
@torch.inference_mode()
def test_what_is_remembered_about_shapes_is_bounded(monkeypatch):
    monkeypatch.setattr(fused_module, "_MAX_SHAPES", 5)
    fused = fuse(frozen(nn.Conv2d(3, 8, 3), nn.ReLU()))
    for width in range(10, 40):
        found = fused(noise(1, 3, 9, width))
        assert found.shape == (1, 8, 7, width - 2)
        assert len(fused[0]._known) <= 5


class Residual(nn.Module):
    """Adds to what it convolves, which must not be overwritten meanwhile."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, maps):
        return (self.first(maps) + maps).relu()


class Shared(nn.Module):
    """Reads the shortcut once more after the sum."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 1)

    def forward(self, maps):
        shortcut = self.first(maps)
        return self.second(shortcut).add(shortcut) * shortcut


class Dependent(nn.Module):
    """Its way depends on the values, which no tracing can follow."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(8, 8, 1)

    def forward(self, maps):
        return self.first(maps) if maps.sum() > 0 else maps


class Overwriting(nn.Module):
    """Works in place on what another operation reads: order matters."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(8, 8, 1)

    def forward(self, maps):
        filtered = self.first(maps)
        doubled = filtered * 2
        return filtered.relu_() + doubled


@pytest.mark.parametrize("block", [Residual, Shared, Dependent, Overwriting])
@torch.inference_mode()
def test_blocks_of_any_making_keep_their_meaning(block):
    torch.manual_seed(0)
    trunk = frozen(nn.Conv2d(3, 8, 3), nn.Sequential(block(), block(), nn.ReLU6(), block()))
    image = noise(2, 3, 20, 30)
    # The trunk by itself, as a probe's disagreement would hide a mistake.
    fused = fusing._fuse_sequence(trunk)
    expected = trunk(image)
    for _ in range(2):
        assert relative_error(fused(image), expected) < 1e-5


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(3, 8, 3, padding="same"),
        nn.Conv2d(3, 8, 3, padding="valid"),
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 6, (3, 5), stride=(1, 2), dilation=(2, 1), groups=3, bias=False),
    ],
)
@torch.inference_mode()
def test_unusual_convolutions_are_taken_as_they_are(convolution):
    trunk = frozen(convolution, nn.ReLU())
    image = noise(2, 3, 21, 30)
    assert relative_error(fusing._fuse_sequence(trunk)(image), trunk(image)) < 1e-5


def test_a_network_whose_numbers_are_not_finite_is_left_alone():
    """Fused activations turn NaN into 0, which would hide that the weights are damaged."""
    trunk = trunk_of("alexnet")
    trunk[0].bias.data[3] = torch.nan
    assert fuse(trunk) is trunk


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_types_are_left_alone(dtype):
    trunk = frozen(nn.Conv2d(3, 8, 3)).to(dtype)
    assert fuse(trunk) is trunk


def test_a_trunk_that_the_operators_do_not_compute_right_is_left_alone(monkeypatch):
    trunk = trunk_of("squeezenet1_1")
    monkeypatch.setitem(fused_module._POST_OPERATORS, "relu", ("none", []))
    if fused_modules(fusing._fuse_sequence(trunk)):
        assert fuse(trunk) is trunk


@pytest.mark.parametrize("error", [RuntimeError("no"), AttributeError("no"), NotImplementedError()])
def test_missing_operators_are_no_error(monkeypatch, error):
    def fail(*_):
        raise error

    trunk = trunk_of("squeezenet1_1")
    monkeypatch.setattr(ArrangedWeights, "first_use", fail)
    assert fuse(trunk) is trunk


@torch.inference_mode()
def test_a_fused_trunk_can_be_copied_and_converted():
    trunk = trunk_of("squeezenet1_1")
    fused = fuse(trunk)
    image = noise(1, 3, 40, 50)
    expected = fused(image)
    torch.testing.assert_close(copy.deepcopy(fused)(image), expected)
    exact = copy.deepcopy(fused).double()(image.double())
    assert exact.dtype == torch.float64
    assert relative_error(exact, expected) < 1e-5


def test_gradients_pass_where_they_are_wanted():
    fused = fuse(frozen(nn.Conv2d(3, 8, 3), nn.ReLU()))
    image = noise(1, 3, 8, 8).requires_grad_()
    fused(image).sum().backward()
    assert image.grad is not None


def test_fusing_a_fused_trunk_changes_nothing():
    once = fuse(trunk_of("squeezenet1_1"))
    image = noise(1, 3, 40, 50)
    with torch.inference_mode():
        torch.testing.assert_close(fuse(once)(image), once(image))


POOL, PLAIN = "NonNegativeMaxPool", "MaxPool2d"


@needs_onednn
@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ([nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2)], POOL),
        ([nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.MaxPool2d(2)], POOL),
        ([nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Identity(), nn.MaxPool2d(2)], POOL),
        ([nn.Conv2d(3, 8, 3), nn.MaxPool2d(2)], PLAIN),
        ([nn.MaxPool2d(2), nn.Conv2d(3, 8, 3), nn.ReLU()], PLAIN),
        ([nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.MaxPool2d(2)], PLAIN),
        ([nn.Conv2d(3, 8, 3), nn.ReLU(), nn.LocalResponseNorm(3), nn.MaxPool2d(2)], PLAIN),
        ([nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.MaxPool2d(2)], PLAIN),
        ([nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)], PLAIN),
    ],
)
def test_bits_are_compared_only_right_after_an_activation(modules, expected):
    trunk = frozen(*modules)
    fused = fuse(trunk)
    pools = [type(module).__name__ for module in fused if "Pool" in type(module).__name__]
    assert pools == [expected]
    maps = noise(2, 3, 21, 18)
    with torch.inference_mode():
        torch.testing.assert_close(fused(maps), trunk(maps), rtol=1e-4, atol=1e-5)
