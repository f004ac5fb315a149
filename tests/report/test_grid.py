"""A table of runs, as text and as a page: our numbers, the paper's, and why some are missing."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
from grid_tables import OVERALL, PER_CLASS, RESULTS, cell, changed
from hypothesis import given, settings
from hypothesis import strategies as st

from spptransfer.config import read_pipeline
from spptransfer.report import write_report
from spptransfer.report.grid import grid_columns, grid_table, missing_notes, shown_metrics
from spptransfer.report.page import grid_page

TABLE = """Table 7
ours: alexnet (weights e7811f10), overall accuracy, mean ± standard deviation of 10 splits
other columns: the paper's own numbers, under the names of its networks

                 crop 224                      full 224                      warp 224
                 ours          ZF-5   ZF-5     ours          Overfeat-7      ours
                               no     SPP                    SPP
                               SPP
conv4            61.23 ± 0.40  80.12  81.03    –             –               –
SPP 50 bins      87.21 ± 0.45  –      89.47    89.87 ± 0.47  93.42 ± 0.50    88.12 ± 0.50
fc6              –             87.86  88.54    –             –               –

weights lack fc6: fc6, crop 224; fc6, full 224; fc6, warp 224"""


def test_the_table_has_the_papers_layout_with_ours_beside():
    assert grid_table(RESULTS) == TABLE


def test_one_split_has_no_deviation():
    cells = [cell("conv4", "crop 224", 0.5)]
    text = grid_table(changed(cells=cells, n_splits=1))
    assert "50.00 " in text
    assert "± 0.40" not in text
    assert "splits" not in text


def test_without_numbers_of_a_paper_none_are_promised():
    results = changed(columns=[{"label": "full", "paper": {}}], cells=[cell("conv4", "full", 0.5)])
    assert "paper" not in grid_table(results)
    assert "paper" not in grid_page(results).split("<body>")[1]


def test_both_accuracies_are_shown_and_one_average_precision():
    assert shown_metrics(RESULTS) == [OVERALL, PER_CLASS]
    assert shown_metrics(changed(metric=PER_CLASS)) == [PER_CLASS, OVERALL]
    area = "mean average precision (area)"
    assert shown_metrics(changed(metric=area)) == [area]
    text = grid_table(RESULTS, PER_CLASS)
    assert "mean per-class accuracy" in text
    assert "60.23 ± 0.40  80.12" in text


def test_reasons_are_told_once_each():
    cells = [
        cell("a", "x", missing="one"),
        cell("b", "x", missing="two"),
        cell("a", "y", missing="one"),
    ]
    assert missing_notes(changed(cells=cells)) == ["one: a, x; a, y", "two: b, x"]


def test_control_characters_cannot_rewrite_the_terminal():
    hostile = "\x1b[2Jcleared\r\nline\u202e"
    text = grid_table(
        changed(
            title=hostile,
            rows=[hostile],
            columns=[{"label": hostile, "paper": {hostile: {hostile: [1.0]}}}],
            cells=[cell(hostile, hostile, missing=hostile)],
            networks=[{"backbone": hostile, "weights_sha256": hostile}],
        )
    )
    assert not any(not character.isprintable() for character in text.replace("\n", ""))


labels = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)


@settings(deadline=None)
@given(
    st.lists(labels, min_size=1, max_size=4, unique=True),
    st.lists(labels, min_size=1, max_size=3, unique=True),
    st.lists(labels.filter(lambda name: name != "ours"), max_size=2, unique=True),
    st.data(),
)
def test_every_number_stands_below_the_start_of_its_column(rows, columns, papers, data):
    values = st.one_of(st.none(), st.floats(0, 1))
    cells = [cell(r, c, data.draw(values), 0.01) for r in rows for c in columns]
    printed = {name: {rows[0]: [12.5]} for name in papers}
    results = changed(
        rows=rows,
        columns=[{"label": c, "paper": printed} for c in columns],
        cells=cells,
        title="",
    )
    found = grid_columns(results, OVERALL)
    assert len(found) == len(columns) * (1 + len(papers))
    lines = grid_table(results).splitlines()
    body = lines[-len(rows) :]
    header = next(line for line in lines if re.search(r"\bours\b", line) and "ours:" not in line)
    starts = [match.start() for match in re.finditer(r"(?<!\S)ours(?!\S)", header)]
    assert len(starts) == len(columns)
    ours = [column for column in found if column.is_ours]
    for start, column in zip(starts, ours, strict=True):
        for line, value in zip(body, column.values, strict=True):
            assert line[start:].startswith(value)
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("name", ["paper-caltech101", "paper-voc2007"])
def test_the_tables_of_the_paper_are_not_much_wider_than_a_terminal(name):
    pipelines = Path(__file__).parent.parent.parent / "pipelines"
    grid = read_pipeline(pipelines / f"{name}.yaml").grid
    results = changed(
        rows=[row.label for row in grid.rows],
        columns=[
            {"label": c.label, "paper": c.model_dump(mode="json")["paper"]} for c in grid.columns
        ],
        cells=[cell(row.label, column.label, 0.9, 0.01) for row, column in grid.cells()],
    )
    assert max(map(len, grid_table(results).splitlines())) <= 120


def test_the_page_holds_the_tables_of_both_accuracies():
    page = grid_page(RESULTS)
    assert page.count("<table>") == 2
    for expected in ("61.23 ± 0.40", "60.23 ± 0.40", "93.42 ± 0.50", "80.12", "Table 7",
                     "30 training images.", "weights lack fc6", "9,144 images"):  # fmt: skip
        assert expected in page


def test_our_numbers_lead_to_their_runs():
    links = re.findall(r'<a href="([^"]+)">([^<]+)</a>', grid_page(RESULTS))
    assert ("SPP 50 bins--full 224/report.html", "89.87 ± 0.47") in links
    assert len(links) == 2 * 4


def test_the_page_needs_nothing_else_and_hostile_names_are_escaped_and_cut():
    hostile = "<script>alert(1)</script>" + "x" * 10_000
    page = grid_page(
        changed(
            **dict.fromkeys(("title", "name", "command", "protocol"), hostile),
            rows=[hostile],
            columns=[{"label": hostile, "paper": {hostile: {}}}],
            cells=[],
        )
    )
    assert "<script" not in page
    assert 'src="' not in page
    assert "default-src 'none'" in html.unescape(page)
    assert html.escape(hostile[:100]) in page
    assert len(page) < 20_000


def test_the_page_is_written_beside_the_results(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(changed(title="odd \udcff name")))
    assert write_report(tmp_path) == tmp_path / "report.html"
    assert "odd ? name" in (tmp_path / "report.html").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "report.html"}
