from __future__ import annotations

import functools
import io
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import encode, picture, rotated_by_exif
from PIL import Image, ImageOps
from sklearn.base import clone
from spptransfer.resizing import resize

from spptransfer import SPPFeatures, backbones, images
from spptransfer.errors import ConfigError, ImageError, WeightsError
from spptransfer.pyramid import SpatialPyramidPooling
from spptransfer.specify import feature_spec

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


def assert_near(actual, expected) -> None:
    """Equal up to the rounding of float32 sums in another order."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def slow_features(data: bytes, scale: int = 64, levels=LEVELS, reduce=np.max) -> np.ndarray:
    """Pillow, torch and brute force, one image at a time; the resize is checked on its own."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    width, height = image.size
    shorter = min(width, height)
    size = [math.floor(side * scale / shorter + 0.5) for side in (height, width)]
    samples = resize(image, *size) / 255
    normal = (samples - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.inference_mode():
        maps = network().maps(torch.from_numpy(normal.transpose(2, 0, 1)[None]).float())
    return brute_force_pyramid(maps[0].numpy(), levels, reduce)


AWKWARD = {
    "landscape.jpg": lambda: encode(picture(375, 500), "JPEG"),
    "portrait.jpg": lambda: encode(picture(500, 375), "JPEG"),
    "one_pixel.png": lambda: encode(picture(1, 1)),
    "wide.png": lambda: encode(picture(3, 200)),
    "tall.png": lambda: encode(picture(200, 3)),
    "grey.png": lambda: encode(picture(80, 60).convert("L")),
    "cmyk.jpg": lambda: encode(picture(70, 90).convert("CMYK"), "JPEG"),
    "palette.png": lambda: encode(picture(70, 90).convert("P")),
    "turned.png": lambda: rotated_by_exif(picture(60, 90), 6),
}


@pytest.mark.parametrize("name", AWKWARD)
def test_features_equal_pillow_torch_and_brute_force(name, spp, tmp_path):
    data = AWKWARD[name]()
    (tmp_path / name).write_bytes(data)
    fast = spp.transform([tmp_path / name])[0]
    slow = slow_features(data)
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


def test_flipped_features_are_the_mean_over_the_image_and_its_mirror(photos):
    mirrored = [photo[:, ::-1].copy() for photo in photos if photo.shape[1] != 300]
    plain = [photo for photo in photos if photo.shape[1] != 300]
    spp = small(levels=(2, 1), scales=(80,), view="warp")
    mean = (spp.transform(plain) + spp.transform(mirrored)) / 2
    flipped = small(levels=(2, 1), scales=(80,), view="warp", flip=True).transform(plain)
    # The resize rounds to 8 bits before or after mirroring: at most one step apart.
    np.testing.assert_allclose(flipped, mean, atol=0.02 * np.abs(mean).max())


def test_no_images_give_an_empty_matrix():
    assert small(levels=(1,)).transform([]).shape == (0, 512)


# ---- scikit-learn's conventions ----


def test_the_constructor_loads_nothing_and_checks_nothing(monkeypatch):
    monkeypatch.setattr(backbones, "load", None)
    spp = SPPFeatures("no such backbone", "no/such/file.pth", levels=[-1])
    assert clone(spp).get_params() == spp.get_params()
    assert "no such backbone" in repr(spp)


def test_a_clone_computes_the_same(photos):
    spp = small(levels=(2, 1)).fit()
    np.testing.assert_array_equal(clone(spp).transform(photos[:2]), spp.transform(photos[:2]))


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
        maps = backbone.maps(torch.from_numpy(normal.transpose(2, 0, 1)[None]).float())
        assert row.shape == maps[0].numpy().ravel().shape
        assert_near(row, maps[0].numpy().ravel())


@settings(max_examples=15, deadline=None)
@given(
    layer=st.sampled_from(["conv1", "conv2", "conv3", "conv4", "conv5", "spp"]),
    scale=st.integers(8, 130),
    pooling=st.sampled_from(["max", "mean"]),
)
def test_the_whole_map_is_the_level_whose_bins_are_its_cells(layer, scale, pooling):
    spec = feature_spec(
        backbone="spp-mini", weights="embedded", layer=layer, levels=[], scales=[scale],
        view="warp", pooling=pooling,
    )  # fmt: skip
    backbone = backbones.load("spp-mini", "embedded", layer=layer)
    generator = torch.Generator().manual_seed(scale)
    maps = backbone.maps(torch.randn(2, 3, scale, scale, generator=generator))
    assert maps.shape[2:] == spec.levels * 2
    pooled = SpatialPyramidPooling(spec.levels, pooling)(maps)
    assert pooled.equal(maps.flatten(1))


def test_columns_of_whole_maps_are_named_by_layer_channel_row_and_column(photos):
    spp = small(layer="fire4", levels=[], view="warp").fit()
    X, names = spp.transform(photos[:1])[0], list(spp.get_feature_names_out())
    side = spp.spec_.levels[0]
    assert len(names) == len(X) == 256 * side * side
    assert names[0] == "scale64_fire4_channel0_row0_column0"
    assert names[-1] == f"scale64_fire4_channel255_row{side - 1}_column{side - 1}"
    grid = X.reshape(256, side, side)
    assert grid[9, 2, 1] == X[names.index("scale64_fire4_channel9_row2_column1")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"view": "full"}, "whose size differs .* allowed views: center_crop, warp"),
        ({"view": "warp", "scales": (64, 96)}, r"at one scale, not at \[64, 96\]"),
        ({"view": "sideways"}, "view: 'sideways' is unknown"),
    ],
)
def test_a_whole_map_needs_one_view_of_fixed_size(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        small(levels=(), **changes).fit()
    assert "\n" not in str(caught.value)


def test_vector_layers_need_no_levels(photos):
    given = {"layer": "fc6", "scales": (64,), "device": "cpu"}
    with_levels = SPPFeatures("spp-mini", "embedded", **given)
    without = SPPFeatures("spp-mini", "embedded", levels=(), **given)
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
        ({"backbone": ["alexnet"]}, "unknown backbone '['alexnet']': "),
        ({"layer": ["spp"]}, "unknown layer '['spp']' of backbone 'squeezenet1_1': "),
        ({"weights": 3}, "weights: 3 must be a name of the catalogue, random:SEED or a file's"),
        ({"levels": 3}, "levels: 3 must be a list of whole numbers, as [6, 3, 2, 1]"),
        ({"levels": "63"}, "levels: '63' must be a list of whole numbers"),
        ({"levels": None}, "levels: None must be a list of whole numbers"),
        ({"scales": 64}, "scales: 64 must be a list of whole numbers, as [224]"),
        ({"scales": np.array(64)}, "scales: array(64) must be a list of whole numbers"),
        ({"flip": "x"}, "flip: 'x' must be True or False"),
        ({"flip": 1}, "flip: 1 must be True or False"),
        ({"precision": None}, "precision: 'None' is unknown; allowed: auto, float32, bfloat16"),
        ({"device": None}, "device: None is unknown; allowed: auto, cpu, cuda, cuda:N"),
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


def test_a_missing_weights_file_is_named():
    with pytest.raises(WeightsError, match=r"no/such/file\.pth"):
        small().set_params(weights="no/such/file.pth").fit()


def test_a_broken_image_is_named_with_its_reason(spp, tmp_path, paths, monkeypatch):
    monkeypatch.setattr("spptransfer.features.CHUNK", 2)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"broken\.jpg': no image of a known format"):
        spp.transform([*paths[:3], tmp_path / "broken.jpg"])
    with pytest.raises(ImageError, match=r"image 2: .*uint8"):
        spp.transform([*(np.zeros((9, 9), np.uint8),) * 2, np.zeros((9, 9))])


@pytest.mark.parametrize("wrong", [["a.jpg", 3], [None], [[1, 2]]])
def test_what_is_no_image_is_refused(wrong):
    with pytest.raises(ImageError, match="an image must be a path or an array"):
        small().transform(wrong)


def test_a_single_path_is_refused_with_the_right_way_to_write_it():
    with pytest.raises(ImageError, match=r"must be a list of images, as \['a.jpg'\]"):
        small().transform("a.jpg")
