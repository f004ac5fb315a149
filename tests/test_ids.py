from __future__ import annotations

import contextlib
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spptransfer.ids import Ids, decode, encode

# Every string that Python can hold: lone surrogates and NULs too.
anything = st.text(st.characters(exclude_categories=()), max_size=6)
# What an id may be: no lone surrogate but those that stand for a byte, no NUL at its end.
texts = st.text(max_size=6).map(lambda text: text.rstrip("\0")) | st.sampled_from(
    ["\udcff.jpg", "naïve 图像.jpg", "a\0b", "line\nbreak", "x" * 300]
)
lists = st.lists(texts, max_size=30)

# However busy the machine is.
unhurried = settings(deadline=None, max_examples=50)


@given(anything)
@unhurried
def test_a_text_comes_back_as_it_was_or_is_refused(text):
    with contextlib.suppress(ValueError):
        assert decode(encode([text])) == [text]
        return
    assert text.endswith("\0") or any("\ud800" <= c <= "\udfff" for c in text)


@pytest.mark.parametrize("text", ["a\0", "\ud800", "\udcc3\udca9"])  # the last has é's bytes
def test_what_no_file_could_hold_is_refused_by_name(text):
    with pytest.raises(ValueError, match=r"is no text in UTF-8|ends in a NUL"):
        Ids(["b", text])


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
    assert Ids.of(ids) is ids


@given(lists, st.slices(30))
@unhurried
def test_a_slice_is_that_of_a_list(given, part):
    ids = Ids(given)[part]
    assert isinstance(ids, Ids)
    assert list(ids) == given[part]
    assert list(ids[1:]) == given[part][1:]
    assert ids == Ids(given[part])


@given(st.lists(texts, max_size=20, unique=True), st.lists(anything, max_size=30))
@unhurried
def test_what_is_looked_up_is_where_a_dict_says(given, others):
    ids, expected = Ids(given), {text: i for i, text in enumerate(given)}
    wanted = [*others, *given]
    assert ids.find(wanted).tolist() == [expected.get(text, -1) for text in wanted]
    assert [text in ids for text in wanted] == [text in expected for text in wanted]
    assert 7 not in ids


@given(lists)
@unhurried
def test_of_a_text_that_repeats_the_first_is_found_and_the_first_repetition(given):
    ids = Ids(given)
    assert ids.find(given).tolist() == [given.index(text) for text in given]
    expected = next(
        ((given.index(text), i) for i, text in enumerate(given) if text in given[:i]), None
    )
    assert ids.repetition() == expected


def test_many_texts_are_found():
    numbers = np.random.default_rng(0).permutation(30_000)
    ids = Ids(map(str, numbers))
    assert (ids.find(ids) == np.arange(30_000)).all()
    assert (ids.find(Ids(map(str, range(30_000)))) == np.argsort(numbers)).all()
    assert ids.take(np.argsort(numbers)) == Ids(map(str, range(30_000)))
    assert ids.take([3, 1]) == [str(numbers[3]), str(numbers[1])]


@given(lists)
@unhurried
def test_sorting_is_by_code_points_as_python_sorts(given):
    plain = [text for text in given if "\udcff" not in text]
    assert list(Ids.sort(iter(plain))) == sorted(plain)


@given(lists, lists)
@unhurried
def test_it_equals_what_has_the_same_strings(given, other):
    ids = Ids(given)
    assert ids == given
    assert ids == tuple(given)
    assert tuple(given) == ids
    assert (ids == Ids(other)) == (given == other)
    assert (ids == other) == (given == other)
    assert (ids.sha256() == Ids(other).sha256()) == (given == other)


def test_the_hash_and_the_narrow_form_do_not_mind_what_else_there_was():
    part = Ids(["a", "b", "a very long one"])[:2]
    assert part.sha256() == Ids(["a", "b"]).sha256()
    assert part.narrow() == part
    assert part.narrow().encoded.dtype == "S1"
    assert Ids().narrow() == ()


@given(lists)
@unhurried
def test_a_pickle_brings_it_back(given):
    for ids in (Ids(given), Ids(given)[1:], Ids(given)[3:1]):
        again = pickle.loads(pickle.dumps(ids))
        assert again == ids
        assert again.find(given[1:2]).tolist() == ids.find(given[1:2]).tolist()


def test_it_cannot_be_changed():
    with pytest.raises(TypeError):
        Ids(["a"])[0] = "b"
    with pytest.raises(TypeError):
        hash(Ids(["a"]))


def test_the_repr_of_many_is_short():
    assert repr(Ids(["a", "b"])) == "Ids(['a', 'b'])"
    assert repr(Ids(map(str, range(1000)))) == (
        "Ids(['0', '1', '2', '3', '4', '5', '6', '7', ... (1,000 in all)])"
    )


def test_an_id_takes_its_text_and_a_little_to_find_it_by():
    count, length = 20_000, 20
    tracemalloc.start()
    try:
        ids = Ids(f"class{number % 100:04d}/{number:010d}" for number in range(count))
        assert ids.repetition() is None
        held, _ = tracemalloc.get_traced_memory()
        part = ids[10:19_000]
        assert tracemalloc.get_traced_memory()[0] - held < 2000
    finally:
        tracemalloc.stop()
    assert len(ids[0]) == length
    assert held / count < length + 8.5
    assert len(part) == 18_990
