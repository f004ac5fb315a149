from __future__ import annotations

import math

import pytest

from spptransfer.report import formatting


@pytest.mark.parametrize("nothing", [None, math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_a_dash(nothing):
    assert formatting.percent(nothing) == "–"
    assert formatting.duration(nothing) == "–"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (99.94, "99.9 s"),
        (99.96, "1 min 40 s"),
        (119.7, "2 min 0 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (90000, "25 h 0 min"),
    ],
)
def test_durations_carry_over_to_the_next_unit(seconds, text):
    assert formatting.duration(seconds) == text


def test_negative_scores_have_a_true_minus_sign():
    assert formatting.signed(-0.0004) == "−0.000"
    assert "-" not in formatting.signed(-12.5)
