"""A feature matrix that stays on the disk until it is sliced."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from spptransfer.cache.selection import Selection


class SelectedRows(Protocol):
    """What a view reads from: an open cache."""

    def read_selected(
        self, positions: npt.NDArray[np.intp], selection: Selection, dtype: np.dtype[Any]
    ) -> npt.NDArray[Any]:
        """Read chosen columns of rows by position."""


class FeatureView:
    """Rows of a cache that behave like a read-only matrix.

    Made by `FeatureCache.view`. Slicing reads just the rows asked for; a pickle holds the
    file's path and row numbers, never features. scikit-learn's cross-validation slices it like
    an array, and ``np.asarray`` reads all of it.

    Attributes
    ----------
    shape : (int, int)
        Rows and columns.
    dtype : dtype
        Type of what slicing gives.
    positions : ndarray of int, shape (n_rows,)
        Where the rows are in the file.

    Examples
    --------
    >>> X = FeatureCache.open("cache/demo.h5").view(levels=[1])         # doctest: +SKIP
    >>> cross_val_score(LinearSVC(), X, y, n_jobs=4)                    # doctest: +SKIP
    """

    ndim = 2

    def __init__(
        self,
        cache: SelectedRows,
        positions: npt.NDArray[np.intp],
        selection: Selection,
        dtype: np.dtype[Any],
    ) -> None:
        self._cache = cache
        self.positions = positions
        self._selection = selection
        self.dtype = dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.positions), self._selection.width

    @property
    def size(self) -> int:
        """Number of numbers."""
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that the whole matrix takes once read."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.positions)

    def __repr__(self) -> str:
        return f"<FeatureView {self.shape[0]} x {self.shape[1]} {self.dtype} of {self._cache!r}>"

    def __getitem__(self, key: Any) -> Any:
        """Read rows, and of these columns, by whatever indexes a numpy matrix."""
        rows, *rest = key if isinstance(key, tuple) else (key,)
        if rows is Ellipsis:
            rows, rest = slice(None), rest and [Ellipsis, *rest]
        if isinstance(rows, np.ndarray | list) and np.asarray(rows).ndim == 1:
            values = self._read(self.positions[np.asarray(rows, dtype=None if len(rows) else int)])
        elif isinstance(rows, slice):
            values = self._read(self.positions[rows])
        else:
            values = self._read(self.positions[[rows]])[0]
        columns = [part for part in rest if part is not Ellipsis]
        return values[..., columns[0]] if columns else values

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        for row in range(len(self)):
            yield self[row]

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        """Read everything; every call reads anew, so ``copy=False`` is refused."""
        if copy is False:
            raise ValueError("a FeatureView cannot become an array without being read")
        values = self._read(self.positions)
        return values if dtype is None else values.astype(dtype, copy=False)

    def _read(self, positions: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
        return self._cache.read_selected(positions, self._selection, self.dtype)
