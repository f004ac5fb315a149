"""Where rows lie is what was noted of them last."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cache_files import make_cache
from hypothesis import given
from hypothesis import strategies as st

from spptransfer.cache import FeatureCache
from spptransfer.cache.whereabouts import Whereabouts
from spptransfer.ids import Ids

IDS = Ids([f"{number:04}.png" for number in range(7)])
EVERYTHING = slice(0, len(IDS))


def whereabouts(*files: str) -> Whereabouts:
    """Of files that are their own contents."""
    rows = Whereabouts(IDS, lambda path: path)  # type: ignore[arg-type, return-value]
    for file in files:
        rows.add(Path(file))
    return rows


def places(rows: Whereabouts, run: slice = EVERYTHING) -> dict[int, tuple[str, int]]:
    """By position: the file's name, and the row in it."""
    return {
        run.start + position: (str(file), row)
        for here, file, there in rows.places(run)
        for position, row in zip(here.tolist(), there.tolist(), strict=True)
    }


notes = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.dictionaries(st.integers(0, len(IDS) - 1), st.integers(0, 2**31 - 1)),
    )
)


@given(notes, st.integers(0, len(IDS)), st.integers(0, len(IDS)))
def test_what_is_noted_last_counts_in_every_run(noted, start, stop):
    rows, expected = whereabouts("a", "b", "c"), {}
    for number, found in noted:
        rows.note(number, np.array([*found], np.intp), np.array([*found.values()], np.intp))
        expected |= {position: ("abc"[number], row) for position, row in found.items()}
    run = slice(start, max(start, stop))
    assert places(rows, run) == {
        at: expected[at] for at in range(run.start, run.stop) if at in expected
    }
    assert np.flatnonzero(rows.known).tolist() == sorted(expected)


def test_a_file_made_again_under_its_name_is_another_file():
    rows = whereabouts("part", "part")
    rows.note(0, np.array([0, 1]), np.array([0, 1]))
    rows.note(1, np.array([1]), np.array([5]))
    assert [(int(here[0]), int(at[0])) for here, _, at in rows.places(EVERYTHING)] == [
        (0, 0),
        (1, 5),
    ]
    assert rows.number(Path("part")) == 0


def test_a_file_that_has_moved_is_opened_under_its_new_name():
    rows = whereabouts("draft", "part")
    rows.note(0, np.array([3]), np.array([3]))
    assert places(rows) == {3: ("draft", 3)}
    rows.move(0, Path("draft-1"))
    assert places(rows) == {3: ("draft-1", 3)}
    assert rows.number(Path("draft")) is None


def test_what_is_forgotten_is_asked_for_again():
    rows = whereabouts("a")
    rows.note(0, np.arange(7), np.arange(7))
    rows.forget()
    assert not rows.known.any()
    assert places(rows) == {}
    assert rows.number(Path("a")) is None
    assert rows.add(Path("b")) == 0


@pytest.mark.parametrize(
    ("number", "there", "expected"),
    [
        (0, range(7), True),
        (1, range(7), False),
        (0, [0, 1, 2, 3, 4, 6, 5], False),
        (0, range(6), False),
    ],
    ids=["all", "in another file", "in another order", "but one"],
)
def test_a_file_is_whole_if_it_has_every_row_at_its_position(number, there, expected):
    rows = whereabouts("finished", "part")
    rows.note(number, np.arange(len(there)), np.array([*there]))
    assert rows.are_rows_of(0) == expected


def test_no_more_than_a_few_files_stay_open():
    opened: list[str] = []

    def open_file(path: Path) -> FeatureCache:
        opened.append(str(path))
        return path  # type: ignore[return-value]

    many = Ids([str(number) for number in range(50)])
    rows = Whereabouts(many, open_file)
    for number in range(50):
        rows.note(rows.add(Path(str(number))), np.array([number]), np.array([0]))
    for _ in range(2):
        assert len(list(rows.places(slice(0, 50)))) == 50
    assert len(opened) == 100  # each one was closed when it was asked for again
    list(rows.places(slice(49, 50)))
    assert len(opened) == 100


def test_rows_of_other_ids_are_passed_over(tmp_path):
    make_cache(tmp_path / "part.h5")
    cache = FeatureCache.open(tmp_path / "part.h5")
    wanted = Ids(["zebra.png", *reversed(list(cache.ids)[1:])])
    rows = Whereabouts(wanted, FeatureCache)
    rows.note_all(rows.add(cache.path), cache)
    assert rows.known.tolist() == [False, *[True] * (len(wanted) - 1)]
    for here, found, there in rows.places(slice(0, len(wanted))):
        assert list(found.ids_at(there)) == list(wanted.take(here))
    [(start, positions)] = rows.positions(cache)
    assert (start, positions[0]) == (0, -1)
    assert sorted(positions[1:]) == list(range(1, len(wanted)))
