"""A user's own module as a backbone, by what a user sees."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional

from spptransfer.backbones import from_module
from spptransfer.errors import ConfigError

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


class Net(nn.Module):
    """Two stages, the second at stride 12, and a classifier; batch norms not where they look."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.stage = nn.Sequential(nn.Conv2d(8, 12, 3, stride=3, padding=1), nn.ReLU(inplace=True))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(12, 5)
        self.unused = nn.Conv2d(3, 3, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images):
        maps = self.relu(self.stem(images))
        maps = self.stage(self.bn(maps))
        return self.dropout(self.fc(self.pool(maps).flatten(1)))


def net(seed=0):
    torch.manual_seed(seed)
    module = Net()
    module.bn.running_mean.normal_()
    module.bn.running_var.uniform_(0.5, 2)
    return module


def wrap(module, layers, **options):
    return from_module(module, layers, **{"mean": MEAN, "std": STD, **options})


def refusal(module, layers, **options):
    with pytest.raises(ConfigError) as caught:
        wrap(module, layers, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def images(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_layers_are_described_in_the_order_of_computation():
    backbone = wrap(net(), ["output", "stage", "pool", "stem", "fc"])
    assert [(at.name, at.kind, at.channels, at.stride) for at in backbone.info.layers] == [
        ("stem", "map", 8, 4),
        ("stage", "map", 12, 12),
        ("pool", "vector", 12, None),
        ("fc", "vector", 5, None),
        ("output", "vector", 5, None),
    ]
    info = backbone.info
    assert backbone.layers == ("stem", "stage", "pool", "fc", "output")
    assert (info.name, info.mean, info.std) == ("Net", tuple(MEAN), tuple(STD))
    assert (info.stride, info.min_side, info.is_local) == (12, 16, False)
    assert (info.default_scales, info.default_levels(["stage"])) == ((224,), (6, 3, 2, 1))
    assert info.numbers_per_pixel == 8 / 4**2


def test_layers_are_those_of_the_module_whatever_follows_in_place():
    module = net().eval()
    batch = images(3, 3, 50, 70)
    backbone = wrap(module, ["stem", "stage.0", "pool", "output"])
    found = backbone.maps_of(batch, backbone.layers)
    found |= backbone.vectors_of(found, ["pool", "output"])
    with torch.inference_mode():
        stem = module.stem(batch)
        inner = module.stage[0](module.bn(stem.relu()))
        expected = [stem, inner, inner.relu().mean((2, 3)), module(batch)]
    for values, right in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(values, right, rtol=1e-5, atol=1e-6)


def test_the_module_is_left_as_it_was_and_may_be_trained_on():
    module = net()
    module.unused.eval()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    backbone = wrap(module, ["stage", "output"])
    batch = images(2, 3, 40, 40)
    first = backbone.maps_of(batch, ["stage"])["stage"]
    assert module.training
    assert not module.unused.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(value.equal(before[key]) for key, value in module.state_dict().items())
    assert not any(child._forward_hooks for child in module.modules())
    with torch.no_grad():
        module.stem.weight.zero_()
    assert backbone.maps_of(batch, ["stage"])["stage"].equal(first)
    assert not first.requires_grad


def test_what_lies_beyond_the_layer_is_not_computed_and_need_not_fit():
    class FixedHead(Net):
        def forward(self, images):
            return self.stage(self.relu(self.stem(images))).flatten(1) @ torch.ones(12 * 25, 3)

    backbone = wrap(FixedHead(), "stage")
    assert backbone.maps_of(images(1, 3, 90, 130), ["stage"])["stage"].shape == (1, 12, 8, 11)


def test_threads_get_the_layers_of_their_own_images():
    backbone = wrap(net(), ["stem", "output"])
    given = [(images(1, 3, 40 + i, 50, seed=i), ["stem", "output"][i % 2]) for i in range(60)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: backbone.maps_of(one[0], [one[1]])[one[1]], given))
    for (batch, layer), values in zip(given, found, strict=True):
        torch.testing.assert_close(values, backbone.maps_of(batch, [layer])[layer])


def test_it_travels_by_pickle():
    backbone = wrap(net(), ["stem", "output"])
    again, batch = pickle.loads(pickle.dumps(backbone)), images(1, 3, 32, 48)
    assert (again.info, again.weights_sha256) == (backbone.info, backbone.weights_sha256)
    assert again.maps_of(batch, ["stem"])["stem"].equal(backbone.maps_of(batch, ["stem"])["stem"])


def test_its_identity_is_that_of_its_numbers_and_its_name():
    base = wrap(net(), "stage").weights_sha256
    assert wrap(net(), ["stem", "output"]).weights_sha256 == base
    assert wrap(net().double(), "stage").weights_sha256 == base
    changed = net()
    changed.bn.running_var[3] += 1
    others = [wrap(net(1), "stage"), wrap(net(), "stage", name="other"), wrap(changed, "stage")]
    assert len({base, *(other.weights_sha256 for other in others)}) == 4


@pytest.mark.parametrize("multiple", [7, 16])
def test_sides_may_have_to_be_multiples(multiple):
    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(3, 6, multiple, stride=multiple)

        def forward(self, images):
            assert images.shape[2] % multiple == images.shape[3] % multiple == 0, "no multiple"
            return self.embed(images)

    assert "takes images of 16 x 16" not in refusal(Patches(), "nowhere", grid=multiple)
    info = wrap(Patches(), "embed", grid=multiple).info
    assert (info.layer("embed").stride, info.grid) == (multiple, multiple)
    assert info.min_side % multiple == 0


def test_a_module_of_one_size_is_known_by_it():
    class Fixed(Net):
        def forward(self, images):
            assert images.shape[2:] == (96, 96), f"{list(images.shape)} is not 96 x 96"
            return super().forward(images)

    info = wrap(Fixed(), ["stage", "fc"]).info
    assert (info.min_side, info.default_scales, info.layer("stage").stride) == (96, (96,), 12)
    message = refusal(Fixed(), "stage", min_side=64)
    assert message == (
        "backbone 'Fixed' does not take images of 64 x 64 pixels: [2, 3, 64, 64] is not 96 x 96"
    )


def test_an_unknown_layer_is_named_with_the_nearest_ones():
    message = refusal(net(), "stages")
    assert message.startswith("unknown layer 'stages' of backbone 'Net'; nearest of its 10 sub")
    assert "stage" in message


class Puts(nn.Module):
    """Puts out something."""

    def __init__(self, function):
        super().__init__()
        self.own, self.function = nn.Conv2d(3, 4, 3, padding=1), function

    def forward(self, images):
        return self.function(self.own(images))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda maps: (maps, maps), "puts out a tuple instead of a tensor"),
        (lambda maps: maps.flatten(2), "puts out N x 4 x 256 numbers; a map is N x C x h x w"),
        (lambda maps: maps[0], "puts out N x 16 x 16 numbers"),
        (lambda maps: maps[:1], "puts out N x 4 x 16 x 16 numbers"),
        (lambda maps: maps / 0, "puts out numbers that are not finite"),
        (lambda maps: maps.flatten(1), "a number of channels that depends on the image's size"),
        (lambda maps: maps.permute(0, 2, 3, 1), "a number of channels that depends on the image"),
        (
            lambda maps: functional.adaptive_avg_pool2d(maps, 7),
            "is a map of as many cells whatever the image's size",
        ),
        (lambda maps: functional.dropout(maps, 0.5), "depends on chance or on the other images"),
        (lambda maps: maps - maps.mean(), "depends on chance or on the other images of a batch"),
    ],
)
def test_what_is_no_layer_is_refused(function, said):
    message = refusal(Puts(function), "output")
    assert said in message
    assert "layer 'output' of backbone 'Puts'" in message


def test_a_layer_must_be_called_once():
    assert "'unused' of backbone 'Net' is called 0 times" in refusal(net(), "unused")
    shared = nn.ReLU()
    twice = nn.Sequential(nn.Conv2d(3, 4, 1), shared, nn.Conv2d(4, 4, 1), shared)
    assert "'1' of backbone 'Sequential' is called 2 times" in refusal(twice, "1")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mean": [0.5]}, "mean: [0.5] must be three numbers"),
        ({"std": "abc"}, "std: 'abc' must be three numbers"),
        ({"std": [1, 0, 1]}, "std: [1, 0, 1] must be larger than 0"),
    ],
)
def test_mean_and_std_must_be_three_numbers(options, said):
    assert said in refusal(net(), "stage", **options)


def test_what_is_no_module_or_has_no_values_is_refused():
    assert "function is no torch.nn.Module" in refusal(lambda images: images, "output")
    with torch.device("meta"):
        assert "'Net' cannot be copied: Cannot copy out of meta" in refusal(Net(), "stage")
