"""Normalisation of pyramid features as a scikit-learn transformer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from spptransfer.errors import ConfigError, suggestion

STEPS = ("l2", "l2_block", "mean_length", "signed_sqrt", "standardize")
# Steps that learn something, and the attributes that hold it.
_LEARNT = {"standardize": ("mean_", "scale_"), "mean_length": ("length_",)}
FITTED_STEPS = tuple(_LEARNT)


class PyramidNormalizer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Normalise feature vectors, whole or block by block of the pyramid.

    Parameters
    ----------
    steps : sequence of str, default=("l2",)
        Applied in this order:

        - ``"l2"``: every vector to unit length;
        - ``"l2_block"``: every block of a vector to unit length;
        - ``"mean_length"``: all vectors divided by one number, the mean length of the training
          vectors, as the SPP-net's released detector does;
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
    length_ : ndarray of shape (1,)
        Mean length of the training vectors, only with ``"mean_length"``.
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
        prepared, done = data, 0
        for index, step in enumerate(self.steps):
            if step in _LEARNT:
                prepared = self._apply(np.array(prepared, copy=True), self.steps[done:index])
                self._learn(step, prepared)
                done = index
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

    def _learn(self, step: str, X: npt.NDArray[np.floating]) -> None:
        if step == "mean_length":
            self.length_ = _lengths(X).mean(keepdims=True)
            return
        self.mean_ = X.mean(axis=0, dtype=np.float64)
        deviation = X.std(axis=0, dtype=np.float64)
        # A constant column differs from its mean by rounding alone.
        rounding = 10 * np.finfo(X.dtype).eps * np.abs(self.mean_)
        self.scale_ = np.where(deviation > rounding, deviation, np.inf)

    def learnt(self) -> dict[str, npt.NDArray[np.floating]]:
        """Return what `fit` learnt from the vectors, by attribute."""
        names = [name for step in self.steps for name in _LEARNT.get(step, ())]
        return {name: getattr(self, name) for name in names}

    def restore(self, learnt: Mapping[str, npt.NDArray[Any]], n_features: int) -> None:
        """Take what `learnt` gave, as if fitted to vectors of so many columns.

        A `ConfigError` names a step or blocks that are wrong, a `ValueError` or `KeyError` what
        does not fit.
        """
        check_steps(self.steps)
        self._check_blocks(n_features)
        for step in self.steps:
            for name in _LEARNT.get(step, ()):
                array, shape = learnt[name], (1,) if step == "mean_length" else (n_features,)
                if array.shape != shape or array.dtype.kind != "f":
                    raise ValueError(f"'{name}' is {array.shape} {array.dtype}, not {shape}")
                setattr(self, name, array)
        self.n_features_in_ = n_features

    def _apply(self, X: npt.NDArray[np.floating], steps: Sequence[str]) -> npt.NDArray[np.floating]:
        for step in steps:
            if step == "l2":
                _to_unit_length(X)
            elif step == "l2_block":
                for block in self._blocks(X.shape[1]):
                    _to_unit_length(X[:, block])
            elif step == "signed_sqrt":
                np.copysign(np.sqrt(np.abs(X)), X, out=X)
            elif step == "mean_length":
                np.divide(X, self.length_[0] or 1.0, out=X, casting="same_kind")
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


def _lengths(X: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    lengths: npt.NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", X, X, dtype=np.float64))
    return lengths


def _to_unit_length(X: npt.NDArray[np.floating]) -> None:
    """Divide every row by its length, in place; rows of zeros stay."""
    lengths = _lengths(X)
    lengths[lengths == 0] = 1
    np.divide(X, lengths[:, np.newaxis], out=X, casting="same_kind")
