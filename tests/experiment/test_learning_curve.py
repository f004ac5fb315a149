"""Runs of several training sizes: the largest is the headline, all of them are the curve."""

from __future__ import annotations

import json

import pytest
from small_projects import experiment

from spptransfer.experiment import run
from spptransfer.protocols import read_splits
from spptransfer.report import terminal_table
from spptransfer.report.summary import summary_table
from spptransfer.report.tables import write_table

SETTINGS = {"test_fraction": None, "splits": 3}


@pytest.fixture(scope="module")
def curve(images, tmp_path_factory):
    work = tmp_path_factory.mktemp("curve")
    return run(experiment(images, work, protocol={**SETTINGS, "train_per_class": [1, 2, 4]}), "c")


def test_the_headline_is_that_of_a_run_of_the_largest_size(curve, images, tmp_path):
    alone = run(experiment(images, tmp_path, protocol={**SETTINGS, "train_per_class": 4}), "c")
    for part in ("headline", "metrics"):
        assert curve.results[part] == alone.results[part]
    pairs = zip(curve.results["splits"], alone.results["splits"], strict=True)
    for one, other in pairs:
        assert all(one[key] == other[key] for key in ("checksum", "train", "test", "metrics", "C"))
    assert curve.results["protocol"]["checksum"] == alone.results["protocol"]["checksum"]
    lists = [split.train for split in read_splits(curve.folder / "splits.json")]
    assert lists == [split.train for split in read_splits(alone.folder / "splits.json")]


def test_every_size_has_its_metrics_with_their_spread_and_its_splits(curve):
    points = curve.results["learning_curve"]
    assert [point["train_per_class"] for point in points] == [1, 2, 4]
    for point in points:
        assert [split["train"] for split in point["splits"]] == [3 * point["train_per_class"]] * 3
        for metric in point["metrics"].values():
            assert len(metric["per_split"]) == 3
            assert metric["std"] is not None
    largest = points[-1]["metrics"]["overall accuracy"]
    assert largest["value"] == curve.results["headline"]["value"]
    assert json.loads((curve.folder / "results.json").read_text()) == curve.results


def test_terminal_page_and_tables_show_the_curve(curve):
    text = terminal_table(curve.results)
    assert "per class  1 image in training" in text
    assert "4 images in training" in text
    page = curve.report.read_text()
    assert 'id="learning"' in page
    assert "4 of each class: " in page
    lines = write_table(summary_table(curve.results), "csv").splitlines()
    assert lines[0] == "metric,1,1 std,2,2 std,4,4 std"


def test_a_run_of_one_size_has_no_curve(images, tmp_path):
    done = run(experiment(images, tmp_path, protocol={**SETTINGS, "train_per_class": 4}), "c")
    assert "learning_curve" not in done.results
    assert 'id="learning"' not in done.report.read_text()
