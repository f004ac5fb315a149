"""Duality gaps of weights of rows, with as few products with the Gram matrix as show them small."""

from __future__ import annotations

from typing import Any

import numpy as np

from spptransfer.svm._loss import Losses, balance
from spptransfer.svm._products import product
from spptransfer.svm._rows import Rows
from spptransfer.svm._types import Array


class GramGaps:
    """What `GramSpace` knows about certificates.

    The gap is half the squared distance of two weight vectors, the state's and that of the dual
    variables tried, plus the losses' own gaps. The state's own dual variables differ from it
    hardly anywhere. They say nothing while the state is on its way, and where the Gram matrix is
    singular they can stay bad although the weights are good; those that the losses' slopes propose
    then do better, and cost a product.
    """

    rows: Rows
    gram: Any
    dtype: np.dtype[Any]
    bias_square: float
    diagonal: Array
    exact_gram: Array | None

    def product(self, weights: Array) -> Array:
        """The change of the scores that a change of weights makes."""
        raise NotImplementedError

    def gaps(
        self,
        state: Array,
        scores: Array,
        losses: Losses,
        proposing: Losses,
        enough: Array,
        *,
        balanced: bool,
    ) -> Array:
        """Upper bounds, in float64."""
        deficits = losses.deficits(scores)
        own = _own_duals(state, losses)
        gaps = self._gaps_with(own, state, deficits, losses, enough, balanced=balanced)
        bad = np.flatnonzero(gaps > enough)
        if len(bad):
            duals = self._proposed(scores, proposing, bad)
            state, deficits, losses = state[:, bad], deficits[:, bad], losses.columns(bad)
            others = self._gaps_with(duals, state, deficits, losses, enough[bad], balanced=balanced)
            gaps[bad] = np.minimum(gaps[bad], others)
        return gaps

    def estimates(
        self,
        state: Array,
        scores: Array,
        losses: Losses,
        proposing: Losses,
        enough: Array,
        stuck: Array,
    ) -> Array:
        """Gaps in the working precision; of large ones only what takes no product."""
        deficits = losses.deficits(scores)
        duals = _own_duals(state, losses)
        gaps = losses.gaps(duals, deficits)
        apart = state - losses.signs * duals
        # As if all rows were orthogonal: what is too long even so is worth no product.
        likely = 0.5 * np.einsum("it,it,i->t", apart, apart, self.diagonal[:, 0])
        gaps += likely
        close = np.flatnonzero((gaps <= enough) & (self._longest(apart) > enough - gaps))
        if len(close):
            gaps[close] += self._distances(apart[:, close], None)
        bad = np.flatnonzero(stuck & (gaps > enough))
        if len(bad):
            duals = self._proposed(scores, proposing, bad)
            losses, apart = losses.columns(bad), state[:, bad] - losses.signs[:, bad] * duals
            others = losses.gaps(duals, deficits[:, bad]) + self._distances(apart, None)
            gaps[bad] = np.minimum(gaps[bad], others)
        return gaps

    def _proposed(self, scores: Array, proposing: Losses, columns: Array) -> Array:
        proposing = proposing.columns(columns)
        return proposing.responses(proposing.deficits(scores[:, columns]))

    def _gaps_with(
        self,
        duals: Array,
        state: Array,
        deficits: Array,
        losses: Losses,
        enough: Array,
        *,
        balanced: bool,
    ) -> Array:
        if balanced:
            duals = balance(duals, losses.signs)
        gaps = losses.gaps(duals, deficits)
        apart = state - losses.signs * duals
        distances = self._longest(apart)
        far = np.flatnonzero(distances > enough - gaps)
        if len(far):
            distances[far] = self._distances(apart[:, far], enough[far] - gaps[far])
        return gaps + distances

    def _longest(self, apart: Array) -> Array:
        """What half the squared lengths are at most: as if all rows pointed the same way."""
        lengths = np.einsum("it,i->t", np.abs(apart), np.sqrt(self.diagonal[:, 0]))
        return np.asarray(0.5 * lengths**2)

    def _distances(self, apart: Array, room: Array | None) -> Array:
        """Half the squared lengths of small weights, in the working precision.

        With ``room`` they include a bound on their rounding errors, and are computed in float64
        where that does not show them to fit in.
        """
        product = self.product(apart)
        distances = 0.5 * np.maximum(0.0, np.einsum("it,it->t", apart, product))
        if room is None or self.dtype == np.float64:
            return distances
        distances += self._rounding(apart)
        doubtful = np.flatnonzero(distances > room)
        if len(doubtful):
            distances[doubtful] = self._exact_distances(apart[:, doubtful])
        return distances

    def _rounding(self, apart: Array) -> Array:
        """How far off half a squared length can be in the working precision.

        An inner product of n terms misses by at most n * eps times the lengths of its factors.
        """
        n_terms = sum(self.rows.shape) + 4
        return np.asarray(n_terms * np.finfo(self.dtype).eps * self._longest(apart))

    def _exact_distances(self, apart: Array) -> Array:
        """Half the squared lengths of weights, in float64."""
        if self.exact_gram is not None:
            squares = np.einsum("it,it->t", apart, product(self.exact_gram, apart))
        else:
            combined = self.rows.combine(apart)
            squares = np.einsum("jt,jt->t", combined, combined)
        return np.asarray(
            0.5 * (np.maximum(0.0, squares) + self.bias_square * apart.sum(axis=0) ** 2)
        )


def _own_duals(state: Array, losses: Losses) -> Array:
    return np.clip(losses.signs * state, 0.0, losses.cap)
