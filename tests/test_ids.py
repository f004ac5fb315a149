from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spptransfer import ids as module
from spptransfer.ids import Ids, TextById

# Every string that Python can hold: lone surrogates and NULs too.
texts = st.text(st.characters(exclude_categories=()), max_size=6)
lists = st.lists(texts, max_size=30)

# However busy the machine is.
unhurried = settings(deadline=None)


@pytest.fixture(params=[None, 7], ids=["hashed", "all hashes alike"])
def hashes(request, monkeypatch):
    """The usual hashes, or ones that tell nothing apart."""
    if request.param is not None:
        monkeypatch.setattr(module, "hash", lambda text: request.param, raising=False)


@given(lists)
@unhurried
def test_it_is_the_sequence_it_was_made_of(given):
    ids = Ids(given)
    assert list(ids) == given
    assert [ids[i] for i in range(len(ids))] == given
    assert [ids[-i - 1] for i in range(len(ids))] == given[::-1]
    assert len(ids) == len(given)
    assert bool(ids) == bool(given)
    assert list(reversed(ids)) == given[::-1]


@given(lists, st.slices(30))
@unhurried
def test_a_slice_is_that_of_a_list(given, part):
    ids = Ids(given)[part]
    assert isinstance(ids, Ids)
    assert list(ids) == given[part]
    assert list(ids[1:]) == given[part][1:]
    assert ids == Ids(given[part])


@given(st.lists(texts, max_size=20, unique=True), lists)
@unhurried
def test_what_is_looked_up_is_where_a_dict_says(given, others):
    ids, expected = Ids(given), {text: i for i, text in enumerate(given)}
    wanted = [*others, *given]
    assert ids.find(wanted).tolist() == [expected.get(text, -1) for text in wanted]
    assert [text in ids for text in wanted] == [text in expected for text in wanted]
    assert ids[1:].find(given[:2]).tolist() == [-1, 0][: len(given)]


@pytest.mark.usefixtures("hashes")
def test_strings_of_one_hash_are_told_apart():
    ids = Ids(str(number) for number in range(50))
    assert ids.find([str(number) for number in range(50)]).tolist() == list(range(50))
    assert ids.find(["x", "7", ""]).tolist() == [-1, 7, -1]
    assert ids.repetition() is None
    assert Ids([*ids, "49", "3"]).repetition() == (49, 50)


@given(lists)
@unhurried
def test_the_first_string_that_repeats_is_found_with_where_it_was(given):
    expected = next(
        ((given.index(text), i) for i, text in enumerate(given) if text in given[:i]), None
    )
    assert Ids(given).repetition() == expected


def test_many_strings_are_found_across_runs(monkeypatch):
    monkeypatch.setattr(module, "_FOUND_AT_ONCE", 300)
    numbers = np.random.default_rng(0).permutation(5000)
    ids = Ids(map(str, numbers))
    assert (ids.find(ids) == np.arange(5000)).all()
    assert (ids.find(Ids(map(str, range(5000)))) == np.argsort(numbers)).all()
    assert ids.take(np.argsort(numbers)) == Ids(map(str, range(5000)))


@given(lists, st.integers(1, 8))
@unhurried
def test_sorting_in_runs_is_sorting_all_at_once(given, at_once):
    before, module._SORTED_AT_ONCE = module._SORTED_AT_ONCE, at_once
    try:
        assert list(Ids.sort(iter(given))) == sorted(given)
    finally:
        module._SORTED_AT_ONCE = before


@given(lists, lists)
@unhurried
def test_it_equals_what_has_the_same_strings(given, other):
    ids = Ids(given)
    assert ids == given
    assert ids == tuple(given)
    assert tuple(given) == ids
    assert hash(ids) == hash(tuple(given))
    assert (ids == Ids(other)) == (given == other)
    assert (ids == other) == (given == other)


def test_equality_minds_where_one_string_ends():
    assert Ids(["ab", "c"]) != Ids(["a", "bc"])
    assert Ids(["x", "ab", "c"])[1:] == Ids(["ab", "c", "y"])[:2]
    assert Ids(["a"]) != "a"
    assert Ids() == () == Ids.sort([])


@given(lists)
@unhurried
def test_a_pickle_brings_it_back_and_a_slice_takes_only_its_own(given):
    for ids in (Ids(given), Ids(given)[1:], Ids(given)[3:1]):
        again = pickle.loads(pickle.dumps(ids))
        assert again == ids
        assert again.find(given[1:2]).tolist() == ids.find(given[1:2]).tolist()
    large = Ids(f"{number:08d}" for number in range(10_000))
    assert len(pickle.dumps(large[5000:5010])) < 1000


def test_a_position_that_is_not_there_is_an_error():
    for ids in (Ids(), Ids(["a", "b"])):
        for position in (len(ids), -len(ids) - 1):
            with pytest.raises(IndexError):
                ids[position]


def test_it_cannot_be_changed():
    ids = Ids(["a"])
    with pytest.raises(TypeError):
        ids[0] = "b"
    with pytest.raises(TypeError):
        ids._packed[0] = 1


def test_the_repr_of_many_is_short():
    assert repr(Ids(["a", "b"])) == "Ids(['a', 'b'])"
    assert repr(Ids(map(str, range(1000)))) == "<Ids: '0', '1', ..., '999': 1,000 in all>"


def test_an_id_takes_its_text_and_sixteen_bytes():
    count, length = 100_000, 20
    tracemalloc.start()
    try:
        ids = Ids(f"class{number % 100:04d}/{number:010d}" for number in range(count))
        assert ids.repetition() is None
        held, peak = tracemalloc.get_traced_memory()
        part = ids[10:90_000]
        assert tracemalloc.get_traced_memory()[0] - held < 2000
    finally:
        tracemalloc.stop()
    assert len(ids[0]) == length
    assert held / count < (length + 16) * 1.13  # what grows is made a little longer than needed
    assert peak / count < 2 * (length + 16)
    assert len(part) == 89_990


def test_texts_by_id_are_a_mapping():
    expected = {"b": "two", "a": "", "": "two"}
    texts = TextById(expected.items())
    assert texts == expected
    assert dict(texts) == expected
    assert list(texts) == list(expected)
    assert texts.get("c") is None
    with pytest.raises(KeyError, match="'c'"):
        texts["c"]
    assert texts.texts_of(["a", "c", "b"]) == ["", "", "two"]
    assert pickle.loads(pickle.dumps(texts)) == expected
    assert not TextById([])
