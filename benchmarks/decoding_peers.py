"""What `decoding.py` compares: decoders, resizes and normalisations, as functions by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from spptransfer import backbones, images
from spptransfer.resizing import reduction_of, resize
from spptransfer.runtimes.network import Normalization
from spptransfer.runtimes.torch import TorchNetwork

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Array = np.ndarray
Contenders = dict[str, Callable[[Any], Any]]


def pillow(data: bytes) -> Array:
    return np.array(images.decode(data))


def to_array(decoded: Array | Image.Image) -> Array:
    return np.array(decoded) if isinstance(decoded, Image.Image) else decoded


def to_view(
    decoded: Array | Image.Image, scale: int, whole: tuple[int, int] | None = None
) -> Array:
    """Resize as ours is defined, with no copy that the kind of result does not ask for."""
    if isinstance(decoded, Image.Image):
        return images.render(decoded, scale, size=whole)
    height, width = decoded.shape[:2]
    if height * width >= 1 << 22:
        return images.render(Image.fromarray(decoded), scale, size=whole)
    pixels = torch.from_numpy(decoded).permute(2, 0, 1)[None]
    size = images.view_size(*(whole or (height, width)), scale)
    resized = interpolate(pixels, size=size, mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).contiguous().numpy()


def decoders() -> Contenders:
    """Functions from a file's bytes to its whole image."""
    found: Contenders = {"Pillow": pillow}
    for name, make in PEERS.items():
        try:
            found[name] = make()
        except (ImportError, RuntimeError, OSError) as error:
            print(f"left out: {name} ({str(error).splitlines()[0]})")
    return found


def simplejpeg(**options: Any) -> Callable[[bytes], Array]:
    from simplejpeg import decode_jpeg

    return lambda data: decode_jpeg(data, strict=False, **options)


def turbojpeg() -> Callable[[bytes], Array]:
    from turbojpeg import TJPF_RGB, TurboJPEG

    library = TurboJPEG()
    return lambda data: library.decode(data, pixel_format=TJPF_RGB)


def opencv(reduction: int = 1) -> Callable[[bytes], Array]:
    import cv2

    cv2.setNumThreads(1)
    if reduction == 1:
        return lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    flag = getattr(cv2, f"IMREAD_REDUCED_COLOR_{reduction}")
    return lambda data: cv2.cvtColor(
        cv2.imdecode(np.frombuffer(data, np.uint8), flag), cv2.COLOR_BGR2RGB
    )


def imagecodecs() -> Callable[[bytes], Array]:
    from imagecodecs import jpeg8_decode

    return lambda data: jpeg8_decode(data, outcolorspace="RGB")


PEERS: dict[str, Callable[[], Callable[[bytes], Array]]] = {
    "simplejpeg": simplejpeg,
    "simplejpeg, fast": lambda: simplejpeg(fastdct=True, fastupsample=True),
    "PyTurboJPEG": turbojpeg,
    "OpenCV": opencv,
    "imagecodecs": imagecodecs,
}


def scaled_decoders(height: int, width: int, scale: int) -> Contenders:
    """Functions that decode a large file, whole or at a fraction; Pillow to its own image."""
    n = reduction_of(min(height, width), scale)
    same = {"min_height": height // n, "min_width": width // n}
    least = dict.fromkeys(("min_height", "min_width"), 3 * scale)
    found: Contenders = {"Pillow, whole": images.decode}
    found[f"Pillow, 1/{n} (ours)"] = lambda data: images.decode(data, n)
    peers: dict[str, Callable[[], Any]] = {
        "simplejpeg, whole": simplejpeg,
        f"simplejpeg, 1/{n}": lambda: simplejpeg(**same),
        f"simplejpeg, 1/{n}, fast": lambda: simplejpeg(**same, fastdct=True, fastupsample=True),
        "simplejpeg, eighths to 3 s": lambda: simplejpeg(**least),
        "OpenCV, whole": opencv,
        f"OpenCV, 1/{n}": lambda: opencv(n),
    }
    for name, make in peers.items():
        try:
            found[name] = make()
        except ImportError:
            continue
    return found


def resizers(scale: int) -> Contenders:
    """Functions from a decoded image, as Pillow holds it, to a view."""

    def size(image: Image.Image) -> tuple[int, int]:
        return images.view_size(image.height, image.width, scale)

    def with_pillow(image: Image.Image) -> Array:
        return np.array(image.resize(size(image)[::-1], Image.Resampling.BILINEAR))

    def in_floats(image: Image.Image) -> torch.Tensor:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        return interpolate(pixels, size=size(image), mode="bilinear", antialias=True)

    found: Contenders = {
        "Pillow, bilinear": with_pillow,
        "torch on bytes (ours)": lambda image: resize(image, *size(image)),
        "torch on floats": in_floats,
        "(np.array of the image alone)": np.array,
    }
    try:
        import cv2
    except ImportError:
        return found
    for name in ("INTER_AREA", "INTER_LINEAR", "INTER_LINEAR_EXACT"):
        flag = getattr(cv2, name)
        found[f"OpenCV, {name}"] = lambda image, flag=flag: cv2.resize(
            np.array(image), size(image)[::-1], interpolation=flag
        )
    return found


def ways(scale: int, decoding: Contenders) -> Contenders:
    """Functions from a file's bytes to a view."""
    found: Contenders = {
        "images.views (ours)": lambda data: images.views(data, [(scale, "full")])[0],
    }
    for name, decode in decoding.items():
        found[f"{name}, torch on bytes"] = lambda data, d=decode: to_view(d(data), scale)
    return found


def normalizers() -> Contenders:
    """Functions from a batch of views in bytes to what a network takes."""
    network = TorchNetwork(
        backbones.load("squeezenet1_1", "random", layer="fire4"),
        Normalization.of({"mean": MEAN, "std": STD}),
    )
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))

    def usual(pixels: torch.Tensor) -> torch.Tensor:
        return (pixels.permute(0, 3, 1, 2).float().div(255) - mean) / std

    return {
        "along rows (ours)": network._normalize,
        "permute, float, div, sub, div": usual,
        "the same, made contiguous first": lambda pixels: (
            (pixels.permute(0, 3, 1, 2).contiguous().float().div(255) - mean) / std
        ),
    }
