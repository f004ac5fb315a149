"""Classify images by a file of `spptransfer export`: numpy, Pillow and onnxruntime are enough.

Run it as ``python classify_onnx.py classifier.onnx photo.jpg``. The file has this text with it.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def resize(image: Image.Image, height: int, width: int) -> np.ndarray:
    """Resize an RGB image: bilinear, antialiased, rounded to 8 bits along rows, then columns."""
    if image.width * image.height >= 1 << 22 or width == 1:
        return np.array(image.resize((width, height), Image.Resampling.BILINEAR))
    pixels = np.array(image)
    for axis, length in ((1, width), (0, height)):
        step, cells = pixels.shape[axis] / length, np.arange(pixels.shape[axis]) + 0.5
        centres = step * (np.arange(length)[:, None] + 0.5)
        weights = np.maximum(1 - abs(cells - centres) / max(step, 1), 0)
        weights /= weights.sum(axis=1, keepdims=True)
        unit = max(2**bits for bits in range(23) if int(weights.max() * 2**bits + 0.5) < 1 << 15)
        sums = np.tensordot(np.floor(weights * unit + 0.5), pixels, (1, axis))
        rounded = np.clip(np.floor(sums / unit + 0.5), 0, 255).astype(np.uint8)
        pixels = np.moveaxis(rounded, 0, axis)
    return pixels


def nearest(length: int, shares: int, grid: int) -> int:
    """Find the multiple of a grid that is nearest to a share of a length."""
    return max(1, (2 * length + shares * grid) // (2 * shares * grid)) * grid


def show(path: str, scale: int, view: str, grid: int, longest: int) -> np.ndarray:
    """Read an image file and resize it to what the network is to see, H x W x 3 bytes."""
    image: Image.Image = Image.open(path)
    width, height = image.size
    if image.format in ("JPEG", "MPO"):  # large ones are decoded at a fraction of their size
        parts = max(n for n in (1, 2, 4, 8) if n == 1 or min(image.size) // n >= 3 * scale)
        image.draft(None, (width // parts, height // parts))
    if image.getexif().get(0x0112, 1) > 4:  # is to be turned by 90 degrees
        width, height = height, width
    image = ImageOps.exif_transpose(image).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    side = nearest(scale, 1, grid)
    if view == "warp":
        return resize(image, side, side)
    scale, grid = (side, 1) if view == "center_crop" else (scale, grid)
    longer = nearest(max(height, width) * scale, min(height, width), grid)
    longer = min(longer, longest * side)
    pixels = resize(image, *((side, longer) if height <= width else (longer, side)))
    if view == "center_crop":
        top, left = ((length - side) // 2 for length in pixels.shape[:2])
        pixels = pixels[top : top + side, left : left + side]
    return pixels


def classify(session: onnxruntime.InferenceSession, path: str) -> dict[str, np.ndarray]:
    """Classify an image file: the outputs by name, a number for each class."""
    about = session.get_modelmeta().custom_metadata_map
    view, grid, longest = (json.loads(about[name]) for name in ("view", "grid", "longest"))
    shown = [show(path, scale, view, grid, longest)[None] for scale in json.loads(about["scales"])]
    inputs = [each.name for each in session.get_inputs()]
    found = session.run(None, dict(zip(inputs, shown, strict=True)))
    return {each.name: row[0] for each, row in zip(session.get_outputs(), found, strict=True)}


if __name__ == "__main__":
    model = onnxruntime.InferenceSession(sys.argv[1])
    classes = json.loads(model.get_modelmeta().custom_metadata_map["classes"])
    for file in sys.argv[2:]:
        for name, values in classify(model, file).items():
            best = np.argsort(-values)[:3]
            print(file, name, {classes[i]: round(float(values[i]), 4) for i in best})  # noqa: T201
