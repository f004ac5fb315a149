"""Products of matrices: numpy's, or torch's in float32 and on a device that the user names."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from spptransfer.svm._rows import writeable
from spptransfer.svm._threads import for_each, limit_torch, own_threads
from spptransfer.svm._types import Array

# Operations after which importing torch, a second or two, has paid: as long as numpy took for them.
WORTH_IMPORTING = 5e11
# Rows copied at a time.
RUN = 64

_operations = 0.0


def product_with_transpose(
    left: Array, right: Array, out: Array | None = None, device: str = "cpu"
) -> Array:
    """``left @ right.T``, by numpy unless all is float32 and torch is worth having.

    Torch multiplies float32 matrices faster on some processors, by code for the one at hand. It is
    used where it is loaded, and is loaded once there has been so much to multiply that it pays.
    """
    out = np.empty((len(left), len(right)), left.dtype) if out is None else out
    if out.strides[0] < out.strides[1]:
        product_with_transpose(right, left, out.T, device)
        return out
    single = left.dtype == right.dtype == np.float32
    if device != "cpu":
        import torch

        out[...] = (to_device(left, device) @ to_device(right, device).T).cpu().numpy()
    elif single and _worth_torch(2.0 * left.size * len(right)):
        import torch

        with own_threads():
            limit_torch()
            torch.mm(_tensor(left), _tensor(right).T, out=torch.from_numpy(out))
    else:
        np.matmul(left, right.T, out=out)
    return out


def _worth_torch(operations: float) -> bool:
    """Whether torch is loaded, or is to be; ``operations`` more are about to be made."""
    global _operations
    _operations += operations
    return "torch" in sys.modules or _operations > WORTH_IMPORTING


def _tensor(matrix: Array) -> Any:
    import torch

    backwards = min(matrix.strides) < 0  # which torch does not know
    return torch.from_numpy(matrix.copy() if backwards else writeable(matrix))


def to_device(matrix: Array, device: str) -> Any:
    """A matrix where products with it are made: an array, or a tensor on another device."""
    return matrix if device == "cpu" else _tensor(np.ascontiguousarray(matrix)).to(device)


def product(matrix: Any, vectors: Array) -> Array:
    """``matrix @ vectors``, with every column contiguous."""
    if not isinstance(matrix, np.ndarray):
        return np.asfortranarray((matrix @ to_device(vectors, matrix.device)).cpu().numpy())
    across = np.ascontiguousarray(vectors.T)
    product = np.empty((len(across), len(matrix)), vectors.dtype)
    with own_threads() as n_threads:
        share = -(-len(matrix) // n_threads)

        def fill(start: int) -> None:
            rows = slice(start, start + share)
            product_with_transpose(matrix[rows], across, out=product[:, rows].T)

        for_each(fill, range(0, len(matrix), share))
    return product.T


def submatrix(matrix: Any, chosen: Array, vector: Array) -> tuple[Array, Array]:
    """A copy of the rows and columns chosen, and the rows' products with a vector."""
    if not isinstance(matrix, np.ndarray):
        rows, index = matrix[chosen], to_device(chosen, matrix.device)
        products = rows @ to_device(vector, matrix.device).to(matrix.dtype)
        return np.array(rows.index_select(1, index).cpu().numpy()), products.cpu().numpy()
    # Whole rows first, then columns of what is in cache: half the time of one fancy index.
    part = np.empty((len(chosen), len(chosen)), matrix.dtype)
    products = np.zeros(len(chosen), matrix.dtype)
    narrow = vector.astype(matrix.dtype) if vector.any() else None
    for start in range(0, len(chosen), RUN):
        rows = matrix[chosen[start : start + RUN]]
        rows.take(chosen, axis=1, out=part[start : start + RUN], mode="clip")
        if narrow is not None:
            products[start : start + RUN] = rows @ narrow
    return part, products
