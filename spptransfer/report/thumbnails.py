"""Small upright JPEGs of image files, as data URIs, without trusting the files."""

from __future__ import annotations

import base64
import io
import logging
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SIDE = 240
MAX_BYTES = 24_000
_QUALITIES = (80, 65, 45, 25)

logger = logging.getLogger(__name__)


def thumbnail(path: Path) -> str | None:
    """Make a small upright JPEG of an image file.

    Parameters
    ----------
    path : Path
        The image; grey, palette, CMYK, 16-bit and transparent ones are fine.

    Returns
    -------
    str or None
        A ``data:image/jpeg;base64,…`` URI of at most `SIDE` pixels a side and about
        `MAX_BYTES` · 4/3 characters; None if there is no readable image within Pillow's
        decompression limit.
    """
    try:
        if not path.is_file():
            return None
        return "data:image/jpeg;base64," + base64.b64encode(_jpeg(_open(path))).decode("ascii")
    # Pillow's decoders raise whatever a damaged file leads them to, struct.error included.
    except Exception as error:
        logger.warning("no thumbnail of '%s': %s", path, error)
        return None


def _open(path: Path) -> Image.Image:
    """Decode at no more than the size needed, turn upright, reduce, convert to RGB."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            image.draft("RGB", (2 * SIDE, 2 * SIDE))
            upright = ImageOps.exif_transpose(image)
            colour = _as_rgb(upright)
    colour.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return colour


def _as_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB; transparency becomes white, 16 bits their upper 8."""
    if image.mode.startswith("I") or image.mode == "F":
        step = max(1, min(image.size) // (2 * SIDE))
        values = np.asarray(image)[::step, ::step].astype(np.float64)
        scale = 257 if values.max(initial=0) > 255 else 1
        return Image.fromarray(np.clip(values / scale, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _jpeg(image: Image.Image) -> bytes:
    """Encode with the best quality that keeps within `MAX_BYTES`, if any does."""
    encoded = b""
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        encoded = buffer.getvalue()
        if len(encoded) <= MAX_BYTES:
            break
    return encoded
