"""Threads stay on processors of their own, where there is one for each; nobody else has to."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from spptransfer.affinity import are_one_each, count_processors, spread

ALLOWED = sorted(os.sched_getaffinity(0))


def processors_of(threads, begin):
    """Which processors each of some threads may use after `begin`."""
    together = threading.Barrier(threads)

    def allowed(_):
        together.wait(timeout=30)
        return sorted(os.sched_getaffinity(0))

    with ThreadPoolExecutor(threads, initializer=begin) as pool:
        return list(pool.map(allowed, range(threads)))


def test_the_processors_counted_are_those_that_we_may_use(monkeypatch):
    assert count_processors() == len(ALLOWED)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3, 5, 11})
    assert count_processors() == 3


@pytest.mark.parametrize(
    ("processors", "threads", "expected"),
    [(4, 4, True), (4, 3, False), (4, 5, False), (4, 1, False), (1, 1, False), (2, 2, True)],
)
def test_threads_are_one_each_if_they_are_as_many_as_several_processors(
    monkeypatch, processors, threads, expected
):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(processors)))
    assert are_one_each(threads) is expected


def test_each_thread_gets_the_next_processor_and_the_first_one_follows_the_last():
    found = processors_of(len(ALLOWED) + 1, spread())
    assert all(len(processors) == 1 for processors in found)
    expected = sorted([*ALLOWED, ALLOWED[0]])
    assert sorted(processors[0] for processors in found) == expected


def test_other_threads_stay_where_they_were():
    processors_of(2, spread())
    assert sorted(os.sched_getaffinity(0)) == ALLOWED
    assert processors_of(1, None) == [ALLOWED]


def test_only_processors_that_we_may_use_are_given_out():
    def within_one():
        os.sched_setaffinity(0, {ALLOWED[-1]})
        return processors_of(2, spread())

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(within_one).result() == [[ALLOWED[-1]]] * 2


@pytest.mark.parametrize("error", [PermissionError, OSError])
def test_where_it_is_forbidden_threads_go_where_the_system_wants(monkeypatch, error):
    def refuse(*_):
        raise error("not here")

    monkeypatch.setattr("os.sched_setaffinity", refuse)
    assert processors_of(2, spread()) == [ALLOWED] * 2
