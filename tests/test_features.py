from __future__ import annotations

import functools
import io
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from extraction_cases import Net, assert_near, awkward_images, make_dataset
from image_files import encode, picture
from PIL import Image, ImageOps
from sklearn.base import clone

from spptransfer import SPPFeatures, backbones, images
from spptransfer.errors import ConfigError, ImageError

NETWORK = ("squeezenet1_1", "random:0")
LEVELS = (6, 3, 2, 1)


def small(**changes) -> SPPFeatures:
    return SPPFeatures(*NETWORK, **{"levels": LEVELS, "scales": (64,), "device": "cpu"} | changes)


def brute_force_pyramid(maps: np.ndarray, levels, reduce=np.max) -> np.ndarray:
    """Every bin cut out of a C x H x W map on its own."""
    numbers = []
    channels, height, width = maps.shape
    for n in levels:
        for channel in range(channels):
            for i in range(n):
                top, bottom = math.floor(i * height / n), math.ceil((i + 1) * height / n)
                for j in range(n):
                    left, right = math.floor(j * width / n), math.ceil((j + 1) * width / n)
                    numbers.append(reduce(maps[channel, top:bottom, left:right]))
    return np.array(numbers)


@pytest.fixture(scope="module")
def spp() -> SPPFeatures:
    return small().fit()


@functools.cache
def network():
    return backbones.load(*NETWORK)


def slow_features(data: bytes, scale: int = 64, levels=LEVELS, reduce=np.max) -> np.ndarray:
    """Pillow, torch and brute force, one image at a time; the resize is checked on its own."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    width, height = image.size
    shorter = min(width, height)
    exact = [math.floor(side * scale / shorter + 0.5) for side in (height, width)]
    size = [min(side, 16 * scale) for side in exact]
    samples = images.resize(image, *size) / 255
    normal = (samples - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.inference_mode():
        maps = network()(torch.from_numpy(normal.transpose(2, 0, 1)[None]).float())
    return brute_force_pyramid(maps[0].numpy(), levels, reduce)


def test_features_equal_pillow_torch_and_brute_force(spp, tmp_path):
    dataset = make_dataset(tmp_path, awkward_images())
    for path, fast in zip(dataset.paths(), spp.transform(dataset.paths()), strict=True):
        slow = slow_features(path.read_bytes())
        assert fast.shape == slow.shape
        assert_near(fast, slow)


def test_mean_pooling_equals_brute_force(tmp_path):
    data = encode(picture(90, 130))
    (tmp_path / "a.png").write_bytes(data)
    fast = small(pooling="mean", levels=(3, 2)).transform([tmp_path / "a.png"])[0]
    slow = slow_features(data, levels=(3, 2), reduce=np.mean)
    assert_near(fast, slow)


@pytest.fixture(scope="module")
def photos():
    sizes = [(80, 120), (90, 60), (80, 120), (64, 64), (120, 80), (80, 120), (50, 300)]
    return [np.array(picture(*size, seed=i)) for i, size in enumerate(sizes)]


@pytest.fixture(scope="module")
def paths(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i, photo in enumerate(photos):
        Image.fromarray(photo).save(folder / f"{i}.png")
    return [folder / f"{i}.png" for i in range(len(photos))]


def test_features_do_not_depend_on_the_batch_the_order_or_the_workers(spp, photos):
    together = spp.transform(photos)
    alone = np.concatenate([spp.transform([photo]) for photo in photos])
    backwards = spp.transform(photos[::-1])[::-1]
    one_worker = small(n_jobs=1).transform(photos)
    for other in (alone, backwards, one_worker):
        assert_near(other, together)


def test_arrays_and_paths_agree(spp, photos, paths):
    from_arrays = spp.transform(photos)
    np.testing.assert_array_equal(spp.transform(paths), from_arrays)
    np.testing.assert_array_equal(spp.transform([str(path) for path in paths]), from_arrays)
    np.testing.assert_array_equal(spp.transform(np.array(paths, dtype=str)), from_arrays)


def test_more_images_than_a_chunk_keep_their_order(monkeypatch, spp, photos):
    whole = spp.transform(photos)
    monkeypatch.setattr("spptransfer.features.CHUNK", 3)
    assert_near(spp.transform(photos), whole)


def test_scales_are_concatenated_averaged_or_maximised(photos):
    at_64, at_96 = (small(scales=(s,), levels=(2,)).transform(photos) for s in (64, 96))
    both = {"scales": (64, 96), "levels": (2,)}
    for combine, expected in {
        "concat": np.hstack([at_64, at_96]),
        "mean": (at_64 + at_96) / 2,
        "max": np.maximum(at_64, at_96),
    }.items():
        assert_near(small(combine=combine, **both).transform(photos), expected)
    swapped = small(scales=(96, 64), levels=(2,)).transform(photos)
    assert_near(swapped, np.hstack([at_96, at_64]))


def test_flipped_features_are_the_mean_over_the_image_and_its_mirror():
    plain = np.array(picture(64, 90))  # at its own scale: a resize rounds before or after
    both = small(levels=(4, 2, 1)).transform([plain, plain[:, ::-1].copy()])
    flipped = small(levels=(4, 2, 1), flip=True).transform([plain])
    assert_near(flipped[0], both.mean(axis=0))


def test_no_images_give_an_empty_matrix():
    assert small(levels=(1,)).transform([]).shape == (0, 512)


# ---- scikit-learn's conventions ----


def test_the_constructor_loads_nothing_and_checks_nothing(monkeypatch):
    monkeypatch.setattr(backbones, "load", None)
    spp = SPPFeatures("no such backbone", "no/such/file.pth", levels=[-1])
    assert clone(spp).get_params() == spp.get_params()
    assert "no such backbone" in repr(spp)


def test_a_pickle_holds_no_weights_and_computes_the_same(spp, photos):
    data = pickle.dumps(spp)
    assert len(data) < 10_000
    np.testing.assert_array_equal(pickle.loads(data).transform(photos), spp.transform(photos))


def test_changed_parameters_are_followed_without_a_fit(photos):
    spp = small(levels=(1,)).fit()
    assert spp.transform(photos[:1]).shape == (1, 512)
    assert spp.set_params(levels=(2,)).transform(photos[:1]).shape == (1, 2048)
    assert len(spp.get_feature_names_out()) == 2048


def test_pandas_output_has_columns_named_by_scale_level_channel_and_bin(photos):
    pandas = pytest.importorskip("pandas")
    frame = small(levels=(2, 1)).set_output(transform="pandas").fit_transform(photos[:2])
    assert isinstance(frame, pandas.DataFrame)
    assert frame.columns[0] == "scale64_level2_channel0_bin0_0"
    assert frame.columns[3] == "scale64_level2_channel0_bin1_1"
    assert frame.columns[4] == "scale64_level2_channel1_bin0_0"
    assert frame.columns[-1] == "scale64_level1_channel511_bin0_0"
    assert frame.columns.is_unique


def test_names_point_at_the_right_numbers(photos):
    spp = small(levels=(3, 1), scales=(64, 80)).fit()
    X, names = spp.transform(photos[:1])[0], list(spp.get_feature_names_out())
    for scale in (64, 80):
        of_channel = [
            X[names.index(f"scale{scale}_level3_channel7_bin{i}_{j}")]
            for i in range(3)
            for j in range(3)
        ]
        assert max(of_channel) == X[names.index(f"scale{scale}_level1_channel7_bin0_0")]


def test_names_of_combined_scales_and_of_vectors(photos):
    combined = small(levels=(1,), scales=(64, 80), combine="mean").get_feature_names_out()
    assert combined[0] == "mean_level1_channel0_bin0_0"
    vector = SPPFeatures("spp-mini", "embedded", layer="fc7", scales=(64,), device="cpu")
    names = vector.get_feature_names_out()
    assert names[0] == "scale64_unit0"
    assert vector.transform(photos[:1]).shape == (1, len(names))


@pytest.mark.parametrize(
    ("network", "layers"),
    [(NETWORK, ["spp", "fire4"]), (("spp-mini", "random:3"), ["fc6", "spp"])],
)
def test_features_of_several_layers_are_those_of_each_side_by_side(photos, network, layers):
    given = {"levels": (3, 1), "scales": (80, 64), "pooling": "mean", "flip": True, "device": "cpu"}
    together = SPPFeatures(*network, layer=layers, **given)
    alone = [SPPFeatures(*network, layer=layer, **given) for layer in layers]
    expected = np.hstack([each.fit_transform(photos) for each in alone])
    np.testing.assert_array_equal(together.fit_transform(photos), expected)
    names = [f"{each.layer}_{name}" for each in alone for name in each.get_feature_names_out()]
    assert list(together.get_feature_names_out()) == names


# --- whole maps -------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["center_crop", "warp"])
@pytest.mark.parametrize("layer", ["conv1", "fire4", "spp"])
def test_without_levels_a_feature_is_the_whole_map_channel_by_channel(photos, layer, view):
    spp = small(layer=layer, levels=(), view=view).fit()
    found = spp.transform(photos)
    backbone = backbones.load(*NETWORK, layer=layer)
    for photo, row in zip(photos, found, strict=True):
        pixels = images.render(images.from_array(photo), 64, view) / 255
        normal = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        maps = backbone(torch.from_numpy(normal.transpose(2, 0, 1)[None]).float())
        assert row.shape == maps[0].numpy().ravel().shape
        assert_near(row, maps[0].numpy().ravel())


def test_columns_of_whole_maps_are_named_by_layer_channel_row_and_column(photos):
    spp = small(layer="fire4", levels=[], view="warp").fit()
    X, names = spp.transform(photos[:1])[0], list(spp.get_feature_names_out())
    side = spp.spec_.levels[0]
    assert len(names) == len(X) == 256 * side * side
    assert names[0] == "scale64_fire4_channel0_row0_column0"
    assert names[-1] == f"scale64_fire4_channel255_row{side - 1}_column{side - 1}"
    grid = X.reshape(256, side, side)
    assert grid[9, 2, 1] == X[names.index("scale64_fire4_channel9_row2_column1")]


def test_levels_and_scales_are_the_backbones_own_where_none_are_given():
    spp = SPPFeatures("mobilenet_v2", "random:0", device="cpu").fit()
    assert (spp.levels_, spp.scales_, spp.n_features_out_) == ((3, 2, 1), (224,), 1280 * 14)
    mini = SPPFeatures("spp-mini", "embedded", levels=[2], device="cpu").fit()
    assert (mini.levels_, mini.scales_, mini.n_features_out_) == ((2,), (96, 128), 2 * 192 * 4)


def test_vector_layers_need_no_levels(photos):
    given = {"layer": "fc6", "scales": (64,), "device": "cpu"}
    with_levels = SPPFeatures("spp-mini", "embedded", **given)
    without = SPPFeatures("spp-mini", "embedded", levels=(), pooling="mean", **given)
    assert (
        without.fit_transform(photos[:2]).tolist() == with_levels.fit_transform(photos[:2]).tolist()
    )
    assert without.spec_ == with_levels.spec_


# ---- what is refused, and how ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "squeezenet1_2"}, "did you mean 'squeezenet1_1'"),
        ({"layer": "fc6"}, "unknown layer 'fc6'"),
        ({"levels": (0,)}, "levels"),
        ({"levels": (2, 2)}, "levels"),
        ({"pooling": "median"}, "pooling"),
        ({"scales": ()}, "scales"),
        ({"scales": (64.0,)}, "scales"),
        ({"scales": (8,)}, "scales: 8 is too small for 'squeezenet1_1'; at least 17 pixels"),
        ({"view": "crop"}, "view: 'crop' is unknown; allowed: full, center_crop, warp"),
        ({"combine": "sum"}, "combine: 'sum' is unknown; allowed: concat, mean, max"),
        ({"precision": "float8"}, "precision: 'float8' is unknown"),
        ({"device": "tpu"}, "device: 'tpu' is unknown"),
        ({"weights": "imagnet"}, "did you mean 'imagenet'"),
        ({"backbone": ["alexnet"]}, "backbone: list is no torch.nn.Module"),
        ({"layer": ["spq"]}, "unknown layer 'spq' of backbone 'squeezenet1_1': "),
        ({"weights": 3}, "weights: 3 must be a name of the catalogue, random:SEED or a file's"),
        ({"levels": 3}, "levels: 3 must be a list of whole numbers, as [6, 3, 2, 1]"),
        ({"levels": "63"}, "levels: '63' must be a list of whole numbers"),
        ({"scales": 64}, "scales: 64 must be a list of whole numbers, as [224]"),
        ({"scales": np.array(64)}, "scales: array(64) must be a list of whole numbers"),
        ({"levels": iter([2, 1])}, "must be a list of whole numbers, as [6, 3, 2, 1]"),
        ({"scales": iter([64])}, "must be a list of whole numbers, as [224]"),
        ({"flip": "x"}, "flip: 'x' must be True or False"),
        ({"flip": 1}, "flip: 1 must be True or False"),
        ({"precision": None}, "precision: None is unknown; allowed: auto, float32, bfloat16"),
        ({"device": None}, "device: 'None' is unknown; allowed: auto, cpu, cuda, cuda:N, mps"),
        ({"runtime": "onnx"}, "runtime: 'onnx' is unknown; allowed: auto, torch, onnxruntime"),
        ({"runtime": "openvino", "device": "cuda"}, "device: 'cuda' is not for runtime"),
        ({"mean": [0.5] * 3}, "mean and std go with a module; a named backbone has its own"),
        ({"n_jobs": -1}, "n_jobs: -1 must be a whole number of at least 1, or None"),
        ({"n_jobs": "2"}, "n_jobs: '2' must be a whole number of at least 1, or None"),
    ],
)
def test_a_wrong_parameter_is_refused_in_fit_with_what_is_allowed(changes, message):
    with pytest.raises(ConfigError) as caught:
        small().set_params(**changes).fit()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_may_be_numpys(photos):
    ours = small(levels=[2, 1], scales=[64], n_jobs=1)
    theirs = small(
        levels=np.array([2, 1]), scales=np.array([64]), flip=np.False_, n_jobs=np.int64(1)
    )
    np.testing.assert_array_equal(ours.fit_transform(photos[:1]), theirs.fit_transform(photos[:1]))
    assert ours.spec_ == theirs.spec_
    assert list(ours.get_feature_names_out()) == list(theirs.get_feature_names_out())


def test_what_is_no_list_of_images_is_refused(spp):
    with pytest.raises(ImageError, match="X must be a list of images, not int"):
        spp.transform(3)


def test_a_broken_image_is_named_with_its_reason(spp, tmp_path, paths, monkeypatch):
    monkeypatch.setattr("spptransfer.features.CHUNK", 2)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"broken\.jpg': no image of a known format"):
        spp.transform([*paths[:3], tmp_path / "broken.jpg"])
    with pytest.raises(ImageError, match=r"image 2: .*uint8"):
        spp.transform([*(np.zeros((9, 9), np.uint8),) * 2, np.zeros((9, 9), int)])


@pytest.mark.parametrize("wrong", [["a.jpg", 3], [None], [[1, 2]]])
def test_what_is_no_image_is_refused(wrong):
    with pytest.raises(ImageError, match=r"is no image; allowed: a path, a PIL image, or"):
        small().transform(wrong)


def test_a_single_image_is_refused_with_the_right_way_to_write_it():
    with pytest.raises(ImageError, match=r"must be a list of images, as \['a.jpg'\]"):
        small().transform("a.jpg")
    for shape in [(64, 80, 3), (64, 80, 4), (64, 80)]:
        with pytest.raises(ImageError, match=r"a list of images, as \[image\], not .* \(64, 80"):
            small().transform(np.zeros(shape, np.uint8))


def test_an_array_of_images_of_one_size_is_as_good_as_a_list(spp):
    for shape in [(2, 64, 80, 3), (2, 64, 80)]:
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        np.testing.assert_array_equal(spp.transform(images), spp.transform(list(images)))


# ---- networks of the user's own ----


def own(module, layer="high", **changes):
    given = {"layer": layer, "levels": (2, 1), "scales": (64,), "device": "cpu"} | changes
    return SPPFeatures(module, **given)


def plain_maps(photo, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)):
    pixels = images.render(images.from_array(photo), 64, longest=4) / 255
    normal = ((pixels - mean) / std).transpose(2, 0, 1)
    with torch.inference_mode():
        net = Net().eval()
        return net.high(net.low(torch.from_numpy(normal[None]).float()))[0].numpy()


@pytest.mark.parametrize("given", [{}, {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.1)}])
def test_a_layer_of_a_module_of_ones_own_is_pooled(photos, given):
    found = own(Net(), **given).fit_transform(photos)
    for row, photo in zip(found, photos, strict=True):
        assert_near(row, brute_force_pyramid(plain_maps(photo, **given), (2, 1)))


@pytest.mark.parametrize("runtime", ["auto", "onnxruntime", "openvino"])
def test_runtimes_that_know_the_operators_of_a_module_compute_it_too(photos, runtime):
    pytest.importorskip("torch" if runtime == "auto" else runtime)
    expected = own(Net(), runtime="torch").fit_transform(photos)
    assert_near(own(Net(), runtime=runtime).fit_transform(photos), expected)


@pytest.mark.parametrize("layer", ["mean", "output"])
def test_a_vector_of_a_module_has_no_levels(photos, layer):
    spp = own(Net(), layer).fit()
    with torch.inference_mode():
        expected = Net().eval().mean(torch.from_numpy(plain_maps(photos[0]))[None])[0].numpy()
    assert_near(spp.transform(photos[:1])[0], expected)
    assert spp.spec_.levels == ()


def test_a_module_stays_as_it_is_and_is_followed_by_a_new_fit(photos):
    module = Net().train()
    spp = own(module).fit()
    before = spp.transform(photos[:1])
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    module.low[0].weight.data *= 2
    np.testing.assert_array_equal(spp.transform(photos[:1]), before)
    assert not np.allclose(spp.fit().transform(photos[:1]), before)


def test_a_module_is_cloned_searched_and_pickled_with_the_rest(photos):
    spp = own(Net()).fit()
    expected = spp.transform(photos)
    np.testing.assert_array_equal(clone(spp).transform(photos), expected)
    plain = own(torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.ReLU()), "1").fit()
    copied = pickle.loads(pickle.dumps(plain))
    np.testing.assert_array_equal(copied.transform(photos), plain.transform(photos))


def test_threads_may_share_one_that_is_fitted(photos, spp):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(spp.transform, [photos] * 4))
    for other in found:
        assert_near(other, found[0])


def test_a_loaded_backbone_is_taken_as_it_is(photos):
    loaded = backbones.load(*NETWORK, layer=["fire4", "spp"])
    for layer in ("fire4", "spp"):
        found = own(loaded, layer).fit_transform(photos)
        assert_near(found, small(layer=layer, levels=(2, 1)).fit_transform(photos))


@pytest.mark.parametrize(
    ("module", "layer", "message"),
    [
        (Net(), "spp", "unknown layer 'spp' of backbone 'Net'; nearest of its"),
        (Net(), "hihg", "high"),
        ("not one", "spp", "unknown backbone 'not one'"),
        (torch.nn.Linear(3, 4), "output", "does not take images"),
    ],
)
def test_a_module_that_cannot_be_used_is_refused_in_fit(module, layer, message):
    with pytest.raises(ConfigError, match=message) as told:
        own(module, layer).fit()
    assert "\n" not in str(told.value)
