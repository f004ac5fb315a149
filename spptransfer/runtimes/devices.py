"""Devices and torch on them: which one computes, what it can do, how threads share it."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from spptransfer.backbones import Backbone, BackboneInfo
from spptransfer.errors import ConfigError

# A CPU gains nothing from larger batches, a GPU does. Where maps have many numbers per pixel (VGG),
# images one by one are as fast, and the processor's caches and the memory hold them better.
IMAGE_PIXELS = 224 * 300
CPU_BATCH_PIXELS = 4 * IMAGE_PIXELS
CPU_MAP_NUMBERS = 16 * CPU_BATCH_PIXELS
GPU_BATCH_PIXELS = 128 * IMAGE_PIXELS
# Batches at once on a GPU: one is copied while the other is computed.
GPU_COMPUTERS = 2
# The share of a GPU's memory for the maps of all batches at once, and how many as large as the
# largest a batch may have at a time: a layer's input and output, and what an operator works in.
GPU_MAPS_SHARE = 0.5
LARGE_MAPS = 4

# As the CPU's allocator, CUDA itself (for pinned memory too), cuBLAS and cuDNN say it.
_OUT_OF_MEMORY = ("can't allocate memory", "error: out of memory", "_STATUS_ALLOC_FAILED")
# What cuDNN says where it finds no memory to work in, and where it does not know how to.
_NO_ENGINE = "unable to find an engine to execute this computation"

_lock = threading.Lock()
_exact = 0
_as_the_user_wants: tuple[bool, Sequence[str]] = (True, ())


def choose_device(name: str, runtime: str = "torch") -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` into a device that is there.

    Of several GPUs, ``auto`` and ``cuda`` mean torch's current one; its number is found here.
    ``auto`` is a CUDA device if there is one, else the CPU; other runtimes than torch compute on
    the CPU.
    """
    if name == "auto":
        on_gpu = runtime in ("auto", "torch") and torch.cuda.is_available()
        name = "cuda" if on_gpu else "cpu"
    kind, _, number = name.partition(":")
    absent = ConfigError(f"device: '{name}' is not on this machine; allowed: auto, cpu")
    if kind == "cpu":
        return torch.device("cpu")
    if kind == "mps":
        if not torch.backends.mps.is_available():
            raise absent
        return torch.device("mps")
    # Threads that compute have another current device than who asks.
    current = torch.cuda.current_device() if torch.cuda.is_initialized() else 0
    index = int(number) if number else current
    if index >= torch.cuda.device_count():
        raise absent
    return torch.device(kind, index)


def batch_pixels(device: torch.device, info: BackboneInfo, dtype: torch.dtype) -> int:
    """Return the pixels of a batch that suit torch on a device."""
    if device.type == "cpu":
        return min(CPU_BATCH_PIXELS, int(CPU_MAP_NUMBERS / info.numbers_per_pixel))
    # All memory and not what is free, so that equal machines make equal batches.
    if device.type == "mps":
        memory = torch.mps.recommended_max_memory()
    else:
        memory = torch.cuda.get_device_properties(device).total_memory
    per_pixel = info.numbers_per_pixel * dtype.itemsize * LARGE_MAPS * GPU_COMPUTERS
    return max(IMAGE_PIXELS, min(GPU_BATCH_PIXELS, int(GPU_MAPS_SHARE * memory / per_pixel)))


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether a device multiplies bfloat16 numbers without converting them."""
    if device.type == "cuda":
        # Not `torch.cuda.is_bf16_supported`, which asks the current device.
        by_amd = torch.version.hip is not None
        return by_amd or torch.cuda.get_device_properties(device).major >= 8
    describe = getattr(torch.cpu, "get_capabilities", None)  # absent from older versions
    if describe is None or device.type != "cpu":
        return False
    known: Mapping[str, Any] = describe()
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16"))


@contextlib.contextmanager
def same_threads() -> Iterator[None]:
    """Leave torch's number of threads as it is here: threads that set theirs change the default."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute in this thread alone: others, waiting for work, would only burn time."""
    with same_threads():
        limit_threads()
        yield


def limit_threads() -> None:
    """Have torch compute in the calling thread alone: the first thing that a pool's thread does."""
    torch.set_num_threads(1)


@contextlib.contextmanager
def full_float32(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Have a GPU's float32 convolutions keep all digits as long as anybody is inside.

    By default cuDNN rounds what it multiplies to TF32, which has the digits of float16. Its
    switches are the process's: the last one out leaves them as the first one found them.
    """
    global _exact, _as_the_user_wants
    if device.type != "cuda" or dtype != torch.float32:
        yield
        return
    with _lock:
        _exact += 1
        if _exact == 1:
            _as_the_user_wants = _tf32_switches()
            _set_tf32_switches(False, ["ieee" for _ in _newer_switches()])
    try:
        yield
    finally:
        with _lock:
            _exact -= 1
            if not _exact:
                _set_tf32_switches(*_as_the_user_wants)


def _newer_switches() -> list[Any]:
    """Return those that newer versions of torch have beside the one for all of cuDNN."""
    kinds = (getattr(torch.backends.cudnn, name, None) for name in ("conv", "rnn"))
    return [kind for kind in kinds if hasattr(kind, "fp32_precision")]


def _tf32_switches() -> tuple[bool, Sequence[str]]:
    newer = [kind.fp32_precision for kind in _newer_switches()]
    try:
        return bool(torch.backends.cudnn.allow_tf32), newer
    except RuntimeError:  # it contradicts them and is not told then
        return any(precision != "tf32" for precision in newer), newer


def _set_tf32_switches(common: bool, newer: Sequence[str]) -> None:
    torch.backends.cudnn.allow_tf32 = common  # first, for it changes the newer ones
    for kind, precision in zip(_newer_switches(), newer, strict=True):
        kind.fp32_precision = precision


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory did not suffice, on a device or on the CPU (a RuntimeError there)."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    messages = (*_OUT_OF_MEMORY, _NO_ENGINE)
    return isinstance(error, RuntimeError) and any(known in str(error) for known in messages)


def may_be_unsupported(error: BaseException) -> bool:
    """Tell whether what `is_out_of_memory` takes for that is also how cuDNN says it cannot."""
    return _NO_ENGINE in str(error)


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
