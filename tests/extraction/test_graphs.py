"""Graphs are made of frequent shapes only, prove themselves, and never cost a feature."""

from __future__ import annotations

import itertools
import logging
import math
import threading
import weakref

import numpy as np
import pytest
import torch
from cache_files import make_spec
from extraction_cases import SEVERAL, SPEC, backbone, make_dataset, mini, run
from graph_cases import World, batch, features, fetched
from image_files import encode, picture

from spptransfer import backbones
from spptransfer.cache import FeatureCache
from spptransfer.extraction import graphs as module
from spptransfer.extraction.capturing import CudaCapturer
from spptransfer.extraction.compute import FeatureComputer
from spptransfer.extraction.graphs import Graphs
from spptransfer.extraction.transfers import GPU_LANES, transfers_to

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
OFTEN = 3


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(module, "OFTEN", OFTEN)
    monkeypatch.setattr(module, "OFTEN_AGAIN", 4 * OFTEN)


@pytest.fixture
def world():
    return World()


@pytest.fixture
def graphs(world):
    return Graphs(fetched, world.open)


def assert_same(found, expected):
    assert [list(one) for one in found] == [list(one) for one in expected]
    for one, other in zip(found, expected, strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def assert_right(graphs, world, views, key="key"):
    assert_same(graphs(views, world.compute, key), fetched(views, features))


def feed(graphs, world, times, key="key", shape=(2, 5, 6, 3)):
    """Batches of one shape, all different; each one's numbers must be its own."""
    for seed in range(times):
        assert_right(graphs, world, batch(seed, shape), key)


def out_of_memory():
    return torch.OutOfMemoryError("CUDA out of memory")


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


def work_at_once(*functions):
    errors = []

    def kept(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=kept, args=(f,), daemon=True) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert not errors, errors


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


def with_graphs(network, specs, world):
    computer = FeatureComputer(network, specs)
    computer.graphs = Graphs(fetched, world.open)
    return computer


def views_of(height, width, seed=0, count=2):
    return batch(seed, (count, height, width, 3))


def test_a_cpu_has_no_graphs():
    assert FeatureComputer(backbone(), SPEC).graphs is None


def test_features_by_graphs_are_those_without(world):
    plain, graphed = FeatureComputer(backbone(), SPEC), with_graphs(backbone(), SPEC, world)
    for seed in range(OFTEN + 3):
        for height, width, count in ((48, 60, 2), (48, 60, 3), (60, 48, 2)):
            views = views_of(height, width, seed, count)
            assert_same([graphed(views)], [plain(views)])
    assert graphed.graphs.held == 3


def test_specs_wanted_together_are_a_graph_of_their_own(world):
    specs = list(SEVERAL.values())
    plain, graphed = FeatureComputer(mini(), specs), with_graphs(mini(), specs, world)
    for seed in range(OFTEN + 2):
        for wanted in ([0], [0, 1, 5], [6, 3]):
            views = views_of(64, 80, seed)
            assert_same(graphed.compute(views, wanted), plain.compute(views, wanted))
    assert graphed.graphs.held == 3


def test_a_view_computed_in_strips_is_never_captured(world):
    graphed = with_graphs(backbone(), SPEC, world)
    graphed.strip_pixels = 48 * 500
    for seed in range(OFTEN + 1):
        graphed(views_of(48, 1500, seed, 1))
    assert world.attempts == 0
    for seed in range(OFTEN):
        graphed(views_of(48, 500, seed, 1))
    assert world.attempts == 1


@pytest.mark.parametrize("largest", [2, 1])
def test_a_batch_that_does_not_fit_is_still_halved(tmp_path, monkeypatch, world, largest):
    files = {f"{i:02}.png": encode(picture(48, 48, i)) for i in range(24)}
    dataset = make_dataset(tmp_path / "images", files)
    options = {"part_rows": 4, "jobs": 2, "engine": "threads"}
    run(dataset, tmp_path / "a.h5", **options)
    prepare, stored = FeatureComputer.__init__, FeatureComputer._stored
    proof, sizes = 2 + module.TIMINGS, []

    def with_fakes(self, *arguments, **others):
        prepare(self, *arguments, **others)
        self.graphs = Graphs(fetched, world.open)

    def in_little_memory(self, pixels, specs):
        sizes.append(len(pixels))
        if world.replays > proof and len(pixels) > largest:
            raise out_of_memory()
        return stored(self, pixels, specs)

    monkeypatch.setattr(FeatureComputer, "__init__", with_fakes)
    monkeypatch.setattr(FeatureComputer, "_stored", in_little_memory)
    report = run(dataset, tmp_path / "b.h5", **options)
    assert not report.failures
    assert world.replays > proof
    assert not world.kept
    assert min(sizes) == largest
    found, expected = (FeatureCache.open(tmp_path / f"{name}.h5").matrix() for name in "ba")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def on_gpu(precision="float32", storage="float32"):
    spec = make_spec(
        backbone="resnet18", levels=(3, 2), scales=(64,), precision=precision, storage=storage
    )
    return FeatureComputer(backbones.load("resnet18", "random"), spec, "cuda")


@pytest.fixture
def whatever_the_time(monkeypatch):
    """On a device that is shared a replay may seem slow."""
    monkeypatch.setattr(module, "WORTH", math.inf)


def by_both_ways(computer, views):
    """With graphs and without."""
    graphs, computer.graphs = computer.graphs, None
    try:
        expected = computer(views)
    finally:
        computer.graphs = graphs
    return computer(views), expected


@pytest.mark.gpu
@needs_gpu
@pytest.mark.usefixtures("whatever_the_time")
@pytest.mark.parametrize("storage", ["float32", "float16"])
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_on_a_gpu_graphs_give_the_same_bits(precision, storage):
    computer = on_gpu(precision, storage)
    for seed in range(2 * OFTEN):
        for shape in ((64, 80, 1), (64, 80, 4), (80, 64, 4)):
            found, expected = by_both_ways(computer, views_of(shape[0], shape[1], seed, shape[2]))
            assert_same([found], [expected])
    assert computer.graphs.held == 3


@pytest.mark.gpu
@needs_gpu
@pytest.mark.usefixtures("whatever_the_time")
def test_on_a_gpu_graphs_of_several_threads_do_not_mix():
    computer = on_gpu()
    sizes = ((64, 80), (80, 64), (64, 64))
    expected = {}
    graphs, computer.graphs = computer.graphs, None
    for seed in range(30):
        expected[seed] = computer(views_of(*sizes[seed % 3], seed, 4))
    computer.graphs = graphs

    def work():
        for seed in range(30):
            assert_same([computer(views_of(*sizes[seed % 3], seed, 4))], [expected[seed]])

    for _ in range(3):  # threads of their own each time, as every part has
        work_at_once(*[work] * 4)
    assert 3 <= graphs.held <= 3 * GPU_LANES


@pytest.mark.gpu
@needs_gpu
@pytest.mark.usefixtures("whatever_the_time")
def test_on_a_gpu_graphs_that_take_the_place_of_others_give_the_same_bits(monkeypatch):
    monkeypatch.setattr(module, "GRAPHS_PER_LANE", 2)
    monkeypatch.setattr(module, "OFTEN_AGAIN", OFTEN)
    computer = on_gpu()
    for _ in range(4):
        for width in (64, 72, 80, 88):
            for seed in range(OFTEN + 1):
                found, expected = by_both_ways(computer, views_of(64, width, seed, 3))
                assert_same([found], [expected])
    assert computer.graphs.held == 2


@pytest.mark.gpu
@needs_gpu
@pytest.mark.usefixtures("whatever_the_time")
def test_on_a_gpu_a_failed_capture_leaves_everything_usable():
    device = torch.device("cuda")
    graphs = Graphs(transfers_to(device), lambda: CudaCapturer(device))

    def waits(pixels):
        return [{1: pixels.float() * float(pixels.sum().item() > 0)}]

    for seed in range(OFTEN + 2):
        found = graphs(batch(seed), waits, "waits")
        assert_same(found, [{1: batch(seed).astype(np.float32)}])
    assert graphs.held == 0
    torch.cuda.empty_cache()  # an error as long as torch takes a capture to be under way
    for seed in range(OFTEN + 2):
        found = graphs(batch(seed), lambda pixels: [{1: pixels.float() * 2}], "doubles")
        assert_same(found, [{1: batch(seed) * np.float32(2)}])
    assert graphs.held == 1


@pytest.mark.gpu
@needs_gpu
@pytest.mark.usefixtures("whatever_the_time")
def test_on_a_gpu_memory_of_dropped_graphs_is_there_for_others():
    computer = on_gpu()
    for seed in range(OFTEN + 1):
        computer(views_of(224, 224, seed, 16))
    assert computer.graphs.held == 1
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    with pytest.raises(torch.OutOfMemoryError):
        computer.graphs(batch(), no_memory, "large")
    assert computer.graphs.held == 0
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < before


def no_memory(pixels):
    raise out_of_memory()
