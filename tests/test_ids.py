from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spptransfer.ids import Ids, decode, encode

# Every string that may be a file's name: bytes that are no UTF-8 are lone surrogates in Python.
texts = st.binary(max_size=6).map(
    lambda name: name.rstrip(b"\0").decode("utf-8", "surrogateescape")
)
lists = st.lists(texts, max_size=30)

# However busy the machine is.
unhurried = settings(deadline=None)


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


@given(lists)
@unhurried
def test_the_first_string_that_repeats_is_found_with_where_it_was(given):
    expected = next(
        ((given.index(text), i) for i, text in enumerate(given) if text in given[:i]), None
    )
    assert Ids(given).repetition() == expected


def test_many_strings_are_found():
    numbers = np.random.default_rng(0).permutation(200_000)
    ids = Ids(map(str, numbers))
    assert (ids.find(ids) == np.arange(200_000)).all()
    assert (ids.find(map(str, range(200_000))) == np.argsort(numbers)).all()
    assert ids.take(np.argsort(numbers)) == Ids(map(str, range(200_000)))
    assert list(ids) == list(map(str, numbers))


@given(lists)
@unhurried
def test_sorting_is_by_the_bytes_of_the_names(given):
    expected = sorted(given, key=lambda text: text.encode("utf-8", "surrogateescape"))
    assert list(Ids.sort(iter(given))) == expected


@given(lists, lists)
@unhurried
def test_it_equals_what_has_the_same_strings(given, other):
    ids = Ids(given)
    assert ids == given
    assert ids == tuple(given)
    assert tuple(given) == ids
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


@pytest.mark.parametrize("text", ["a\0", "\0", "\ud800", "\udcc3\udca9"])
def test_what_would_not_come_back_as_it_was_is_refused(text):
    with pytest.raises(ValueError, match=r"ends in a NUL|no text in UTF-8"):
        Ids(["fine", text])
    assert Ids(["fine"]).find([text, "fine"]).tolist() == [-1, 0]
    assert text not in Ids(["fine"])


@given(lists)
@unhurried
def test_encoded_texts_come_back(given):
    assert decode(encode(given)) == given
    assert Ids.from_encoded(encode(given)) == given


@given(lists, lists)
@unhurried
def test_equal_hashes_are_those_of_equal_sequences(given, other):
    assert (Ids(given).sha256() == Ids(other).sha256()) == (given == other)
    assert Ids(given)[1:].sha256() == Ids(given[1:]).sha256()


def test_the_repr_of_many_is_short():
    assert repr(Ids(["a", "b"])) == "Ids(['a', 'b'])"
    shown = ", ".join(f"'{number}'" for number in range(8))
    assert repr(Ids(map(str, range(1000)))) == f"Ids([{shown}, ... (1,000 in all)])"


def test_an_id_takes_its_text_and_its_place_in_the_order():
    count, length = 100_000, 20
    tracemalloc.start()
    try:
        ids = Ids(f"class{number % 100:04d}/{number:010d}" for number in range(count))
        assert ids.repetition() is None
        held = tracemalloc.get_traced_memory()[0]
        part = ids[10:90_000]
        assert tracemalloc.get_traced_memory()[0] - held < 2000
    finally:
        tracemalloc.stop()
    assert len(ids[0]) == length
    assert held / count < length + 8 + 1
    assert len(part) == 89_990
