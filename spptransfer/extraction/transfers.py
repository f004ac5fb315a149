"""How pixels come to a device and features home; on a GPU beside the computing."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

# Batches at once on a GPU: one is copied while the other is computed.
GPU_LANES = 2

Numbers = npt.NDArray[Any]
Compute = Callable[[torch.Tensor], Sequence[Mapping[Any, torch.Tensor]]]


class Transfers(Protocol):
    """From bytes here to features here, by whatever computes in between."""

    def __call__(self, views: npt.NDArray[np.uint8], compute: Compute) -> list[dict[Any, Numbers]]:
        """Hand a batch of views over and take what is computed from it."""


def transfers_to(device: torch.device) -> Transfers:
    """The way to a device and back.

    Examples
    --------
    >>> views = np.full((1, 2, 2, 3), 7, np.uint8)
    >>> there_and_back = transfers_to(torch.device("cpu"))
    >>> there_and_back(views, lambda pixels: [{"sum": pixels.sum()}])
    [{'sum': array(84)}]
    """
    return GPUTransfers(device) if device.type == "cuda" else stay


def stay(views: npt.NDArray[np.uint8], compute: Compute) -> list[dict[Any, Numbers]]:
    """Compute here."""
    found = compute(torch.from_numpy(views))
    return [{key: value.numpy() for key, value in one.items()} for one in found]


class GPUTransfers:
    """Copies to and from a GPU by pinned memory, in a stream for every thread that computes.

    A thread waits for its own batch only, so that the copies of one run beside the kernels of
    another.

    Parameters
    ----------
    device : torch.device
        The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._mine = threading.local()

    def __call__(self, views: npt.NDArray[np.uint8], compute: Compute) -> list[dict[Any, Numbers]]:
        """Hand a batch of views over and wait for what is computed from it."""
        stream = self._stream()
        with torch.cuda.stream(stream):
            pixels = torch.from_numpy(views).pin_memory().to(self.device, non_blocking=True)
            home = [
                {key: _sent_home(value) for key, value in one.items()} for one in compute(pixels)
            ]
        stream.synchronize()
        return [{key: value.numpy() for key, value in one.items()} for one in home]

    def _stream(self) -> torch.cuda.Stream:
        if not hasattr(self._mine, "stream"):
            self._mine.stream = torch.cuda.Stream(self.device)
            # The network was put there by another stream.
            self._mine.stream.wait_stream(torch.cuda.default_stream(self.device))
        stream: torch.cuda.Stream = self._mine.stream
        return stream


def _sent_home(value: torch.Tensor) -> torch.Tensor:
    """Memory here that will hold what a tensor holds, once the stream has come so far."""
    home = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    return home.copy_(value, non_blocking=True)


class Lanes:
    """Who may compute at once: so many, or one alone where memory is short.

    Examples
    --------
    >>> lanes = Lanes(2)
    >>> with lanes.one(), lanes.one():
    ...     pass
    >>> with lanes.all():
    ...     pass
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._free = threading.Semaphore(count)
        self._turn = threading.Lock()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Compute beside others."""
        with self._free:
            yield

    @contextlib.contextmanager
    def all(self) -> Iterator[None]:
        """Compute alone."""
        # In turn, or two would wait for each other with half of the lanes each.
        with self._turn, contextlib.ExitStack() as stack:
            for _ in range(self._count):
                stack.enter_context(self._free)
            yield
