"""Graphs are made of frequent shapes only, prove themselves, and never cost a feature."""

from __future__ import annotations

import itertools
import logging
import math
import threading
import weakref

import pytest
import torch
from graph_cases import OFTEN, assert_same, batch, features, fetched, out_of_memory, work_at_once

from spptransfer.extraction import graphs as module
from spptransfer.extraction.division import GPU_LANES
from spptransfer.extraction.graphs import Graphs

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


pytestmark = pytest.mark.usefixtures("soon")


@pytest.fixture
def graphs(world):
    return Graphs(fetched, world.open)


def assert_right(graphs, world, views, key="key"):
    assert_same(graphs(views, world.compute, key), fetched(views, features))


def feed(graphs, world, times, key="key", shape=(2, 5, 6, 3)):
    """Batches of one shape, all different; each one's numbers must be its own."""
    for seed in range(times):
        assert_right(graphs, world, batch(seed, shape), key)


def test_a_shape_becomes_a_graph_once_it_came_often(graphs, world):
    feed(graphs, world, OFTEN - 1)
    assert world.attempts == 0
    feed(graphs, world, 1)
    assert world.attempts == graphs.held == 1
    before = world.replays
    feed(graphs, world, 5)
    assert world.replays == before + 5
    assert world.attempts == 1


def test_what_came_home_is_not_changed_by_the_next_replay(graphs, world):
    feed(graphs, world, OFTEN)
    found = [graphs(batch(seed), world.compute, "key") for seed in range(4)]
    for seed, one in enumerate(found):
        assert_same(one, fetched(batch(seed), features))


def test_batches_without_a_key_are_never_captured(graphs, world):
    feed(graphs, world, 5 * OFTEN, key=None)
    assert world.attempts == 0


def test_every_key_has_a_graph_of_its_own(graphs, world):
    for seed in range(2 * OFTEN):
        assert_right(graphs, world, batch(seed), "whole")
        assert_right(graphs, world, batch(seed, (3, 4, 4, 3)), "small")
        views = batch(seed)
        found = graphs(views, lambda pixels: world.compute(pixels)[:1], "half")
        assert_same(found, fetched(views, features)[:1])
    assert graphs.held == 3


def lags(graph):
    found = graph.compute(getattr(graph, "last", graph.pixels))
    graph.last = graph.pixels.clone()
    return found


def captured_again(graph):
    return graph.found


def one_bit_off(graph):
    found = graph.compute(graph.pixels)
    found[0][2][0, 0] = torch.nextafter(found[0][2][0, 0], torch.tensor(math.inf))
    return found


def wider(graph):
    return [{k: v.double() for k, v in one.items()} for one in graph.compute(graph.pixels)]


def longer(graph):
    return [{k: v.repeat(2, 1) for k, v in one.items()} for one in graph.compute(graph.pixels)]


def without_a_level(graph):
    first, second = graph.compute(graph.pixels)
    return [{1: first[1]}, second]


def without_a_spec(graph):
    return graph.compute(graph.pixels)[:1]


@pytest.mark.parametrize(
    "wrong",
    [lags, captured_again, one_bit_off, wider, longer, without_a_level, without_a_spec],
)
def test_a_graph_of_wrong_numbers_is_refused_for_good(graphs, world, wrong, caplog):
    world.wrong = wrong
    with caplog.at_level(logging.INFO):
        feed(graphs, world, 10 * OFTEN)
    assert world.attempts == 1
    assert not world.kept
    assert "its numbers differ" in caplog.text


def test_numbers_that_are_no_numbers_are_the_same_if_their_bits_are(graphs, world):
    def without_number(pixels):
        return [{1: pixels.flatten(1).float() * math.nan}]

    for seed in range(OFTEN):
        graphs(batch(seed), without_number, "nan")
    assert graphs.held == 1


@pytest.mark.parametrize(("seconds", "kept"), [(2.0, 0), (1.0, 0), (0.97, 0), (0.94, 1), (0.1, 1)])
def test_a_graph_is_kept_only_if_it_is_faster(graphs, world, seconds, kept, caplog):
    world.replay_seconds = itertools.repeat(seconds)
    with caplog.at_level(logging.INFO):
        feed(graphs, world, 10 * OFTEN)
    assert world.attempts == 1
    assert graphs.held == len(world.kept) == kept
    assert ("ms instead of" in caplog.text) == (not kept)


def test_one_slow_replay_of_several_does_not_count(graphs, world):
    world.replay_seconds = iter([0.5, 9.0, 0.5])
    feed(graphs, world, OFTEN)
    assert graphs.held == 1


@pytest.mark.parametrize(
    "error",
    [RuntimeError("operation not permitted when stream is capturing"), NotImplementedError("x")],
)
def test_a_capture_that_fails_leaves_the_shape_to_the_computation(graphs, world, error, caplog):
    world.error = error
    with caplog.at_level(logging.INFO):
        feed(graphs, world, 10 * OFTEN)
    assert world.attempts == 1
    assert str(error) in caplog.text
    world.error = None
    feed(graphs, world, 10 * OFTEN, key="another", shape=(1, 4, 4, 3))
    assert world.attempts == 2
    assert graphs.held == 1


def test_a_graph_that_fails_while_it_is_proved_is_dropped(graphs, world):
    world.replay_error = RuntimeError("launch failed")
    feed(graphs, world, 2 * OFTEN)
    assert world.attempts == len(world.graphs) == 1
    assert not world.kept


def test_after_several_failures_nothing_is_captured_any_more(graphs, world):
    feed(graphs, world, OFTEN, key="before")
    world.error = RuntimeError("unsupported")
    for number in range(module.FAILURES_ALLOWED + 2):
        feed(graphs, world, OFTEN, key=number, shape=(1, 4, 4 + number, 3))
    assert world.attempts == 1 + module.FAILURES_ALLOWED
    assert not world.kept


@pytest.mark.parametrize("error", [out_of_memory(), MemoryError()])
def test_a_capture_out_of_memory_drops_all_graphs_and_is_the_last(graphs, world, error):
    feed(graphs, world, OFTEN, key="before")
    world.error = error
    feed(graphs, world, OFTEN)
    world.error = None
    assert not world.kept
    feed(graphs, world, 10 * OFTEN, key="before")
    feed(graphs, world, 10 * OFTEN)
    assert world.attempts == 2


def test_a_batch_out_of_memory_is_tried_again_without_any_graph(graphs, world):
    for key in ("one", "two"):
        feed(graphs, world, OFTEN, key=key)
    assert graphs.held == 2

    def hungry(pixels):
        if world.kept:
            raise out_of_memory()
        return world.compute(pixels)

    views = batch(9, (4, 5, 6, 3))
    assert_same(graphs(views, hungry, "large"), fetched(views, features))
    assert graphs.held == 0
    feed(graphs, world, 10 * OFTEN, key="one")
    assert world.attempts == 2


def test_a_batch_that_never_fits_is_the_callers_to_halve(graphs, world):
    runs = []

    def too_large(pixels):
        runs.append(len(pixels))
        raise out_of_memory()

    for _ in range(3):
        with pytest.raises(torch.OutOfMemoryError):
            graphs(batch(), too_large, "large")
    assert runs == [2] * 4  # a second time where graphs could have been in the way
    feed(graphs, world, 3)


def test_a_failed_run_lets_go_of_its_memory_before_the_next(graphs, world):
    first_run = []

    def hungry(pixels):
        if first_run:
            assert first_run[0]() is None
            return world.compute(pixels)
        activations = pixels.float()
        first_run.append(weakref.ref(activations))
        raise out_of_memory()

    assert_same(graphs(batch(), hungry, "key"), fetched(batch(), features))


def test_a_replay_that_fails_is_computed_instead(graphs, world):
    feed(graphs, world, OFTEN)
    world.replay_error = RuntimeError("unspecified launch failure")
    feed(graphs, world, OFTEN)
    assert not world.kept


def test_an_error_of_the_computation_comes_through(graphs, world):
    def broken(error):
        def compute(pixels):
            raise error

        return compute

    for error in (RuntimeError("wrong shape"), ValueError("wrong value"), KeyError(3)):
        with pytest.raises(type(error)):
            graphs(batch(), broken(error), "key")
    feed(graphs, world, 2)


def test_the_least_recently_used_graph_goes(graphs, world, monkeypatch):
    monkeypatch.setattr(module, "GRAPHS_PER_LANE", 2)
    for key in "ab":
        feed(graphs, world, OFTEN, key=key)
    feed(graphs, world, 1, key="a")
    feed(graphs, world, OFTEN, key="c")
    assert [graph.dropped for graph in world.graphs] == [False, True, False]
    assert graphs.held == 2


def test_shapes_in_turn_are_not_captured_for_ever(graphs, world, monkeypatch):
    monkeypatch.setattr(module, "GRAPHS_PER_LANE", 2)
    for _ in range(3 * OFTEN):
        for key in "abc":
            feed(graphs, world, 1, key=key)
    assert world.attempts == 3
    for _ in range(4 * OFTEN):
        for key in "abc":
            feed(graphs, world, 1, key=key)
    assert 3 < world.attempts <= 6
    assert graphs.held == 2


def test_only_so_many_shapes_are_remembered(graphs, world, monkeypatch):
    monkeypatch.setattr(module, "SHAPES_REMEMBERED", 5)
    for number in range(50):
        feed(graphs, world, 1, key=number)
    assert len(graphs._seen) == 5
    feed(graphs, world, OFTEN)
    assert graphs.held == 1


def test_two_that_compute_at_once_have_graphs_of_their_own(graphs, world):
    feed(graphs, world, OFTEN)
    meeting = threading.Barrier(2, timeout=30)

    def way(views, compute):
        found = fetched(views, compute)
        if found:  # else it is a trial
            meeting.wait()
        return found

    graphs._transfers = way
    for seed in range(4):
        work_at_once(*[lambda seed=seed: assert_right(graphs, world, batch(seed))] * 2)
    assert world.attempts == 2
    assert graphs.held == len({graph.capturer for graph in world.graphs}) == 2


@pytest.mark.parametrize("threads", [2, 8])
def test_threads_mix_neither_graphs_nor_results_and_capture_alone(graphs, world, threads):
    shapes = {key: (2, 4, 4 + key, 3) for key in range(3)}

    def work():
        for seed in range(40):
            key = seed % 3
            assert_right(graphs, world, batch(seed, shapes[key]), key)

    work_at_once(*[work] * threads)
    assert 3 <= world.attempts <= 3 * GPU_LANES
    assert len(world.capturers) <= GPU_LANES
    assert world.clashes == 0
    assert world.beside_captures == {0}
    assert graphs.held == len(world.kept) == world.attempts


def test_what_one_thread_refuses_no_other_that_waits_tries_again(graphs, world):
    world.replay_seconds = itertools.repeat(2.0)
    feed(graphs, world, OFTEN - 1)
    meeting = threading.Barrier(2, timeout=30)

    def way(views, compute):
        found = fetched(views, compute)
        if found:  # else it is a trial
            meeting.wait()
        return found

    graphs._transfers = way
    work_at_once(*[lambda: assert_right(graphs, world, batch())] * 2)
    assert world.attempts == 1


def test_many_that_run_out_of_memory_at_once_all_get_their_numbers(graphs, world):
    for key in range(3):
        feed(graphs, world, OFTEN, key=key)

    def hungry(pixels):
        if world.kept:
            raise out_of_memory()
        return world.compute(pixels)

    def work():
        for seed in range(5):
            assert_same(graphs(batch(seed), hungry, "large"), fetched(batch(seed), features))

    work_at_once(*[work] * 4)
    assert not world.kept
