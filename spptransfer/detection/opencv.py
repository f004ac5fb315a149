"""Methods that propose windows by what an image shows, of OpenCV's contrib modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from spptransfer.detection.proposer import Method, Pixels, Windows, arrange
from spptransfer.errors import ConfigError
from spptransfer.images import resize

# In pixels of the image.
_SHORTEST = 20


@dataclass(frozen=True)
class _OpenCVMethod(Method):
    """A method of OpenCV, whose version is part of the key."""

    needs_pixels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _opencv(self.name)

    @property
    def key(self) -> str:
        """Method, parameters and versions, as text."""
        return f"{super().key} opencv={_opencv(self.name).__version__}"


@dataclass(frozen=True)
class SelectiveSearch(_OpenCVMethod):
    """Propose the regions that hierarchical grouping of segments passes through.

    Parameters
    ----------
    side : int, default=320
        Length of the longer side, in pixels, that larger images are resized to.
    k : int, default=150
        Segments at the start: the smaller, the more. Two segmentations are grouped, by `k` and by
        twice that. The released SPP-net's 50 gives about twice as many windows and a higher
        recall.
    max_windows : int, default=2000
        At most so many, those of the largest regions preferred, by chance with a fixed seed.

    References
    ----------
    Uijlings et al., *Selective search for object recognition*, IJCV 2013: its fast mode.
    """

    side: int = 320
    k: int = 150
    max_windows: int = 2000

    name: ClassVar[str] = "selective_search"

    def propose(self, image: Pixels, maps: Any = None, *, id: str | None = None) -> Windows:
        """Propose the windows of one image; see `Proposer.propose`."""
        small = _shrink(image, self.side)
        search = _opencv(self.name).ximgproc.segmentation.createSelectiveSearchSegmentation()
        search.setBaseImage(np.ascontiguousarray(small[:, :, ::-1]))  # in OpenCV's order, BGR
        search.switchToSelectiveSearchFast(self.k, self.k, 0.8)
        found = _of_image(search.process(), small.shape, image.shape)
        return arrange(found[_priority(found)], image.shape, self.max_windows)


@dataclass(frozen=True)
class EdgeBoxes(_OpenCVMethod):
    """Propose windows that hold whole contours, by falling number of them.

    Parameters
    ----------
    side : int, default=320
        Length of the longer side, in pixels, that larger images are resized to.
    max_windows : int, default=2000
        At most so many.

    Notes
    -----
    The edges are local maxima of the brightness's gradient, so that no model file is needed.

    References
    ----------
    Zitnick and Dollár, *Edge boxes: locating object proposals from edges*, ECCV 2014.
    """

    side: int = 320
    max_windows: int = 2000

    name: ClassVar[str] = "edge_boxes"

    def propose(self, image: Pixels, maps: Any = None, *, id: str | None = None) -> Windows:
        """Propose the windows of one image; see `Proposer.propose`."""
        small = _shrink(image, self.side)
        # Those that are too small or too near to others for us are proposed as well.
        search = _opencv(self.name).ximgproc.createEdgeBoxes(maxBoxes=2 * self.max_windows)
        found = np.reshape(search.getBoundingBoxes(*_edges(small))[0], (-1, 4))
        return arrange(_of_image(found, small.shape, image.shape), image.shape, self.max_windows)


def _shrink(image: Pixels, side: int) -> Pixels:
    """Resize an image to the length of its longer side, unless that is shorter already."""
    height, width = image.shape[:2]
    share = side / max(height, width)
    if share >= 1:
        return image
    size = max(1, round(height * share)), max(1, round(width * share))
    return resize(Image.fromarray(image), *size)


def _of_image(
    found: npt.NDArray[Any], small: tuple[int, ...], shape: tuple[int, ...]
) -> npt.NDArray[np.float64]:
    """Turn OpenCV's x, y, width, height in a resized image into windows of the image."""
    x, y, w, h = found.T.astype(np.float64)
    scale = np.array([shape[1] / small[1], shape[0] / small[0]] * 2)
    windows = np.stack([x, y, x + w, y + h], axis=1) * scale
    sides = windows[:, 2:] - windows[:, :2]
    return windows[(sides >= _SHORTEST).all(axis=1)]


def _priority(windows: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """Order windows by rank in size times a random number, as the hierarchy's levels would be.

    OpenCV does so by levels, but with random numbers that differ from call to call.
    """
    sides = windows[:, 2:] - windows[:, :2]
    order = np.lexsort((*windows.T, -sides.prod(axis=1)))
    rank = np.arange(1, len(order) + 1) * np.random.default_rng(0).random(len(order))
    return order[np.argsort(rank, kind="stable")]


def _edges(image: Pixels) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the strength of thin edges, from 0 to 1, and the direction across them."""
    import cv2

    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    smooth = cv2.GaussianBlur(grey, (0, 0), 1.5)
    across, down = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    strength = np.hypot(across, down)
    direction = np.arctan2(down, across) % np.float32(np.pi)
    # An edge is at least as strong as both neighbours across it, among all eight.
    sector = np.rint(direction / (np.pi / 4)).astype(int) % 4
    padded = np.pad(strength, 1)
    rows, columns = np.indices(strength.shape) + 1
    dy, dx = np.array([0, 1, 1, 1])[sector], np.array([1, 1, 0, -1])[sector]
    thin = (strength >= padded[rows + dy, columns + dx]) & (
        strength > padded[rows - dy, columns - dx]
    )
    largest = max(float(strength.max()), 1e-6)
    return np.where(thin, strength / np.float32(largest), np.float32(0)), direction


def _opencv(name: str) -> Any:
    """Return OpenCV, if it has what a method needs."""
    try:
        import cv2

        cv2.ximgproc.segmentation  # noqa: B018  absent from OpenCV's main build
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"proposals: {name} needs OpenCV's contrib modules: "
            "pip install 'spptransfer[proposals]'"
        ) from error
    return cv2
