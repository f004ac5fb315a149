from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import real_data
from drawn_network import CLASSES, as_input, drawings, drawn_tensors
from image_files import encode, picture
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from spptransfer import backbones, images
from spptransfer.errors import ConfigError, DatasetError, ImageError, WeightsError
from spptransfer.pretraining import evaluation_views
from spptransfer.pretraining.evaluation import (
    Classifier,
    ViewAverager,
    evaluate,
    load_classifier,
    make_scheme,
    rank_of_truth,
)
from spptransfer.pretraining.evaluation_data import LabelledFiles
from spptransfer.pretraining.evaluation_network import read_about
from spptransfer.pretraining.evaluation_views import render_scales
from spptransfer.pretraining.source import FolderSource
from spptransfer.pyramid import bin_bounds

INFO = backbones.describe("spp-mini")
NETWORKS = ("alexnet", "resnet18", "squeezenet1_1", "mobilenet_v2", "zf5", "zf5-no-spp", "spp-mini")


class Labelled(list):
    """Images in memory."""

    classes = CLASSES


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A network that knows drawn images, whose file says nothing about it."""
    path = tmp_path_factory.mktemp("weights") / "drawn.safetensors"
    save_file(drawn_tensors(), path)
    return path


@pytest.fixture(scope="module")
def mini(weights) -> Classifier:
    return load_classifier("spp-mini", weights)


@pytest.fixture(scope="module")
def original() -> nn.Module:
    """The network that `mini` was taken apart from."""
    network = backbones.network("spp-mini", num_classes=len(CLASSES))
    tensors = {key: value.float() for key, value in drawn_tensors().items()}
    network.load_state_dict(tensors, strict=False)
    return network.eval()


def drawn(count: int, sides=(80, 150), seed: int = 0) -> Labelled:
    """Images of every class that the network knows."""
    return Labelled(drawings(count, sides, seed))


def wave(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.asarray(picture(height, width, seed))


def averaged(classifier: Classifier, originals: list[np.ndarray], scheme) -> np.ndarray:
    return ViewAverager(classifier).probabilities(render_scales(originals, scheme), scheme)


# The network in parts ----------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_the_parts_compute_what_the_network_computes(name):
    torch.manual_seed(0)
    network = backbones.network(name, num_classes=7).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    classifier = Classifier(network, backbones.describe(name))
    batch = torch.randn(2, 3, 70, 83)
    with torch.inference_mode():
        expected, found = network(batch), classifier(batch)
    assert classifier.num_classes == 7
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_taking_a_network_apart_leaves_it_whole():
    network = backbones.network("spp-mini", num_classes=4)
    before = list(network.state_dict())
    Classifier(network, INFO)
    assert list(network.state_dict()) == before
    assert network.training


@pytest.mark.parametrize("side", [64, 65, 71, 72, 73, 224])
def test_the_cells_of_a_window_are_those_of_its_own_map(mini, side):
    assert mini.cells(side) == mini.trunk(torch.zeros(1, 3, side, side)).shape[-1]


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
    found = drawn(2)
    labels = np.array([label for _, label in found])
    schemes = [make_scheme(name, size=96, resize=104) for name in ("10-crops", "10-maps")]
    crops, maps = (
        np.concatenate([averaged(mini, [image], scheme) for image, _ in found])
        for scheme in schemes
    )
    errors = [(rank_of_truth(found, labels) > 0).mean() for found in (crops, maps)]
    assert max(errors) < 0.85  # chance: 0.96
    assert abs(errors[0] - errors[1]) < 0.1
    assert (crops.argmax(1) == maps.argmax(1)).mean() > 0.75
    assert np.abs(crops - maps).sum(1).mean() < 0.3


@pytest.mark.slow
def test_the_embedded_network_knows_photographs_on_maps_as_on_crops():
    archive = real_data("tiny-imagenet-40k.zip")
    every = LabelledFiles.open(str(archive), "val")
    few = Labelled(every[number] for number in range(0, len(every), 16))
    few.classes = every.classes
    schemes = [make_scheme(name, size=64, resize=72) for name in ("10-crops", "10-maps")]
    crops, maps = evaluate([load_classifier("spp-mini", "embedded")], few, schemes, jobs=1).errors
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


def test_the_trunk_sees_an_image_once_per_scale_and_mirror_image(mini):
    seen = []
    handle = mini.trunk.register_forward_hook(lambda module, args, out: seen.append(args[0].shape))
    try:
        scheme = make_scheme("96-maps", size=64)
        mini.cells(64)
        seen.clear()
        averaged(mini, [wave(90, 120), wave(90, 120, 1)], scheme)
    finally:
        handle.remove()
    heights = [shape[2] for shape in seen]
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


def test_a_network_can_be_asked_from_many_sides_at_once(mini):
    """Threads share the networks; a batch's neighbours change nothing."""
    found, schemes = drawn(1), [make_scheme("10-maps", size=64), make_scheme("full", size=64)]
    one = evaluate([mini], found, schemes, jobs=1)
    three = evaluate([mini], found, schemes, jobs=3)
    counts = [[(e.images, e.top1_wrong, e.top5_wrong) for e in x.errors] for x in (one, three)]
    assert counts[0] == counts[1]


def test_bfloat16_is_close_to_float32(mini, weights):
    scheme, pixels = make_scheme("10-maps", size=64), [wave(90, 120)]
    exact = averaged(mini, pixels, scheme)
    rounded = averaged(load_classifier("spp-mini", weights).to(torch.bfloat16), pixels, scheme)
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded, exact, atol=0.05)


# Errors ------------------------------------------------------------------------------------


def test_ranks_count_the_better_classes_and_break_ties_by_index():
    scores = np.array([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    assert rank_of_truth(scores, np.array([0, 1, 0, 2])).tolist() == [0, 2, 0, 2]


def test_top_1_and_top_5_are_counted_over_all_images(mini):
    found = drawn(1)
    scheme = make_scheme("center_crop", size=64)
    (errors,) = evaluate([mini], found, [scheme]).errors
    every = np.concatenate([averaged(mini, [image], scheme) for image, _ in found])
    order = np.argsort(-every, axis=1)
    labels = np.array([label for _, label in found])[:, None]
    assert errors.top1_wrong == int((order[:, :1] != labels).all(1).sum())
    assert errors.top5_wrong == int((order[:, :5] != labels).all(1).sum())
    assert errors.top1_accuracy == 1 - errors.top1_wrong / len(found)
    assert errors.top5_accuracy == 1 - errors.top5_wrong / len(found)
    assert errors.seconds > 0


def test_several_networks_average_their_probabilities(mini):
    other = backbones.network("spp-mini", num_classes=len(CLASSES))
    other = Classifier(other, INFO)
    found, scheme = drawn(1), make_scheme("full", size=64)
    both = sum(
        np.concatenate([averaged(network, [image], scheme) for image, _ in found])
        for network in (mini, other)
    )
    wrong = int((rank_of_truth(both, np.array([label for _, label in found])) > 0).sum())
    (errors,) = evaluate([mini, other], found, [scheme]).errors
    assert errors.top1_wrong == wrong


def test_the_same_network_twice_changes_nothing(mini):
    found, scheme = drawn(1), make_scheme("10-maps", size=64)
    once, twice = (evaluate([mini] * count, found, [scheme]).errors[0] for count in (1, 2))
    assert (once.top1_wrong, once.top5_wrong) == (twice.top1_wrong, twice.top5_wrong)


class Awkward(Labelled):
    """The image at position 1 cannot be read."""

    def __getitem__(self, position):
        if position == 1:
            raise ImageError("cannot decode the image")
        return super().__getitem__(position)


def test_images_that_cannot_be_evaluated_are_named_and_do_not_count(mini, monkeypatch):
    monkeypatch.setattr(evaluation_views, "MAX_PIXELS", 64 * 400)
    found = Awkward([(wave(64, 64), 0), (wave(64, 64), 1), (wave(10, 100), 2), (wave(70, 64), 3)])
    result = evaluate([mini], found, [make_scheme("full", size=64, resize=64)])
    assert result.errors[0].images == 2
    assert list(result.failures) == [1, 2]
    assert result.failures[1] == "cannot decode the image"
    assert "at most 25,600 pixels are evaluated" in result.failures[2]


def test_scores_that_are_not_finite_are_no_answer():
    network = backbones.network("spp-mini", num_classes=len(CLASSES))
    nn.init.constant_(network.fc8.bias, torch.nan)
    with pytest.raises(DatasetError, match="not one image could be evaluated: the class scores"):
        evaluate([Classifier(network, INFO)], drawn(1), [make_scheme("full", size=64)])


def test_progress_is_told_of_every_image_under_every_scheme(mini):
    told = []
    schemes = [make_scheme(name, size=64) for name in ("full", "center_crop")]
    evaluate([mini], drawn(1), schemes, note=told.append)
    assert sum(told) == 48


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"precision": "float16"}, "precision: 'float16' is unknown; "),
        ({"device": "tpu"}, "device: 'tpu' is unknown; allowed: auto, cpu"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(mini, keywords, message):
    with pytest.raises(ConfigError, match=message):
        evaluate([mini], drawn(1), [make_scheme("full", size=64)], **keywords)


def test_windows_too_small_for_the_network_are_refused():
    network = Classifier(backbones.network("squeezenet1_1", num_classes=len(CLASSES)),
                         backbones.describe("squeezenet1_1"))  # fmt: skip
    for name, key in (("full", "resize"), ("10-maps", "size")):
        scheme = make_scheme(name, size=12, resize=14)
        with pytest.raises(ConfigError, match=f"{key}: 1. pixels are too few for squeezenet1_1"):
            evaluate([network], drawn(1), [scheme])


# Classes -----------------------------------------------------------------------------------


def test_other_classes_than_the_networks_are_refused(mini):
    found = drawn(1)
    found.classes = CLASSES[:-1]
    with pytest.raises(ConfigError, match="24 classes cannot be evaluated on images of 23"):
        evaluate([mini], found, [make_scheme("full", size=64)])


def test_no_images_are_refused(mini):
    with pytest.raises(DatasetError, match="no images"):
        evaluate([mini], Labelled(), [make_scheme("full", size=64)])


def described(path: Path, **about) -> Path:
    """The embedded weights with a description as `pretrain` writes it."""
    save_file(drawn_tensors(), path, metadata={"spptransfer": json.dumps(about)})
    return path


def test_classes_are_matched_by_name_where_the_weights_know_names(mini, tmp_path):
    path = described(tmp_path / "w.safetensors", classes=CLASSES)
    named = load_classifier("spp-mini", path)
    found, scheme = drawn(1), make_scheme("full", size=96)
    few = Labelled((image, 9 - label) for image, label in found[:10])
    few.classes = CLASSES[:10][::-1]
    (errors,) = evaluate([named], few, [scheme]).errors
    (all_of_them,) = evaluate([mini], Labelled(found[:10]), [scheme]).errors
    assert errors.top1_wrong == all_of_them.top1_wrong
    few.classes = (*CLASSES[:9], "zebra")
    with pytest.raises(ConfigError, match="no class 'zebra'"):
        evaluate([named], few, [scheme])
    with pytest.raises(ConfigError, match="different classes cannot be averaged"):
        evaluate([named, mini], found, [scheme])


# Files -------------------------------------------------------------------------------------


def test_weights_tell_how_they_were_trained(tmp_path):
    pipeline = {"network": {"levels": [4, 2]}, "images": {"resize": 72, "size": 64, "small": 48}}
    about = read_about(described(tmp_path / "w.safetensors", network="zf5", pipeline=pipeline))
    assert (about.network, about.levels, about.resize, about.size) == ("zf5", (4, 2), 72, 64)
    assert about.classes is None


@pytest.mark.parametrize("text", ["{", "[]", '{"pipeline": 3}', '{"classes": 3}'])
def test_a_damaged_description_is_refused(tmp_path, text):
    path = tmp_path / "w.safetensors"
    save_file(drawn_tensors(), path, metadata={"spptransfer": text})
    with pytest.raises(WeightsError, match="say of themselves is damaged"):
        load_classifier("spp-mini", path)


def test_a_network_with_another_pyramid_is_loaded_with_its_own(tmp_path):
    torch.manual_seed(0)
    network = backbones.network("zf5-64", num_classes=5, levels=(4, 1))
    path = tmp_path / "w.safetensors"
    save_file(network.state_dict(), path)
    with pytest.raises(
        WeightsError, match=r"fc6\.weight is 512x3264, not 512x9600; say which levels"
    ):
        load_classifier("zf5-64", path)
    assert load_classifier("zf5-64", path, levels=(4, 1)).pool.levels == (4, 1)
    about = {"pipeline": {"network": {"levels": [4, 1]}}}
    save_file(network.state_dict(), path, metadata={"spptransfer": json.dumps(about)})
    classifier = load_classifier("zf5-64", path)
    batch = torch.randn(1, 3, 64, 80)
    with torch.inference_mode():
        torch.testing.assert_close(classifier(batch), network.eval()(batch))


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
    assert "do not hold all of 'spp-mini': no conv1" in refused({"conv1.weight": None})
    assert "are not those of 'spp-mini': it has no more" in refused({"more": torch.zeros(2)})
    narrow = refused({"bn1.bias": torch.zeros(3)})
    assert narrow.endswith("bn1.bias is 3, not 64")
    assert "are those of 'zf5', not of 'spp-mini'" in refused({}, network="zf5")
    assert "name 2 classes, not all" in refused({}, classes=["a", "b"])
    with pytest.raises(WeightsError, match="no weights file at"):
        load_classifier("spp-mini", tmp_path / "nothing.pth")


def test_trunks_without_a_classifier_are_refused(alexnet_weights):
    with pytest.raises(WeightsError, match="do not hold the classes of 'alexnet'"):
        load_classifier("alexnet", alexnet_weights)


def test_labelled_files_are_the_same_from_a_folder_and_a_zip(tmp_path):
    folder = tmp_path / "data"
    for name in ("val/bee/2.png", "val/ant/deep/1.png", "val/bee/1.png", "val/stray.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode(picture(20, 30, len(name))))
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder).as_posix())
    unpacked = LabelledFiles(FolderSource(folder), "val")
    zipped = LabelledFiles.open(str(tmp_path / "data.zip"), "val")
    assert unpacked.classes == zipped.classes == ("ant", "bee")
    assert (
        unpacked.names == zipped.names == ("val/ant/deep/1.png", "val/bee/1.png", "val/bee/2.png")
    )
    for position, label in enumerate((0, 1, 1)):
        assert unpacked[position][1] == zipped[position][1] == label
        np.testing.assert_array_equal(unpacked[position][0], zipped[position][0])
    with pytest.raises(DatasetError, match="no images in class folders of 'test'"):
        LabelledFiles.open(str(folder), "test")
    (folder / "val/bee/2.png").write_bytes(b"")
    with pytest.raises(ImageError):
        unpacked[2]
