from __future__ import annotations

import json

import pytest

from spptransfer.report import terminal_table
from spptransfer.report.terminal import WIDTH


def table_of(run, **extra) -> str:
    return terminal_table({**json.loads((run / "results.json").read_text()), **extra})


@pytest.mark.parametrize(
    ("classes", "splits", "multi_label"), [(2, 1, False), (20, 1, True), (102, 10, False)]
)
def test_the_table_fits_in_a_hundred_columns(make_run, classes, splits, multi_label):
    run = make_run(classes, splits=splits, test=2 * classes, multi_label=multi_label)
    lines = table_of(run).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert all(line == line.rstrip() for line in lines)


def test_it_holds_headline_metrics_classes_C_rows_time_and_files(make_run):
    run = make_run(["ant", "bee", "cat"], splits=2, test=30)
    text = table_of(run, files={"report": "runs/x/report.html", "model": None})
    results = json.loads((run / "results.json").read_text())
    assert text.startswith(f"synthetic   {100 * results['headline']['value']:.2f} ± ")
    for expected in (
        "mean per-class accuracy",
        "Random scores on invented images.",
        "lowest",
        "C          0.1 in 1 split, 1 in 1 split",
        "99 ok, 7 of them reused, 1 failed",
        "compute 3 min 20 s",
        "report     runs/x/report.html",
    ):
        assert expected in text
    assert "model" not in text


def test_one_split_has_no_deviation(make_run):
    assert "±" not in table_of(make_run(3))


def test_C_per_class_is_counted_over_the_classes(make_run):
    run = make_run(4, multi_label=True)
    assert "0.01 in 1 class, 0.1 in 1 class, 1 in 1 class, 10 in 1 class" in table_of(run)


def test_no_class_is_both_lowest_and_highest(make_run):
    text = table_of(make_run(["ant", "bee", "cat"], test=30))
    assert "… 1 class between" in text
    assert sum(text.count(f"{name} ") for name in ("ant", "bee", "cat")) == 2


def test_control_characters_cannot_rewrite_the_terminal(make_run):
    hostile = "\x1b[2Jcleared\r\nline\u202e"
    run = make_run(
        [hostile, "b", "c"],
        change=lambda results: (
            results.update(name=hostile),
            results["protocol"].update(description=hostile),
            results["rows"].update(failures=[{"id": hostile, "error": hostile}]),
        ),
    )
    text = table_of(run, files={"report": hostile})
    assert not any(not character.isprintable() for character in text.replace("\n", ""))


def test_long_names_keep_the_width(make_run):
    names = ["x" * 200, "y" * 200, "z" * 200]
    text = table_of(make_run(names, change=lambda results: results.update(name="n" * 300)))
    assert max(map(len, text.splitlines())) <= WIDTH


def test_a_long_metric_name_keeps_its_distance_from_the_number(make_run):
    text = table_of(make_run(classes=3, multi_label=True))
    lines = [line for line in text.splitlines() if "uninterpolated)" in line]
    assert lines
    assert all("uninterpolated)  " in line for line in lines)


def test_classes_that_a_metric_leaves_out_and_what_the_model_was_trained_on_are_told(make_run):
    results = json.loads((make_run(["black", "red", "white"]) / "results.json").read_text())
    name = "mean per-class accuracy"
    results["metrics"][name]["left_out"] = ["white"]
    results["model"] = {"trained_on": "all 12 labelled images at C = 1"}
    text = terminal_table(results)
    assert "over 2 of 3 classes: no test image shows white" in text
    assert "model      trained on all 12 labelled images at C = 1" in text
    results["metrics"][name]["left_out"] = [f"a class of a long name {k}" for k in range(40)]
    assert max(map(len, terminal_table(results).splitlines())) <= WIDTH
