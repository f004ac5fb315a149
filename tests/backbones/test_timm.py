"""Models of timm as backbones, beside what timm itself computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from spptransfer import SPPFeatures, backbones, images
from spptransfer.backbones import BackboneRef
from spptransfer.errors import ConfigError, WeightsError

try:
    backbones.describe("timm/resnet18")
except ConfigError as error:
    pytest.skip(f"{error}", allow_module_level=True)
import timm

CONVOLUTIONAL = ("resnet18", "convnext_atto", "tf_efficientnet_lite0", "mobilenetv3_small_100")
ATTENTION = (
    "vit_tiny_patch16_224",
    "vit_small_patch14_reg4_dinov2",
    "swin_tiny_patch4_window7_224",
)
SIZES = ((224, 224), (200, 310), (97, 131))
FAMILIES = (*CONVOLUTIONAL, *ATTENTION, "vit_base_patch16_siglip_224")


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """A hub's cache with nothing in it, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def load(name, *layers):
    return backbones.load(f"timm/{name}", "random:3", layer=layers)


def normal(height, width, seed=0):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


def assert_near(found, expected, tolerance=1e-5):
    assert found.shape == expected.shape
    assert (found - expected).norm() <= tolerance * expected.norm()


def as_map(model, features, height, width, grid):
    """What `forward_features` gives, as N x C x h x w, written down once more."""
    if features.dim() == 4:
        return features if features.shape[1] == model.num_features else features.permute(0, 3, 1, 2)
    patches = features[:, model.num_prefix_tokens :]
    count, _, channels = patches.shape
    rows = torch.empty(count, channels, height // grid, width // grid)
    for i in range(patches.shape[1]):
        rows[:, :, i // (width // grid), i % (width // grid)] = patches[:, i]
    return rows


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_are_what_timm_computes_at_any_size(name):
    spp, pool = load(name, "spp"), load(name, "pool")
    grid, plain = spp.info.grid, pool.model
    for height, width in SIZES:
        height, width = (round(side / grid) * grid for side in (height, width))
        images = normal(height, width)
        with torch.inference_mode():
            features = plain.forward_features(images)
            embedded = plain.forward_head(features, pre_logits=True)
        found = spp.maps_of(images, ["spp"])["spp"]
        assert_near(found, as_map(plain, features, height, width, grid))
        assert_near(pool.vectors_of(pool.maps_of(images, ["pool"]), ["pool"])["pool"], embedded)
        assert found.shape[2] * spp.info.layer("spp").stride >= height  # no pixel without a cell


@pytest.mark.parametrize("name", FAMILIES[:-1])
def test_several_layers_of_one_pass_are_those_of_a_pass_each(name):
    info = backbones.describe(f"timm/{name}")
    backbone = load(name, *[layer.name for layer in info.layers])
    images = normal(4 * info.grid * (32 // info.grid + 1), 6 * info.grid * (32 // info.grid + 1))
    together = backbone.maps_of(images, backbone.layers)
    for layer in info.layers:
        alone = backbone.maps_of(images, [layer.name])[layer.name]
        assert_near(together[layer.name], alone, 1e-6)
        assert alone.shape[1] == layer.channels


def test_a_model_that_ends_elsewhere_for_several_layers_is_refused(monkeypatch):
    resnet = timm.models.ResNet
    whole = resnet.forward_intermediates

    def ends_elsewhere(self, *args, **options):
        found = whole(self, *args, **options)
        return (found[0] + 1, found[1]) if isinstance(found, tuple) else found

    monkeypatch.setattr(resnet, "forward_intermediates", ends_elsewhere)
    load("resnet18", "spp", "pool")
    with pytest.raises(ConfigError, match=r"'spp' of 'timm/resnet18\S*' becomes .* beside stage3"):
        load("resnet18", "stage3", "spp")


@pytest.mark.parametrize(
    ("name", "prefix"), [("vit_tiny_patch16_224", 1), ("vit_small_patch14_reg4_dinov2", 5)]
)
def test_the_class_token_is_the_first_and_registers_are_no_patches(name, prefix):
    backbone = load(name, "cls", "spp")
    grid = backbone.info.grid
    images = normal(3 * grid, 4 * grid)
    with torch.inference_mode():
        tokens = backbone.model.forward_features(images)
    found = backbone.maps_of(images, ["cls", "spp"])
    assert_near(found["cls"], tokens[:, 0])
    assert tokens.shape[1] == prefix + 12
    assert_near(found["spp"][:, :, 2, 3], tokens[:, -1])


def test_blocks_of_a_transformer_carry_the_final_norm():
    backbone = load("vit_tiny_patch16_224", "block12", "spp")
    found = backbone.maps_of(normal(64, 96), ["block12", "spp"])
    assert_near(found["block12"], found["spp"])


@pytest.mark.parametrize(
    ("name", "grid", "stride"),
    [
        ("resnet18", 1, 32),
        ("convnext_atto", 32, 32),
        ("vit_small_patch14_dinov2", 14, 14),
        ("vit_small_patch16_dinov3", 16, 16),
        ("swin_tiny_patch4_window7_224", 4, 32),
        ("eva02_tiny_patch14_224", 14, 14),
        ("vit_base_patch16_clip_224", 16, 16),
        ("mobilenetv4_conv_small", 1, 32),
    ],
)
def test_the_grid_of_a_model_is_found(name, grid, stride):
    info = backbones.describe(f"timm/{name}")
    assert (info.grid, info.layer("spp").stride, info.only_side) == (grid, stride, None)
    assert not info.is_local


def test_scales_mean_and_std_are_those_of_the_tag():
    lite = backbones.describe("timm/tf_efficientnet_lite2")
    assert lite.name == "timm/tf_efficientnet_lite2.in1k"
    assert (lite.default_scales, lite.mean, lite.std) == ((260, 320), (0.5,) * 3, (0.5,) * 3)
    assert backbones.describe("timm/vit_small_patch14_dinov2").default_scales == (518, 644)
    assert lite.weights["pretrained"].licence == "apache-2.0"


def test_a_model_of_one_size_is_offered_at_that_size(image):
    spp = SPPFeatures("timm/maxvit_tiny_tf_224", "random")
    with pytest.raises(ConfigError, match=r"224 x 224 pixels only: view: warp or center_crop"):
        spp.fit()
    spp = SPPFeatures("timm/levit_128", "random", levels=[1], view="warp")
    assert spp.fit_transform([image]).shape == (1, 384)
    assert spp.scales_ == (224,)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (70, 200, 3), np.uint8)


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224"])
def test_features_are_the_pooled_maps_and_alone_are_those_in_a_batch(name, image):
    spp = SPPFeatures(f"timm/{name}", "random:3", levels=[3, 1], scales=[64], runtime="torch")
    photos = [image, image[::-1].copy(), image]
    found = spp.fit_transform(photos)
    np.testing.assert_allclose(spp.transform(photos[1:2]), found[1:2], rtol=1e-5, atol=1e-6)
    backbone = load(name, "spp")
    from spptransfer.pyramid import SpatialPyramidPooling

    grid = backbone.info.grid
    pixels = images.render(images.from_array(image), 64, "full", grid, 4)
    assert pixels.shape == (64, {32: 192, 16: 176}[grid], 3)
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (backbone.info.mean, backbone.info.std)
    )
    normalised = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std
    maps = backbone.maps_of(normalised[None].float(), ["spp"])["spp"]
    np.testing.assert_allclose(
        found[0], SpatialPyramidPooling([3, 1])(maps)[0], rtol=1e-4, atol=1e-5
    )


def test_the_class_token_stands_beside_the_pyramid(image):
    given = {"weights": "random:3", "levels": [2, 1], "scales": [64]}
    both = SPPFeatures("timm/vit_tiny_patch16_224", layer=["cls", "spp"], **given)
    alone = [SPPFeatures(both.backbone, layer=layer, **given) for layer in ("cls", "spp")]
    side_by_side = np.concatenate([each.fit_transform([image]) for each in alone], axis=1)
    np.testing.assert_allclose(both.fit_transform([image]), side_by_side, rtol=1e-5, atol=1e-6)


# ---- weights ----


def state_of(name, seed=5):
    torch.manual_seed(seed)
    return timm.create_model(name).state_dict()


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_a_file_in_timms_keys_gives_timms_features_and_says_what_it_is_taken_for(
    name, tmp_path, caplog
):
    path = tmp_path / "mine.safetensors"
    save_file(state_of(name), path)
    model = timm.create_model(name).eval()
    model.load_state_dict(state_of(name))
    backbone = backbones.load(f"timm/{name}", path)
    with torch.inference_mode():
        expected = model.forward_features(normal(224, 224))
    found = backbone.maps_of(normal(224, 224), ["spp"])["spp"]
    assert_near(found, as_map(model, expected, 224, 224, 16))
    assert f"'timm/{name}' is taken for '{backbone.info.name}': mean [" in caplog.text


def test_twins_of_one_shape_are_told_of(tmp_path, caplog):
    path = tmp_path / "mine.safetensors"
    save_file(state_of("tf_efficientnet_lite0"), path)
    backbones.load("timm/efficientnet_lite0", path)
    assert (
        "a file of timm/tf_efficientnet_lite0 fits timm/efficientnet_lite0 as well" in caplog.text
    )


def test_a_file_of_another_model_is_refused_by_its_keys(tmp_path):
    path = tmp_path / "mine.safetensors"
    save_file(state_of("resnet18"), path)
    with pytest.raises(
        WeightsError, match=r"do not fit 'timm/resnet34\S*': .*Missing key"
    ) as caught:
        backbones.load("timm/resnet34", path)
    assert "\n" not in str(caught.value)


def on_the_hub(hub, name, state):
    """Lay a file where the hub's library keeps it, under its SHA-256."""
    from spptransfer.files import sha256_of

    folder = hub / f"models--timm--{name}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("c0ffee")
    (folder / "blobs").mkdir()
    save_file(state, folder / "blobs/new")
    blob = (folder / "blobs/new").rename(folder / "blobs" / sha256_of(folder / "blobs/new"))
    (folder / "snapshots/c0ffee").mkdir(parents=True)
    (folder / "snapshots/c0ffee/model.safetensors").symlink_to(blob)
    return blob


def test_official_weights_are_taken_from_the_hubs_cache_and_known_by_their_content(hub):
    blob = on_the_hub(hub, "resnet18.a1_in1k", state_of("resnet18"))
    reference = BackboneRef("timm/resnet18")
    assert (reference.weights, reference.weights_sha256()) == ("pretrained", blob.name)
    assert reference.load(["spp"]).weights_sha256 == blob.name
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    with pytest.raises(WeightsError, match="damaged or not the official file"):
        reference.weights_sha256()


def test_without_a_network_the_missing_file_its_repository_and_place_are_named(hub):
    with pytest.raises(WeightsError) as caught:
        BackboneRef("timm/resnet18").load(["spp"])
    message = str(caught.value)
    assert "cannot fetch model.safetensors of 'timm/resnet18.a1_in1k'" in message
    assert str(hub / "models--timm--resnet18.a1_in1k") in message
    assert "features.weights=PATH" in message


# ---- names ----


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("vit_smal_patch14_dinov2", "nearest of timm's .* vit_small_patch14_dinov2,"),
        ("zzz", r"`spptransfer backbones 'timm/\*PART\*'` lists"),
        ("resnet18.a1", "resnet18.a1_in1k"),
    ],
)
def test_an_unknown_name_or_tag_gets_the_nearest(name, told):
    with pytest.raises(ConfigError, match=rf"unknown backbone 'timm/{name}'.*{told}"):
        backbones.describe(f"timm/{name}")


def test_an_unknown_layer_gets_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown layer 'blok3'.*did you mean 'block3'"):
        load("vit_tiny_patch16_224", "blok3")


def test_without_timm_the_extra_is_named(monkeypatch):
    from spptransfer.backbones import timm_models

    timm_models.import_timm.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    try:
        with pytest.raises(ConfigError, match=r"pip install 'spptransfer\[timm\]'"):
            backbones.describe("timm/resnet26")
    finally:
        timm_models.import_timm.cache_clear()


# ---- real weights ----

LITE = Path(__file__).parents[3] / "shared/data/weights/tf_efficientnet_lite2_fp16.safetensors"
PHOTOS = LITE.parents[1] / "voc2007/VOCdevkit/VOC2007/JPEGImages"


TEN = (*FAMILIES, "efficientnet_b0", "regnetx_002")


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.exists(), reason="the shared photos are not there")
@pytest.mark.parametrize("name", TEN)
def test_features_of_photos_of_awkward_shapes_are_timms_pooled_bin_by_bin(name):
    """Cropped to a strip, a tower and a stamp; the slow way uses timm, Pillow and loops alone."""
    spp = SPPFeatures(f"timm/{name}", "random:3", levels=[3, 1], scales=[96], runtime="torch")
    backbone = load(name, "pool")
    info, model = backbone.info, backbone.model
    mean, std = (np.array(values) for values in (info.mean, info.std))
    with Image.open(sorted(PHOTOS.glob("*.jpg"))[0]) as photo:
        whole = np.array(photo.convert("RGB"))
    for crop in (whole[:40], whole[:, :30], whole[10:60, 20:90]):
        found = spp.fit_transform([crop])[0]
        height, width = crop.shape[:2]
        grid, scale = info.grid, 96 / min(height, width)
        shorter = round(96 / grid) * grid
        sides = [
            min(max(1, round(side * scale / grid)) * grid, 4 * shorter) for side in (height, width)
        ]
        pixels = images.resize(Image.fromarray(crop), *sides)
        normal = torch.from_numpy(((pixels / 255 - mean) / std).transpose(2, 0, 1)).float()[None]
        with torch.inference_mode():
            maps = as_map(model, model.forward_features(normal), *sides, info.grid)[0].numpy()
        expected = [pooled(maps, 3), pooled(maps, 1)]
        error = np.linalg.norm(found - np.concatenate(expected)) / np.linalg.norm(found)
        assert error <= 1e-5


def pooled(maps, level):
    """Max-pool a map by the floor/ceil rule of the SPP-net paper."""
    channels, height, width = maps.shape
    bins = np.empty((channels, level, level))
    for i in range(level):
        rows = slice(i * height // level, -(-(i + 1) * height // level))
        for j in range(level):
            columns = slice(j * width // level, -(-(j + 1) * width // level))
            bins[:, i, j] = maps[:, rows, columns].max(axis=(1, 2))
    return bins.ravel()


def test_a_model_of_torchvision_is_a_module_like_any_other(image):
    module = pytest.importorskip("torchvision").models.mobilenet_v3_small().eval()
    spp = SPPFeatures(module, layer="features", levels=[1], scales=[64]).fit()
    pixels = images.render(images.from_array(image), 64, longest=4) / 255
    normal = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.inference_mode():
        maps = module.features(torch.from_numpy(normal.transpose(2, 0, 1)).float()[None])
    found = spp.transform([image])
    np.testing.assert_allclose(found[0], maps[0].amax(dim=(1, 2)), rtol=1e-4, atol=1e-5)


class Patches(torch.nn.Module):
    """The patch tokens of a model of transformers as a map, as the documents show it."""

    def __init__(self, transformers):
        super().__init__()
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        self.model = transformers.Dinov2Model(transformers.Dinov2Config(patch_size=14, **sizes))

    def forward(self, images):
        tokens = self.model(images).last_hidden_state[:, 1:]
        return tokens.mT.unflatten(2, (images.shape[2] // 14, -1))


def test_a_model_of_transformers_is_a_module_that_lays_out_its_tokens(image):
    module = Patches(pytest.importorskip("transformers")).eval()
    backbone = backbones.from_module(module, "output", mean=[0.5] * 3, std=[0.5] * 3, grid=14)
    assert (backbone.info.layer("output").stride, backbone.info.only_side) == (14, None)
    found = SPPFeatures(backbone, layer="output", levels=[1], scales=[56]).fit_transform([image])
    pixels = images.render(images.from_array(image), 56, "full", 14, 4) / 127.5 - 1
    assert pixels.shape == (56, 154, 3)
    with torch.inference_mode():
        maps = module(torch.from_numpy(pixels.transpose(2, 0, 1)).float()[None])
    np.testing.assert_allclose(found[0], maps[0].amax(dim=(1, 2)), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not LITE.exists(), reason="the shared weights are not there")
def test_real_weights_on_a_real_photo_are_timms_features():
    model = timm.create_model("tf_efficientnet_lite2", checkpoint_path=str(LITE)).eval()
    with Image.open(sorted(PHOTOS.glob("*.jpg"))[0]) as photo:
        pixels = torch.from_numpy(np.array(photo.convert("RGB"))).permute(2, 0, 1) / 127.5 - 1
    backbone = backbones.load("timm/tf_efficientnet_lite2", LITE)
    with torch.inference_mode():
        expected = model.forward_features(pixels[None])
    assert_near(backbone.maps_of(pixels[None], ["spp"])["spp"], expected)
