"""Freed memory is kept inside, given back in the end, and nothing happens without glibc."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from spptransfer import memory
from spptransfer.memory import keep_freed_memory, overlook_old_objects, release_memory


class Library:
    """Notes what it is asked for, as glibc would do it."""

    def __init__(self):
        self.asked = []

    def mallopt(self, parameter, value):
        self.asked.append((parameter, value))

    def malloc_trim(self, pad):
        self.asked.append("trim")


@pytest.fixture
def library(monkeypatch):
    found = Library()
    monkeypatch.setattr(memory, "_glibc", lambda: found)
    return found


KEPT, USUAL = list(memory._KEEPING.items()), list(memory._USUAL.items())


def test_memory_is_kept_inside_and_given_back_in_the_end(library):
    with keep_freed_memory():
        assert library.asked == KEPT
    assert library.asked == [*KEPT, *USUAL, "trim"]


def test_an_error_ends_it_too(library):
    with pytest.raises(ZeroDivisionError), keep_freed_memory():
        1 / 0  # noqa: B018
    assert library.asked == [*KEPT, *USUAL, "trim"]


def test_it_lasts_until_the_last_one_is_through(library):
    with keep_freed_memory():
        with keep_freed_memory():
            assert library.asked == KEPT
        assert library.asked == [*KEPT, "trim"]
    assert library.asked == [*KEPT, "trim", *USUAL, "trim"]


def test_threads_count_together(library):
    inside, leave = threading.Barrier(5), threading.Event()

    def work():
        with keep_freed_memory():
            inside.wait(timeout=30)
            leave.wait(timeout=30)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    inside.wait(timeout=30)
    assert library.asked == KEPT
    leave.set()
    for thread in threads:
        thread.join()
    assert [asked for asked in library.asked if asked != "trim"] == [*KEPT, *USUAL]
    assert library.asked.count("trim") == 4


def test_every_setting_is_taken_back_but_the_number_of_pools_which_cannot_be():
    assert set(memory._KEEPING) - set(memory._USUAL) == {memory._ARENA_MAX}


@pytest.mark.parametrize("missing", [object(), None])
def test_other_libraries_are_left_alone(monkeypatch, missing):
    def load(name):
        if missing is None:
            raise OSError("no such library")
        return missing

    monkeypatch.setattr(memory.ctypes, "CDLL", load)
    memory._glibc.cache_clear()
    try:
        assert memory._glibc() is None
        release_memory()
        with keep_freed_memory():
            pass
    finally:
        memory._glibc.cache_clear()


def test_large_pieces_come_and_go_inside():
    with keep_freed_memory():
        for _ in range(3):
            assert bytes(1 << 26) == bytearray(1 << 26)
    release_memory()


class Node:
    """Can be part of a ring, which only the collector frees."""

    def __init__(self):
        self.ring = self


def ring():
    return weakref.ref(Node())


@pytest.fixture
def nothing_frozen():
    gc.collect()
    assert gc.get_freeze_count() == 0
    yield
    assert gc.get_freeze_count() == 0


@pytest.mark.usefixtures("nothing_frozen")
def test_a_collection_frees_what_was_made_inside_and_overlooks_the_rest():
    gc.disable()
    try:
        old = ring()
        with overlook_old_objects():
            new = ring()
            gc.collect()
            assert new() is None
            assert old() is not None
        gc.collect()
        assert old() is None
    finally:
        gc.enable()


@pytest.mark.usefixtures("nothing_frozen")
def test_old_objects_are_overlooked_until_the_last_one_is_through():
    with overlook_old_objects():
        with overlook_old_objects():
            assert gc.get_freeze_count() > 0
        assert gc.get_freeze_count() > 0


@pytest.mark.usefixtures("nothing_frozen")
def test_after_an_error_old_objects_count_again():
    with pytest.raises(ZeroDivisionError), overlook_old_objects():
        1 / 0  # noqa: B018
