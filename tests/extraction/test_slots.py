from __future__ import annotations

import multiprocessing
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spptransfer.extraction import slots
from spptransfer.extraction.slots import Address, Slot, put

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="this system has no memory without a name"
)


@pytest.fixture
def slot():
    slot = Slot(1000)
    yield slot
    slot.close()


def drawn(*shapes, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, shape, np.uint8) for shape in shapes]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(1, 3)), max_size=8))
def test_arrays_come_out_as_they_were_put_in(shapes):
    slot, arrays = Slot(1000), drawn(*shapes)
    assert put(slot.address, arrays)
    for found, expected in zip(slot.take(shapes), arrays, strict=True):
        np.testing.assert_array_equal(found, expected)
    slot.close()


def test_arrays_of_any_order_are_put(slot):
    array = drawn((6, 7, 3))[0]
    assert put(slot.address, [array.transpose(1, 0, 2), array[::2, ::-1]])
    first, second = slot.take([(7, 6, 3), (3, 7, 3)])
    np.testing.assert_array_equal(first, array.transpose(1, 0, 2))
    np.testing.assert_array_equal(second, array[::2, ::-1])


def test_what_was_taken_stays_when_the_slot_is_used_again_and_closed():
    slot, (first, second) = Slot(1000), drawn((9, 9), (9, 9))
    put(slot.address, [first])
    (taken,) = slot.take([(9, 9)])
    put(slot.address, [second])
    slot.close()
    np.testing.assert_array_equal(taken, first)
    taken[0] = 1  # it is the taker's own


def test_what_does_not_fit_is_refused(slot):
    assert put(slot.address, drawn((1000,)))
    assert not put(slot.address, drawn((999,), (2,)))


def test_a_slot_that_cannot_be_opened_is_refused():
    assert not put(Address("/proc/self/fd/999999", 10, -1), drawn((3,)))


def test_a_later_slot_of_the_same_address_is_not_taken_for_the_earlier_one():
    first = Slot(1000)
    put(first.address, drawn((50,)))
    first.close()
    second = Slot(1000)
    assert second.address.path == first.address.path
    (array,) = drawn((50,), seed=1)
    assert put(second.address, [array])
    np.testing.assert_array_equal(second.take([(50,)])[0], array)
    second.close()


def test_a_process_keeps_no_more_than_the_latest_of_an_address():
    for _ in range(5):
        slot = Slot(1000)
        put(slot.address, drawn((5,)))
        slot.close()
    assert sum(path == slot.address.path for path in slots._OPENED) == 1


def test_another_process_puts_and_this_one_takes(slot):
    (array,) = drawn((20, 20))
    process = multiprocessing.get_context("spawn").Process(target=put, args=(slot.address, [array]))
    process.start()
    process.join(60)
    np.testing.assert_array_equal(slot.take([(20, 20)])[0], array)


def test_a_system_without_it_says_so(monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(OSError, match="no memory without a name"):
        Slot(10)
