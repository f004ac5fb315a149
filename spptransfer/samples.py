"""Images in memory, as PIL images, arrays or tensors, to the samples that a file would give."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from spptransfer import images
from spptransfer.errors import ImageError

ALLOWED = (
    "allowed: a path, a PIL image, or an array or tensor of uint8, or of floats from 0 to 1, "
    "of shape H x W, H x W x C or C x H x W with C = 1, 3 or 4"
)
_CHANNELS = (1, 3, 4)
# What a resize of floats may put beyond 0 and 1.
_BEYOND = 1e-3


def is_tensor(image: Any) -> bool:
    """Tell whether something is a tensor, without importing torch for it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(image, torch.Tensor)


def to_samples(image: Any) -> npt.NDArray[np.uint8]:
    """Turn an image in memory into samples, by the rules for files.

    A PIL image is turned upright by its orientation; its colours are converted, 16-bit grey is
    scaled and transparency put on white as those of a file. Where the shape leaves it open, an
    array's channels come last and a tensor's first.

    Parameters
    ----------
    image : PIL.Image.Image, ndarray or torch.Tensor
        Samples in uint8, or in floating point from 0 to 1.

    Returns
    -------
    ndarray of uint8, shape (H, W), (H, W, 3) or (H, W, 4)

    Raises
    ------
    ImageError
        If it is no image; the message says what is allowed.

    Examples
    --------
    >>> to_samples(np.full((3, 2, 5), 0.5)).shape
    (2, 5, 3)
    >>> to_samples(Image.new("CMYK", (5, 2))).max()
    np.uint8(255)
    """
    if isinstance(image, Image.Image):
        return np.asarray(images.upright(image))
    channels_first = is_tensor(image)
    if channels_first:
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    if not isinstance(image, np.ndarray):
        raise ImageError(f"{type(image).__name__} is no image; {ALLOWED}")
    return _in_bytes(_channels_last(image, first=channels_first))


def _channels_last(array: npt.NDArray[Any], *, first: bool) -> npt.NDArray[Any]:
    """Return H × W, or H × W × 3 or 4."""
    if array.ndim == 3:
        last_is, first_is = array.shape[2] in _CHANNELS, array.shape[0] in _CHANNELS
        if first_is and (first or not last_is):
            array = array.transpose(1, 2, 0)
        if array.shape[2] == 1:
            array = array[:, :, 0]
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)):
        raise ImageError(f"an array of shape {array.shape} is no image; {ALLOWED}")
    if min(array.shape) < 1:
        raise ImageError(f"an image needs at least one pixel, not {array.shape}")
    return array


def _in_bytes(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise ImageError(f"samples of type {array.dtype} have no known white; {ALLOWED}")
    low, high = float(array.min()), float(array.max())
    if not (low >= -_BEYOND and high <= 1 + _BEYOND):  # NaN too
        raise ImageError(f"floats from {low:g} to {high:g} have no known white; {ALLOWED}")
    return np.rint(255 * np.clip(array.astype(np.float32), 0, 1)).astype(np.uint8)
