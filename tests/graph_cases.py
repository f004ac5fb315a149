"""Stand-ins for CUDA's graphs on a CPU: they write over what they found, and may go wrong."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

# In place of the times that a shape has to come.
OFTEN = 3


def fetched(views, compute):
    """The way home of a GPU: copies, made before the next batch."""
    found = compute(torch.from_numpy(views))
    return [{key: value.numpy().copy() for key, value in one.items()} for one in found]


def assert_same(found, expected):
    assert [list(one) for one in found] == [list(one) for one in expected]
    for one, other in zip(found, expected, strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def out_of_memory():
    return torch.OutOfMemoryError("CUDA out of memory")


def batch(seed=0, shape=(2, 5, 6, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def features(pixels):
    flat = pixels.flatten(1).float()
    return [{1: flat.mean(1, keepdim=True), 2: flat[:, :4] * 0.1}, {None: flat.sum(1)}]


@dataclass
class World:
    """What all lanes of a test share: how graphs behave, and what became of them."""

    wrong: Any = None  # changes what a replay found
    error: Any = None  # raised by a capture
    replay_error: Any = None
    replay_seconds: Iterator = field(default_factory=lambda: itertools.repeat(0.5))
    graphs: list = field(default_factory=list)
    capturers: list = field(default_factory=list)
    attempts: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    computing: int = 0
    beside_captures: set = field(default_factory=set)
    clashes: int = 0

    def open(self):
        capturer = FakeCapturer(self)
        self.capturers.append(capturer)
        return capturer

    @property
    def kept(self):
        return [graph for graph in self.graphs if not graph.dropped]

    @property
    def replays(self):
        return sum(graph.replays for graph in self.graphs)

    def compute(self, pixels):
        with self.lock:
            self.computing += 1
        try:
            return features(pixels)
        finally:
            with self.lock:
                self.computing -= 1


class FakeCapturer:
    def __init__(self, world):
        self.world = world
        self.busy = threading.Lock()
        self.replayed = False

    def capture(self, compute, pixels):
        self.world.attempts += 1
        self.world.beside_captures.add(self.world.computing)
        if self.world.error is not None:
            raise self.world.error
        graph = FakeGraph(self, compute, pixels)
        self.world.graphs.append(graph)
        return graph

    def seconds(self, run):
        self.replayed = False
        run()
        return next(self.world.replay_seconds) if self.replayed else 1.0

    @contextlib.contextmanager
    def alone(self):
        if not self.busy.acquire(blocking=False):
            self.world.clashes += 1
            yield
            return
        try:
            yield
        finally:
            self.busy.release()


class FakeGraph:
    """Reads from memory of its own and writes to memory of its own, as a CUDA graph does."""

    def __init__(self, capturer, compute, pixels):
        self.capturer, self.compute = capturer, compute
        self.pixels = pixels.clone()
        self.found = [{key: value.clone() for key, value in one.items()} for one in compute(pixels)]
        self.replays = 0
        self.dropped = False

    def __call__(self, pixels):
        assert not self.dropped
        world = self.capturer.world
        if world.replay_error is not None:
            raise world.replay_error
        with self.capturer.alone():
            self.capturer.replayed = True
            self.replays += 1
            self.pixels.copy_(pixels)
            if world.wrong is not None:
                return world.wrong(self)
            for one, new in zip(self.found, self.compute(self.pixels), strict=True):
                for key, value in new.items():
                    one[key].copy_(value)
        return self.found

    def drop(self):
        assert not self.dropped
        self.dropped = True


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
