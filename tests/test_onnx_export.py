"""A model as one ONNX file: what it gives for image files where there is nothing but it."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import encode, picture, rotated_by_exif
from PIL import Image
from torch import nn

from spptransfer import PyramidNormalizer, backbones, classify_onnx, images
from spptransfer.backbones import BackboneRef
from spptransfer.backbones.probe import probe
from spptransfer.cache.reading import Selection
from spptransfer.errors import CacheError, ConfigError, ModelError
from spptransfer.models import TransferModel
from spptransfer.onnx_export import export_onnx
from spptransfer.runtimes import ComputeOptions
from spptransfer.specify import feature_spec

CPU = ComputeOptions(device="cpu", runtime="torch", threads=2)
# Importing what may not be needed fails, as where it is not installed.
ALONE = """
import sys
sys.modules.update(dict.fromkeys(["torch", "spptransfer", "onnx", "scipy", "sklearn"]))
import json, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
exec(session.get_modelmeta().custom_metadata_map["python"], names := {"__name__": "alone"})
for path in sys.argv[2:]:
    found = names["classify"](session, path)
    print(json.dumps({name: values.tolist() for name, values in found.items()}))
"""


def drawn_model(
    backbone="spp-mini",
    weights="embedded",
    *,
    layers=("spp",),
    levels=(3, 2, 1),
    scales=(64,),
    combine="concat",
    normalize=("l2",),
    sigmoids=None,
    multi_label=False,
    **spec,
) -> TransferModel:
    """A model with classifiers from a generator."""
    ref, draw = BackboneRef(backbone, weights), np.random.default_rng(0)
    wanted = feature_spec(ref, layer=layers, levels=levels, scales=scales, **spec)
    chosen = (levels or wanted.levels or None) if wanted.levels else None
    channels = ref.info.channels_of(layers)
    selection = Selection.choose(wanted, channels, chosen, scales, combine, layers)
    blocks = [column.stop - column.start for column in selection.columns]
    normalizer = PyramidNormalizer(normalize, block_sizes=blocks)
    normalizer.fit(np.abs(draw.normal(size=(9, selection.width))).astype(np.float32))
    return TransferModel(
        spec=wanted,
        weights=weights,
        weights_path=None,
        layers=layers,
        levels=chosen,
        scales=scales,
        combine=combine,
        normalizer=normalizer,
        coef=draw.normal(size=(4, selection.width)).astype(np.float32),
        intercept=draw.normal(size=4).astype(np.float32),
        classes=("ant", "bee", "çat", "dog"),
        multi_label=multi_label,
        sigmoids=sigmoids,
        C=1.0,
        protocol="drawn",
        probe=probe(ref.load(wanted.layers), wanted.layers),
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Path]:
    """Files of several shapes and kinds: turned, transparent, grey, large, very long."""
    folder = tmp_path_factory.mktemp("photos")
    alpha = picture(70, 90)
    alpha.putalpha(picture(70, 90, 5).convert("L"))
    contents = {
        "wide.png": encode(picture(80, 131)),
        "tall.jpg": encode(picture(177, 101), "JPEG"),
        "turned.jpg": rotated_by_exif(picture(90, 140), 6, "JPEG"),
        "large.jpg": encode(picture(900, 1500), "JPEG"),
        "alpha.png": encode(alpha),
        "grey.png": encode(picture(64, 65).convert("L")),
        "line.png": encode(picture(3, 200)),
        "small.gif": encode(picture(9, 7), "GIF"),
        "huge.png": encode(Image.new("RGB", (2100, 2000), (9, 80, 200))),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


def scores_alone(file: Path, paths: list[Path]) -> dict[str, np.ndarray]:
    """Outputs for some images of a process that has numpy, Pillow and onnxruntime alone."""
    command = [sys.executable, "-c", ALONE, str(file), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    lines = list(map(json.loads, done.stdout.splitlines()))
    return {name: np.array([line[name] for line in lines]) for name in lines[0]}


def expected_of(model: TransferModel, paths: list[Path]) -> np.ndarray:
    return np.array([scores.values for scores in model.score(paths, options=CPU)])


SLOW = pytest.mark.slow
SEVERAL = ("signed_sqrt", "standardize", "l2_block")
MODELS = {
    "one map": {},
    "layers and scales": {"layers": ("fc6", "spp"), "scales": (96, 64), "normalize": SEVERAL},
    "a mean of scales": {"scales": (64, 96), "combine": "mean", "normalize": ("mean_length",)},
    "a maximum of scales": {"scales": (64, 96), "combine": "max", "normalize": ()},
    "mirrored, mean pooling": {"flip": True, "pooling": "mean"},
    "mirrored, no multiples": {"flip": True, "levels": (4, 3)},
    "the whole map of the middle": {"levels": (), "view": "center_crop"},
    "squashed, half precision": {"view": "warp", "storage": "float16"},
    "vectors alone": {"layers": ("fc7",), "normalize": ("standardize",)},
}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(MODELS[name], marks=SLOW if i > 1 else (), id=name)
        for i, name in enumerate(MODELS)
    ],
)
def test_the_file_alone_gives_what_the_model_gives_for_image_files(settings, photos, tmp_path):
    model = drawn_model(**settings)
    largest = export_onnx(model, tmp_path / "model.onnx", threads=2)
    found = scores_alone(tmp_path / "model.onnx", photos)["decision_values"]
    expected = expected_of(model, photos)
    assert largest < 1e-4
    assert np.abs(found - expected).max() < 1e-4 * max(1, np.abs(expected).max())
    assert expected.std(axis=0).min() > 1e-3


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_calibrated_model_gives_probabilities_too(multi_label, photos, tmp_path):
    sigmoids = np.array([[2, 0.1], [1, -1], [3, 0], [1.5, 0.5]], np.float32)
    model = drawn_model(sigmoids=sigmoids, multi_label=multi_label)
    export_onnx(model, tmp_path / "model.onnx", threads=2)
    found = scores_alone(tmp_path / "model.onnx", photos[:4])
    expected = model.probabilities(expected_of(model, photos[:4]))
    assert list(found) == ["decision_values", "probabilities"]
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "settings"),
    [
        ("alexnet", {}),
        ("vgg11_bn", {}),
        ("resnet18", {}),
        ("squeezenet1_1", {}),
        ("mobilenet_v2", {"levels": (2, 1)}),
        ("zf5", {"layers": ("spp", "fc7")}),
        ("convnet-star-5", {}),
        ("overfeat-5", {}),
    ],
)
def test_networks_are_written_with_weights_of_any_kind(backbone, settings, photos, tmp_path):
    model = drawn_model(backbone, "random:1", scales=(160,), **settings)
    export_onnx(model, tmp_path / "model.onnx", threads=2)
    found = scores_alone(tmp_path / "model.onnx", photos[:3])["decision_values"]
    expected = expected_of(model, photos[:3])
    assert np.abs(found - expected).max() < 1e-4 * max(1, np.abs(expected).max())


@pytest.mark.slow
def test_a_network_that_attends_is_written_for_views_of_its_own_size(photos, tmp_path):
    try:
        backbones.describe("timm/resnet18")
    except ConfigError as error:
        pytest.skip(f"{error}")
    name, spec = (
        "timm/vit_tiny_patch16_224",
        {"layers": ("cls", "spp"), "levels": (2, 1), "scales": (224,)},
    )
    model = drawn_model(name, "random:0", view="warp", **spec)
    export_onnx(model, tmp_path / "model.onnx", threads=2)
    found = scores_alone(tmp_path / "model.onnx", photos[:3])["decision_values"]
    np.testing.assert_allclose(found, expected_of(model, photos[:3]), atol=1e-3, rtol=1e-4)
    with pytest.raises(ModelError, match=r"view: warp or center_crop, scales: \[224\]"):
        export_onnx(drawn_model(name, "random:0", **spec), tmp_path / "full.onnx")
    assert not (tmp_path / "full.onnx").exists()


def test_a_batch_of_images_gives_what_each_gives_alone(tmp_path):
    export_onnx(drawn_model(), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 99, 3), np.uint8)
    (together,) = session.run(None, {"pixels": pixels})
    alone = [session.run(None, {"pixels": pixels[i : i + 1]})[0][0] for i in range(3)]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_metadata_say_what_goes_in_and_what_comes_out(tmp_path):
    model = drawn_model(scales=(96, 64), view="warp")
    export_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    about = session.get_modelmeta().custom_metadata_map
    assert about["python"] == inspect.getsource(classify_onnx)
    told = {name: json.loads(text) for name, text in about.items() if name != "python"}
    assert told["classes"] == list(model.classes)
    assert (told["scales"], told["view"], told["multi_label"]) == ([96, 64], "warp", False)
    assert told["spec"] == model.spec.to_dict()
    assert [(each.name, each.shape) for each in session.get_inputs()] == [
        ("pixels_96", ["images", 96, 96, 3]),
        ("pixels_64", ["images", 64, 64, 3]),
    ]


# ---- the Python that comes with it ----


@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
)
@settings(deadline=None, max_examples=60)
def test_its_resize_gives_the_bytes_of_the_package(size, to):
    image = picture(*size, seed=size[0])
    np.testing.assert_array_equal(classify_onnx.resize(image, *to), images.resize(image, *to))


@pytest.mark.parametrize("view", images.VIEWS)
@pytest.mark.parametrize("grid", [1, 14])
def test_it_shows_files_as_the_package_does(photos, view, grid):
    rendering = images.Rendering(70, view, grid, 4)
    for path in photos:
        (expected,) = images.views(path.read_bytes(), [rendering])
        np.testing.assert_array_equal(classify_onnx.show(path, *rendering), expected, str(path))


def test_it_runs_as_a_program_that_names_the_nearest_classes(photos, tmp_path):
    model = drawn_model()
    export_onnx(model, tmp_path / "model.onnx")
    (tmp_path / "classify.py").write_text(inspect.getsource(classify_onnx), "utf-8")
    command = [sys.executable, tmp_path / "classify.py", tmp_path / "model.onnx", photos[0]]
    done = subprocess.run(command, capture_output=True, timeout=300, check=True)
    (label,) = model.labels(expected_of(model, photos[:1])[0])
    assert f"decision_values {{'{label}': " in done.stdout.decode("utf-8")


# ---- what is refused ----


class _Constant(nn.Module):
    """Depends on an image's size by Python's numbers, which an export takes as given."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels * float(pixels.shape[3]) / 100


class _Unknown(nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(pixels)


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (_Constant(), "gives other decision values there for "),
        (_Unknown(), "cannot be computed by ONNX Runtime: ONNX has no operator for its "),
    ],
)
def test_a_file_that_would_classify_otherwise_is_not_written(module, why, tmp_path):
    name = f"own-{type(module).__name__}"

    known = {"mean": [0.5] * 3, "std": [0.5] * 3, "name": name}
    backbones.register(name, lambda weights: backbones.from_module(module, "output", **known))
    model = drawn_model(name, "random", layers=("output",), normalize=())
    (tmp_path / "model.onnx").write_text("what was there before")
    with pytest.raises(ModelError, match=f"no ONNX file is written: '{name}' {why}"):
        export_onnx(model, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_text() == "what was there before"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(CacheError, match="nowhere"):
        export_onnx(drawn_model(), tmp_path / "nowhere" / "model.onnx")


def test_other_weights_than_those_of_training_are_refused(tmp_path):
    with pytest.raises(ModelError, match="are not those that the model was trained with"):
        export_onnx(drawn_model(), tmp_path / "model.onnx", weights="random:3")
    assert not list(tmp_path.iterdir())
