"""Some rows of a matrix that is larger than memory, held in memory as they are stored."""

from __future__ import annotations

import numpy as np

from spptransfer.svm._rows import Rows
from spptransfer.svm._types import Array

# Rows moved at a time.
RUN = 1024


class HeldRows:
    """Row numbers and features; which rows are held changes, the memory stays the same.

    Attributes
    ----------
    numbers : ndarray of int
        Which rows of the source are held, in the order of `rows`.
    """

    def __init__(self, source: Rows, capacity: int) -> None:
        self.source = source
        self.capacity = capacity
        self.numbers = np.empty(0, dtype=np.intp)
        # Pages that were never written take no memory.
        self._features = np.empty((capacity, source.shape[1]), source.source.dtype)

    @property
    def count(self) -> int:
        """How many rows are held."""
        return len(self.numbers)

    def rows(self) -> Rows:
        """The rows that are held, as a matrix of their own."""
        return Rows(self._features[: len(self.numbers)], self.source.block_bytes)

    def is_held(self) -> Array:
        """Mask over all rows of the source."""
        mask = np.zeros(self.source.shape[0], dtype=bool)
        mask[self.numbers] = True
        return mask

    def replace(self, wanted: Array) -> None:
        """Hold other rows: those that are held already are kept, the others read.

        Parameters
        ----------
        wanted : ndarray of bool, shape (n_rows,)
            At most ``capacity`` rows.
        """
        stay = np.flatnonzero(wanted[self.numbers])
        fresh = np.flatnonzero(wanted & ~self.is_held())
        self._keep(stay)
        at = len(stay)
        for block in self.source.chosen(fresh):
            self._features[at : at + len(block)] = block
            at += len(block)
        self.numbers = np.concatenate([self.numbers[stay], fresh])

    def _keep(self, stay: Array) -> None:
        """Move rows to the front, a few at a time: a copy of all would double the memory."""
        for start in range(0, len(stay), RUN):
            some = stay[start : start + RUN]
            self._features[start : start + len(some)] = self._features[some]
