"""Products of matrices, in float32 by whichever of two libraries multiplies faster."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np

from spptransfer.svm._threads import limit_torch, own_threads
from spptransfer.svm._types import Array

# Operations after which importing torch, a second or two, has paid: as long as numpy took for them.
WORTH_IMPORTING = 5e11
# Filters at a time: enough for full speed, and the library copies them into an order of its own.
FILTERS = 64
# It computes so many side by side; and makes, and keeps, code for every number that it meets.
FILTERS_ABREAST = 16


def product_with_transpose(left: Array, right: Array, out: Array | None = None) -> Array:
    """``left @ right.T``, by numpy unless all is float32 and torch is worth having.

    Torch's library for convolutions makes code for the processor at hand; numpy's BLAS has it for
    some processors, and on others reaches half that speed, or a third with few columns. A matrix
    product is a convolution of one pixel. Torch is used where it is loaded, and is loaded once
    there has been so much to multiply that it pays.
    """
    out = np.empty((len(left), len(right)), left.dtype) if out is None else out
    torch = None
    if _is_plain(left) and _is_plain(right):
        torch = _torch.after(2.0 * left.size * len(right))
    if torch is None and out.strides[0] < out.strides[1]:
        return np.matmul(right, left.T, out=out.T).T
    if torch is None:
        return np.matmul(left, right.T, out=out)
    with own_threads():
        limit_torch(torch)
        for start in range(0, len(right), FILTERS):
            filters = _full(right[start : start + FILTERS])
            width = min(len(filters), len(right) - start)
            out[:, start : start + width] = _convolved(torch, left, filters)[:, :width]
    return out


def _full(filters: Array) -> Array:
    """As many filters as are computed side by side, the last ones zero."""
    missing = -len(filters) % FILTERS_ABREAST
    return np.pad(filters, ((0, missing), (0, 0))) if missing else filters


def _is_plain(matrix: Array) -> bool:
    return matrix.dtype == np.float32 and matrix.flags.c_contiguous and matrix.size > 0


def _convolved(torch: Any, left: Array, right: Array) -> Array:
    """The rows of ``left`` are pixels with a channel per column, those of ``right`` filters."""
    with torch.inference_mode():
        pixels = torch.from_numpy(_writeable(left)).view(1, 1, *left.shape).permute(0, 3, 1, 2)
        filters = torch.from_numpy(_writeable(right)).view(*right.shape, 1, 1)
        # A single pixel is the same with any dilation: with one, torch leaves it to that library.
        image = torch.nn.functional.conv2d(pixels, filters, dilation=2)
        return np.asarray(image[0, :, 0, :].numpy().T)


def _writeable(matrix: Array) -> Array:
    """The same memory, writeable by name: torch warns of memory that is not."""
    if matrix.flags.writeable:
        return matrix
    return np.asarray(_Exposed(matrix))


class _Exposed:
    """An array's memory as numpy's interface describes it, without its being read-only."""

    def __init__(self, matrix: Array) -> None:
        address, _ = matrix.__array_interface__["data"]
        self.__array_interface__ = {**matrix.__array_interface__, "data": (address, False)}
        self.matrix = matrix


class _Torch:
    """Torch, from when on it is worth having."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._operations = 0.0
        self._module: Any = None
        self._unusable = False

    def after(self, operations: float) -> Any:
        """Torch, or None; ``operations`` more are about to be made."""
        if self._module is None and not self._unusable:
            with self._lock:
                self._operations += operations
                if "torch" in sys.modules or self._operations > WORTH_IMPORTING:
                    self._load()
        return self._module

    def _load(self) -> None:
        import torch

        self._unusable = not torch.backends.mkldnn.is_available()
        if not self._unusable:
            self._module = torch


_torch = _Torch()
