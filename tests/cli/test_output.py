from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spptransfer.cli.options import Output, on_one_line, printable, short_path, table
from spptransfer.cli.pipelines import counts
from spptransfer.extraction import Extraction


def test_numbers_stand_to_the_right_and_text_to_the_left():
    shown = table([["a", 1234, None], ["bbb", 5, 2.5]], ["name", "count", "share"])
    assert shown.splitlines() == [
        "name  count  share",
        "a     1,234      -",
        "bbb       5    2.5",
    ]


def test_one_image_is_no_plural():
    assert counts(Extraction(Path("a"), added=1)).startswith("1 image: 1 added")
    assert counts(Extraction(Path("a"), added=1, unchanged=1199)).startswith("1,200 images: 1 a")


@given(st.text(st.characters(codec=None)))
def test_whatever_a_file_is_called_it_is_shown_on_one_line(name):
    shown = printable(name)
    assert shown.isprintable()
    assert table([[name]], ["x"]).count("\n") == 1
    assert on_one_line(name).isprintable()
    shown.encode("utf-8")


@given(st.text(st.characters(codec="utf-8", categories=["L", "N", "P"])))
def test_a_plain_name_is_shown_as_it_is(name):
    assert printable(name) == name


def test_paths_are_shown_from_here_if_they_are_below(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert short_path(Path("a/b")) == "a/b"
    assert short_path(tmp_path / "here" / "a") == "a"
    assert short_path(tmp_path / "there") == str(tmp_path / "there")


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize("as_json", [False, True])
def test_words_and_json_never_share_a_stream(quiet, as_json, capsys):
    output = Output(quiet, as_json)
    output.say("words")
    output.complain("trouble")
    assert output.finish(rows={"ok": 1}) == 0
    assert Output(quiet=True).finish(incomplete=True) == 1
    out, err = capsys.readouterr()
    assert ("words" in out + err) is not quiet
    assert "trouble" in out + err
    if as_json:
        assert json.loads(out)["status"] == "ok"
        assert json.loads(out)["headline"] is None
    else:
        assert "status" not in out
