"""A teacher's features of the training images, computed once and kept beside the run.

They are what a network is told to imitate, not results: where the machine gains from it, the
teacher computes in bfloat16.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from spptransfer.backbones import Backbone
from spptransfer.errors import ImageError
from spptransfer.extraction.extractor import group
from spptransfer.files import atomic_write, make_folder, remove_leftovers
from spptransfer.pretraining.config import DistillSection
from spptransfer.pretraining.data import make_loader
from spptransfer.pretraining.distributed import all_sums, rank, world_size
from spptransfer.pretraining.source import LabelledFiles
from spptransfer.pyramid import SpatialPyramidPooling
from spptransfer.runtimes import ComputeOptions
from spptransfer.runtimes.devices import has_bfloat16
from spptransfer.runtimes.runtime import Runtime, open_runtime

# Images in a file of features: a killed run loses at most one such file.
PART = 512
_LEAST_DEVIATION = 1e-4

Features = npt.NDArray[np.float16]
_Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]


class Teacher:
    """Standardised features of the training images, by their positions.

    Parameters
    ----------
    parts : list of ndarray of float16, shape (n, mirrors, bins, length)
        Features of `PART` images each, in their order; the second mirror is of mirrored images.
    weights_sha256 : str
        Identity of the teacher's weights.
    """

    def __init__(self, parts: list[Features], weights_sha256: str = "") -> None:
        self._parts, self.weights_sha256 = parts, weights_sha256
        # A deviation of 0 would blow up what is constant.
        count = sum(len(part) * part.shape[2] for part in parts)
        upright = [part[:, 0].astype(np.float64) for part in parts]
        mean = sum(part.sum((0, 1)) for part in upright) / count
        variance = sum(np.square(part - mean).sum((0, 1)) for part in upright) / count
        deviation = np.sqrt(variance).clip(_LEAST_DEVIATION)
        self._mean, self._deviation = mean.astype(np.float32), deviation.astype(np.float32)

    def targets(self, positions: torch.Tensor, flipped: torch.Tensor) -> torch.Tensor:
        """Return features of some images, mean 0 and deviation 1 over all: (n, bins, length)."""
        mirrors = self._parts[0].shape[1]
        rows = [
            self._parts[position // PART][position % PART, int(flip) % mirrors]
            for position, flip in zip(positions.tolist(), flipped.tolist(), strict=True)
        ]
        standard = (np.stack(rows).astype(np.float32) - self._mean) / self._deviation
        return torch.from_numpy(standard)


def prepare_teacher(
    section: DistillSection,
    backbone: Backbone,
    files: LabelledFiles,
    data_sha256: str,
    folder: Path,
    device: torch.device,
    jobs: int = 0,
    progress: _Progress = lambda items, total, label: items,
) -> Teacher:
    """Compute the features of all training images, or find them; several processes share the work.

    They lie in a folder of the run's that is named after all they depend on. `backbone` is loaded
    for the section's layer, `data_sha256` identifies the images, and `jobs` processes decode.
    """
    precision = "bfloat16" if has_bfloat16(device) else "float32"
    settings = section.model_dump(include={"layer", "scale", "levels", "pooling", "mirror"})
    known = json.dumps([settings, backbone.weights_sha256, data_sha256, precision], sort_keys=True)
    home = folder / f"teacher-{hashlib.sha256(known.encode()).hexdigest()[:12]}"
    make_folder(home)
    remove_leftovers(home)
    spans = [range(len(files))[start : start + PART] for start in range(0, len(files), PART)]
    paths = [home / f"part-{number:05d}.npy" for number in range(len(spans))]
    bins, length = sum(n * n for n in section.levels), backbone.info.layer(section.layer).channels
    shape = (1 + section.mirror, bins, length)
    own = range(rank(), len(paths), world_size())
    missing = [n for n in own if not _holds(paths[n], (len(spans[n]), *shape))]
    positions = [position for number in missing for position in spans[number]]
    options = ComputeOptions(str(device), "torch")
    runtime = open_runtime(backbone, [section.layer], precision=precision, options=options)
    views = _Views(files, section, backbone)
    images = iter(make_loader(views, jobs, batch_size=None, sampler=positions))
    with runtime:
        for number in progress(missing, len(missing), f"features of {section.backbone}"):
            of_part = list(islice(images, len(spans[number])))
            features = np.zeros((len(of_part), *shape), np.float16)
            for rows, batch in _batches(of_part, runtime.batch_pixels):
                for mirror in range(1 + section.mirror):
                    shown = np.ascontiguousarray(batch[:, :, ::-1]) if mirror else batch
                    features[rows, mirror] = _compute(runtime, section, shown)
            _write(paths[number], features)
    all_sums([0])  # all parts are there once all processes have come here
    return Teacher([np.load(path, mmap_mode="r") for path in paths], backbone.weights_sha256)


class _Views(Dataset[Any]):
    """Whole images as the teacher takes them; empty where a file is damaged."""

    def __init__(self, files: LabelledFiles, section: DistillSection, backbone: Backbone) -> None:
        info = backbone.info
        self._files, self._rendering = files, (section.scale, "full", info.grid, info.longest)

    def __getitem__(self, position: int) -> torch.Tensor:
        try:
            return torch.from_numpy(self._files.view(position, *self._rendering))
        except ImageError:  # told of by who trains on it
            return torch.zeros(0, 0, 3, dtype=torch.uint8)


def _write(path: Path, features: Features) -> None:
    with atomic_write(path, needed=features.nbytes) as temporary, open(temporary, "wb") as file:
        np.save(cast(IO[bytes], file), features)


def _holds(path: Path, shape: tuple[int, ...]) -> bool:
    """Tell whether a part is there and has all numbers of features of a shape."""
    try:
        part = np.lib.format.open_memmap(path, mode="r")
    except Exception:  # The parser of a damaged header raises whatever it stumbles upon.
        return False
    return part.shape == shape and part.dtype == np.float16 and part.flags.c_contiguous


def _batches(
    images: list[torch.Tensor], pixels: int
) -> Iterator[tuple[list[int], npt.NDArray[np.uint8]]]:
    """Stack images of one size, within a number of pixels."""
    sizes = [image.shape[0] * image.shape[1] for image in images]
    keys = [image.shape if size else None for image, size in zip(images, sizes, strict=True)]
    for rows in group(keys, sizes, pixels):
        yield rows, torch.stack([images[row] for row in rows]).numpy()


def _compute(
    runtime: Runtime, section: DistillSection, views: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float32]:
    """Compute features of images of one size, bin by bin: (n, bins, length)."""
    layer = section.layer
    with runtime.session():
        maps = runtime.maps(runtime.upload(views), [layer])
        if runtime.backbone.info.layer(layer).kind == "vector":
            rows = runtime.vectors(maps, [layer])[layer].float()[:, None]
        else:
            pools = [SpatialPyramidPooling([level], section.pooling) for level in section.levels]
            pooled = [pool(maps[layer].float()).unflatten(1, (-1, pool.bins)) for pool in pools]
            rows = torch.cat(pooled, dim=2).transpose(1, 2)
        return runtime.download([{"rows": rows}])[0]["rows"]
