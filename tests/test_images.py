from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import encode, picture, png_that_claims, rotated_by_exif
from PIL import Image

from spptransfer import images
from spptransfer.errors import ImageError
from spptransfer.images import Rendering


def as_array(data: bytes) -> np.ndarray:
    return np.asarray(images.decode(data))


LOSSLESS = [
    ("PNG", {}),
    ("WEBP", {"lossless": True}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "tiff_adobe_deflate"}),
]
LOSSY = [("JPEG", {"quality": 98, "subsampling": 0}), ("MPO", {"quality": 98, "subsampling": 0})]


@pytest.mark.parametrize(("kind", "options"), [*LOSSLESS, *LOSSY])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_saved_turned_with_its_tag_is_the_one_saved_upright(kind, options, orientation):
    upright = picture(32, 48)  # whole blocks of a JPEG
    if kind == "MPO":
        options = {**options, "save_all": True, "append_images": [upright]}
    plain, turned = (
        encode(upright, kind, **options),
        rotated_by_exif(upright, orientation, kind, **options),
    )
    assert images.upright_size(turned) == images.upright_size(plain) == (32, 48)
    difference = np.abs(as_array(turned).astype(int) - as_array(plain))
    assert difference.max() <= (0 if (kind, options) in LOSSLESS else 6)
    (view,) = images.views(turned, [Rendering(16)])
    assert view.shape == (16, 24, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_sizes_of_a_file_are_those_before_and_after_it_is_turned(kind, tmp_path):
    for orientation in range(1, 9):
        options = {"exif": b"x" * 40_000} if orientation == 1 and kind == "JPEG" else {}
        image, file = picture(300, 400), tmp_path / "image"
        turned = orientation > 4
        content = encode(image, kind, **options)
        if not options:
            content = rotated_by_exif(image, orientation, kind)
        file.write_bytes(content)
        stored = (400, 300) if turned else (300, 400)
        assert images.sizes_of_file(file) == ((300, 400), stored)


def png_chunk(kind: bytes, content: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def with_chunk(png: bytes, chunk: bytes, at: int = 33) -> bytes:
    return png[:at] + chunk + png[at:]


def test_an_orientation_behind_the_pixels_of_a_png_counts_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    chunk = png_chunk(b"eXIf", exif.tobytes()[6:])
    png = encode(picture(5, 9).transpose(Image.Transpose.ROTATE_90))
    data = with_chunk(png, chunk, at=len(png) - 12)
    assert images.upright_size(data) == (5, 9)
    np.testing.assert_array_equal(as_array(data), np.asarray(picture(5, 9)))


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"zTXt", b"notes\0\0" + zlib.compress(bytes(3 << 20))),
        png_chunk(b"iTXt", b"XML:notes\0\1\0\0\0" + zlib.compress(bytes(3 << 20))),
        png_chunk(b"pHYs", bytes(9), checksum=1),
        png_chunk(b"tRNS", bytes(6), checksum=1),
        png_chunk(b"iCCP", b"name\0\1damaged"),
    ],
)
def test_a_png_is_read_whatever_else_than_pixels_it_holds(chunk):
    plain = encode(picture(5, 9))
    for data in (with_chunk(plain, chunk), with_chunk(plain, chunk, at=len(plain) - 12)):
        assert images.upright_size(data) == (5, 9)
        np.testing.assert_array_equal(as_array(data), np.asarray(picture(5, 9)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (with_chunk(encode(picture(5, 9))[:16], bytes(20)), "PNG file: .*checksum in b'IHDR'"),
        (encode(picture(5, 9), "TIFF")[:30], "cannot read the TIFF file: "),
        (encode(picture(5, 9), "WEBP")[:30], "cannot read the WEBP file: "),
        (b"BM" + bytes(60), "cannot read the BMP file: Unsupported BMP header type"),
    ],
)
def test_what_pillow_has_against_a_file_that_it_recognises_stands_in_the_reason(data, reason):
    with pytest.raises(ImageError, match=reason):
        images.upright_size(data)


def test_a_damaged_exif_block_is_ignored():
    upright = picture(6, 9)
    data = encode(upright, "PNG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    np.testing.assert_array_equal(as_array(data), np.asarray(upright))


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


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind):
    samples = np.array([[0, 128, 129, 257], [32768, 65278, 65407, 65535]], dtype=np.uint16)
    decoded = as_array(encode(Image.fromarray(samples), kind))[:, :, 0]
    np.testing.assert_array_equal(decoded, np.round(samples / 257).astype(np.uint8))


def tiff(samples: np.ndarray, bits: int, order: str = "<", planes: int = 1, **tags: int) -> bytes:
    """An uncompressed TIFF, H x W or H x W x 3, of the samples as they are or packed in 12 bits."""
    height, width, *colours = samples.shape
    body = np.moveaxis(samples, -1, 0) if planes == 2 else samples
    content = body.astype(body.dtype.newbyteorder(order)).tobytes()
    if bits == 12:
        pairs = samples.reshape(-1, 2).astype(np.uint32)
        packed = pairs[:, 0] << 12 | pairs[:, 1]
        content = b"".join(int(value).to_bytes(3, "big") for value in packed)
    n_colours = colours[0] if colours else 1
    length = len(content) // (n_colours if planes == 2 else 1)
    strips = range(0, len(content), length)
    fields = {
        256: [width],
        257: [height],
        258: [bits] * n_colours,
        259: [1],
        262: [1 + (n_colours > 1)],
    }
    fields |= {277: [n_colours], 278: [height], 279: [length] * len(strips), 284: [planes]}
    fields |= {int(tag[1:]): [value] for tag, value in tags.items()}
    behind = 8 + 2 + 12 * (len(fields) + 1) + 4  # where lists of several values stand
    start = behind + 4 * sum(len(values) for values in fields.values() if len(values) > 1)
    start += 4 * len(strips) if len(strips) > 1 else 0
    fields[273] = [start + strip for strip in strips]
    entries, lists = b"", b""
    for tag, values in sorted(fields.items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        inline = packed if len(values) == 1 else struct.pack(f"{order}I", behind + len(lists))
        lists += packed if len(values) > 1 else b""
        entries += struct.pack(f"{order}HHI", tag, 4, len(values)) + inline
    head = b"II*\0" if order == "<" else b"MM\0*"
    head += struct.pack(f"{order}IH", 8, len(fields)) + entries + bytes(4)
    return head + lists + content


RAMP = np.linspace(0, 1, 8).reshape(2, 4)


@pytest.mark.parametrize(
    ("bits", "order", "white_is_zero"),
    [(8, "<", True), (12, "<", False), (16, "<", False), (16, ">", False), (16, "<", True)],
)
def test_deep_grey_comes_out_as_its_eight_bits(bits, order, white_is_zero):
    white = 2**bits - 1
    stored = np.round((1 - RAMP if white_is_zero else RAMP) * white)
    data = tiff(
        stored.astype(np.uint8 if bits == 8 else np.uint16), bits, order, t262=1 - white_is_zero
    )
    found = as_array(data)
    assert found.min() == 0
    assert found.max() == 255
    assert np.abs(found - (255 * RAMP)[:, :, None]).max() <= 0.51 if bits > 8 else 1


@pytest.mark.parametrize("order", ["<", ">"])
def test_interleaved_colours_of_sixteen_bits_keep_their_upper_bytes(order):
    samples = np.random.default_rng(0).integers(0, 65536, (3, 4, 3)).astype(np.uint16)
    np.testing.assert_array_equal(as_array(tiff(samples, 16, order)), samples >> 8)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (
            encode(Image.fromarray(RAMP.astype(np.float32)), "TIFF"),
            "floating-point samples have no",
        ),
        (tiff(RAMP.astype(np.uint32), 32), "32-bit samples have no defined white"),
        (tiff(RAMP.astype(np.int32), 32, t339=2), "signed 32-bit samples have no defined white"),
        (tiff(RAMP.astype(np.int16), 16, t339=2), "signed 16-bit samples have no defined white"),
        (tiff(RAMP.astype(np.int8), 8, t339=2), "signed 8-bit samples have no defined white"),
        (tiff(np.zeros((2, 4, 3), np.uint16), 16, planes=2), "16-bit samples in separate planes"),
        (tiff(RAMP.astype(np.uint16), 16, ">", t262=0), "cannot read the TIFF file: "),
    ],
)
def test_samples_that_cannot_be_read_right_are_refused_by_name(data, reason):
    with pytest.raises(ImageError, match=reason):
        images.decode(data)


def test_planes_of_eight_bits_are_read():
    samples = np.random.default_rng(0).integers(0, 256, (3, 4, 3)).astype(np.uint8)
    np.testing.assert_array_equal(as_array(tiff(samples, 8, planes=2)), samples)


def sixteen_bit_png(samples: np.ndarray, transparent: bytes) -> bytes:
    height, width, *colours = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if colours else 0, 0, 0, 0)
    chunks = (
        (b"IHDR", header),
        (b"tRNS", transparent),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def test_a_transparent_grey_of_sixteen_bits_is_white_and_its_neighbour_is_not():
    data = sixteen_bit_png(np.array([[771, 772, 0]]), struct.pack(">H", 771))
    assert as_array(data)[0, :, 0].tolist() == [255, 3, 0]


def test_a_transparent_colour_of_sixteen_bits_is_refused_by_name():
    data = sixteen_bit_png(np.zeros((1, 2, 3)), bytes(6))
    with pytest.raises(ImageError, match="a transparent colour of 16 bits cannot be read"):
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


@pytest.mark.parametrize(
    "content", [b"not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg/>", b"P"]
)
def test_what_is_no_raster_image_is_refused(content):
    with pytest.raises(ImageError, match="no image of a known format"):
        images.decode(content)


@pytest.mark.parametrize("size", [(60000, 60000), (13377, 13378), (2**31 - 1, 1)])
def test_enormous_dimensions_are_refused_before_any_pixel_is_decoded(size):
    with pytest.raises(ImageError, match="more than 178,956,970 pixels"):
        images.upright_size(png_that_claims(*size))


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


@given(height=SIDE, width=SIDE, scale=SCALE, grid=st.sampled_from([2, 4, 14, 16, 32]))
def test_both_sides_are_the_multiples_of_the_grid_nearest_to_the_scale_s(
    height, width, scale, grid
):
    found = images.view_size(height, width, scale, "full", grid, 4)
    shorter, longer = min(found), max(found)
    exact = min(max(height, width) / min(height, width) * scale, 4 * shorter)
    assert shorter % grid == longer % grid == 0
    assert abs(shorter - max(scale, grid)) <= grid / 2
    assert abs(longer - max(exact, grid)) <= grid / 2 + 1e-9  # `exact` is rounded
    for view in ("warp", "center_crop"):
        assert images.view_size(height, width, scale, view, grid, 4) == (shorter, shorter)


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
    (found,) = images.views(data, [Rendering(64, view)])
    whole = images.render(images.decode(data), 64, view)
    assert found.shape == whole.shape == (*images.view_size(*size, 64, view), 3)
    difference = np.abs(found.astype(float) - whole)
    assert 0 < difference.mean() < 1.5


def test_a_view_does_not_depend_on_what_else_is_rendered():
    data = jpeg(700, 900)
    both = images.views(data, [Rendering(224), Rendering(64)])
    for alone, scale in zip(both, (224, 64), strict=True):
        np.testing.assert_array_equal(images.views(data, [Rendering(scale)])[0], alone)
    np.testing.assert_array_equal(both[0], images.render(images.decode(data), 224))


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("kind", ["RGB", "L", "CMYK"])
def test_a_reduced_jpeg_has_its_size_divided_and_is_rgb(reduction, kind):
    data = encode(picture(203, 301).convert(kind), "JPEG")
    decoded = images.decode(data, reduction)
    assert decoded.mode == "RGB"
    assert decoded.size == (-(-301 // reduction), -(-203 // reduction))


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


# ---- the resize ----


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
