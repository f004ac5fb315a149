"""Windows of an image are pooled from its maps as if their cells had been cut out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from extraction_cases import NET, broken_images
from image_files import picture

from spptransfer import SPPFeatures, backbones
from spptransfer.errors import ConfigError, ImageError
from spptransfer.extraction.maps import feature_maps
from spptransfer.pyramid import SpatialPyramidPooling
from spptransfer.runtimes import ComputeOptions

TORCH = ComputeOptions(device="cpu", runtime="torch", threads=1)
SIZES = [(75, 100), (100, 75), (64, 64), (3, 200), (200, 3), (1, 1), (37, 41)]


def maps_of(image, layers="high", scale=64):
    return feature_maps(image, NET, layers, scale, options=TORCH)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layer", ["low", "high"])
def test_the_window_that_covers_the_image_has_the_features_of_the_image(size, layer):
    image, levels = np.asarray(picture(*size)), [6, 3, 2, 1]
    height, width = size
    spp = SPPFeatures(
        NET, layer=layer, levels=levels, scales=[64], device="cpu", runtime="torch", n_jobs=1
    )
    found = maps_of(image, layer).pool([[0, 0, width, height], [-1, -0.4, width + 0.3, height]])
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[0], spp.fit_transform([image])[0])


def test_a_window_has_the_features_of_its_cells_cut_out():
    found = maps_of(np.asarray(picture(64, 96)))
    cells = found.maps["high"][None, :, 4:9, 2:12]  # at 0.5, 4.5, 8.5, ... pixels
    expected = SpatialPyramidPooling((3, 2))(cells)[0]
    np.testing.assert_array_equal(found.pool([[8, 16, 48, 36]], (3, 2))[0], expected)


def test_stride_and_offset_are_in_pixels_of_the_image_as_it_is():
    found = maps_of(np.asarray(picture(128, 192)), ["low", "high"])
    assert found.scale == 64
    assert found.stride == {"low": (4.0, 4.0), "high": (8.0, 8.0)}
    assert found.offset == {"low": (1.0, 1.0), "high": (1.0, 1.0)}  # 0.5 pixels of the network's
    assert found.maps["low"].shape == (8, 32, 48)


def test_cells_whose_fields_have_no_centre_in_the_image_share_it_evenly():
    padded = torch.nn.Conv2d(3, 4, 1, stride=8, padding=8)  # the first looks at what is padded
    module = torch.nn.Sequential(padded)
    backbone = backbones.from_module(module, ["0"], mean=[0.5] * 3, std=[0.25] * 3)
    found = feature_maps(np.asarray(picture(64, 96)), backbone, "0", 64, options=TORCH)
    assert found.maps["0"].shape == (4, 10, 14)
    assert found.stride == {"0": (6.4, 96 / 14)}
    assert found.offset == {"0": (3.2, 48 / 14)}


def test_a_backbone_of_this_package_is_taken_too():
    mini = backbones.load("spp-mini", "embedded", layer=["conv2", "spp"])
    found = feature_maps(np.asarray(picture(70, 90)), mini, ("conv2", "spp"), 64, options=TORCH)
    assert found.pool([[0, 0, 90, 70]], [2], layer="conv2").shape == (1, 4 * 128)
    with pytest.raises(ConfigError, match=r"layer: None; .*conv2, spp"):
        found.pool([[0, 0, 90, 70]], [2])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layers": "mean"}, "layer 'mean' is a vector, which has no windows"),
        ({"layers": "hihg"}, "unknown layer 'hihg'"),
        ({"scale": 8}, "scale: 8 is too small for 'net'; at least 16 pixels"),
    ],
)
def test_what_has_no_maps_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        maps_of(np.asarray(picture(40, 40)), **given)


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "cut.png").write_bytes(broken_images()["cut.png"])
    with pytest.raises(ImageError, match=r"cut\.png': cannot decode the image"):
        maps_of(tmp_path / "cut.png")
    with pytest.raises(ImageError, match="uint8"):
        maps_of(np.zeros((5, 5)))
