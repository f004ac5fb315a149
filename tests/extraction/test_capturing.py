"""The order in which torch is told to capture, rehearsed without a device."""

from __future__ import annotations

import contextlib
import gc
from collections import Counter

import pytest
import torch

from spptransfer.extraction import capturing
from spptransfer.extraction.capturing import CudaCapturer

PIXELS = torch.arange(6, dtype=torch.uint8)


class Rehearsal:
    """Writes down what torch.cuda is asked for; counts who uses a pool as torch does."""

    def __init__(self):
        self.log = []
        self.allocating, self.uses = set(), Counter()
        self.streams = self.pools = 0
        self.current = "lane"
        self.fails_at = None

    def note(self, *what):
        self.log.append(what if len(what) > 1 else what[0])
        if what[0] == self.fails_at:
            raise RuntimeError(f"{what[0]} failed")

    def end_allocating(self, device, pool):
        self.note("end allocating", device, pool)
        if pool not in self.allocating:
            raise RuntimeError("not currently recording to this pool")
        self.allocating.remove(pool)

    def release(self, device, pool):
        self.note("release", device, pool)
        assert self.uses[pool] > 0
        self.uses[pool] -= 1


class FakeStream:
    def __init__(self, stage):
        stage.streams += 1
        self.stage, self.name = stage, f"own {stage.streams}"

    def wait_stream(self, other):
        self.stage.note("wait", self.name, other)

    def synchronize(self):
        self.stage.note("synchronize", self.name)


class FakeCudaGraph:
    stage: Rehearsal

    def capture_begin(self, pool, capture_error_mode):
        self.pool, self.ended = pool, False
        self.stage.note("begin", self.stage.current, pool, capture_error_mode)
        self.stage.allocating.add(pool)
        self.stage.uses[pool] += 1

    def capture_end(self):
        self.stage.note("end")
        self.stage.allocating.remove(self.pool)
        self.ended = True

    def replay(self):
        self.stage.note("replay")

    def reset(self):
        self.stage.note("reset")
        if self.ended:
            self.stage.uses[self.pool] -= 1
            self.ended = False


@pytest.fixture
def stage(monkeypatch):
    stage = Rehearsal()

    @contextlib.contextmanager
    def enter(stream):
        before, stage.current = stage.current, stream.name
        try:
            yield
        finally:
            stage.current = before

    def pool():
        stage.pools += 1
        return (0, stage.pools)

    FakeCudaGraph.stage = stage
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream(stage))
    monkeypatch.setattr(torch.cuda, "stream", enter)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stage.current)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", pool)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: stage.note("empty"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: stage.note("wait for all"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeCudaGraph)
    for name, function in (
        ("_cuda_endAllocateToPool", stage.end_allocating),
        ("_cuda_releasePool", stage.release),
        ("_cuda_clearCublasWorkspaces", lambda: stage.note("clear")),
    ):
        monkeypatch.setattr(torch._C, name, function, raising=False)
    monkeypatch.setattr(capturing, "_FAILED", [])
    return stage


def computing(stage):
    def compute(pixels):
        stage.note("compute", stage.current, gc.isenabled())
        return [{1: pixels.float()}]

    return compute


def test_a_capture_is_warmed_up_and_made_in_a_stream_of_its_own(stage):
    graph = CudaCapturer(torch.device("cuda")).capture(computing(stage), PIXELS)
    warm_ups = [("compute", "own 1", True)] * capturing.WARM_UPS
    assert stage.log == [
        ("wait", "own 1", "lane"),
        *warm_ups,
        ("synchronize", "own 1"),
        "clear",
        "empty",
        ("begin", "own 1", (0, 1), "thread_local"),
        ("compute", "own 1", False),
        "end",
        "clear",
    ]
    assert stage.current == "lane"
    assert gc.isenabled()
    assert graph is not None


def test_graphs_of_a_lane_share_a_pool_and_a_stream_and_lanes_share_nothing(stage):
    one, other = (CudaCapturer(torch.device("cuda")) for _ in range(2))
    for capturer in (one, one, other):
        capturer.capture(computing(stage), PIXELS)
    begun = [entry[1:3] for entry in stage.log if entry[0] == "begin"]
    assert begun == [("own 1", (0, 1)), ("own 1", (0, 1)), ("own 2", (0, 2))]


def test_a_replay_reads_a_copy_of_the_batch(stage):
    given = PIXELS.clone()
    graph = CudaCapturer(torch.device("cuda")).capture(lambda pixels: [{1: pixels}], given)
    stage.log.clear()
    (found,) = graph(torch.full_like(given, 9))
    assert found[1].tolist() == [9] * 6
    assert torch.equal(given, PIXELS)
    assert stage.log == ["replay"]


def test_a_computation_that_fails_amid_a_capture_ends_it(stage):
    def failing(pixels):
        if "begin" in [entry[0] for entry in stage.log]:
            raise ValueError("not while capturing")
        return [{}]

    capturer = CudaCapturer(torch.device("cuda"))
    with pytest.raises(ValueError, match="not while capturing"):
        capturer.capture(failing, PIXELS)
    assert stage.log[-4:] == ["end", "reset", ("end allocating", 0, (0, 1)), "clear"]
    assert_usable_again(stage, capturer)


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ("begin", [("end allocating", 0, (0, 1))]),
        ("end", [("end allocating", 0, (0, 1)), ("release", 0, (0, 1))]),
    ],
)
def test_a_capture_that_fails_to_begin_or_end_is_left_behind(stage, step, told):
    capturer = CudaCapturer(torch.device("cuda"))
    stage.fails_at = step
    with pytest.raises(RuntimeError, match=f"{step} failed"):
        capturer.capture(computing(stage), PIXELS)
    assert stage.log[-2 - len(told) :] == ["reset", *told, "clear"]
    stage.fails_at = None
    assert_usable_again(stage, capturer)


@pytest.mark.parametrize("step", ["compute", "begin", "end"])
def test_a_failed_capture_does_not_keep_the_pool_of_the_graphs_before_it(stage, step):
    capturer = CudaCapturer(torch.device("cuda", 1))
    good = capturer.capture(computing(stage), PIXELS)
    again = iter([None] * capturing.WARM_UPS)

    def compute(pixels):
        if next(again, "capture") == "capture":
            stage.note(step)
        return [{}]

    stage.fails_at = step
    with pytest.raises(RuntimeError, match=f"{step} failed"):
        capturer.capture(compute, PIXELS)
    stage.fails_at = None
    assert not stage.allocating
    assert stage.uses[0, 1] == 1
    good.drop()
    assert stage.uses[0, 1] == 0
    assert {entry[1] for entry in stage.log if entry[0] in ("end allocating", "release")} == {1}


@pytest.mark.parametrize("step", ["end", "reset", "end allocating"])
def test_the_first_error_is_the_one_that_is_told(stage, step):
    def failing(pixels):
        if "begin" in [entry[0] for entry in stage.log]:
            raise torch.OutOfMemoryError("the first")
        return [{}]

    capturer = CudaCapturer(torch.device("cuda"))
    stage.fails_at = step
    with pytest.raises(torch.OutOfMemoryError, match="the first"):
        capturer.capture(failing, PIXELS)
    stage.fails_at = None
    assert_usable_again(stage, capturer)


def assert_usable_again(stage, capturer):
    """With another stream and pool, as it was before, and the failed graph not destroyed."""
    assert stage.current == "lane"
    assert gc.isenabled()
    assert len(capturing._FAILED) == 1
    stage.log.clear()
    capturer.capture(computing(stage), PIXELS)
    assert ("begin", "own 2", (0, 2), "thread_local") in stage.log


def test_a_collector_that_was_off_stays_off(stage):
    gc.disable()
    try:
        CudaCapturer(torch.device("cuda")).capture(computing(stage), PIXELS)
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("step", [None, "wait for all", "reset"])
def test_a_graph_is_dropped_when_the_device_is_through_with_it(stage, step):
    graph = CudaCapturer(torch.device("cuda")).capture(computing(stage), PIXELS)
    stage.fails_at = step
    graph.drop()
    assert stage.log[-2:] == ["wait for all", "reset"]
