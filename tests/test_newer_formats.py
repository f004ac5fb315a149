"""AVIF and HEIC, where they can be read."""

from __future__ import annotations

import numpy as np
import pytest
from image_files import encode, picture
from PIL import Image
from small_projects import draw_folder

from spptransfer import images
from spptransfer.datasets.folder import read_folder
from spptransfer.errors import ImageError


@pytest.fixture(params=["AVIF", "HEIF"])
def kind(request):
    if request.param == "AVIF" and "AVIF" not in images.FORMATS:
        pytest.skip("this Pillow does not read AVIF")
    if request.param == "HEIF":
        pytest.importorskip("pillow_heif", reason="the extra heif is absent").register_heif_opener()
    return request.param


def test_pixels_and_sizes_are_those_that_were_saved(kind):
    image = picture(60, 90).resize((5, 3)).resize((45, 30), Image.Resampling.BICUBIC)  # smooth
    data = encode(image, kind, quality=95)
    assert images.upright_size(data) == (30, 45)
    found = np.asarray(images.decode(data), int)
    assert np.abs(found - np.asarray(image, int)).mean() < 8
    assert np.asarray(images.decode(encode(image.convert("L"), kind))).shape == (30, 45, 3)


def test_transparency_is_put_on_white(kind):
    image = picture(30, 45)
    image.putalpha(0)
    assert np.asarray(images.decode(encode(image, kind))).min() == 255


def test_a_file_cut_short_is_refused_in_one_line(kind):
    data = encode(picture(60, 90), kind)
    for length in (20, 200, len(data) // 2):
        with pytest.raises(ImageError, match=r"^[^\n]+$"):
            images.decode(data[:length])


def test_folders_are_searched_for_what_can_be_read(kind, tmp_path):
    suffix = {"AVIF": "avif", "HEIF": "heic"}[kind]
    root = draw_folder(tmp_path, per_class=1)
    (root / "cat" / f"x.{suffix}").write_bytes(encode(picture(30, 45), kind))
    assert f"cat/x.{suffix}" in read_folder(root).ids


def test_avif_is_turned_upright():
    if "AVIF" not in images.FORMATS:
        pytest.skip("this Pillow does not read AVIF")
    exif = Image.Exif()
    exif[274] = 6
    data = encode(picture(20, 30), "AVIF", exif=exif)
    assert images.upright_size(data) == (30, 20)
    assert images.decode(data).size == (20, 30)


def test_heic_without_the_extra_says_what_to_install(monkeypatch):
    kept = tuple(name for name in images.FORMATS if name != "HEIF")
    monkeypatch.setattr(images, "FORMATS", kept)
    with pytest.raises(ImageError, match=r"pip install 'spptransfer\[heif\]'"):
        images.decode(b"\0\0\0\x18ftypheic" + bytes(100))
