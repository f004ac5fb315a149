from __future__ import annotations

import base64
import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from spptransfer.report.thumbnails import MAX_BYTES, SIDE, thumbnail

PREFIX = "data:image/jpeg;base64,"


def decoded(uri: str | None) -> Image.Image:
    assert uri is not None
    assert uri.startswith(PREFIX)
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(PREFIX))))


def saved(tmp_path, image: Image.Image, name: str = "image.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("1", "x.png"),
        ("L", "x.jpg"),
        ("LA", "x.png"),
        ("P", "x.gif"),
        ("RGB", "x.jpg"),
        ("RGBA", "x.png"),
        ("CMYK", "x.jpg"),
        ("YCbCr", "x.jpg"),
        ("I;16", "x.png"),
        ("I", "x.tif"),
        ("F", "x.tif"),
    ],
)
def test_every_mode_becomes_a_small_rgb_jpeg(tmp_path, mode, name):
    image = decoded(thumbnail(saved(tmp_path, Image.new(mode, (600, 300)), name)))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (SIDE, SIDE // 2))


def test_small_images_are_not_enlarged(tmp_path):
    assert decoded(thumbnail(saved(tmp_path, Image.new("RGB", (7, 5))))).size == (7, 5)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_extreme_shapes_keep_at_least_one_pixel(tmp_path, size):
    image = decoded(thumbnail(saved(tmp_path, Image.new("RGB", size))))
    assert max(image.size) <= SIDE
    assert min(image.size) == 1


def test_the_exif_orientation_is_applied_and_dropped(tmp_path):
    picture = Image.new("RGB", (400, 200), "white")
    picture.paste("red", (0, 0, 200, 200))
    exif = Image.Exif()
    exif[0x0112] = 6  # the upper side is on the right: turn a quarter clockwise
    image = decoded(thumbnail(saved(tmp_path, picture, "x.jpg", exif=exif, quality=95)))
    assert image.size == (SIDE // 2, SIDE)
    assert image.getpixel((60, 20))[1] < 80 < 200 < image.getpixel((60, 220))[1]
    assert not image.getexif()


def test_transparency_is_white(tmp_path):
    image = decoded(thumbnail(saved(tmp_path, Image.new("RGBA", (50, 50), (0, 0, 0, 0)))))
    assert min(image.getpixel((25, 25))) > 250


def test_sixteen_bits_keep_their_brightness(tmp_path):
    pixels = np.full((60, 60), 32768, np.uint16)
    image = decoded(thumbnail(saved(tmp_path, Image.fromarray(pixels))))
    assert abs(image.getpixel((30, 30))[0] - 128) <= 2


def test_noise_stays_within_the_limit(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    uri = thumbnail(saved(tmp_path, Image.fromarray(pixels)))
    assert uri is not None
    assert len(uri) < 4 / 3 * MAX_BYTES + 50


@pytest.mark.parametrize("contents", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_what_is_no_image_has_no_thumbnail(tmp_path, contents):
    (tmp_path / "x.jpg").write_bytes(contents)
    assert thumbnail(tmp_path / "x.jpg") is None


def test_a_cut_off_file_has_no_thumbnail(tmp_path):
    path = saved(tmp_path, Image.effect_noise((500, 500), 90).convert("RGB"), "x.jpg")
    path.write_bytes(path.read_bytes()[:3000])
    assert thumbnail(path) is None


def test_a_decompression_bomb_is_not_unpacked(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)
    assert thumbnail(tmp_path / "bomb.png") is None


def test_absent_files_folders_and_impossible_names_have_no_thumbnail(tmp_path):
    assert thumbnail(tmp_path / "absent.jpg") is None
    assert thumbnail(tmp_path) is None
    assert thumbnail(tmp_path / "nul\0byte.jpg") is None
    assert thumbnail(tmp_path / ("x" * 5000)) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert thumbnail(tmp_path / "pipe.jpg") is None
