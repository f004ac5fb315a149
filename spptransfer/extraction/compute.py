"""A batch of equally large views becomes features: the only code that runs the backbone."""

from __future__ import annotations

import copy
import re
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from spptransfer.system import count_processors
from spptransfer.backbones.info import BackboneInfo
from spptransfer.backbones.loading import Backbone
from spptransfer.errors import ConfigError
from spptransfer.extraction.capturing import CudaCapturer
from spptransfer.extraction.division import GPU_LANES
from spptransfer.extraction.graphs import Graphs
from spptransfer.extraction.joint import check_alike
from spptransfer.extraction.strips import Strips
from spptransfer.extraction.transfers import transfers_to
from spptransfer.processor import digits_of
from spptransfer.pyramid import SpatialPyramidPooling
from spptransfer.runtimes import check_device, check_precision, check_runtime, open_network
from spptransfer.runtimes.network import Normalization
from spptransfer.spec import FeatureSpec

# Beyond this many pixels a view goes through the network strip by strip.
STRIP_PIXELS = 1 << 21

# A CPU gains nothing from larger batches, a GPU does. Where maps have many numbers per pixel (VGG),
# images one by one are as fast, and the processor's caches and the memory hold them better.
IMAGE_PIXELS = 224 * 300
CPU_BATCH_PIXELS = 4 * IMAGE_PIXELS
CPU_MAP_NUMBERS = 16 * CPU_BATCH_PIXELS
GPU_BATCH_PIXELS = 128 * IMAGE_PIXELS
# Other runtimes than torch prepare less per call, so that images one by one are the fastest.
RUNTIME_BATCH_PIXELS = IMAGE_PIXELS
# The share of a GPU's memory for the maps of all batches at once, and how many as large as the
# largest a batch may have at a time: a layer's input and output, and what an operator works in.
GPU_MAPS_SHARE = 0.5
LARGE_MAPS = 4

Vectors = dict[int | None, npt.NDArray[np.float32]]
_Tensors = dict[int | None, torch.Tensor]


def choose_device(name: str, runtime: str = "torch") -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` into a device that is there.

    Of several GPUs, ``auto`` and ``cuda`` mean torch's current one; its number is found here.

    Raises
    ------
    ConfigError
        If the name is unknown, there is no such device, or the runtime cannot use it.

    Examples
    --------
    >>> choose_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        name = "cuda" if runtime == "torch" and torch.cuda.is_available() else "cpu"
    known = re.fullmatch(r"(cpu|cuda)(?::(0|[1-9][0-9]*))?", name)
    if known is None:
        raise ConfigError(f"device: '{name}' is unknown; allowed: auto, cpu, cuda, cuda:N")
    check_device(runtime, name)
    kind, number = known.groups()
    if kind == "cpu":
        return torch.device(name)
    # Threads that compute have another current device than who asks.
    current = torch.cuda.current_device() if torch.cuda.is_initialized() else 0
    index = current if number is None else int(number)
    if index >= torch.cuda.device_count():
        raise ConfigError(f"device: '{name}' is not on this machine; allowed: auto, cpu")
    return torch.device(kind, index)


def gpu_batch_pixels(device: torch.device, info: BackboneInfo, dtype: torch.dtype) -> int:
    """Pixels of a batch's views that suit a GPU and its memory.

    Its whole memory and not what is free, so that equal machines make equal batches.
    """
    memory = torch.cuda.get_device_properties(device).total_memory
    per_pixel = info.numbers_per_pixel * dtype.itemsize * LARGE_MAPS * GPU_LANES
    return max(IMAGE_PIXELS, min(GPU_BATCH_PIXELS, int(GPU_MAPS_SHARE * memory / per_pixel)))


def place(backbone: Backbone, device: torch.device, runtime: str, precision: str) -> Backbone:
    """Bring a backbone to where, and into what, a runtime takes it in.

    Parameters
    ----------
    backbone : Backbone
        It may be moved to the device; where its numbers have to be rounded a copy is.
    device : torch.device
        See `choose_device`.
    runtime : {"torch", "openvino", "onnxruntime"}
        Others than torch round the trunk themselves.
    precision : str
        Arithmetic, as `check_precision` allows it.

    Returns
    -------
    Backbone
        For torch one of fused convolutions, where they work.

    Examples
    --------
    >>> from spptransfer import backbones
    >>> backbone = backbones.load("spp-mini", "embedded", layer="fc6")
    >>> placed = place(backbone, torch.device("cpu"), "openvino", "bfloat16")
    >>> placed.trunk[0].weight.dtype, placed.head[1].weight.dtype
    (torch.float32, torch.bfloat16)
    """
    dtype: torch.dtype = getattr(torch, precision)
    backbone = backbone.to(device=device)
    if runtime != "torch":
        return backbone if backbone.head is None else _rounded(backbone, backbone.head, dtype)
    backbone = _rounded(backbone, backbone, dtype)
    backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return backbone.fused()


def _rounded(backbone: Backbone, part: torch.nn.Module, dtype: torch.dtype) -> Backbone:
    """Round a part of a backbone, in a copy that shares the rest; itself if nothing changes.

    Whoever gave the backbone may use it for other arithmetic too.
    """
    numbers = (t for t in (*part.parameters(), *part.buffers()) if t.is_floating_point())
    tensors = [tensor for tensor in numbers if tensor.dtype != dtype]
    if not tensors:
        return backbone
    kept: dict[int, Any] = {id(t): t for t in (*backbone.parameters(), *backbone.buffers())}
    for tensor in tensors:
        rounded = tensor.detach().to(dtype)
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        kept[id(tensor)] = (
            torch.nn.Parameter(rounded, requires_grad=False) if is_parameter else rounded
        )
    return copy.deepcopy(backbone, kept)


class FeatureComputer:
    """Run a backbone and its pooling on batches of views of one size.

    Parameters
    ----------
    backbone : Backbone
        Frozen network that computes the layers of all specs.
    spec : FeatureSpec or sequence of FeatureSpec
        What to compute. Several specs differ in nothing but layer, levels, pooling, scales,
        view and storage; their layers come from one pass.
    device : str, default="cpu"
        See `choose_device`.
    runtime : {"torch", "openvino", "onnxruntime"}, default="torch"
        Who computes the maps; fully connected layers and pooling are torch's.
    threads : int, optional
        How many threads will compute at once, by default one per processor that we may use.

    Raises
    ------
    ConfigError
        If the specs cannot be computed together, the backbone lacks a layer, a scale is too
        small for it, there is no such device, or the runtime cannot compute it.

    Notes
    -----
    A view of any length is computed in bounded memory: beyond `STRIP_PIXELS` its maps are put
    together from `Strips`. On a GPU, batches of frequent shapes go through `Graphs`, unless
    `graphs` is set to None, and convolutions in float32 do without TF32 (`full_float32`).
    """

    def __init__(
        self,
        backbone: Backbone,
        spec: FeatureSpec | Sequence[FeatureSpec],
        device: str = "cpu",
        *,
        runtime: str = "torch",
        threads: int | None = None,
    ) -> None:
        self.specs = (spec,) if isinstance(spec, FeatureSpec) else tuple(spec)
        check_alike(self.specs)
        for one in self.specs:
            _check_fit(one, backbone)
        first = self.specs[0]
        self.runtime = check_runtime(runtime)
        check_precision(self.runtime, first.precision)
        self.device = choose_device(device, self.runtime)
        self._dtype: torch.dtype = getattr(torch, first.precision)
        self._flip = first.flip
        self._backbone = place(backbone, self.device, self.runtime, first.precision)
        self._network = open_network(
            self.runtime,
            self._backbone,
            tuple(dict.fromkeys(one.layer for one in self.specs)),
            Normalization.of(first.preprocessing),
            precision=first.precision,
            threads=threads or count_processors(),
        )
        self._transfers = transfers_to(self.device)
        self.graphs: Graphs | None = None
        if self.device.type == "cuda":
            self.graphs = Graphs(self._transfers, partial(CudaCapturer, self.device))
            # Graphs read these, even where somebody moves the backbone to another device.
            weights = (*self._backbone.parameters(), *self._backbone.buffers())
            self._read_by_graphs = [tensor.detach() for tensor in weights]
        self.strip_pixels = STRIP_PIXELS

    @property
    def info(self) -> BackboneInfo:
        """What is known of the backbone."""
        return self._backbone.info

    @property
    def batch_pixels(self) -> int:
        """Pixels of a batch's views that suit device, runtime and network."""
        if self.device.type != "cpu":
            return gpu_batch_pixels(self.device, self.info, self._dtype)
        if self.runtime != "torch":
            return RUNTIME_BATCH_PIXELS
        return min(CPU_BATCH_PIXELS, int(CPU_MAP_NUMBERS / self.info.numbers_per_pixel))

    def __call__(self, views: npt.NDArray[np.uint8]) -> Vectors:
        """Compute the features of a batch for the first spec.

        Parameters
        ----------
        views : ndarray of uint8, shape (N, H, W, 3)
            Views of one size.

        Returns
        -------
        dict of ndarray of float32, shape (N, channels * level**2)
            By determining level; under None for a fully connected layer.
        """
        return self.compute(views, [0])[0]

    @torch.inference_mode()
    def compute(self, views: npt.NDArray[np.uint8], wanted: Sequence[int]) -> list[Vectors]:
        """Compute the features of a batch for several specs from one pass.

        Parameters
        ----------
        views : ndarray of uint8, shape (N, H, W, 3)
            Views of one size.
        wanted : sequence of int
            Numbers of the specs.

        Returns
        -------
        list of dict of ndarray
            As `__call__` gives it, for every spec wanted; from a GPU in the spec's storage type.
        """
        specs = [self.specs[number] for number in wanted]
        stored = partial(self._stored, specs=specs)
        with digits_of(self.device, self._dtype):
            if self.graphs is None:
                return self._transfers(views, stored)
            return self.graphs(views, stored, self._key(views, wanted))

    def _key(self, views: npt.NDArray[np.uint8], wanted: Sequence[int]) -> Hashable:
        """What batches of one graph have in common; None where strips are put together."""
        _, height, width, _ = views.shape
        return (views.shape, *wanted) if height * width <= self.strip_pixels else None

    def _stored(self, pixels: torch.Tensor, specs: Sequence[FeatureSpec]) -> list[_Tensors]:
        """Features as they leave the device: from a GPU in the precision that is stored."""
        found = self._features(pixels, specs)
        if self._flip:
            mirrored = self._features(pixels.flip(2), specs)
            found = [
                {key: (one[key] + other[key]) / 2 for key in one}
                for one, other in zip(found, mirrored, strict=True)
            ]
        if self.device.type == "cpu":
            return found
        return [
            {key: value.to(getattr(torch, spec.storage)) for key, value in one.items()}
            for one, spec in zip(found, specs, strict=True)
        ]

    def _features(self, pixels: torch.Tensor, specs: Sequence[FeatureSpec]) -> list[_Tensors]:
        layers = tuple(dict.fromkeys(spec.layer for spec in specs))
        maps = self._maps(pixels, layers)
        in_head = [spec.layer for spec in specs if not spec.levels]
        vectors: Mapping[str, torch.Tensor] = {}
        if in_head:
            vectors = self._backbone.vectors_of(maps[in_head[0]].to(self._dtype), in_head)
        pooled: dict[tuple[str, str, int], torch.Tensor] = {}
        for spec in specs:
            for level in spec.levels:
                key = (spec.layer, spec.pooling, level)
                if key not in pooled:
                    pool = SpatialPyramidPooling([level], spec.pooling)
                    pooled[key] = pool(maps[spec.layer]).float()
        return [
            {level: pooled[spec.layer, spec.pooling, level] for level in spec.levels}
            or {None: vectors[spec.layer].float()}
            for spec in specs
        ]

    def _maps(self, pixels: torch.Tensor, layers: Sequence[str]) -> Mapping[str, torch.Tensor]:
        """Maps that the layers are made of; all from one pass, whole or in strips."""
        _, height, width, _ = pixels.shape
        if height * width <= self.strip_pixels:
            return self._network.maps(pixels, layers)
        strips = Strips(self._backbone.info, self.strip_pixels)
        return strips.join(pixels, lambda piece: self._network.maps(piece, layers))


def _check_fit(spec: FeatureSpec, backbone: Backbone) -> None:
    """Whether the backbone computes the spec's layer at its scales."""
    if spec.layer not in backbone.layers:
        raise ConfigError(
            f"layer '{spec.layer}' is not one that this backbone was loaded for: "
            f"{', '.join(backbone.layers)}"
        )
    smallest = backbone.info.min_side
    if spec.scales[0] < smallest:
        raise ConfigError(
            f"scales: {spec.scales[0]} is too small for {spec.backbone}; "
            f"its smaller side must be at least {smallest}"
        )
