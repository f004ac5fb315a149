"""Scores computed without scikit-learn's checks are scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, get_scorer

from spptransfer.svm._search import HeldOutScorer, average_precision
from spptransfer.svm._targets import encode_targets


@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=1, max_size=40))
def test_average_precision_is_scikit_learns_with_ties_too(rows):
    truth = np.array([int(positive) for positive, _ in rows])
    truth[0] = 1
    scores = np.array([float(score) for _, score in rows])
    assert average_precision(truth, scores) == average_precision_score(truth, scores)


@pytest.mark.parametrize(
    ("y", "scoring"),
    [
        (np.arange(60) % 3, "accuracy"),
        (np.arange(60) % 2, "accuracy"),
        (np.where(np.arange(60)[:, None] % 4 == np.arange(4), 1, -1), "average_precision"),
        (np.where(np.arange(60)[:, None] % 3 == np.arange(3), 1, 0), "average_precision"),
    ],
)
def test_default_scores_are_those_of_the_scorer_by_that_name(y, scoring):
    targets = encode_targets(y)
    rng = np.random.default_rng(0)
    scores = rng.normal(size=targets.signs.shape) + 0.3 * targets.signs
    held_out = rng.random((60, 1)) < 0.5
    scorer = get_scorer(scoring)
    own, slow = (
        HeldOutScorer(which, targets, per_class=False)(scores, held_out)
        # A scorer that is no name is asked for every score.
        for which in (None, lambda *arguments: scorer(*arguments))
    )
    np.testing.assert_array_equal(own, slow)
