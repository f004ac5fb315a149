from __future__ import annotations

import hashlib
import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import encode, picture, rotated_by_exif
from PIL import Image, ImageOps

from spptransfer import images
from spptransfer.errors import ConfigError, ImageError


def as_array(data: bytes) -> np.ndarray:
    return np.asarray(images.decode(data))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_out_upright(orientation):
    upright = picture(30, 50)
    data = rotated_by_exif(upright, orientation)
    np.testing.assert_array_equal(as_array(data), np.asarray(upright))
    assert images.upright_size(data) == (30, 50)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_agrees_with_pillows_own_transpose(orientation):
    data = rotated_by_exif(picture(7, 5), orientation)
    with Image.open(io.BytesIO(data)) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored))
    np.testing.assert_array_equal(as_array(data), expected)


def test_a_damaged_exif_block_is_ignored():
    upright = picture(6, 9)
    data = encode(upright, "PNG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    np.testing.assert_array_equal(as_array(data), np.asarray(upright))


def test_grey_becomes_three_equal_channels():
    grey = picture(8, 8).convert("L")
    expected = np.repeat(np.asarray(grey)[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(as_array(encode(grey)), expected)


def test_one_bit_palette_and_cmyk_files_are_read_as_rgb():
    source = picture(40, 30)
    for image, kind in (
        (source.convert("1"), "PNG"),
        (source.convert("P"), "PNG"),
        (source.convert("P"), "GIF"),
        (source.convert("CMYK"), "JPEG"),
        (source.convert("YCbCr"), "JPEG"),
        (source, "WEBP"),
        (source, "BMP"),
        (source, "TIFF"),
        (source, "PPM"),
    ):
        decoded = images.decode(encode(image, kind))
        assert (decoded.mode, decoded.size) == ("RGB", (30, 40)), kind


def test_a_cmyk_jpeg_keeps_its_colours():
    flat = Image.new("RGB", (16, 16), (200, 40, 90))
    decoded = as_array(encode(flat.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(decoded.astype(int) - (200, 40, 90)).max() <= 6


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind):
    samples = np.array([[0, 128, 129, 257], [32768, 65278, 65407, 65535]], dtype=np.uint16)
    decoded = as_array(encode(Image.fromarray(samples), kind))[:, :, 0]
    np.testing.assert_array_equal(decoded, np.round(samples / 257).astype(np.uint8))


def test_floating_point_samples_are_refused_by_name():
    data = encode(Image.fromarray(np.zeros((2, 2), dtype=np.float32)), "TIFF")
    with pytest.raises(ImageError, match="floating-point samples"):
        images.decode(data)


def test_transparency_is_composited_onto_white():
    pixels = np.zeros((1, 3, 4), dtype=np.uint8)
    pixels[0, :, :3] = (200, 100, 0)
    pixels[0, :, 3] = (255, 0, 128)
    decoded = as_array(encode(Image.fromarray(pixels)))[0]
    assert decoded[0].tolist() == [200, 100, 0]
    assert decoded[1].tolist() == [255, 255, 255]
    assert np.abs(decoded[2].astype(int) - (227, 177, 127)).max() <= 1


def test_a_transparent_palette_entry_is_white_too():
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    decoded = as_array(encode(palette, "PNG", transparency=0))
    assert decoded.tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (4, 4), (60 * i, 0, 0)) for i in range(1, 4)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert as_array(data)[0, 0].tolist() == [60, 0, 0]


def test_a_png_named_jpg_is_read_by_its_content(tmp_path):
    path = tmp_path / "liar.jpg"
    path.write_bytes(encode(picture(5, 6), "PNG"))
    assert images.decode(images.read_bytes(path)).size == (6, 5)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_a_truncated_file_is_an_image_error_in_one_line(kind, share):
    data = encode(picture(60, 80), kind)
    with pytest.raises(ImageError) as caught:
        images.decode(data[: int(len(data) * share)])
    assert "\n" not in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_bytes_give_an_image_or_an_image_error_and_nothing_else(data):
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF"]))
    content = bytearray(encode(picture(12, 17), kind))
    for _ in range(data.draw(st.integers(1, 12))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.integers(0, 255))
    try:
        images.upright_size(bytes(content))
        decoded = images.decode(bytes(content))
    except ImageError:
        return
    assert decoded.mode == "RGB"


@pytest.mark.parametrize("content", [b"not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg/>"])
def test_what_is_no_raster_image_is_refused(content):
    with pytest.raises(ImageError, match="no image of a known format"):
        images.decode(content)


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + checksum + b"\0\0\0\0IDAT"


@pytest.mark.parametrize("size", [(60000, 60000), (13378, 13377), (1, 2**31 - 1)])
def test_enormous_dimensions_are_refused_before_any_pixel_is_decoded(size):
    with pytest.raises(ImageError, match="more than 178,956,970 pixels"):
        images.upright_size(png_header(*size))


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("empty.jpg", lambda path: path.touch(), "the file is empty"),
        ("folder.jpg", lambda path: path.mkdir(), "a directory"),
        ("pipe.jpg", lambda path: os.mkfifo(path), "no regular file"),
        ("absent.jpg", lambda path: None, "No such file"),
        ("loop.jpg", lambda path: path.symlink_to(path), "symbolic link"),
        ("nul\0.jpg", lambda path: None, "null byte"),
    ],
)
def test_what_is_no_readable_file_is_named(tmp_path, name, make, reason):
    make(tmp_path / name)
    with pytest.raises(ImageError, match=reason):
        images.read_bytes(tmp_path / name)


def test_a_file_beyond_the_limit_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 10)
    (tmp_path / "large.jpg").write_bytes(b"x" * 11)
    with pytest.raises(ImageError, match="11 bytes; at most 10"):
        images.read_bytes(tmp_path / "large.jpg")


SIDE = st.integers(1, 4000)
SCALE = st.integers(1, 600)


@given(height=SIDE, width=SIDE, scale=SCALE)
def test_the_smaller_side_is_exactly_the_scale_and_the_aspect_is_kept_up_to_16(
    height, width, scale
):
    new_height, new_width = images.view_size(height, width, scale)
    assert min(new_height, new_width) == scale
    exact = min(max(height, width) / min(height, width), 16) * scale
    assert abs(max(new_height, new_width) - exact) <= 0.5
    assert (new_height <= new_width) == (height <= width) or new_height == new_width


def test_an_image_of_5000_by_3_pixels_is_squashed_to_16_times_the_scale():
    image = picture(5000, 3)
    rendered = images.render(image, 32)
    assert rendered.shape == (512, 32, 3)
    np.testing.assert_array_equal(rendered, images.resize(image, 512, 32))
    assert images.description()["longer side"].startswith("at most 16 times the scale")


@given(height=SIDE, width=SIDE, scale=SCALE)
def test_squares_come_from_the_square_views(height, width, scale):
    assert images.view_size(height, width, scale, "warp") == (scale, scale)


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (1, 1), (3, 400), (400, 3), (64, 64)])
@pytest.mark.parametrize("view", images.VIEWS)
def test_a_rendered_view_has_the_size_that_was_announced(size, view):
    rendered = images.render(picture(*size), 32, view)
    assert rendered.shape == (*images.view_size(*size, 32, view), 3)
    assert rendered.dtype == np.uint8


def test_the_centre_crop_is_the_middle_of_the_full_view():
    image = picture(60, 110)
    full = images.render(image, 40)
    crop = images.render(image, 40, "center_crop")
    left = (full.shape[1] - 40) // 2
    np.testing.assert_array_equal(crop, full[:, left : left + 40])


def test_an_image_already_at_its_scale_is_not_touched():
    image = picture(48, 71)
    np.testing.assert_array_equal(images.render(image, 48), np.asarray(image))


def photograph(height, width):
    """Large, with structures as large as those of a camera's images."""
    return picture(height // 8, width // 8).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(height, width):
    return encode(photograph(height, width), "JPEG", quality=90)


@pytest.mark.parametrize("renderings", [[(32, "full")], [(40, "warp"), (32, "full"), (9, "full")]])
def test_views_of_a_file_are_those_of_its_decoded_image_while_it_is_not_large(renderings):
    data = encode(picture(300, 200))  # of a PNG, at any size
    expected = [images.render(images.decode(data), *rendering) for rendering in renderings]
    for found, view in zip(images.views(data, renderings), expected, strict=True):
        np.testing.assert_array_equal(found, view)


@pytest.mark.parametrize("view", images.VIEWS)
@pytest.mark.parametrize("size", [(607, 801), (801, 607), (1601, 1204)])
def test_a_large_jpeg_is_decoded_smaller_and_gives_nearly_the_same_view(view, size):
    data = jpeg(*size)
    (found,) = images.views(data, [(64, view)])
    whole = images.render(images.decode(data), 64, view)
    assert found.shape == whole.shape == (*images.view_size(*size, 64, view), 3)
    difference = np.abs(found.astype(float) - whole)
    assert 0 < difference.mean() < 1.5


def test_a_view_does_not_depend_on_what_else_is_rendered():
    data = jpeg(700, 900)
    both = images.views(data, [(224, "full"), (64, "full")])
    for alone, scale in zip(both, (224, 64), strict=True):
        np.testing.assert_array_equal(images.views(data, [(scale, "full")])[0], alone)
    np.testing.assert_array_equal(both[0], images.render(images.decode(data), 224))


@pytest.mark.parametrize(
    ("scales", "times"), [([], 1), ([224], 1), ([48], 1), ([224, 200, 190], 1), ([224, 64, 48], 3)]
)
def test_a_file_is_opened_once_for_each_fraction_that_it_is_decoded_at(monkeypatch, scales, times):
    data, opened, open_image = jpeg(600, 900), [], Image.open
    expected = [images.views(data, [(scale, "full")])[0] for scale in scales]
    monkeypatch.setattr(Image, "open", lambda *a, **k: opened.append(a) or open_image(*a, **k))
    found = images.views(data, [(scale, "full") for scale in scales])
    assert len(opened) == times
    for view, alone in zip(found, expected, strict=True):
        np.testing.assert_array_equal(view, alone)


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("kind", ["RGB", "L", "CMYK"])
def test_a_reduced_jpeg_has_its_size_divided_and_is_rgb(reduction, kind):
    data = encode(picture(203, 301).convert(kind), "JPEG")
    decoded = images.decode(data, reduction)
    assert decoded.mode == "RGB"
    assert decoded.size == (-(-301 // reduction), -(-203 // reduction))


def test_a_large_jpeg_is_turned_upright():
    upright = photograph(600, 900)
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    (found,) = images.views(encode(stored, "JPEG", quality=95, exif=exif), [(48, "full")])
    assert found.shape == (48, 72, 3)
    difference = np.abs(found.astype(float) - images.render(upright, 48))
    assert difference.mean() < 2


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_a_large_truncated_jpeg_is_an_image_error_too(share):
    data = jpeg(600, 900)
    with pytest.raises(ImageError):
        images.views(data[: int(len(data) * share)], [(48, "full")])


def test_a_resize_beyond_the_limit_names_both_sizes():
    with pytest.raises(ImageError, match=r"1 x 30000 pixels at scale 5000 become 5000 x 80000"):
        images.view_size(1, 30000, 5000)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 3), (5, 4, 4)])
def test_arrays_of_every_layout_become_rgb(shape):
    image = images.from_array(np.full(shape, 255, dtype=np.uint8))
    assert (image.mode, image.size) == ("RGB", (4, 5))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4)), "uint8, not float64"),
        (np.zeros((4, 4, 2), np.uint8), "H x W x 3"),
        (np.zeros((4,), np.uint8), "H x W x 3"),
        (np.zeros((0, 4), np.uint8), "at least one pixel"),
    ],
)
def test_arrays_that_are_no_images_are_refused(array, message):
    with pytest.raises(ImageError, match=message):
        images.from_array(array)


def test_an_unknown_view_names_the_allowed_ones():
    with pytest.raises(ConfigError, match="'crop' is unknown; allowed: full, center_crop, warp"):
        images.check_view("crop")


def test_the_digest_is_the_files_sha256():
    assert images.content_digest(b"abc") == hashlib.sha256(b"abc").hexdigest()


# ---- the resize ----


def triangle_resize(samples: np.ndarray, size: int) -> np.ndarray:
    """Antialiased bilinear resize of the first axis, by its definition in float64."""
    ratio = len(samples) / size
    support = max(ratio, 1.0)
    out = np.empty((size, *samples.shape[1:]))
    for i in range(size):
        centre = (i + 0.5) * ratio
        distance = np.abs(np.arange(len(samples)) + 0.5 - centre) / support
        weights = np.clip(1 - distance, 0, None)
        out[i] = np.tensordot(weights / weights.sum(), samples, axes=1)
    return out


@pytest.mark.parametrize(("size", "scale"), [((90, 61), 32), ((20, 33), 48), ((7, 90), 24)])
def test_the_resize_is_antialiased_bilinear(size, scale):
    image = picture(*size)
    height, width = images.view_size(*size, scale)
    columns = triangle_resize(np.asarray(image).astype(float).swapaxes(0, 1), width).swapaxes(0, 1)
    expected = triangle_resize(columns, height)
    difference = np.abs(images.render(image, scale).astype(float) - expected)
    assert difference.max() <= 1.6  # two roundings to 8 bits


SIZES = [(90, 61), (20, 33), (400, 3), (3, 400), (1, 1), (64, 64)]


@pytest.mark.parametrize("size", [*SIZES, (2050, 2050)])
@pytest.mark.parametrize("target", [(32, 48), (224, 224), (1, 9), (9, 1), (64, 64)])
def test_images_of_any_size_are_resized_as_by_pillow_within_two_levels(size, target):
    small = picture(min(size[0], 400), min(size[1], 400))
    image = small.resize(size[::-1])
    found = images.resize(image, *target)
    assert found.shape == (*target, 3)
    assert found.flags.c_contiguous
    assert found.flags.writeable
    expected = np.asarray(image.resize(target[::-1], Image.Resampling.BILINEAR))
    assert np.abs(found.astype(int) - expected).max() <= 2


_DIGEST = """
import hashlib
import numpy as np
from PIL import Image
from spptransfer.images import resize
generator, digest = np.random.default_rng(0), hashlib.sha256()
for size in ((75, 100), (100, 75), (3, 400), (400, 3), (1, 1), (31, 31), (600, 80)):
    image = Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8))
    for target in ((32, 43), (45, 32), (1, 50), (50, 1), (120, 161), (31, 31)):
        digest.update(resize(image, *target).tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_processors_with_and_without_vector_instructions_make_the_same_bytes():
    digests = set()
    for capability in ("default", "avx2", "native"):
        environment = dict(os.environ)
        environment.pop("ATEN_CPU_CAPABILITY", None)
        if capability != "native":
            environment["ATEN_CPU_CAPABILITY"] = capability
        command = [sys.executable, "-c", _DIGEST]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        digests.add(done.stdout)
    assert len(digests) == 1


@given(shorter=st.integers(1, 20_000), scale=st.integers(1, 1000))
def test_a_reduced_image_keeps_three_times_the_scale_and_no_smaller_one_would(shorter, scale):
    reduction = images.reduction_of(shorter, scale)
    assert reduction in (1, 2, 4, 8)
    assert reduction == 1 or shorter // reduction >= 3 * scale
    assert reduction == 8 or shorter // (2 * reduction) < 3 * scale
