"""Awkward images made on the spot, shared by the tests of every room that reads images."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """A smooth coloured image with some noise, so that a resize has something to keep."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (3 + i + seed) + i) * np.cos(y / (5 + i)) for i in range(3)]
    noise = generator.normal(0, 12, (height, width, 3))
    samples = 128 + 90 * np.stack(waves, axis=-1) + noise
    return Image.fromarray(np.clip(samples, 0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_that_claims(height: int, width: int) -> bytes:
    """A tiny file whose header announces an enormous image."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + checksum + b"\0\0\0\0IDAT"


def rotated_by_exif(image: Image.Image, orientation: int, kind: str = "PNG", **options) -> bytes:
    """A file stored so that viewers that follow its EXIF orientation show `image`."""
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = image if undo is None else image.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(stored, kind, exif=exif, **options)
