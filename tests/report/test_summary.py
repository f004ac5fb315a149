from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spptransfer.report.summary import (
    choice_of_C,
    class_table,
    metrics,
    per_class_metric,
    stages,
)

HEADLINE = {"metric": "b", "value": 0.5, "std": None}


def test_the_headline_comes_first_and_the_others_keep_their_order():
    results = {"headline": HEADLINE, "metrics": {name: {"value": 0.1} for name in "cab"}}
    assert [metric.name for metric in metrics(results)] == ["b", "c", "a"]


def test_a_headline_that_is_not_among_the_metrics_is_still_shown():
    (metric,) = metrics({"headline": HEADLINE})
    assert (metric.name, metric.value, metric.std, metric.per_split) == ("b", 0.5, None, ())


def test_nan_in_the_results_is_no_number():
    (metric,) = metrics({"headline": {"metric": "b", "value": math.nan, "std": math.nan}})
    assert (metric.value, metric.std, metric.shown) == (None, None, [])


def test_the_headline_is_shown_per_class_only_where_it_is_known():
    known = {"a": {"value": 0, "per_class": {"x": 1.0}}, "b": {"value": 0, "per_class": None}}
    assert per_class_metric({"headline": HEADLINE, "metrics": known}) == "a"
    known["b"]["per_class"] = {"x": 0.5}
    assert per_class_metric({"headline": HEADLINE, "metrics": known}) == "b"
    assert per_class_metric({"headline": HEADLINE, "metrics": {}}) is None


def test_classes_are_sorted_by_value_and_those_without_one_come_last():
    values = {"a": 0.5, "b": None, "c": 0.2, "d": math.nan}
    table = class_table("accuracy", values, list("abcde"))
    assert [score.name for score in table.scores] == ["c", "a", "b", "d", "e"]


def test_the_spread_over_splits_ignores_splits_without_the_class():
    per_split = np.array([[0.5, np.nan], [0.7, np.nan], [np.nan, np.nan]])
    table = class_table("accuracy", {"a": 0.6}, ["a", "b"], per_split)
    assert [(score.low, score.high) for score in table.scores] == [(0.5, 0.7), (None, None)]


def test_a_single_split_has_no_spread():
    table = class_table("accuracy", {"a": 0.6}, ["a"], np.array([[0.6]]))
    assert (table.scores[0].low, table.scores[0].high) == (None, None)


def test_a_shared_C_is_counted_over_the_splits():
    points = [{"C": 1, "score": 0.8}, {"C": 0.1, "score": 0.7}, {"C": 10, "score": None}]
    choice = choice_of_C([{"C": 1.0, "validation": points}, {"C": 0.1, "validation": None}])
    assert choice.shared == Counter({1.0: 1, 0.1: 1})
    assert choice.per_class == {}
    assert choice.curves == (((0.1, 0.7), (1.0, 0.8)),)
    assert choice.candidates == (0.1, 1.0)


def test_a_C_per_class_is_counted_class_by_class():
    choice = choice_of_C([{"C": {"a": 1, "b": 10}}, {"C": {"a": 1, "b": 0.1}}])
    assert choice.per_class == {"a": Counter({1.0: 2}), "b": Counter({10.0: 1, 0.1: 1})}
    assert choice.candidates == (0.1, 1.0, 10.0)
    assert not choice.shared


def test_a_split_without_C_is_passed_over():
    assert choice_of_C([{}]).candidates == ()


@given(
    st.dictionaries(
        st.sampled_from(["read", "compute", "write", "train", "total"]), st.floats(0, 1e6)
    )
)
def test_the_stages_make_up_the_whole(timings):
    shares = [stage.share for stage in stages(timings)]
    assert shares == [] or sum(shares) == pytest.approx(1)
    assert all(share >= 0 for share in shares)


def test_stages_that_overlap_in_time_do_not_exceed_the_whole():
    assert [stage.share for stage in stages({"read": 3, "compute": 3, "total": 4})] == [0.5, 0.5]


@pytest.mark.parametrize("timings", [None, {}, {"total": 0}, {"read": None, "total": None}])
def test_no_time_has_no_stages(timings):
    assert stages(timings) == []
