"""CUDA graphs as torch records and replays them."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from spptransfer.extraction.transfers import Compute

# Torch's documentation wants some. Such a batch was computed before, but not in this stream and
# perhaps not by this thread, for which libraries have handles and memory of their own.
WARM_UPS = 2

# Torch and the collector of garbage know one capture at a time.
_CAPTURING = threading.Lock()
# Torch's allocators may go on asking a graph whose capture failed: it must live.
_FAILED: list[torch.cuda.CUDAGraph] = []


class CudaGraph:
    """A recorded computation between memory of its own for a batch and for what is found.

    Parameters
    ----------
    graph : CUDAGraph
        The kernels.
    pixels : Tensor
        Where they read.
    found : sequence of dict of Tensor
        Where they write.
    """

    def __init__(
        self,
        graph: torch.cuda.CUDAGraph,
        pixels: torch.Tensor,
        found: Sequence[Mapping[Any, torch.Tensor]],
    ) -> None:
        self._graph = graph
        self._pixels = pixels
        self._found = found

    def __call__(self, pixels: torch.Tensor) -> Sequence[Mapping[Any, torch.Tensor]]:
        """Compute a batch in the current stream; the next call writes over what is found."""
        self._pixels.copy_(pixels)
        self._graph.replay()
        return self._found

    def drop(self) -> None:
        """Give the memory back, once the device is through with it."""
        # What a failed batch launched may still write; to wait for the device is to fail a capture.
        with _CAPTURING, contextlib.suppress(RuntimeError):
            torch.cuda.synchronize(self._pixels.device)
        self._found = []
        with contextlib.suppress(RuntimeError):
            self._graph.reset()


class CudaCapturer:
    """Captures in a stream of its own; the current one, if a capture fails, knows nothing of it.

    Its graphs share a pool of memory, which is safe as long as they are replayed one after the
    other, in whatever order, and each one's results are fetched before the next replay.

    Parameters
    ----------
    device : torch.device
        The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._index = torch.cuda.current_device() if device.index is None else device.index
        self._open()

    def _open(self) -> None:
        self._stream = torch.cuda.Stream(self._device)
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, compute: Compute, pixels: torch.Tensor) -> CudaGraph:
        """Record what is computed from pixels of one shape.

        Parameters
        ----------
        compute : callable
            It launches the same kernels for all pixels of this shape, and waits for none.
        pixels : Tensor
            A batch on the device, ready in the current stream.

        Returns
        -------
        CudaGraph
            To be called in the current stream.
        """
        own = pixels.clone()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with _CAPTURING, torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                compute(own)
            self._stream.synchronize()
            _clear_workspaces()  # or the graph would write to those of work that is not recorded
            # Not by `torch.cuda.graph`, which waits for the entire device first. Memory that is
            # cached elsewhere is given back as there, since a pool cannot take it.
            torch.cuda.empty_cache()
            return self._record(compute, own)

    def _record(self, compute: Compute, pixels: torch.Tensor) -> CudaGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            with _no_collection():
                # Other threads may allocate, pin and wait meanwhile, if not for this stream.
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    found = compute(pixels)
                except BaseException:
                    with contextlib.suppress(RuntimeError):  # the first error says more
                        graph.capture_end()
                    raise
                graph.capture_end()
        except BaseException:
            self._clean_up(graph)
            raise
        finally:
            _clear_workspaces()  # or other work would write to the graph's
        return CudaGraph(graph, pixels, found)

    def _clean_up(self, graph: torch.cuda.CUDAGraph) -> None:
        """Leave stream and pool of a failed capture behind; the allocator must know of its end."""
        _FAILED.append(graph)
        with contextlib.suppress(RuntimeError):
            graph.reset()
        # Torch forgets both where the end of a capture fails, and then never gives cached memory,
        # nor the pool's own, back any more. Where it did not forget, the first one is an error.
        release = getattr(torch._C, "_cuda_releasePool", None)
        for name in ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"):
            if (end := getattr(torch._C, name, None)) is not None:
                with contextlib.suppress(RuntimeError):
                    end(self._index, self._pool)
                    if release is not None:
                        release(self._index, self._pool)
                    break
        self._open()

    def seconds(self, run: Callable[[], object]) -> float:
        """How long a run takes, from the first launch to the end of the last kernel."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.current_stream(self._device).synchronize()
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000


def _clear_workspaces() -> None:
    """Have cuBLAS forget its memory; whoever multiplies next gets some where it belongs."""
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if clear is not None:
        clear()


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the collector from destroying other graphs and pinned memory amid a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
