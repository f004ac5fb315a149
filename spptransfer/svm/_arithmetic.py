"""The heavy products, on this processor or by torch on a device that the user names."""

from __future__ import annotations

from typing import Any

import numpy as np

from spptransfer.errors import ConfigError
from spptransfer.svm._gram_matrix import dense_gram
from spptransfer.svm._products import product_with_transpose
from spptransfer.svm._rows import Rows
from spptransfer.svm._threads import for_each, own_threads
from spptransfer.svm._types import Array

# Rows copied at a time.
RUN = 64


class Arithmetic:
    """Products on this machine's processor; on a device torch takes over."""

    def hold(self, matrix: Array) -> Any:
        """Put a matrix where products with it are made."""
        return matrix

    def gram(self, rows: Rows, dtype: Any) -> Array:
        """The Gram matrix of the rows."""
        return dense_gram(rows, dtype)

    def product(self, matrix: Any, vectors: Array) -> Array:
        """``matrix @ vectors``, with every column contiguous."""
        across = np.ascontiguousarray(vectors.T)
        product = np.empty((len(across), len(matrix)), vectors.dtype)

        with own_threads() as n_threads:
            share = -(-len(matrix) // n_threads)

            def fill(start: int) -> None:
                rows = slice(start, start + share)
                product_with_transpose(matrix[rows], across, out=product[:, rows].T)

            for_each(fill, range(0, len(matrix), share))
        return product.T

    def submatrix(self, matrix: Any, chosen: Array, vector: Array) -> tuple[Array, Array]:
        """A copy of the rows and columns chosen, and the rows' products with a vector."""
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


class TorchArithmetic(Arithmetic):
    """The same products on a torch device; what is exchanged with it are a few columns."""

    def __init__(self, device: str) -> None:
        import torch

        self.torch = torch
        try:
            self.device = torch.device(device)
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(
                f"device is {device!r}, which torch cannot use here; allowed: 'cpu' or a device "
                "that torch reports"
            ) from error

    def hold(self, matrix: Array) -> Any:
        """Move a matrix to the device."""
        return self.torch.from_numpy(np.ascontiguousarray(matrix)).to(self.device)

    def product(self, matrix: Any, vectors: Array) -> Array:
        """``matrix @ vectors``, there and back."""
        moved = self.torch.from_numpy(np.ascontiguousarray(vectors)).to(self.device)
        return np.asfortranarray((matrix @ moved).cpu().numpy())

    def submatrix(self, matrix: Any, chosen: Array, vector: Array) -> tuple[Array, Array]:
        """A copy of the rows and columns chosen, and the rows' products with a vector."""
        index = self.torch.from_numpy(chosen).to(self.device)
        rows = matrix.index_select(0, index)
        moved = self.torch.from_numpy(np.ascontiguousarray(vector)).to(self.device, matrix.dtype)
        products = (rows @ moved).cpu().numpy()
        return np.array(rows.index_select(1, index).cpu().numpy()), products

    def gram(self, rows: Rows, dtype: Any) -> Array:
        """Blocks are multiplied on the device and collected in memory."""
        gram = np.empty((rows.shape[0], rows.shape[0]), dtype=dtype)
        slices = rows.block_slices(dtype)
        for index, left in enumerate(slices):
            block = self.hold(rows.block(left, dtype))
            for right in slices[index:]:
                product = (block @ self.hold(rows.block(right, dtype)).T).cpu().numpy()
                gram[left, right], gram[right, left] = product, product.T
        return gram


def arithmetic_for(device: str) -> Arithmetic:
    """For ``"cpu"`` this processor, for any other device torch."""
    return Arithmetic() if device == "cpu" else TorchArithmetic(device)
