"""Conjugate gradients for many systems at once: one matrix product advances all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from spptransfer.svm._types import Array


class Iterate(NamedTuple):
    """Where block conjugate gradients ended."""

    step: Array
    image: Array
    n_products: int


def conjugate_gradients(
    product: Callable[[Array, Array], tuple[Array, Array]],
    residual: Array,
    precondition: Callable[[Array, Array], Array],
    error: Callable[[Array, Array], Array],
    target: Array,
    *,
    image_rows: int,
    max_products: int,
) -> Iterate:
    """Solve one symmetric positive definite system per column, each to its own target.

    ``product(direction, columns)`` returns the system times the direction and the change of the
    scores that goes with it, which is summed up in ``image``: the caller needs it next and gets
    it without another product. ``error(residual, columns)`` is held against ``target``.
    """
    dtype = residual.dtype
    step = np.zeros_like(residual)
    image = np.zeros((image_rows, residual.shape[1]), dtype=dtype, order="F")
    left = np.flatnonzero(error(residual, np.arange(residual.shape[1])) > target)
    rest = residual[:, left]
    direction = precondition(rest, left)
    energy = _dots(rest, direction)
    n_products = 0
    while len(left) and n_products < max_products:
        curved, change = product(direction, left)
        n_products += 1
        length = _ratio(energy, _dots(direction, curved))
        step[:, left] += length * direction
        image[:, left] += length * change
        rest -= length * curved
        unfinished = (error(rest, left) > target[left]) & (length > 0)
        if not unfinished.all():
            left, rest, direction = left[unfinished], rest[:, unfinished], direction[:, unfinished]
            energy = energy[unfinished]
        preconditioned = precondition(rest, left)
        energy, previous = _dots(rest, preconditioned), energy
        direction = preconditioned + _ratio(energy, previous) * direction
    return Iterate(step, image, n_products)


def _dots(left: Array, right: Array) -> Array:
    """Inner products of the columns, in the columns' precision."""
    return np.einsum("it,it->t", left, right)


def _ratio(numerator: Array, denominator: Array) -> Array:
    """Quotient, zero where the denominator has run out of digits."""
    usable = denominator > 0
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=usable)
