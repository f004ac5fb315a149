from __future__ import annotations

import csv
import io
import json

import pytest
from grid_tables import RESULTS
from hypothesis import given
from hypothesis import strategies as st

from spptransfer.errors import ConfigError
from spptransfer.report.summary import summary_table
from spptransfer.report.tables import FORMATS, WIDTH, Measured, Table, write_table

NAMES = st.text(min_size=1, max_size=30)
NUMBERS = st.none() | st.floats(0, 1)


@given(st.lists(st.tuples(NAMES, NUMBERS, NUMBERS), min_size=1))
def test_programs_read_back_every_number_and_every_name(rows):
    table = Table(["run", "value"], [[name, Measured(*numbers)] for name, *numbers in rows])
    as_csv = list(csv.reader(io.StringIO(write_table(table, "csv"))))
    as_json = json.loads(write_table(table, "json"))
    assert len(as_csv) == len(as_json) + 1 == len(rows) + 1
    for (name, value, std), record, line in zip(rows, as_json, as_csv[1:], strict=True):
        assert (record["run"], record["value"], record.get("value std")) == (name, value, std)
        assert line[1] == ("" if value is None else repr(value))
        assert line[0] == name or not name.isprintable()


@given(st.lists(st.tuples(NAMES, NUMBERS), min_size=1), st.sampled_from(sorted(FORMATS)))
def test_no_name_can_break_a_line_or_rewrite_a_terminal(rows, format):
    table = Table(["run", "value"], [[name, Measured(value)] for name, value in rows])
    text = write_table(table, format)
    assert all(line.isprintable() for line in text.split("\n"))
    around = {"text": 1, "csv": 1, "markdown": 2, "latex": 6, "json": 2}[format]
    assert len(text.split("\n")) == around + len(rows) * (4 if format == "json" else 1)


def test_characters_that_mean_something_in_a_format_are_escaped():
    table = Table(["a_b"], [["50% of {x} & | y"], [Measured(-0.01, signed=True)]])
    assert r"50\% of \{x\} \& | y" in write_table(table, "latex")
    assert "a\\_b" in write_table(table, "latex")
    assert r"50% of {x} & \| y" in write_table(table, "markdown")
    assert "−1.00" in write_table(table, "markdown")


def test_where_text_is_too_wide_rows_and_columns_change_places():
    header = [f"setting {number}" for number in range(12)]
    text = write_table(Table(header, [["some value"] * 12]), "text")
    assert len(text.splitlines()) == 12
    assert max(map(len, text.splitlines())) <= WIDTH
    notes = ["word " * 60]
    assert max(map(len, write_table(Table(["a"], [], notes), "text").splitlines())) <= WIDTH


def test_an_unknown_format_is_refused_with_those_that_there_are():
    with pytest.raises(ConfigError, match="did you mean 'latex'"):
        write_table(Table(["a"], []), "latx")


def test_a_table_of_runs_keeps_the_papers_numbers_beside_ours():
    rows = json.loads(write_table(summary_table(RESULTS), "json"))
    assert [row[""] for row in rows] == RESULTS["rows"]
    assert rows[1]["crop 224: ours"] == 0.8721
    assert rows[1]["full 224: Overfeat-7 SPP std"] == pytest.approx(0.005)
    assert rows[2]["crop 224: ours"] is None
    assert "% weights lack fc6" in write_table(summary_table(RESULTS), "latex")
