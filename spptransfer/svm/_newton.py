"""Semi-smooth Newton descent with a line search, for many problems side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from spptransfer.svm._feature_space import FeatureSpace
from spptransfer.svm._gram_space import GramSpace
from spptransfer.svm._loss import Iterate, Losses
from spptransfer.svm._rows import Array

# Where states live: weights of rows or of features.
Space: TypeAlias = GramSpace | FeatureSpace

# How much of the slope at its beginning a line search may leave, and how often it looks.
LOOSE_SLOPE = 1e-3
MAX_LOOKS = 30
# Steps without progress, after which what is left is rounding noise.
PATIENCE = 4


def objectives(space: Space, points: Iterate, losses: Losses) -> Array:
    """Primal objectives (1): half the squared length of the weights plus the losses."""
    lengths = space.inner(points.state, points.state, points.scores - points.offset)
    return 0.5 * lengths + losses.values(losses.margin_violation(points.scores))


def descend(space: Space, losses: Losses, points: Iterate, aim: float, max_iter: int) -> Array:
    """Advance all problems until each one's relative gap is at most ``aim``.

    Works in place and returns how many steps each problem took. The gap is the model's own: the
    scores are advanced by products in the space's working precision. A problem is left, too, when
    neither its gap nor its objective fell for some steps.
    """
    n_problems = points.state.shape[1]
    n_steps, patience = np.zeros(n_problems, dtype=int), np.full(n_problems, PATIENCE)
    least_gap, least_value = np.full(n_problems, np.inf), np.full(n_problems, np.inf)
    forcing = np.full(n_problems, space.forcing)
    open_ = np.arange(n_problems)
    for _ in range(max_iter):
        now, pieces = points.columns(open_), losses.columns(open_)
        values = objectives(space, now, pieces)
        enough = aim * values
        stuck = patience[open_] < PATIENCE
        gaps = space.estimates(now, pieces, pieces, enough, stuck)
        progress = (gaps < 0.5 * least_gap[open_]) | (values < (1 - 1e-9) * least_value[open_])
        patience[open_] = np.where(progress, PATIENCE, patience[open_] - 1)
        least_gap[open_] = np.minimum(gaps, least_gap[open_])
        least_value[open_] = np.minimum(values, least_value[open_])
        unfinished = np.flatnonzero((gaps > enough) & (patience[open_] > 0))
        open_ = open_[unfinished]
        if not len(open_):
            break
        now, pieces = now.columns(unfinished), pieces.columns(unfinished)
        target = np.maximum(0.1 * enough[unfinished], forcing[open_] * gaps[unfinished])
        length = _step(space, now, pieces, target)
        # Loose systems save products and cost steps: their directions are short, or not down.
        forcing[open_] = np.where(length < 0.1, 0.1 * forcing[open_], forcing[open_])
        points.assign(open_, now)
        n_steps[open_] += 1
    return n_steps


def _step(space: Space, points: Iterate, losses: Losses, target: Array) -> Array:
    """Move to the best point between here and the Newton point; returns the lengths."""
    state, scores = space.newton_point(points, losses, target)
    state -= points.state
    scores -= points.scores
    length = line_search(
        losses,
        points.scores,
        scores,
        slope=space.inner(points.state, state, scores),
        curvature=space.inner(state, state, scores),
    )
    # Not in place: a space may remember what it computed for the state that was.
    state *= length
    state += points.state
    scores *= length
    scores += points.scores
    points.state, points.scores = state, scores
    return length


def line_search(
    losses: Losses, scores: Array, change: Array, *, slope: Array, curvature: Array
) -> Array:
    """Minimisers over [0, 1] along each problem's direction, up to 1e-3 of the first slope.

    ``slope`` and ``curvature`` are those of the half squared length of the weights. The
    objective's own slope rises along the way in straight pieces, so that the false position finds
    its zero in a few looks.
    """

    def rise(length: Array, columns: Array) -> Array:
        pieces, moved = losses.columns(columns), change[:, columns]
        m = pieces.margin_violation(scores[:, columns] + length * moved)
        bend = slope[columns] + length * curvature[columns]
        alpha = pieces.dual_from_margin(m)
        return np.asarray(bend - np.einsum("it,it,it->t", pieces.y, moved, alpha))

    length = np.ones(scores.shape[1])
    at_end = rise(length, np.arange(len(length)))
    columns = np.flatnonzero(at_end > 0)
    if not len(columns):
        return length
    at_start = rise(np.zeros(len(columns)), columns)
    # What is no way down is not taken.
    length[columns] = 0.0
    down = at_start < 0
    columns = columns[down]
    length[columns] = _false_position(rise, columns, at_start[down], at_end[columns])
    return length


def _false_position(
    function: Callable[[Array, Array], Array], columns: Array, below: Array, above: Array
) -> Array:
    """Zeros in (0, 1) of rising functions that are ``below`` at 0 and ``above`` at 1.

    An end that stays for two looks counts half (Illinois' rule): ends would come near very slowly
    otherwise, where a function bends.
    """
    low, high, middle = np.zeros(len(below)), np.ones(len(below)), np.ones(len(below))
    enough, side = LOOSE_SLOPE * np.abs(below), np.zeros(len(below))
    left = np.arange(len(below))
    for _ in range(MAX_LOOKS if len(left) else 0):
        share = below[left] / (below[left] - above[left])
        middle[left] = low[left] + share * (high[left] - low[left])
        value = function(middle[left], columns[left])
        over, under = left[value > 0], left[value <= 0]
        below[over] *= np.where(side[over] > 0, 0.5, 1.0)
        above[under] *= np.where(side[under] < 0, 0.5, 1.0)
        high[over], above[over], side[over] = middle[over], value[value > 0], 1
        low[under], below[under], side[under] = middle[under], value[value <= 0], -1
        # Never beyond the zero: there a step would lead uphill.
        left = left[(value > 0) | (value < -enough[left])]
        if not len(left):
            return middle
    middle[left] = low[left]
    return middle
