"""From the bytes of a file to an upright RGB array at a scale: the only place that does so.

The definition, recorded in every feature spec by `description`: the first frame, turned upright
once by its orientation; 12- and 16-bit grey scaled so that its white is white; transparency
composited onto white; then one antialiased bilinear resize in 8 bits to the size that the view
asks for, whose longer side is at most 16 times the scale: a view costs bounded time and memory,
whatever the image. A JPEG file much larger than that is decoded at a half, a quarter or an eighth
of its size.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
import stat
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from PIL import (  # importing a plugin registers its format
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,
    WebPImagePlugin,  # noqa: F401
    features,
)

from spptransfer.errors import ImageError

View = Literal["full", "center_crop", "warp"]
VIEWS: tuple[View, ...] = get_args(View)

MAX_FILE_BYTES = 1 << 29
MAX_PIXELS = 178_956_970  # Pillow's own hard limit against decompression bombs
MAX_VIEW_PIXELS = 1 << 28
_HEADER_BYTES = 1 << 14

# Raster formats only: Pillow would hand EPS to an outside interpreter.
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# Suffixes of files in these formats.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif"}
    | {".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
)
_COMMON = len(FORMATS)
if features.check("avif"):  # from Pillow 11.3 on, where it was built with it
    FORMATS, SUFFIXES = (*FORMATS, "AVIF"), SUFFIXES | {".avif"}
if importlib.util.find_spec("pillow_heif") is not None:  # the extra `heif`
    FORMATS, SUFFIXES = (*FORMATS, "HEIF"), SUFFIXES | {".heic", ".heif"}

_PNG = b"\x89PNG\r\n\x1a\n"
# Beginnings of PNG text chunks in which programs note an orientation.
_TURNING_TEXTS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")

# Tags of TIFF and EXIF.
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION = 256, 257, 258, 262, 274
_PLANES, _SAMPLE_FORMAT = 284, 339
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = {5, 6, 7, 8}

# A JPEG file is decoded at a fraction of its size as long as that has so many times the scale:
# what a resize takes from it is then nearly what it takes from the whole.
_MARGIN = 3

# The longest that the longer side of a view may be, in shorter ones, if a backbone names no bound.
LONGEST = 16

# Torch's resize of bytes is about twice as fast as Pillow's, and within two grey levels of it. It
# needs a copy of the image, so that for large ones neither speed nor memory speaks for it. Both
# compute in integers: the same bytes come out on every processor.
_TORCH_PIXELS = 1 << 22
_RESIZE = "bilinear, antialiased, 8 bits (torch; Pillow from 2**22 pixels on or to a width of 1)"


class Rendering(NamedTuple):
    """How an image is shown to a network.

    Parameters
    ----------
    scale : int
        Length of the smaller side, in pixels.
    view : {"full", "center_crop", "warp"}
        What of the image is shown.
    grid : int
        What the sides of the view are multiples of: those nearest to what the scale makes of them.
    longest : int
        The most that the longer side has, in shorter ones; longer images are squashed to it.
    """

    scale: int
    view: View = "full"
    grid: int = 1
    longest: int = LONGEST


def description() -> dict[str, Any]:
    """Describe the decoding and resizing that a feature's value depends on."""
    return {
        "orientation": "turned upright once",
        "transparency": "composited onto white",
        "deep samples": "grey of 12 and 16 bits scaled to 8, colours cut to their upper 8 bits",
        "large JPEG": "decoded at 1/2, 1/4 or 1/8 while the smaller side keeps 3 times the scale",
        "resize": _RESIZE,
    }


class FilePart(NamedTuple):
    """Bytes within a file that are an image file themselves, as a member of a tar file is."""

    file: Path
    offset: int
    size: int
    name: str

    def __str__(self) -> str:
        return f"{self.file}/{self.name}"

    def absolute(self) -> Path:
        """Return the absolute path of the file that holds it."""
        return self.file.absolute()

    def read(self, most: int) -> bytes:
        """Read all, or so many bytes."""
        with open(self.file, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size if most < 0 else min(most, self.size))


# Where an image's file is.
Place = Path | FilePart


def read_bytes(path: str | os.PathLike[str] | FilePart, most: int = -1) -> bytes:
    """Read an image file, or `most` bytes of it, refusing what is irregular or beyond 512 MiB."""
    part = path if isinstance(path, FilePart) else None
    path = path.file if isinstance(path, FilePart) else Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise ImageError(f"cannot read the image: it is {kind}")
        size = status.st_size if part is None else part.size
        if size > MAX_FILE_BYTES:
            raise ImageError(f"the file has {size:,} bytes; at most {MAX_FILE_BYTES:,} are read")
        if part is not None:
            data = part.read(most)
        elif most < 0:
            data = path.read_bytes()
        else:
            with open(path, "rb") as file:
                data = file.read(most)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ImageError(f"cannot read the image: {reason}") from error
    if not data:
        raise ImageError("cannot read the image: the file is empty")
    return data


def content_digest(data: bytes) -> str:
    """Return the SHA-256 of a file's content, by which a changed image is recognised."""
    return hashlib.sha256(data).hexdigest()


def array_digest(array: npt.NDArray[Any]) -> str:
    """Return the SHA-256 of an array's shape, type and content."""
    described = f"{array.shape} {array.dtype.str}".encode()
    return hashlib.sha256(described + np.ascontiguousarray(array).tobytes()).hexdigest()


def upright_size(data: bytes) -> tuple[int, int]:
    """Read height and width in pixels, after turning upright, from the header alone."""
    return _open(data)[1]


def sizes_of_file(
    path: str | os.PathLike[str] | FilePart,
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Read height and width of an image file, upright and as stored, from its header alone."""
    data = read_bytes(path, _HEADER_BYTES)
    if data.startswith(b"\xff\xd8"):  # only of a JPEG file all that counts comes first
        with contextlib.suppress(ImageError):
            return _both_sizes(data)
    return _both_sizes(read_bytes(path) if len(data) == _HEADER_BYTES else data)


def _both_sizes(data: bytes) -> tuple[tuple[int, int], tuple[int, int]]:
    image, size = _open(data)
    return size, size[::-1] if _orientation(image) in _SWAPS_SIDES else size


def decode(data: bytes, reduction: int = 1) -> Image.Image:
    """Decode the content of an image file to an upright 8-bit RGB image.

    Examples
    --------
    >>> buffer = io.BytesIO()
    >>> Image.new("L", (4, 3), 255).save(buffer, "PNG")
    >>> decode(buffer.getvalue()).mode
    'RGB'
    """
    return _decode(_open(data)[0], reduction)


def upright(image: Image.Image) -> Image.Image:
    """Take an opened PIL image as an upright 8-bit RGB image, with the same rules as for files."""
    return _decode(image, 1)


def from_array(array: npt.ArrayLike) -> Image.Image:
    """Take an array as an image, with the same rules as for files."""
    samples = np.asarray(array)
    if samples.dtype != np.uint8:
        raise ImageError(f"an image array must hold uint8, not {samples.dtype}")
    if samples.ndim == 3 and samples.shape[2] == 1:
        samples = samples[:, :, 0]
    if samples.ndim not in (2, 3) or (samples.ndim == 3 and samples.shape[2] not in (3, 4)):
        raise ImageError(f"an image array must be H x W, H x W x 3 or x 4, not {samples.shape}")
    if min(samples.shape[:2]) < 1:
        raise ImageError(f"an image array needs at least one pixel, not {samples.shape}")
    return _to_rgb(Image.fromarray(np.ascontiguousarray(samples)))


def view_size(
    height: int,
    width: int,
    scale: int,
    view: View = "full",
    grid: int = 1,
    longest: int = LONGEST,
) -> tuple[int, int]:
    """Return the size of a view in pixels: images share a batch if theirs are equal.

    The parameters are those of `Rendering`.

    Examples
    --------
    >>> view_size(375, 500, 224)
    (224, 299)
    >>> view_size(375, 500, 224, "warp")
    (224, 224)
    >>> view_size(375, 500, 224, grid=14)
    (224, 294)
    """
    side = _nearest(scale, 1, grid)
    if view == "warp":
        return side, side
    shorter = min(height, width)
    longer = min(_nearest(max(height, width) * scale, shorter, grid), longest * side)
    if longer * side > MAX_VIEW_PIXELS:
        raise ImageError(
            f"{height} x {width} pixels at scale {scale} become {side} x {longer}; "
            f"at most {MAX_VIEW_PIXELS:,} pixels are resized to"
        )
    if view == "center_crop":
        return side, side
    return (side, longer) if height <= width else (longer, side)


def _nearest(length: int, shares: int, grid: int) -> int:
    """Return the multiple of a grid nearest to a share of a length; halves are rounded up."""
    return max(1, (2 * length + shares * grid) // (2 * shares * grid)) * grid


def views(data: bytes, renderings: Sequence[Rendering]) -> tuple[npt.NDArray[np.uint8], ...]:
    """Decode the content of an image file and render it.

    Examples
    --------
    >>> buffer = io.BytesIO()
    >>> Image.new("RGB", (2000, 1500)).save(buffer, "JPEG")
    >>> renderings = [Rendering(224), Rendering(392, "warp")]
    >>> [view.shape for view in views(buffer.getvalue(), renderings)]
    [(224, 299, 3), (392, 392, 3)]
    """
    image, size = _open(data)
    is_jpeg = image.format in ("JPEG", "MPO")
    decoded: dict[int, Image.Image] = {}
    rendered = []
    for rendering in renderings:
        reduction = reduction_of(min(size), rendering.scale) if is_jpeg else 1
        if reduction not in decoded:  # the first one takes what is open
            decoded[reduction] = decode(data, reduction) if decoded else _decode(image, reduction)
        rendered.append(render(decoded[reduction], *rendering, size=size))
    return tuple(rendered)


def render(
    image: Image.Image,
    scale: int,
    view: View = "full",
    grid: int = 1,
    longest: int = LONGEST,
    *,
    size: tuple[int, int] | None = None,
) -> npt.NDArray[np.uint8]:
    """Resize an RGB image to a view at a scale; the parameters are those of `Rendering`.

    Of an image that was decoded at a fraction of it, `size` is height and width.
    """
    height, width = size or (image.height, image.width)
    if view != "center_crop":
        return resize(image, *view_size(height, width, scale, view, grid, longest))
    side = _nearest(scale, 1, grid)
    whole = resize(image, *view_size(height, width, side, longest=longest))
    top, left = (whole.shape[0] - side) // 2, (whole.shape[1] - side) // 2
    return whole[top : top + side, left : left + side].copy()


def reduction_of(shorter: int, scale: int) -> int:
    """Choose the fraction of its size that a JPEG file is decoded at.

    Examples
    --------
    >>> reduction_of(375, 224), reduction_of(3000, 224)
    (1, 4)
    """
    return max(n for n in (1, 2, 4, 8) if n == 1 or shorter // n >= _MARGIN * scale)


def resize(image: Image.Image, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Resize an RGB image."""
    if (image.height, image.width) == (height, width):
        return np.array(image)
    # Of images that become one pixel wide, torch makes different ones on different processors.
    if image.width * image.height >= _TORCH_PIXELS or width == 1:
        return np.array(image.resize((width, height), Image.Resampling.BILINEAR))
    from torch import from_numpy
    from torch.nn.functional import interpolate

    pixels = from_numpy(np.array(image)).permute(2, 0, 1)[None]
    resized = interpolate(pixels, size=(height, width), mode="bilinear", antialias=True)
    rows: npt.NDArray[np.uint8] = resized[0].permute(1, 2, 0).contiguous().numpy()
    return rows


def _open(data: bytes) -> tuple[Image.Image, tuple[int, int]]:
    """Open an image file; return its height and width after turning upright with it."""
    if data.startswith(_PNG):
        data = _without_extras(data)
    try:
        image = Image.open(io.BytesIO(data), formats=_formats(data))
    except Image.DecompressionBombError as error:
        raise ImageError(f"the image has more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:
        raise ImageError(_why_not(data)) from error
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"the image has more than {MAX_PIXELS:,} pixels")
    if min(image.size) < 1:
        raise ImageError(f"the image has no pixels: {image.height} x {image.width}")
    tags = _tiff_tags(image)  # which size Pillow announces of a turned TIFF depends on its version
    width, height = tags.get(_WIDTH, image.width), tags.get(_HEIGHT, image.height)
    return image, (width, height) if _orientation(image) in _SWAPS_SIDES else (height, width)


def _formats(data: bytes) -> tuple[str, ...]:
    """Name the formats that a file may be in, with what reads them imported."""
    if data[4:8] != b"ftyp":
        return FORMATS[:_COMMON]
    if "AVIF" in FORMATS:
        from PIL import AvifImagePlugin  # noqa: F401
    if "HEIF" in FORMATS and "HEIF" not in Image.OPEN:
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return FORMATS[_COMMON:]


def _without_extras(data: bytes) -> bytes:
    """Leave out the chunks of a PNG that its pixels do not need: Pillow refuses files for them.

    What says how the image is turned comes first, or Pillow would decode the pixels to look for it.
    """
    needed, at = [], len(_PNG) + 25  # behind the header
    extras = [data[:at]]
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind, chunk = data[at + 4 : at + 8], data[at:end]
        if not kind[:1].islower():
            needed.append(chunk)
        elif (kind in (b"tRNS", b"eXIf") or chunk[8:].startswith(_TURNING_TEXTS)) and (
            zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        ):
            extras.append(chunk)
        at = end
    return b"".join(extras + needed)


def _why_not(data: bytes) -> str:
    """Say what Pillow has against a file that cannot be opened."""
    for name in _formats(data):
        opener, accepts = Image.OPEN[name]
        if accepts is None or not accepts(data[:16].ljust(16, b"\0")):
            continue
        try:
            opener(io.BytesIO(data), "")
        except Exception as error:
            return f"cannot read the {name} file: {_one_line(error)}"
    hint = ""
    if data[4:8] == b"ftyp" and "HEIF" not in FORMATS:
        hint = "; photographs in HEIC need the extra heif: pip install 'spptransfer[heif]'"
    return f"no image of a known format ({', '.join(FORMATS)}){hint}"


def _tiff_tags(image: Image.Image) -> Mapping[int, Any]:
    return image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}


def _orientation(image: Image.Image) -> int:
    """Read how an image is still to be turned, 1 to 8; 1 also where the EXIF block is damaged."""
    try:
        # Not that of `PngImageFile`, which decodes the pixels first.
        return int(Image.Image.getexif(image).get(_ORIENTATION, 1))
    except Exception:
        return 1


def _decode(image: Image.Image, reduction: int) -> Image.Image:
    """Decode an opened image, once."""
    try:
        _check_samples(image)
        if reduction > 1:
            image.draft(None, (image.width // reduction, image.height // reduction))
        image.load()
        rgb = _to_rgb(image)
    except ImageError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files.
        raise ImageError(f"cannot decode the image: {_one_line(error)}") from error
    # Pillow has turned a TIFF by now, and taken its orientation away.
    turn = _UPRIGHT.get(_orientation(image))
    return rgb if turn is None else rgb.transpose(turn)


def _check_samples(image: Image.Image) -> None:
    """Refuse samples that have no defined white or that Pillow misreads."""
    tags = _tiff_tags(image)
    bits, signed = max(tags.get(_BITS, (8,))), 2 in tags.get(_SAMPLE_FORMAT, ())
    if image.mode == "F":
        raise ImageError("floating-point samples have no defined white; convert to 8 or 16 bits")
    if signed or bits > 16:
        kind = f"{'signed ' if signed else ''}{bits}-bit"
        raise ImageError(f"{kind} samples have no defined white; convert to unsigned 8 or 16 bits")
    if bits > 8 and tags.get(_PLANES) == 2:
        raise ImageError(f"{bits}-bit samples in separate planes cannot be read; interleave them")
    # An image that the user has loaded has no tiles any more.
    tiles = image.tile if isinstance(image, PngImagePlugin.PngImageFile) else []
    if tiles and tiles[0][3] == "RGB;16B" and "transparency" in image.info:
        raise ImageError("a transparent colour of 16 bits cannot be read; use an alpha channel")


def _to_rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode.startswith("I"):
        return _deep_grey_to_rgb(image)
    if mode == "La":  # premultiplied, which Pillow converts to nothing else
        image = image.convert("LA")
    if ("A" in mode.upper() and mode != "LAB") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if mode == "RGB" else image.convert("RGB")


def _deep_grey_to_rgb(image: Image.Image) -> Image.Image:
    tags = _tiff_tags(image)
    white = (1 << min(tags.get(_BITS, (16,)))) - 1
    samples = np.clip(np.asarray(image).astype(np.int64), 0, white)
    grey = ((255 * samples + white // 2) // white).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero
        grey = 255 - grey
    grey[samples == image.info.get("transparency", -1)] = 255
    return Image.fromarray(grey).convert("RGB")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
