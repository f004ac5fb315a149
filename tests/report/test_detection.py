"""The page of a detector's run, from a folder as a run leaves it."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from spptransfer.report import terminal_table, write_report
from spptransfer.report.run_folder import read_results

HOSTILE = ["<img src=x onerror=alert(1)>", "</style><script>alert(1)</script>", "a", "b", "c"]


def text_of(run) -> str:
    return write_report(run).read_text(encoding="utf-8")


def test_the_kind_of_the_results_chooses_the_page(make_run, make_detection_run):
    shown = set(re.findall(r'<section id="(\w+)"', text_of(make_detection_run())))
    assert shown == {"classes", "curves", "errors", "images", "choice", "time", "rows", "origin"}
    assert 'id="confusion"' in text_of(make_run(2))


def test_every_class_has_its_numbers_and_its_curve(make_detection_run):
    run = make_detection_run()
    text, results = text_of(run), read_results(run)
    for name, metric in results["metrics"].items():
        assert name.removeprefix("mean ") in text
        assert f"{100 * metric['value']:.2f}" in text
    per_class = results["metrics"][results["headline"]["metric"]]["per_class"]
    assert text.count('<svg class="pr"') == len(per_class) - 1
    for name, value in per_class.items():
        assert value is None or f'<td class="number">{100 * value:.1f}</td>' in text, name
    assert "left out of the means: unseen" in text
    assert "selective_search, 681 per image" in text
    assert text.count('class="chance"') == len(per_class) - 1


def test_finds_false_ones_of_every_kind_and_misses_are_drawn_into_their_images(make_detection_run):
    text = text_of(make_detection_run(30))
    titles = re.findall(r"<h3>((?:Best|Most|Largest)[^<]*)</h3>", text)
    assert titles[0] == "Best detections"
    assert titles[-1] == "Largest missed objects"
    assert {"wrong place", "similar class", "other class", "background"} == {
        title.partition(": ")[2] for title in titles[1:-1]
    }
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', text)
    assert len(pictures) == text.count('<li class="picture">') > 30
    black_or_white = []
    for picture in pictures:
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))), int)
        assert max(shown.shape) == 240
        black_or_white.append(((shown < 40) | (shown > 215)).all(axis=2).sum())
    assert np.median(black_or_white) > 60  # the objects' boxes


def test_stages_of_any_name_are_in_the_time(make_detection_run):
    text = text_of(make_detection_run())
    for stage in ("read", "proposals", "pool", "mine", "polish"):
        assert f"<b>{stage}</b>" in text


def test_the_same_run_gives_the_same_bytes(make_detection_run):
    run = make_detection_run()
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


@pytest.mark.parametrize("damage", ["absent", "cut", "other classes"])
def test_without_its_detections_the_page_says_so(make_detection_run, damage):
    def fewer(results):
        results["dataset"]["classes"] = results["dataset"]["classes"][:2]

    run = make_detection_run(change=fewer if damage == "other classes" else lambda _: None)
    if damage == "absent":
        (run / "detections.npz").unlink()
    if damage == "cut":
        (run / "detections.npz").write_bytes(b"PK")
    text = text_of(run)
    assert text.count("data:image/jpeg") == 0
    assert re.search(r"Not shown: (this run folder holds no|detections.npz cannot be read)", text)


def test_results_without_detection_details_still_make_a_page(make_detection_run):
    def bare(results):
        results["detection"] = None
        for metric in results["metrics"].values():
            metric["per_class"] = None

    text = text_of(make_detection_run(detections=False, change=bare))
    assert "The results hold no curves." in text
    assert "The results hold no score per class." in text


def test_hostile_names_stay_text(make_detection_run):
    text = text_of(make_detection_run(classes=HOSTILE))
    assert text.count("<script") == 1
    assert "<img src=x" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text


def test_the_terminals_table_knows_a_detectors_run(make_detection_run):
    table = terminal_table(read_results(make_detection_run()))
    assert "mean average precision (11-point, IoU 0.5)" in table
    assert "proposals 80.0 s" in table
    assert all(len(line) <= 100 for line in table.splitlines())
