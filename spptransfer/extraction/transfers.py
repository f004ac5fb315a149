"""How pixels come to a device and features home; on a GPU beside the computing."""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from spptransfer.extraction.division import GPU_LANES

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
    """Copies to and from a GPU by pinned memory, in a few threads with a stream each.

    A batch waits for its own stream only, so that the copies of one run beside the kernels of
    another. However many threads ask, there are as many streams as lanes: torch caches memory,
    and libraries have handles and plans, for every stream or thread. The threads end with this
    object.

    Parameters
    ----------
    device : torch.device
        The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._mine = threading.local()
        self._lanes = ThreadPoolExecutor(GPU_LANES, "gpu")

    def __call__(self, views: npt.NDArray[np.uint8], compute: Compute) -> list[dict[Any, Numbers]]:
        """Hand a batch of views over and wait for what is computed from it."""
        carried = self._lanes.submit(self._carry, views, compute)
        try:
            return carried.result()
        finally:
            wait([carried])  # who is interrupted must not let others into a lane that is in use
            del carried  # or an error and this frame would keep each other

    @torch.inference_mode()  # which every thread has to say for itself
    def _carry(self, views: npt.NDArray[np.uint8], compute: Compute) -> list[dict[Any, Numbers]]:
        stream = self._stream()
        try:
            return self._there_and_back(views, compute, stream)
        except BaseException as error:
            # What was launched, by a graph too, must not write while the next batch is computed.
            with contextlib.suppress(RuntimeError):
                stream.synchronize()
            # Nor may its memory be missing there until this thread comes to forget the error.
            traceback.clear_frames(error.__traceback__)
            raise

    def _there_and_back(
        self, views: npt.NDArray[np.uint8], compute: Compute, stream: torch.cuda.Stream
    ) -> list[dict[Any, Numbers]]:
        with torch.cuda.stream(stream):
            pixels = torch.from_numpy(views).pin_memory().to(self.device, non_blocking=True)
            home = [
                {key: _sent_home(value) for key, value in one.items()} for one in compute(pixels)
            ]
        stream.synchronize()
        return [{key: value.numpy() for key, value in one.items()} for one in home]

    def _stream(self) -> torch.cuda.Stream:
        if not hasattr(self._mine, "stream"):
            torch.cuda.set_device(self.device)  # else libraries would take memory of the first one
            stream = torch.cuda.Stream(self.device)
            # The network was put there by another stream.
            stream.wait_stream(torch.cuda.default_stream(self.device))
            self._mine.stream = stream
        found: torch.cuda.Stream = self._mine.stream
        return found


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
