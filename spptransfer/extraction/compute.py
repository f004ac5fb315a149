"""A batch of equally large views becomes features: the only code that runs the backbone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from spptransfer.backbones.loading import Backbone
from spptransfer.errors import ConfigError
from spptransfer.pyramid import SpatialPyramidPooling
from spptransfer.spec import FeatureSpec

# Beyond this many pixels a view goes through the network strip by strip.
STRIP_PIXELS = 1 << 21
_PROBE_CELLS = 256

Vectors = dict[int | None, npt.NDArray[np.float32]]


def choose_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` into a device that is there.

    Raises
    ------
    ConfigError
        If the name is unknown or there is no such device.

    Examples
    --------
    >>> choose_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or not (number.isdigit() or not number):
        raise ConfigError(f"device: '{name}' is unknown; allowed: auto, cpu, cuda, cuda:N")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: '{name}' is not on this machine; allowed: auto, cpu")
    return torch.device(name)


class FeatureComputer:
    """Run a backbone and its pooling on batches of views of one size.

    Parameters
    ----------
    backbone : Backbone
        Frozen network, up to the spec's layer.
    spec : FeatureSpec
        What to compute.
    device : str, default="cpu"
        See `choose_device`.

    Notes
    -----
    A view of any length is computed in bounded memory: beyond `STRIP_PIXELS` its map is put
    together from strips. These overlap by the network's receptive field and start at multiples
    of its total stride, so that every kept cell sees what it would see in the whole view.
    """

    def __init__(self, backbone: Backbone, spec: FeatureSpec, device: str = "cpu") -> None:
        _check_scales(spec, backbone.info.min_side)
        self._spec = spec
        self.device = choose_device(device)
        self._dtype: torch.dtype = getattr(torch, spec.precision)
        self._backbone = backbone.to(device=self.device, dtype=self._dtype)
        self._backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._pools = {n: SpatialPyramidPooling([n], spec.pooling) for n in spec.levels}
        mean, std = spec.preprocessing["mean"], spec.preprocessing["std"]
        self._shift = torch.tensor(mean, dtype=torch.float64, device=self.device).mul(255).float()
        self._span = torch.tensor(std, dtype=torch.float64, device=self.device).mul(255).float()
        self.strip_pixels = STRIP_PIXELS

    @torch.inference_mode()
    def __call__(self, views: npt.NDArray[np.uint8]) -> Vectors:
        """Compute the features of a batch.

        Parameters
        ----------
        views : ndarray of uint8, shape (N, H, W, 3)
            Views of one size.

        Returns
        -------
        dict of ndarray of float32, shape (N, channels * level**2)
            By determining level; under None for a fully connected layer.
        """
        pixels = torch.from_numpy(views).to(self.device)
        vectors = self._features(pixels)
        if self._spec.flip:
            mirrored = self._features(pixels.flip(2))
            vectors = {key: (vectors[key] + mirrored[key]) / 2 for key in vectors}
        return {key: value.cpu().numpy() for key, value in vectors.items()}

    def _features(self, pixels: torch.Tensor) -> dict[int | None, torch.Tensor]:
        maps = self._maps(pixels)
        if self._backbone.head is not None:
            return {None: self._backbone.head(maps).float()}
        return {level: pool(maps).float() for level, pool in self._pools.items()}

    def _maps(self, pixels: torch.Tensor) -> torch.Tensor:
        count, height, width, _ = pixels.shape
        if height * width <= self.strip_pixels:
            return self._backbone.maps(self._normalize(pixels))
        images = [torch.cat(list(self._strips(pixels[i : i + 1])), dim=3) for i in range(count)]
        maps = torch.cat(images)
        return maps if width >= height else maps.transpose(2, 3)

    def _normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """N x H x W x 3 bytes to N x 3 x H x W numbers, without leaving channels-last memory."""
        normal = pixels.float().sub_(self._shift).div_(self._span)
        return normal.to(self._dtype).permute(0, 3, 1, 2)

    def _strips(self, pixels: torch.Tensor) -> Iterator[torch.Tensor]:
        """Consecutive pieces of the map of one view, with its longer side along the columns."""
        _, height, width, _ = pixels.shape
        axis, length, side = (2, width, height) if width >= height else (1, height, width)
        stride, margin = self._stride, self._margin
        core = max(4 * margin, self.strip_pixels // (side * stride))
        for cell in itertools.count(0, core):
            first = max(cell - margin, 0)
            stop = (cell + core + margin) * stride
            last = stop + margin * stride >= length
            piece = pixels.narrow(axis, first * stride, (length if last else stop) - first * stride)
            maps = self._backbone.maps(self._normalize(piece))
            kept = (maps if axis == 2 else maps.transpose(2, 3))[:, :, :, cell - first :]
            yield kept if last else kept[:, :, :, :core]
            if last:
                return

    @property
    def _stride(self) -> int:
        """Pixels from one cell of the map to the next."""
        info = self._backbone.info
        own = info.layer(self._backbone.layer).stride
        return own or info.layer("spp").stride or 1  # vectors are made from the map "spp"

    @cached_property
    def _margin(self) -> int:
        """How many cells on each side of a pixel see it, measured: a NaN goes where it is seen."""
        side = max(self._backbone.info.min_side, self._stride)
        probe = torch.zeros(1, 3, side, _PROBE_CELLS * self._stride, device=self.device)
        middle = _PROBE_CELLS // 2
        probe[:, :, :, middle * self._stride] = torch.nan
        maps = self._backbone.maps(probe.to(self._dtype, memory_format=torch.channels_last))
        seen = maps.isnan().any(dim=1).any(dim=1)[0].nonzero().flatten()
        return int((seen - middle).abs().max()) + 2


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice, on a device or on the CPU (a plain RuntimeError there)."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _check_scales(spec: FeatureSpec, smallest: int) -> None:
    if spec.scales[0] < smallest:
        raise ConfigError(
            f"scales: {spec.scales[0]} is too small for {spec.backbone}; "
            f"its smaller side must be at least {smallest}"
        )
