"""Some rows of a matrix as a matrix of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from spptransfer.errors import ConfigError
from spptransfer.svm._types import Array


class RowSubset:
    """Some rows of a matrix, copied block by block when they are read.

    What the estimators here can be trained on instead of ``X[rows]``. A fit that is given a float64
    Gram matrix reads its rows only once or twice, so that a copy of them all would be a waste.

    Parameters
    ----------
    X : ndarray, shape (n_samples, n_features)
        Features.
    rows : array-like of int, shape (n,)
        Numbers of rows.

    Attributes
    ----------
    shape : tuple of int
        ``(n, n_features)``.
    dtype : dtype
        That of ``X``.

    Raises
    ------
    ConfigError
        If a number is not that of a row.

    Examples
    --------
    >>> import numpy as np
    >>> from spptransfer.svm import LinearSVM, RowSubset, gram_matrix
    >>> X = np.eye(4, 6)
    >>> gram = gram_matrix(X, np.float64)
    >>> rows = [0, 1, 3]
    >>> LinearSVM().fit(RowSubset(X, rows), [0, 1, 1], gram=gram.of(rows)).coef_.shape
    (1, 6)
    """

    def __init__(self, X: Array, rows: npt.ArrayLike) -> None:
        self.X, self.rows = X, row_numbers(rows, len(X))
        self.shape, self.dtype = (len(self.rows), X.shape[1]), X.dtype

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.rows)

    def __getitem__(self, where: Any) -> Array:
        """A copy of ``X[rows][where]``."""
        return self.X[self.rows[where]]

    def __reduce__(self) -> tuple[Any, ...]:
        """Only these rows are sent elsewhere."""
        return RowSubset, (self.X[self.rows], np.arange(len(self)))


def row_numbers(rows: npt.ArrayLike, n_rows: int) -> npt.NDArray[np.intp]:
    """Numbers of rows as an array, checked.

    Raises
    ------
    ConfigError
        If they are no numbers of rows.
    """
    numbers = np.asarray(rows)
    if numbers.ndim != 1 or not (np.issubdtype(numbers.dtype, np.integer) or not numbers.size):
        raise ConfigError(
            f"rows has shape {numbers.shape} and type {numbers.dtype}; allowed: the numbers of "
            "rows in one dimension"
        )
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < n_rows:
        raise ConfigError(
            f"rows go from {numbers.min()} to {numbers.max()}; allowed: 0 to {n_rows - 1}"
        )
    return numbers.astype(np.intp, copy=False)
