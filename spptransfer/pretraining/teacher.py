"""A teacher's features of the training images, computed once and kept beside the run.

They are what a network is told to imitate, not results: where the machine gains from it, the
teacher computes in bfloat16.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from spptransfer import backbones
from spptransfer.backbones import Backbone
from spptransfer.files import atomic_write, make_folder, remove_leftovers
from spptransfer.pretraining.config import DistillSection
from spptransfer.pretraining.distributed import Team
from spptransfer.pretraining.machine import Machine
from spptransfer.pretraining.pixels import Image, Pixels
from spptransfer.pyramid import SpatialPyramidPooling
from spptransfer.runtimes.devices import has_bfloat16

# Images in a file of features: a killed run loses at most one such file.
_PART = 2048
_BATCH = 32
_LEAST_DEVIATION = 1e-4

Features = npt.NDArray[np.float16]


class Teacher:
    """Standardised features of the training images, by their positions.

    Parameters
    ----------
    parts : list of ndarray of float16, shape (mirrors, n, bins, length)
        Features in the order of the images; the second mirror is of the mirrored images.
    weights_sha256 : str
        Identity of the teacher's weights.
    """

    def __init__(self, parts: list[Features], weights_sha256: str = "") -> None:
        self._parts = parts
        self.weights_sha256 = weights_sha256
        total = sum(part[0].shape[0] for part in parts)
        means = [part[0].astype(np.float32).mean((0, 1)) for part in parts]
        squares = [np.square(part[0].astype(np.float32)).mean((0, 1)) for part in parts]
        shares = [part.shape[1] / total for part in parts]
        mean = np.einsum("i,ij->j", shares, np.stack(means).astype(np.float64))
        square = np.einsum("i,ij->j", shares, np.stack(squares).astype(np.float64))
        deviation = np.sqrt((square - mean**2).clip(_LEAST_DEVIATION**2))
        self._mean, self._deviation = mean.astype(np.float32), deviation.astype(np.float32)

    def targets(
        self, positions: npt.NDArray[np.int64], flipped: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.float32]:
        """Features of some images, mean 0 and deviation 1 over all: shape (n, bins, length)."""
        mirrors = self._parts[0].shape[0]
        rows = [
            self._parts[position // _PART][int(flip) % mirrors, position % _PART]
            for position, flip in zip(positions, flipped, strict=True)
        ]
        return (np.stack(rows).astype(np.float32) - self._mean) / self._deviation


def prepare_teacher(
    section: DistillSection,
    pixels: Pixels,
    data_sha256: str,
    machine: Machine,
    team: Team,
    device: torch.device,
) -> Teacher:
    """Compute the features of all images, or find them.

    Parameters
    ----------
    section : DistillSection
        Which teacher and which features.
    pixels : Pixels
        The training images.
    data_sha256 : str
        Identity of the images.
    machine : Machine
        Names the folder of the run; the features lie in a folder of it that is named after all
        they depend on.
    team : Team
        Processes that share the work.
    device : torch.device
        Where the teacher computes.

    Returns
    -------
    Teacher

    Raises
    ------
    WeightsError
        If the teacher's weights are absent or do not fit.
    CacheError
        If the features cannot be written.
    """
    backbone = backbones.load(
        section.backbone, section.weights, layer=section.layer, weights_dir=machine.weights_dir
    )
    module = cast(nn.Module, backbone)
    module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    settings = section.model_dump(include={"layer", "scale", "levels", "pooling", "mirror"})
    low = has_bfloat16(device)
    known = json.dumps([settings, backbone.weights_sha256, data_sha256, low], sort_keys=True)
    home = machine.folder / f"teacher-{hashlib.sha256(known.encode()).hexdigest()[:12]}"
    make_folder(home)
    remove_leftovers(home)
    spans = [range(len(pixels))[start : start + _PART] for start in range(0, len(pixels), _PART)]
    paths = [home / f"part-{number:05d}.npy" for number in range(len(spans))]
    shapes = [_shape(backbone, section, len(span)) for span in spans]
    own = range(team.rank, len(paths), team.count)
    missing = [number for number in own if not _holds(paths[number], shapes[number])]
    with ThreadPoolExecutor(machine.decoders(team)) as pool:
        label = f"features of {section.backbone}"
        for number in machine.preparing(missing, len(missing), label):
            images = list(pool.map(lambda i: pixels.at_scale(i, section.scale), spans[number]))
            with torch.autocast(device.type, torch.bfloat16, enabled=low):
                features = _features(backbone, section, images, device)
            _write(paths[number], features)
    team.sums([len(missing)])  # all parts are there once all processes have come here
    return Teacher([np.load(path, mmap_mode="r") for path in paths], backbone.weights_sha256)


def _shape(backbone: Backbone, section: DistillSection, images: int) -> tuple[int, ...]:
    """Mirrors, images, bins, length."""
    bins = sum(level**2 for level in section.levels)
    return 1 + section.mirror, images, bins, backbone.info.layer(section.layer).channels


def _holds(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether a part is there and has all numbers of features of a shape, whatever they are."""
    try:
        part = np.lib.format.open_memmap(path, mode="r")
    except Exception:  # The parser of a damaged header raises whatever it stumbles upon.
        return False
    return part.shape == shape and part.dtype == np.float16 and part.flags.c_contiguous


def _features(
    backbone: Backbone, section: DistillSection, images: list[Image | None], device: torch.device
) -> Features:
    """Features of some images, which are zeros where there is none: (mirrors, n, bins, length)."""
    features = np.zeros(_shape(backbone, section, len(images)), np.float16)
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for row, image in enumerate(images):
        if image is not None:
            by_shape.setdefault(image.shape, []).append(row)
    for rows in by_shape.values():
        for first in range(0, len(rows), _BATCH):
            chosen = rows[first : first + _BATCH]
            stacked = np.stack([cast(Image, images[row]) for row in chosen])
            for mirror in range(1 + section.mirror):
                shown = stacked[:, :, ::-1] if mirror else stacked
                features[mirror, chosen] = _pooled(backbone, section, shown, device)
    return features


@torch.inference_mode()
def _pooled(
    backbone: Backbone,
    section: DistillSection,
    images: npt.NDArray[np.uint8],
    device: torch.device,
) -> Features:
    """Features of images of one size, bin by bin: (n, bins, length)."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([backbone.info.mean, backbone.info.std], device=device)[
        ..., None, None
    ]
    layer = section.layer
    maps = backbone.maps_of((pixels - mean) / std, [layer])
    if backbone.info.layer(layer).kind == "vector":
        rows = backbone.vectors_of(maps, [layer])[layer].float()[:, None]
    else:
        pools = [SpatialPyramidPooling([level], section.pooling) for level in section.levels]
        pooled = [pool(maps[layer].float()).unflatten(1, (-1, pool.bins)) for pool in pools]
        rows = torch.cat(pooled, dim=2).transpose(1, 2)
    return rows.cpu().numpy().astype(np.float16)


def _write(path: Path, features: Features) -> None:
    with atomic_write(path, needed=features.nbytes) as temporary, open(temporary, "wb") as file:
        np.save(cast(IO[bytes], file), features)
