"""Threads and memory are handed back as they were found."""

import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from spptransfer.svm._threads import Once, for_each, own_threads


def blas_threads():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_blas_has_one_thread_meanwhile_and_its_own_afterwards():
    before = blas_threads()
    with own_threads():
        with own_threads():
            assert set(blas_threads()) == {1}
        assert set(blas_threads()) == {1}
    assert blas_threads() == before


def test_blas_has_its_threads_afterwards_whoever_comes_out_last():
    before = blas_threads()
    inside, leave, left, end = (threading.Event() for _ in range(4))

    def first():
        with own_threads():
            inside.set()
            leave.wait()
        left.set()
        end.wait()

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait()
    with own_threads():
        leave.set()
        left.wait()
        assert set(blas_threads()) == {1}
    assert blas_threads() == before
    with own_threads():
        assert set(blas_threads()) == {1}
    end.set()
    thread.join()


def test_results_come_in_the_order_of_the_items():
    assert for_each(lambda item: item**2, range(50)) == [item**2 for item in range(50)]


def test_what_is_called_on_a_thread_may_call_it_again():
    found = for_each(lambda row: for_each(lambda item: row + item, range(3)), range(4))
    assert found == [[row, row + 1, row + 2] for row in range(4)]


def test_an_error_on_a_thread_is_raised_and_the_threads_are_handed_back():
    before = blas_threads()
    with pytest.raises(ZeroDivisionError):
        for_each(lambda item: 1 // item, [1, 0, 2])
    assert blas_threads() == before


def test_what_is_needed_once_is_computed_once():
    calls = []
    once = Once(lambda: calls.append(1) or np.arange(3))
    found = for_each(lambda _: once.get(), range(8))
    assert len(calls) == 1
    assert all(value is found[0] for value in found)
