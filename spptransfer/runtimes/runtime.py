"""A backbone on a device: from bytes here to maps and vectors there, and numbers back home."""

from __future__ import annotations

import contextlib
import copy
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from spptransfer.backbones import Backbone
from spptransfer.runtimes.devices import (
    GPU_COMPUTERS,
    IMAGE_PIXELS,
    batch_pixels,
    full_float32,
    limit_threads,
    same_threads,
)
from spptransfer.system import count_processors

_CPU_PART_ROWS, _GPU_PART_ROWS = 128, 256


class MapsNetwork(Protocol):
    """From N x H x W x 3 bytes to maps by layer; any number of threads call it at once."""

    def maps(self, pixels: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        """Compute the maps that some layers are made of, in one pass."""


class Runtime:
    """A backbone that a runtime computes on a device; made by `open_runtime`.

    As a context manager it sets what must be set while it computes, and puts that back: a CUDA
    device computes float32 without TF32, and torch's number of threads is the user's afterwards.
    """

    def __init__(
        self,
        name: str,
        description: str,
        backbone: Backbone,
        placed: Backbone,
        network: MapsNetwork,
        *,
        precision: str,
        device: torch.device,
        threads: int,
        read_processes: int,
    ) -> None:
        on_gpu = device.type != "cpu"
        self.name = name
        self.description = description
        self.device = str(device)
        self.backbone = backbone
        self.placed = placed
        # OpenVINO computes in threads of its own, for which those that ask wait: where they have
        # all processors, one caller more reads what comes next.
        self.workers = threads + (name == "openvino" and threads == count_processors() > 1)
        self.computers = min(threads, GPU_COMPUTERS) if on_gpu else self.workers
        self.part_rows = _GPU_PART_ROWS if on_gpu else _CPU_PART_ROWS
        self.read_processes = read_processes if on_gpu else 0
        self._network, self._device = network, device
        self._dtype: torch.dtype = getattr(torch, precision)
        self._streams: deque[torch.cuda.Stream] = deque()
        self._set = contextlib.ExitStack()
        # Other runtimes prepare less per call than torch, so that images one by one are as fast.
        by_torch = batch_pixels(device, backbone.info, self._dtype)
        self.batch_pixels = by_torch if name == "torch" else IMAGE_PIXELS

    def __enter__(self) -> Runtime:
        self._set.enter_context(same_threads())
        self._set.enter_context(full_float32(self._device, self._dtype))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._set.close()

    def thread_initializer(self) -> Callable[[], None]:
        """Return what a pool's threads do first: torch shall compute in each of them alone."""
        return limit_threads

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Compute in this thread, on a CUDA device in a stream that no other session has.

        All that is done with tensors of the device belongs inside.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self._device.type == "cuda":
                stack.enter_context(torch.cuda.device(self._device))
                stack.enter_context(self._stream())
            yield

    @contextlib.contextmanager
    def _stream(self) -> Iterator[None]:
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

    def maps(self, pixels: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        """Compute the maps that some layers are made of, in one pass."""
        return self._network.maps(pixels, layers)

    def vectors(
        self, maps: Mapping[str, torch.Tensor], layers: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """Compute N x D vector layers from what `maps` gave for them."""
        given: dict[int, torch.Tensor] = {}
        rounded = {
            layer: given.setdefault(id(maps[layer]), maps[layer].to(self._dtype))
            for layer in layers
        }
        return self.placed.vectors_of(rounded, layers)

    def download(
        self, tensors: Sequence[Mapping[Any, torch.Tensor]]
    ) -> list[dict[Any, npt.NDArray[Any]]]:
        """Copy tensors home, and wait for that."""
        if self._device.type != "cuda":
            return [{key: value.cpu().numpy() for key, value in one.items()} for one in tensors]
        home = [{key: _sent_home(value) for key, value in one.items()} for one in tensors]
        torch.cuda.current_stream(self._device).synchronize()
        return [{key: value.numpy() for key, value in one.items()} for one in home]


def _sent_home(value: torch.Tensor) -> torch.Tensor:
    """Return memory here that holds what a tensor holds, once the stream has come so far."""
    home = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    return home.copy_(value, non_blocking=True)


def place(
    backbone: Backbone,
    part: Any,
    device: torch.device,
    dtype: torch.dtype,
    *,
    channels_last: bool = False,
) -> Backbone:
    """Move and cast a part of a backbone, in a copy that shares all numbers that stay the same."""
    module = cast(nn.Module, backbone)
    kept: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    filters = (m.weight for m in module.modules() if isinstance(m, nn.Conv2d) and channels_last)
    convolved = {id(weight) for weight in filters}
    for tensor in (*part.parameters(), *part.buffers()):
        cast_to = dtype if tensor.is_floating_point() else tensor.dtype
        moved = tensor.detach().to(device=device, dtype=cast_to)
        if id(tensor) in convolved:
            moved = moved.contiguous(memory_format=torch.channels_last)
        is_parameter = isinstance(tensor, nn.Parameter)
        kept[id(tensor)] = nn.Parameter(moved, requires_grad=False) if is_parameter else moved
    return cast(Backbone, copy.deepcopy(module, kept))


class TorchNetwork:
    """A backbone's maps as torch computes them."""

    def __init__(self, backbone: Backbone) -> None:
        module = cast(nn.Module, backbone)
        tensor = next((t for t in module.parameters() if t.is_floating_point()), torch.zeros(1))
        self._backbone = backbone
        self._dtype = tensor.dtype
        self._channels_last = getattr(backbone, "channels_last", False)
        self._shift, self._span = (
            torch.tensor([255.0 * value for value in values], dtype=torch.float32).to(tensor.device)
            for values in (backbone.info.mean, backbone.info.std)
        )

    def maps(self, pixels: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        """Compute the maps that some layers are made of, in one pass."""
        images = self.normalize(pixels)
        images = images if self._channels_last else images.contiguous()
        return self._backbone.maps_of(images, layers)

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Turn N x H x W x 3 bytes into N x 3 x H x W numbers that lie channels-last."""
        shape, width = pixels.shape, pixels.shape[2]
        # Along whole rows: torch is slow where the last of the dimensions has three numbers.
        rows = pixels.reshape(*shape[:2], width * 3).float()
        normal = rows.sub_(self._shift.repeat(width)).div_(self._span.repeat(width))
        return normal.to(self._dtype).view(shape).permute(0, 3, 1, 2)
