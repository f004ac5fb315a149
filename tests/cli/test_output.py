from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spptransfer.cli.options import Output, on_one_line, printable, table


def test_numbers_stand_to_the_right_and_text_to_the_left():
    shown = table([["a", 1234, None], ["bbb", 5, 2.5]], ["name", "count", "share"])
    assert shown.splitlines() == [
        "name  count  share",
        "a     1,234      -",
        "bbb       5    2.5",
    ]


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
