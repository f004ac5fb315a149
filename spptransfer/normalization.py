"""Normalisation of pyramid features as a scikit-learn transformer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from spptransfer.errors import ConfigError, suggestion

STEPS = ("l2", "l2_block", "signed_sqrt", "standardize")
FITTED_STEPS = ("standardize",)


class PyramidNormalizer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Normalise feature vectors, whole or block by block of the pyramid.

    Parameters
    ----------
    steps : sequence of str, default=("l2",)
        Applied in this order:

        - ``"l2"``: every vector to unit length;
        - ``"l2_block"``: every block of a vector to unit length;
        - ``"signed_sqrt"``: ``sign(x) * sqrt(|x|)``, number by number;
        - ``"standardize"``: every column to mean 0 and variance 1 on the training vectors;
          constant columns become 0.
    block_sizes : sequence of int, optional
        Widths of the blocks, such as one per layer, scale and level in the order of the columns
        (`FeatureCache.columns`). By default a vector is one block.
    copy : bool, default=True
        False normalises the given array itself where its type allows that.

    Attributes
    ----------
    mean_, scale_ : ndarray of shape (n_features,)
        Mean and standard deviation of the columns, only with ``"standardize"``.
    n_features_in_ : int
        Number of columns.

    Notes
    -----
    Zero vectors stay zero. Lengths are summed in float64 whatever the data's type.

    Examples
    --------
    >>> import numpy as np
    >>> PyramidNormalizer().fit_transform(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0. , 0. ]])
    >>> blocks = PyramidNormalizer(["signed_sqrt", "l2_block"], block_sizes=[1, 2])
    >>> blocks.fit_transform(np.array([[-9.0, 9.0, 16.0]]))
    array([[-1. ,  0.6,  0.8]])
    """

    def __init__(
        self,
        steps: Sequence[str] = ("l2",),
        *,
        block_sizes: Sequence[int] | None = None,
        copy: bool = True,
    ) -> None:
        self.steps = steps
        self.block_sizes = block_sizes
        self.copy = copy

    def fit(self, X: npt.ArrayLike, y: Any = None) -> PyramidNormalizer:
        """Check the parameters against the data and learn what the steps need.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training vectors.
        y : ignored

        Returns
        -------
        PyramidNormalizer
            Itself.

        Raises
        ------
        ConfigError
            If a step is unknown, occurs twice, or the blocks do not fill the columns.
        """
        data: npt.NDArray[np.floating] = validate_data(self, X, dtype=[np.float64, np.float32])
        check_steps(self.steps)
        self._check_blocks(data.shape[1])
        if "standardize" in self.steps:
            before = list(self.steps)[: list(self.steps).index("standardize")]
            prepared = self._apply(np.array(data, copy=True), before)
            self.mean_ = prepared.mean(axis=0, dtype=np.float64)
            deviation = prepared.std(axis=0, dtype=np.float64)
            # A constant column differs from its mean by rounding alone.
            rounding = 10 * np.finfo(prepared.dtype).eps * np.abs(self.mean_)
            self.scale_ = np.where(deviation > rounding, deviation, np.inf)
        return self

    def transform(self, X: npt.ArrayLike) -> npt.NDArray[np.floating]:
        """Normalise vectors.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Vectors.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            In float32 if `X` is float32, else float64.
        """
        check_is_fitted(self, "n_features_in_")
        data: npt.NDArray[np.floating] = validate_data(
            self, X, dtype=[np.float64, np.float32], reset=False
        )
        in_place = not self.copy and data.flags.writeable
        return self._apply(data if in_place else np.array(data, copy=True), self.steps)

    def _apply(self, X: npt.NDArray[np.floating], steps: Sequence[str]) -> npt.NDArray[np.floating]:
        for step in steps:
            if step == "l2":
                _to_unit_length(X)
            elif step == "l2_block":
                for block in self._blocks(X.shape[1]):
                    _to_unit_length(X[:, block])
            elif step == "signed_sqrt":
                np.copysign(np.sqrt(np.abs(X)), X, out=X)
            else:
                np.subtract(X, self.mean_, out=X, casting="same_kind")
                np.divide(X, self.scale_, out=X, casting="same_kind")
        return X

    def _blocks(self, width: int) -> Iterator[slice]:
        ends = np.cumsum(self.block_sizes if self.block_sizes is not None else [width])
        for start, stop in zip([0, *ends[:-1]], ends, strict=True):
            yield slice(int(start), int(stop))

    def _check_blocks(self, width: int) -> None:
        if self.block_sizes is None:
            return
        if np.ndim(self.block_sizes) != 1:
            raise ConfigError(f"block_sizes: {self.block_sizes!r} is no list of whole numbers")
        sizes = list(self.block_sizes)
        whole = all(isinstance(size, (int, np.integer)) and size >= 1 for size in sizes)
        if not whole or sum(sizes) != width:
            raise ConfigError(f"block_sizes: {sizes} do not fill the {width} columns")

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "n_features_in_")


def check_steps(steps: Sequence[str]) -> None:
    """Validate the names of normalisation steps."""
    if isinstance(steps, str):
        raise ConfigError(f"normalize: '{steps}' must be a list, as ['{steps}']")
    if not isinstance(steps, (Sequence, np.ndarray)):  # a generator is used up by a look at it
        raise ConfigError(f"normalize: {steps!r} must be a list of steps; [] for none")
    for step in steps:
        if step not in STEPS:
            raise ConfigError(f"normalize: unknown step '{step}'; {suggestion(str(step), STEPS)}")
    if len(set(steps)) < len(list(steps)):
        raise ConfigError(f"normalize: {list(steps)} holds a step twice")


def _to_unit_length(X: npt.NDArray[np.floating]) -> None:
    """Divide every row by its length, in place; rows of zeros stay."""
    lengths = np.sqrt(np.einsum("ij,ij->i", X, X, dtype=np.float64))
    lengths[lengths == 0] = 1
    np.divide(X, lengths[:, np.newaxis], out=X, casting="same_kind")
