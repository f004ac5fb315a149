"""Threads and memory are handed back as they were found."""

import threading
from contextlib import contextmanager

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from spptransfer.svm._threads import for_each, own_threads


def threads_of(api):
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == api]


def test_blas_has_one_thread_meanwhile_and_its_own_afterwards():
    before = threads_of("blas")
    with own_threads():
        with own_threads():
            assert set(threads_of("blas")) == {1}
        assert set(threads_of("blas")) == {1}
    assert threads_of("blas") == before


@contextmanager
def thread_inside(prepare=lambda: None):
    """Another thread that is inside until it is told to leave, and lives on."""
    inside, leave, left, end = (threading.Event() for _ in range(4))

    def work():
        prepare()
        with own_threads():
            inside.set()
            leave.wait()
        left.set()
        end.wait()

    def tell():
        leave.set()
        left.wait()

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    try:
        yield tell
    finally:
        leave.set()
        end.set()
        thread.join()


def test_blas_has_its_threads_afterwards_whoever_comes_out_last():
    before = threads_of("blas")
    with thread_inside() as tell_to_leave:
        with own_threads():
            tell_to_leave()
            assert set(threads_of("blas")) == {1}
        assert threads_of("blas") == before
        with own_threads():
            assert set(threads_of("blas")) == {1}


def test_the_last_to_come_out_does_not_get_the_openmp_threads_of_the_first_to_come_in():
    with (
        threadpool_limits(3, "openmp"),
        thread_inside(lambda: threadpool_limits(1, "openmp")) as tell_to_leave,
    ):
        with own_threads():
            tell_to_leave()
        assert set(threads_of("openmp")) == {3}


def test_results_come_in_the_order_of_the_items():
    assert for_each(lambda item: item**2, range(50)) == [item**2 for item in range(50)]


def test_what_is_called_on_a_thread_may_call_it_again():
    found = for_each(lambda row: for_each(lambda item: row + item, range(3)), range(4))
    assert found == [[row, row + 1, row + 2] for row in range(4)]


def test_an_error_on_a_thread_is_raised_and_the_threads_are_handed_back():
    before = threads_of("blas")
    with pytest.raises(ZeroDivisionError):
        for_each(lambda item: 1 // item, [1, 0, 2])
    assert threads_of("blas") == before


def test_a_caller_that_holds_a_limit_itself_is_limited_too_and_has_it_back():
    with threadpool_limits(2, "blas"):
        before = threads_of("blas")
        with own_threads():
            assert set(threads_of("blas")) == {1}
        assert threads_of("blas") == before
    with thread_inside(), own_threads():
        assert set(threads_of("blas")) == {1}
