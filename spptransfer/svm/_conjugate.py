"""Conjugate gradients for many systems at once: one matrix product advances all of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from spptransfer.svm._types import Array


def conjugate_gradients(
    product: Callable[[Array, Array], tuple[Array, Array]],
    residual: Array,
    precondition: Callable[[Array, Array], Array],
    error: Callable[[Array, Array], Array],
    target: Array,
    *,
    step: Array,
    image: Array,
    max_products: int,
) -> int:
    """Solve one symmetric positive definite system per column, each to its own target.

    ``product(direction, columns)`` returns the system times the direction and the change of the
    scores that goes with it. ``error(residual, columns)`` is held against ``target``. What solves
    the systems is added to ``step``, and the change of the scores to ``image``: the caller needs
    it next and gets it without another product. ``residual`` is used up. Returns the number of
    products.
    """
    left = np.arange(residual.shape[1])
    unfinished = error(residual, left) > target
    left, rest = _kept(unfinished, left, residual)
    if not len(left):
        return 0
    direction = precondition(rest, left)
    energy = _dots(rest, direction)
    n_products = 0
    while True:
        curved, change = product(direction, left)
        n_products += 1
        length = _ratio(energy, _dots(direction, curved))
        _add_multiple(step, left, length, direction)
        _add_multiple(image, left, length, change)
        curved *= length
        rest -= curved
        del curved, change
        unfinished = (error(rest, left) > target[left]) & (length > 0)
        left, rest, direction, energy = _kept(unfinished, left, rest, direction, energy)
        if not len(left) or n_products == max_products:
            return n_products
        preconditioned = precondition(rest, left)
        energy, previous = _dots(rest, preconditioned), energy
        direction *= _ratio(energy, previous)
        direction += preconditioned


def _kept(chosen: Array, *arrays: Array) -> tuple[Array, ...]:
    """The arrays' chosen columns: copies, unless they are all."""
    return arrays if chosen.all() else tuple(array[..., chosen] for array in arrays)


def _add_multiple(total: Array, columns: Array, length: Array, change: Array) -> None:
    """Add multiples of some columns, in place where they are all."""
    if len(columns) == total.shape[1]:
        total += length * change
    else:
        total[:, columns] += length * change


def _dots(left: Array, right: Array) -> Array:
    """Inner products of the columns, in the columns' precision."""
    return np.einsum("it,it->t", left, right)


def _ratio(numerator: Array, denominator: Array) -> Array:
    """Quotient, zero where the denominator has run out of digits."""
    usable = denominator > 0
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=usable)
