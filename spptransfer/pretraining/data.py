"""What the network is shown: views of images, cropped, mirrored and coloured.

What is random about an image is drawn from the seed, the epoch and its position: neither the
number of processes nor a restart changes what the network sees.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as Pillow
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from spptransfer.errors import DatasetError, ImageError
from spptransfer.pretraining.config import ImagesSection
from spptransfer.pretraining.source import LabelledFiles, RGBImage
from spptransfer.pretraining.views import window_corners

# A label that no loss counts; images whose files are damaged carry it.
IGNORED = -100
# Streams of random numbers of a seed.
CROPS, SIZES, DROPOUT = 1, 2, 3

_ASPECTS = (3 / 4, 4 / 3)
_SAMPLED = 500
_SAMPLED_PIXELS = 20_000  # of an image

# By name: image (uint8, H x W x 3), label, position, flipped, shift (float32, 3), error (str).
ImageItem = dict[str, Any]


class TrainingImages(Dataset[ImageItem]):
    """Augmented images; an index is an epoch and a position."""

    def __init__(self, files: LabelledFiles, section: ImagesSection, seed: int) -> None:
        self._files, self._section, self._seed = files, section, seed
        self._colours = section.colour * principal_colours(files, section.resize)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: tuple[int, int]) -> ImageItem:
        epoch, position = index
        generator = np.random.default_rng([self._seed, CROPS, epoch, position])
        place, normal = generator.random(4), generator.standard_normal(3)
        item = _load(self._files, position, self._section)
        if not item["error"]:
            item["image"] = crop(item["image"], self._section, place)
            if self._section.flip and generator.random() < 0.5:
                item |= {"image": item["image"][:, ::-1].copy(), "flipped": True}
        return item | {"shift": (normal @ self._colours).astype(np.float32)}


class ValidationImages(Dataset[ImageItem]):
    """Central crops."""

    def __init__(self, files: LabelledFiles, section: ImagesSection) -> None:
        self._files, self._section = files, section

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, position: int) -> ImageItem:
        item = _load(self._files, position, self._section)
        if not item["error"]:
            height, width, _ = item["image"].shape
            size = self._section.size
            ((top, left),) = window_corners(height, width, size, "center")
            item["image"] = item["image"][top : top + size, left : left + size]
        return item


def _load(files: LabelledFiles, position: int, section: ImagesSection) -> ImageItem:
    """Load a whole image; one that cannot be decoded is a black crop that does not count."""
    item = {"position": position, "flipped": False, "shift": np.zeros(3, np.float32), "error": ""}
    try:
        image = files.view(position, section.resize)
        return item | {"image": image, "label": int(files.labels[position])}
    except ImageError as error:
        image = np.zeros((section.size, section.size, 3), np.uint8)
        return item | {"image": image, "label": IGNORED, "error": str(error)}


class Steps(Sampler[list[tuple[int, int]]]):
    """What each step of an epoch shows: this process's share of a batch, as (epoch, position).

    Images that do not fill a last batch are left out of an epoch; another epoch leaves out
    others. `epoch` and `first`, the step to begin with, are set before an iteration.
    """

    def __init__(
        self, images: int, batch: int, seed: int, rank: int = 0, processes: int = 1
    ) -> None:
        sized: Any = range(images)
        self._order: DistributedSampler[Any] = DistributedSampler(
            sized, processes, rank, seed=seed, drop_last=True
        )
        self._share = batch // processes
        self.epoch = self.first = 0

    def __len__(self) -> int:
        return len(self._order) // self._share

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        self._order.set_epoch(self.epoch)
        indices = [(self.epoch, position) for position in self._order]
        for step in range(self.first, len(self)):
            yield indices[step * self._share : (step + 1) * self._share]


def make_loader(dataset: Dataset[Any], jobs: int, **options: Any) -> DataLoader[Any]:
    """Load items by some processes, or by this one if there are to be none."""
    return DataLoader(dataset, num_workers=jobs, worker_init_fn=_leave_signals, **options)


def _leave_signals(worker: int) -> None:
    """Let the process that trains decide when to stop: a terminal interrupts all of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def crop(image: RGBImage, section: ImagesSection, place: npt.NDArray[np.float64]) -> RGBImage:
    """Crop a square by four numbers from [0, 1)."""
    size = section.size
    if section.crops == "resized":
        return resized_crop(image, size, section.area, place)
    height, width = image.shape[:2]
    top, left = int(place[0] * (height - size + 1)), int(place[1] * (width - size + 1))
    if section.crops == "corners":
        top, left = window_corners(height, width, size, "corners")[int(5 * place[0])]
    return image[top : top + size, left : left + size]


def resized_crop(
    image: RGBImage, size: int, area: float, place: npt.NDArray[np.float64]
) -> RGBImage:
    """Resize a rectangle to a square; its area is a share of the image from `area` on.

    The four numbers from [0, 1) are for the area, the aspect, top and left.
    """
    height, width = image.shape[:2]
    pixels = height * width * (area + (1 - area) * place[0])
    low, high = np.log(_ASPECTS)
    stretch = np.exp((low + (high - low) * place[1]) / 2)
    w = min(np.sqrt(pixels) * stretch, width)
    h = min(np.sqrt(pixels) / stretch, height)
    top, left = place[2] * (height - h), place[3] * (width - w)
    box = (left, top, left + w, top + h)
    return np.array(Pillow.fromarray(image).resize((size, size), Pillow.Resampling.BILINEAR, box))


def principal_colours(files: LabelledFiles, scale: int) -> npt.NDArray[np.float64]:
    """Compute the principal axes of the colours, one per row, as long as their deviation.

    A random multiple of each, added to a whole image, is the colour jitter of Krizhevsky et al.
    (NeurIPS 2012, section 4.1). At most 500 images, evenly spread, are looked at; a
    `DatasetError` if not one of them can be decoded. Units are those of bytes.
    """
    colours, reason = [], ""
    for position in np.linspace(0, len(files) - 1, min(_SAMPLED, len(files))).astype(int):
        try:
            pixels = files.view(int(position), scale).reshape(-1, 3)
        except ImageError as error:
            reason = str(error)
            continue
        # A copy, which does not keep the image.
        colours.append(pixels[:: max(7, len(pixels) // _SAMPLED_PIXELS)].copy())
    if not colours:
        raise DatasetError(f"'{files.source.root}': not one image can be decoded: {reason}")
    variances, axes = np.linalg.eigh(np.cov(np.concatenate(colours).T.astype(np.float64)))
    # An axis has no direction of its own; fixing one makes the jitter the same on any machine.
    axes = axes * np.where(axes.sum(0) < 0, -1, 1)
    return np.sqrt(variances.clip(0))[:, None] * axes.T


def side_of_epoch(section: ImagesSection, seed: int, epoch: int, epochs: int) -> int:
    """Choose the side of the network's input in an epoch.

    With two sizes whole epochs alternate, and the last one is at the larger size; a random size is
    drawn once for an epoch.

    Examples
    --------
    >>> section = ImagesSection(size=224, small=180, sizes="multi")
    >>> [side_of_epoch(section, 0, epoch, 4) for epoch in range(4)]
    [180, 224, 180, 224]
    """
    if section.sizes == "multi":
        return section.size if (epochs - epoch) % 2 else section.small
    if section.sizes == "random":
        generator = np.random.default_rng([seed, SIZES, epoch])
        return int(generator.integers(section.small, section.size + 1))
    return section.size


def as_input(batch: ImageItem, device: torch.device) -> torch.Tensor:
    """Copy a batch's images to the device, N x 3 x H x W in units of bytes, coloured."""
    # The bytes lie channel by channel within a pixel: this is the channels-last format.
    images = batch["image"].to(device, non_blocking=True).permute(0, 3, 1, 2).float()
    return images + batch["shift"].to(device, non_blocking=True)[:, :, None, None]
