"""One antialiased bilinear resize of 8-bit images, and how much of a JPEG file it needs.

The same bytes come out on every processor: both implementations compute in integers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

# A JPEG file is decoded at a fraction of its size as long as that has so many times the scale:
# what a resize takes from it is then nearly what it takes from the whole.
MARGIN = 3

# Torch's resize of bytes is about twice as fast as Pillow's, and within two grey levels of it. It
# needs a copy of the image, so that for large ones neither speed nor memory speaks for it.
_TORCH_PIXELS = 1 << 22

# The definition, for the feature spec.
RESIZE = "bilinear, antialiased, 8 bits (torch; Pillow from 2**22 pixels on or to a width of 1)"


def reduction_of(shorter: int, scale: int) -> int:
    """Choose the fraction of its size that a JPEG file is decoded at.

    Parameters
    ----------
    shorter : int
        Length of the image's smaller side, in pixels.
    scale : int
        Length that it is to get.

    Returns
    -------
    {1, 2, 4, 8}
        Divisor of the size.

    Examples
    --------
    >>> reduction_of(375, 224), reduction_of(3000, 224)
    (1, 4)
    """
    return max(n for n in (1, 2, 4, 8) if n == 1 or shorter // n >= MARGIN * scale)


def resize(image: Image.Image, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Resize an RGB image.

    Parameters
    ----------
    image : PIL.Image.Image
        In mode RGB.
    height, width : int
        Size of the result, at least one pixel each.

    Returns
    -------
    ndarray of uint8, shape (height, width, 3)
        Bilinear; where the image gets smaller, averaged over what a pixel covers.

    Raises
    ------
    MemoryError
        If the result does not fit.

    Examples
    --------
    >>> resize(Image.new("RGB", (4, 2), (9, 8, 7)), 1, 2).tolist()
    [[[9, 8, 7], [9, 8, 7]]]
    """
    if (image.height, image.width) == (height, width):
        return np.array(image)
    # Of images that become one pixel wide, torch makes different ones on different processors.
    if image.width * image.height >= _TORCH_PIXELS or width == 1:
        return np.array(image.resize((width, height), Image.Resampling.BILINEAR))
    from torch import from_numpy
    from torch.nn.functional import interpolate

    from spptransfer.processor import is_out_of_memory

    pixels = from_numpy(np.array(image)).permute(2, 0, 1)[None]
    try:
        resized = interpolate(pixels, size=(height, width), mode="bilinear", antialias=True)
        resized = resized[0].permute(1, 2, 0).contiguous()
    except RuntimeError as error:
        if is_out_of_memory(error):  # torch's way of saying so
            raise MemoryError(str(error)) from error
        raise
    bytes_: npt.NDArray[np.uint8] = resized.numpy()
    return bytes_
