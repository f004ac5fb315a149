from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spptransfer.cli.options import on_one_line, printable, table


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
