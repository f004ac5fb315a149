"""A backbone on a device: from bytes here to maps and vectors there, and numbers back home."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from spptransfer.backbones import Backbone
from spptransfer.errors import ConfigError
from spptransfer.runtimes import (
    PREFERENCE,
    ComputeOptions,
    check_options,
    describe_runtime,
    devices,
    is_installed,
)
from spptransfer.system import count_processors

logger = logging.getLogger(__name__)

_CPU_PART_ROWS, _GPU_PART_ROWS = 128, 256


# From N x H x W x 3 bytes to the maps that some layers are made of, in one pass; any number of
# threads do so at once.
MapsOf = Callable[[torch.Tensor, Sequence[str]], dict[str, torch.Tensor]]


class Runtime:
    """A backbone that a runtime computes on a device; made by `open_runtime`.

    As a context manager it sets what must be set while it computes, and puts that back: a CUDA
    device computes float32 without TF32, and torch's number of threads is the user's afterwards.
    """

    def __init__(
        self,
        name: str,
        backbone: Backbone,
        placed: Backbone,
        maps: MapsOf,
        precision: str,
        device: torch.device,
        options: ComputeOptions,
    ) -> None:
        on_gpu, processors = device.type != "cpu", count_processors()
        threads = options.threads or processors
        self.name = name
        self.description = describe_runtime(name)
        self.device = str(device)
        self.backbone = backbone
        # OpenVINO computes in threads of its own, for which those that ask wait: where they have
        # all processors, one caller more reads what comes next.
        self.workers = threads + (name == "openvino" and threads == processors > 1)
        self.computers = min(threads, devices.GPU_COMPUTERS) if on_gpu else self.workers
        self.part_rows = _GPU_PART_ROWS if on_gpu else _CPU_PART_ROWS
        self.read_processes = options.read_processes if on_gpu else 0
        self.maps = maps
        self._placed, self._device = placed, device
        self._dtype: torch.dtype = getattr(torch, precision)
        self._streams: deque[torch.cuda.Stream] = deque()
        self._set = contextlib.ExitStack()
        # Other runtimes prepare less per call than torch, so that images one by one are as fast.
        by_torch = devices.batch_pixels(device, backbone.info, self._dtype)
        self.batch_pixels = by_torch if name == "torch" else devices.IMAGE_PIXELS

    def __enter__(self) -> Runtime:
        self._set.enter_context(devices.same_threads())
        self._set.enter_context(devices.full_float32(self._device, self._dtype))
        return self

    def __exit__(self, *_: object) -> None:
        self._set.close()

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Compute in this thread, on a CUDA device in a stream that no other session has.

        All that is done with tensors of the device belongs inside.
        """
        with torch.inference_mode():
            if self._device.type != "cuda":
                yield
                return
            # As many as compute at once, since torch caches memory for each.
            try:
                stream = self._streams.pop()
            except IndexError:
                stream = torch.cuda.Stream(self._device)
                # The network was put there by another stream.
                stream.wait_stream(torch.cuda.default_stream(self._device))
            try:
                with torch.cuda.stream(stream):
                    yield
            finally:
                with contextlib.suppress(RuntimeError):
                    stream.synchronize()  # what was launched before an error may still write
                self._streams.append(stream)

    def upload(self, views: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Copy N x H x W x 3 bytes to the device; to a CUDA device, beside what it computes."""
        pixels = torch.from_numpy(views)
        if self._device.type == "cuda":
            return pixels.pin_memory().to(self._device, non_blocking=True)
        return pixels.to(self._device)

    def vectors(
        self, maps: Mapping[str, torch.Tensor], layers: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """Compute N x D vector layers from what `maps` gave for them."""
        rounded = {layer: maps[layer].to(self._dtype) for layer in layers}
        return self._placed.vectors_of(rounded, layers)

    def download(
        self, tensors: Sequence[Mapping[Any, torch.Tensor]]
    ) -> list[dict[Any, npt.NDArray[Any]]]:
        """Copy tensors home, and wait for that."""
        on_cuda = self._device.type == "cuda"  # then torch copies into pinned memory, side by side
        home = [
            {key: value.to("cpu", non_blocking=on_cuda) for key, value in one.items()}
            for one in tensors
        ]
        if on_cuda:
            torch.cuda.current_stream(self._device).synchronize()
        return [{key: value.numpy() for key, value in one.items()} for one in home]


def open_runtime(
    backbone: Backbone, layers: Sequence[str], *, precision: str, options: ComputeOptions
) -> Runtime:
    """Make some layers of a float32 backbone on the CPU, which is not changed, ready to be run.

    A `ConfigError` is an option that is wrong, a device or layer that is not there, or an operator
    that the runtime named lacks or computes in another way than torch.
    """
    check_options(options, precision)
    for layer in layers:
        if backbone.info.layer(layer).name not in backbone.layers:
            raise ConfigError(
                f"layer '{layer}' is not one that this backbone was loaded for: "
                f"{', '.join(backbone.layers)}"
            )
    device = devices.choose_device(options.device, options.runtime)
    preferred, last = PREFERENCE[precision][:-1], options.runtime
    if last == "auto":
        last = "torch"
        for name in preferred if device.type == "cpu" else ():
            try:
                return _open(name, backbone, layers, device, precision, options)
            except ConfigError as error:
                logger.info("runtime '%s' is passed over: %s", name, error)
    return _open(last, backbone, layers, device, precision, options)


def _open(
    name: str,
    backbone: Backbone,
    layers: Sequence[str],
    device: torch.device,
    precision: str,
    options: ComputeOptions,
) -> Runtime:
    dtype = getattr(torch, precision)
    if name == "torch":
        channels_last = getattr(backbone, "channels_last", False)
        placed = devices.place(backbone, backbone, device, dtype, channels_last=channels_last)
        maps: MapsOf = devices.TorchNetwork(placed).maps
    else:
        if not is_installed(name):
            raise ConfigError("it is not installed")
        try:  # imports what it needs
            from spptransfer.runtimes.graph import CompiledNetwork

            compiler = importlib.import_module(f"spptransfer.runtimes.{name}")
        except (ImportError, OSError) as error:
            raise ConfigError(f"runtime '{name}' cannot be imported: {error}") from error
        exact = devices.place(backbone, backbone, device, torch.float32)
        threads = options.threads or count_processors()
        compile = functools.partial(compiler.compile, precision=precision, threads=threads)
        maps = CompiledNetwork(name, compile, exact, layers, precision).maps
        # Vectors stay torch's; without them the trunk need not be there twice.
        vectors = any(exact.info.layer(layer).kind == "vector" for layer in exact.layers)
        head = getattr(exact, "head", exact if vectors else None)
        placed = exact if head is None else devices.place(exact, head, device, dtype)
    return Runtime(name, backbone, placed, maps, precision, device, options)
