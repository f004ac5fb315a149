"""The page of a table of experiments: one file, everything escaped, cells lead to their runs."""

from __future__ import annotations

import html
import json
import re

import pytest
from grid_tables import RESULTS, changed

from spptransfer.errors import ConfigError
from spptransfer.report.grid_page import render_grid, write_grid_page


def test_the_page_holds_the_tables_of_both_accuracies():
    page = render_grid(RESULTS)
    assert page.count("<table>") == 2
    for expected in ("61.23 ± 0.40", "60.23 ± 0.40", "93.42 ± 0.50", "80.12", "Table 7",
                     "30 training images.", "weights lack fc6", "9,144 images"):  # fmt: skip
        assert expected in page


def test_our_numbers_lead_to_their_runs():
    page = render_grid(RESULTS)
    links = re.findall(r'<a href="([^"]+)">([^<]+)</a>', page)
    assert ("SPP 50 bins--full 224/report.html", "89.87 ± 0.47") in links
    assert len(links) == 2 * 4


def test_the_page_needs_nothing_else_and_runs_nothing():
    page = render_grid(RESULTS)
    assert "<script" not in page
    assert 'src="' not in page
    assert "default-src 'none'" in html.unescape(page)


def test_hostile_names_are_escaped():
    hostile = "<script>alert(1)</script>"
    page = render_grid(
        changed(
            title=hostile,
            name=hostile,
            command=hostile,
            protocol=hostile,
            rows=[hostile],
            columns=[{"label": hostile, "paper": {hostile: {}}}],
            cells=[],
        )
    )
    assert "<script" not in page
    assert html.escape(hostile) in page


def test_the_page_is_written_beside_the_results(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(changed(title="odd \udcff name")))
    assert write_grid_page(tmp_path) == tmp_path / "report.html"
    assert "odd ? name" in (tmp_path / "report.html").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "report.html"}


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"format": "spptransfer-results"}'])
def test_a_folder_without_results_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(ConfigError, match="holds no results of a grid"):
        write_grid_page(tmp_path)
