from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import real_data
from drawn_network import CLASSES, as_input
from evaluation_cases import Labelled, averaged, computing, drawn, wave
from PIL import Image
from runtime_cases import PACKAGES, need

from spptransfer import backbones, images
from spptransfer.errors import ConfigError
from spptransfer.pretraining.evaluation import (
    NetworkClassifier,
    ViewAverager,
    load_classifier,
    make_scheme,
    measure_errors,
    rank_of_truth,
)
from spptransfer.pretraining.evaluation_views import render_scales
from spptransfer.pretraining.source import LabelledFiles
from spptransfer.pyramid import bin_bounds

# Views: the slow and obvious way -----------------------------------------------------------


def paper_windows(height, width, size):
    """Centre, four corners, four middles of the sides; without repetitions by their places."""
    tops, lefts = (0, (height - size) // 2, height - size), (0, (width - size) // 2, width - size)
    if min(height, width) == size:
        long = lefts if width >= height else tops
        return [(0, at) if width >= height else (at, 0) for at in long]
    return [(top, left) for top in tops for left in lefts]


def pooled_by_hand(region: torch.Tensor, levels) -> torch.Tensor:
    """The pyramid of a C x h x w region, bin by bin, channel-major within a level."""
    blocks = []
    for level in levels:
        rows, columns = (bin_bounds(side, level) for side in region.shape[1:])
        bins = [region[:, a:b, c:d].amax((1, 2)) for a, b in rows for c, d in columns]
        blocks.append(torch.stack(bins, dim=1).flatten())
    return torch.cat(blocks)


def nearest_cell(pixel: int, stride: int, last: int) -> int:
    """Half way between two cells, the second one."""
    return min(range(last + 1), key=lambda cell: (abs(stride * cell - pixel), -cell))


@torch.inference_mode()
def slow_96_maps(network, pixels: np.ndarray, size: int, scales) -> np.ndarray:
    """Every view on its own: map, nearest cells, bins, fully connected layers, softmax."""
    stride, cells = 8, network.trunk("spp")(torch.zeros(1, 3, size, size)).shape[-1]
    image, found = Image.fromarray(pixels), []
    for scale in scales:
        resized = images.render(image, scale)
        height, width = resized.shape[:2]
        for flip in (False, True):
            maps = network.trunk("spp")(as_input((resized[:, ::-1] if flip else resized)[None]))[0]
            for top, left in paper_windows(height, width, size):
                left = width - size - left if flip else left
                row, column = (
                    nearest_cell(at, stride, side - cells)
                    for at, side in zip((top, left), maps.shape[1:], strict=True)
                )
                region = maps[:, row : row + cells, column : column + cells]
                vector = pooled_by_hand(region, (6, 3, 2, 1))
                hidden = network.fc7(network.fc6(vector[None]).relu()).relu()
                found.append(network.fc8(hidden).softmax(1)[0])
    return torch.stack(found).mean(0).numpy()


@pytest.mark.parametrize("shape", [(80, 117), (131, 90), (75, 75)])
def test_96_views_on_maps_are_what_each_view_on_its_own_averages_to(mini, original, shape):
    scales = (64, 74, 102, 130)
    pixels = wave(*shape)
    scheme = make_scheme("96-maps", size=64, scales=scales)
    found = averaged(mini, [pixels], scheme)[0]
    np.testing.assert_allclose(found, slow_96_maps(original, pixels, 64, scales), atol=2e-5)


@torch.inference_mode()
def slow_crops(network, pixels: np.ndarray, size: int, resize: int) -> np.ndarray:
    """Centre and corners, cropped, flipped, and classified one by one."""
    resized = images.render(Image.fromarray(pixels), resize)
    bottom, right = resized.shape[0] - size, resized.shape[1] - size
    places = [(bottom // 2, right // 2), (0, 0), (0, right), (bottom, 0), (bottom, right)]
    crops = [resized[top : top + size, left : left + size] for top, left in places]
    every = [as_input(view[None]) for crop in crops for view in (crop, crop[:, ::-1])]
    return torch.cat([network(view).softmax(1) for view in every]).mean(0).numpy()


def test_10_crops_are_what_each_crop_on_its_own_averages_to(mini, original):
    pixels = wave(90, 120)
    found = averaged(mini, [pixels], make_scheme("10-crops", size=64, resize=75))[0]
    np.testing.assert_allclose(found, slow_crops(original, pixels, 64, 75), atol=2e-5)


@torch.inference_mode()
def test_one_view_is_the_networks_own_answer(mini, original):
    pixels = wave(90, 120)
    resized = images.render(Image.fromarray(pixels), 72)
    full = averaged(mini, [pixels], make_scheme("full", size=64, resize=72))[0]
    expected = original(as_input(resized[None])).softmax(1)[0]
    np.testing.assert_allclose(full, expected, atol=2e-5)
    crop = averaged(mini, [pixels], make_scheme("center_crop", size=64, resize=72))[0]
    expected = original(as_input(resized[None, 4:68, 16:80])).softmax(1)[0]
    np.testing.assert_allclose(crop, expected, atol=2e-5)


def test_98_views_are_the_96_and_two_full_ones(mini):
    pixels = wave(90, 120)
    sizes = {"size": 64, "resize": 72}
    many = averaged(mini, [pixels], make_scheme("96-maps", **sizes))
    whole = averaged(mini, [pixels], make_scheme("full", **sizes))
    mirror = averaged(mini, [pixels[:, ::-1]], make_scheme("full", **sizes))
    both = averaged(mini, [pixels], make_scheme("98-maps", **sizes))
    # A mirrored image is resized to the mirrored pixels up to rounding.
    np.testing.assert_allclose(both, (96 * many + whole + mirror) / 98, atol=2e-3)


def test_probabilities_add_up_to_one(mini):
    for name in ("center_crop", "full", "10-crops", "10-maps", "96-maps", "98-maps"):
        found = averaged(mini, [wave(80, 120), wave(80, 120, 1)], make_scheme(name, size=64))
        np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)


# Maps and crops ----------------------------------------------------------------------------


def test_where_the_window_is_the_image_maps_and_crops_are_the_same(mini):
    sizes = {"size": 64, "resize": 64}
    pixels = [wave(80, 80), wave(80, 80, 1)]
    maps = averaged(mini, pixels, make_scheme("10-maps", **sizes))
    crops = averaged(mini, pixels, make_scheme("10-crops", **sizes))
    np.testing.assert_allclose(maps, crops, atol=1e-6)


def test_on_a_trained_network_views_on_maps_answer_as_crops_do(mini):
    found = drawn(1)
    labels = np.array([label for _, label in found])
    schemes = [make_scheme(name, size=96, resize=104) for name in ("10-crops", "10-maps")]
    crops, maps = (
        np.concatenate([averaged(mini, [image], scheme) for image, _ in found])
        for scheme in schemes
    )
    errors = [(rank_of_truth(found, labels) > 0).mean() for found in (crops, maps)]
    assert max(errors) < 0.85  # chance: 0.96
    assert abs(errors[0] - errors[1]) < 0.1
    assert (crops.argmax(1) == maps.argmax(1)).mean() > 0.7
    assert np.abs(crops - maps).sum(1).mean() < 0.3


@pytest.mark.slow
def test_the_embedded_network_knows_photographs_on_maps_as_on_crops():
    archive = real_data("tiny-imagenet-40k.zip")
    every = LabelledFiles.open(str(archive), "val")
    few = Labelled(every[number] for number in range(0, len(every), 16))
    few.classes = every.classes
    schemes = [make_scheme(name, size=64, resize=72) for name in ("10-crops", "10-maps")]
    crops, maps = measure_errors([load_classifier("spp-mini", "embedded")], few, schemes).errors
    assert max(crops.top1_error, maps.top1_error) < 0.75  # chance: 0.995
    assert max(crops.top5_error, maps.top5_error) < 0.5
    assert abs(crops.top1_error - maps.top1_error) < 0.06


@pytest.mark.slow
def test_on_real_weights_and_photographs_views_on_maps_agree_with_crops():
    """A network without a pyramid: its head is a convolution and the mean over the map."""
    network = load_classifier("squeezenet1_1", real_data("weights/squeezenet1_1.pth"))
    root = real_data("caltech101/101_ObjectCategories")
    files = sorted(root.glob("*/image_0001.jpg"))[::6]
    originals = [np.asarray(images.decode(images.read_bytes(file))) for file in files]
    schemes = [make_scheme(name) for name in ("10-crops", "10-maps")]
    crops, maps = (
        np.concatenate([averaged(network, [image], scheme) for image in originals])
        for scheme in schemes
    )
    best = np.argsort(-crops)[:, :5]
    assert (crops.argmax(1) == maps.argmax(1)).mean() > 0.6
    assert np.mean([top in five for top, five in zip(maps.argmax(1), best, strict=True)]) > 0.9


# What is computed --------------------------------------------------------------------------


def test_the_trunk_sees_an_image_once_per_scale_and_mirror_image(mini, monkeypatch):
    scheme, seen = make_scheme("96-maps", size=64), []
    averager = ViewAverager(mini, options=computing())
    maps = averager.runtime.maps

    def noted(pixels, layers):
        seen.append(pixels.shape)
        return maps(pixels, layers)

    monkeypatch.setattr(averager.runtime, "maps", noted)
    views = render_scales([wave(90, 120), wave(90, 120, 1)], scheme)
    averager.probabilities(views, scheme)
    heights = [shape[1] for shape in seen]
    assert heights == [scale for at in scheme.scales for scale in (at.scale, at.scale)]
    assert all(shape[0] == 2 for shape in seen)


def test_views_that_coincide_are_computed_once_and_counted_often(mini):
    rows = []
    handle = mini.score.register_forward_hook(lambda module, args, out: rows.append(len(args[0])))
    try:
        averaged(mini, [wave(64, 64)], make_scheme("10-maps", size=64, resize=64))
    finally:
        handle.remove()
    assert rows == [2]


def test_bfloat16_is_close_to_float32(mini, weights):
    scheme, pixels = make_scheme("10-maps", size=64), [wave(90, 120)]
    exact = averaged(mini, pixels, scheme)
    network = load_classifier("spp-mini", weights)
    rounded = averaged(network, pixels, scheme, precision="bfloat16")
    assert rounded.dtype == np.float32
    assert not np.array_equal(rounded, exact)
    np.testing.assert_allclose(rounded, exact, atol=0.05)
    np.testing.assert_array_equal(averaged(network, pixels, scheme), exact)


@pytest.mark.parametrize("runtime", PACKAGES)
@pytest.mark.parametrize("name", ["full", "10-crops", "10-maps"])
def test_another_runtime_gives_torchs_probabilities(mini, runtime, name):
    need(runtime)
    scheme, pixels = make_scheme(name, size=64), [wave(90, 120), wave(90, 120, 1)]
    found = averaged(mini, pixels, scheme, runtime=runtime)
    np.testing.assert_allclose(found, averaged(mini, pixels, scheme), atol=1e-5)


@pytest.mark.parametrize("runtime", PACKAGES)
def test_another_runtime_knows_networks_whose_map_is_averaged(runtime):
    need(runtime)
    torch.manual_seed(0)
    info = backbones.describe("resnet18")
    network = NetworkClassifier(backbones.network("resnet18", num_classes=5), info)
    scheme, pixels = make_scheme("10-maps", size=64), [wave(90, 120)]
    found = averaged(network, pixels, scheme, runtime=runtime)
    np.testing.assert_allclose(found, averaged(network, pixels, scheme), atol=1e-5)


def test_a_runtimes_bfloat16_is_close_to_float32_and_its_own(weights):
    need("openvino")
    scheme, pixels = make_scheme("10-maps", size=64), [wave(90, 120)]
    exact, rounded = (
        averaged(load_classifier("spp-mini", weights), pixels, scheme, runtime="openvino", **low)
        for low in ({}, {"precision": "bfloat16"})
    )
    np.testing.assert_allclose(rounded, exact, atol=0.05)
    assert not np.array_equal(rounded, exact)


def test_windows_too_small_for_the_network_are_refused():
    network = NetworkClassifier(backbones.network("squeezenet1_1", num_classes=len(CLASSES)),
                         backbones.describe("squeezenet1_1"))  # fmt: skip
    for name, key in (("full", "resize"), ("10-maps", "size")):
        scheme = make_scheme(name, size=12, resize=14)
        with pytest.raises(ConfigError, match=f"{key}: 1. pixels are too few for squeezenet1_1"):
            measure_errors([network], drawn(1), [scheme])
