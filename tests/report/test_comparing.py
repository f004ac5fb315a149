"""Runs beside one another: what differs, paired differences and their tests, a page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel, wilcoxon

from spptransfer.errors import ConfigError
from spptransfer.protocols import Split, splits_checksum, write_splits
from spptransfer.report.comparing import RESAMPLED, compare_page, compare_runs, resampled_t_test


@pytest.fixture
def vary(tmp_path):
    """Copy a run and change its results: ``vary(run, name, change) -> Path``."""

    def make(run: Path, name: str, change) -> Path:
        copied = tmp_path / name
        shutil.copytree(run, copied)
        results = json.loads((run / "results.json").read_text())
        change(results)
        (copied / "results.json").write_text(json.dumps(results))
        return copied

    return make


def distinct(results) -> None:
    for number, split in enumerate(results["splits"]):
        split["checksum"] = f"{number:064d}"


def better(results, by=(0.01, 0.02, 0.06)) -> None:
    """Every metric of every split a little higher, every class too."""
    for number, split in enumerate(results["splits"]):
        split["metrics"] = {name: value + by[number] for name, value in split["metrics"].items()}
    for metric in results["metrics"].values():
        metric["value"] += float(np.mean(by[: len(results["splits"])]))
        if metric["per_class"]:
            gains = zip(metric["per_class"].items(), (0.03, -0.02, 0.07), strict=False)
            metric["per_class"] |= {name: value + gain for (name, value), gain in gains}
    results["features"]["spec"]["backbone"] = "vgg16"
    results["pipeline"]["features"] = {"backbone": "vgg16"}


def test_only_what_differs_is_shown_with_as_much_of_its_name_as_is_needed(make_run, vary):
    run = make_run(3, change=distinct)
    other = vary(run, "other", lambda r: r["pipeline"]["dataset"].update(name="photos"))
    found = compare_runs([run, other])
    assert found.differing == {"dataset.name": "dataset.name"}
    assert found.table().header[:2] == ["run", "dataset.name"]
    assert compare_runs([run, run]).differing == {}
    unset = vary(run, "unset", lambda r: r["pipeline"]["dataset"].pop("root"))
    assert compare_runs([run, unset]).differing == {}


def test_several_splits_are_paired_and_tested_with_the_correction_for_their_overlap(make_run, vary):
    run = make_run(3, splits=3, test=30, change=distinct)
    found = compare_runs([run, vary(run, "other", better)])
    difference = found.runs[1].difference
    assert difference.mean == pytest.approx(0.03)
    assert difference.std == pytest.approx(np.std([0.01, 0.02, 0.06], ddof=1))
    assert (difference.splits, difference.test) == (3, RESAMPLED)
    assert difference.p == pytest.approx(resampled_t_test([0.01, 0.02, 0.06], [1.0]))  # 30 : 30
    assert "class_2 +7.00" in found.table().notes[-1]
    assert "losses class_1 −2.00" in found.table().notes[-1]
    assert [row[0] for row in found.class_table().rows] == ["class_2", "class_0", "class_1"]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=12))
def test_without_test_images_the_corrected_test_is_the_paired_t_test(pairs):
    before, after = np.array(pairs).T
    corrected = resampled_t_test(after - before, [0.0])
    if np.std(after - before, ddof=1) > 1e-6:
        assert corrected == pytest.approx(ttest_rel(after, before).pvalue)
        assert resampled_t_test(after - before, [0.5]) >= corrected


def test_one_split_is_tested_over_its_classes(make_run, vary):
    run = make_run(8, change=distinct)
    found = compare_runs([run, vary(run, "other", better)])
    difference = found.runs[1].difference
    assert difference.test == (
        "Wilcoxon signed-rank test over 8 classes of the mean per-class accuracy"
    )
    assert difference.p == pytest.approx(wilcoxon([0.03, -0.02, 0.07]).pvalue)
    assert difference.std is None


def test_the_same_run_gains_nothing_and_is_not_tested(make_run):
    run = make_run(3, splits=2, change=distinct)
    difference = compare_runs([run, run]).runs[1].difference
    assert (difference.mean, difference.std, difference.p) == (0, 0, None)


def test_splits_that_differ_in_the_folds_of_the_choice_of_C_are_paired(make_run, vary):
    def folders(name, folds):
        split = Split("split 1", ("a", "b"), ("c",), folds)

        def change(results):
            results["splits"][0]["checksum"] = split.checksum
            results["protocol"]["checksum"] = splits_checksum([split])

        folder = vary(run, name, change)
        write_splits(folder / "splits.json", [split])
        return folder

    run = make_run(3)
    one, other = folders("one", ()), folders("other", (("a",),))
    assert compare_runs([one, other]).runs[1].difference.mean == 0
    (other / "splits.json").unlink()
    assert compare_runs([one, other]).runs[1].difference is None


def test_runs_with_other_splits_or_metrics_are_shown_with_the_reason(make_run, vary):
    run = make_run(3, change=distinct)
    other = vary(run, "other", lambda r: r["splits"][0].update(checksum="f" * 64))
    strange = vary(
        run, "strange", lambda r: r.update(headline={"metric": "F1", "value": 0.5}, metrics={})
    )
    found = compare_runs([run, other, strange])
    table = found.table()
    assert "F1" in table.header
    assert "other: no paired difference, since it has other splits than run" in table.notes
    assert "strange: no paired difference, since it has no overall accuracy" in table.notes
    assert [row[-2:] for row in table.rows] == [[None, None]] * 3
    with pytest.raises(ConfigError, match="class by class"):
        found.class_table()
    assert "paired class by class" in compare_page(found)


def test_splits_that_only_some_runs_have_count_where_both_have_them(make_run, vary):
    run = make_run(3, splits=3, change=distinct)
    other = vary(run, "other", lambda r: (better(r), r["splits"].pop()))
    difference = compare_runs([run, other]).runs[1].difference
    assert (difference.splits, difference.mean) == (2, pytest.approx(0.015))
    assert not difference.per_class


def test_detectors_are_compared_by_their_average_precision(make_detection_run, vary):
    run = make_detection_run(change=distinct)

    def change(results):
        distinct(results)
        name = results["headline"]["metric"]
        results["splits"][0]["metrics"] = {name: results["headline"]["value"] + 0.1}

    run = vary(run, "first", lambda r: r["splits"][0].update(
        metrics={r["headline"]["metric"]: r["headline"]["value"]}
    ))  # fmt: skip
    found = compare_runs([run, vary(run, "second", change)])
    assert found.metric == found.class_metric == "mean average precision (11-point, IoU 0.5)"
    assert found.runs[1].difference.mean == pytest.approx(0.1)


def test_the_page_holds_every_run_split_and_class_and_escapes_names(make_run, vary):
    run = make_run(["<b>ant</b>", "bee", "cat"], splits=3, change=distinct)
    page = compare_page(compare_runs([run, vary(run, "other", better)]))
    assert "<b>ant" not in page
    assert page.count('class="strip"') == 2
    assert page.count('class="loss"') == 1
    assert "+3.00 ± 2.65" in page


def test_the_folder_of_a_table_stands_for_its_runs(make_run, vary, tmp_path):
    run = make_run(3, change=distinct)
    table = tmp_path / "table"
    table.mkdir()
    for name in ("a", "b"):
        shutil.copytree(run, table / name)
    cells = [{"run": "a"}, {"run": None}, {"run": "b"}]
    grid = {"format": "spptransfer-grid", "format_version": 1, "cells": cells}
    (table / "results.json").write_text(json.dumps(grid))
    assert [run.name for run in compare_runs([table]).runs] == ["a", "b"]
    with pytest.raises(ConfigError, match="at least two"):
        compare_runs([run])
