"""Images in memory give what their files give."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_files import encode, picture
from PIL import Image

from spptransfer import SPPFeatures, images
from spptransfer.errors import ImageError
from spptransfer.samples import to_samples

MODES = ("L", "RGB", "RGBA", "LA", "P", "1", "CMYK", "I;16", "YCbCr")


def in_mode(mode: str) -> Image.Image:
    image = picture(20, 30)
    if mode == "I;16":
        return Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100)
    if "A" in mode:
        image.putalpha(Image.fromarray(np.tile(np.arange(30, dtype=np.uint8) * 8, (20, 1))))
    return image.convert(mode)


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loaded", [False, True])
def test_an_opened_file_gives_what_the_file_gives(mode, orientation, loaded):
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    exif = Image.Exif()
    exif[274] = orientation
    data = encode(in_mode(mode), kind, exif=exif)
    opened = Image.open(io.BytesIO(data))
    if loaded:
        opened.load()
    np.testing.assert_array_equal(to_samples(opened), np.asarray(images.decode(data)))


def test_a_jpeg_with_an_orientation_gives_what_the_file_gives():
    exif = Image.Exif()
    exif[274] = 6
    data = encode(picture(20, 30), "JPEG", exif=exif)
    samples = to_samples(Image.open(io.BytesIO(data)))
    assert samples.shape == (30, 20, 3)
    np.testing.assert_array_equal(samples, np.asarray(images.decode(data)))


@given(st.sampled_from([(), (1,), (3,), (4,)]), st.booleans(), st.booleans(), st.booleans())
def test_arrays_and_tensors_of_every_layout_give_the_same(channels, first, floats, as_tensor):
    expected = np.random.default_rng(0).integers(0, 256, (6, 9, *channels)).astype(np.uint8)
    given = expected.astype(np.float32) / 255 if floats else expected
    if first and channels:
        given = given.transpose(2, 0, 1)
    found = to_samples(torch.from_numpy(given.copy()) if as_tensor else given)
    expected = expected[:, :, 0] if channels == (1,) else expected
    np.testing.assert_array_equal(found, expected)


def test_where_the_shape_leaves_it_open_channels_come_last_and_those_of_tensors_first():
    array = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    np.testing.assert_array_equal(to_samples(array), array)
    np.testing.assert_array_equal(to_samples(torch.from_numpy(array)), array.transpose(1, 2, 0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_any_precision_are_taken(dtype):
    tensor = torch.tensor([[[0.0, 0.5], [1.0, 0.25]]], dtype=dtype, requires_grad=True)
    assert to_samples(tensor).tolist() == [[0, 128], [255, 64]]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (np.zeros((4, 4), np.int64), "samples of type int64"),
        (np.zeros((4, 4), np.uint16), "samples of type uint16"),
        (np.full((4, 4), 200.0), "floats from 200 to 200"),
        (np.full((4, 4), np.nan), "floats from nan"),
        (np.zeros((6, 6, 2), np.uint8), r"an array of shape \(6, 6, 2\)"),
        (np.zeros((1, 3, 4, 4), np.uint8), r"an array of shape \(1, 3, 4, 4\)"),
        (torch.zeros(2, 6, 6), r"an array of shape \(2, 6, 6\)"),
        ([[1, 2]], "list is no image"),
        (None, "NoneType is no image"),
    ],
)
def test_anything_else_is_refused_with_what_is_allowed(wrong, why):
    allowed = "allowed: a path, a PIL image, or an array"
    with pytest.raises(ImageError, match=f"^{why}.*; {allowed}[^\n]*$"):
        to_samples(wrong)


def test_floating_point_pil_images_and_empty_arrays_are_refused():
    with pytest.raises(ImageError, match="floating-point samples have no defined white"):
        to_samples(Image.new("F", (4, 4)))
    with pytest.raises(ImageError, match="at least one pixel"):
        to_samples(np.zeros((0, 4), np.uint8))


def test_features_of_every_kind_of_image_are_those_of_the_file(tmp_path):
    path = tmp_path / "a.png"
    picture(90, 120).save(path)
    array = np.asarray(Image.open(path))
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    spp = SPPFeatures("spp-mini", scales=[64], device="cpu")
    rows = spp.transform([path, Image.open(path), array, tensor, tensor / 255, array / 255])
    np.testing.assert_array_equal(rows, np.repeat(rows[:1], 6, axis=0))
    np.testing.assert_array_equal(spp.transform(tensor[None]), rows[:1])
    for one in (Image.open(path), tensor, array):
        with pytest.raises(ImageError, match=r"must be a list of images, as \[image\]"):
            spp.transform(one)
    with pytest.raises(ImageError, match=r"^image 1: samples of type int32 have no known white"):
        spp.transform([array, array.astype(np.int32)])
