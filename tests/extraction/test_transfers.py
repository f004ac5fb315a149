"""Batches go to a device and come home whole, and lanes let in as many as they say."""

import contextlib
import threading
import time
import weakref
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from spptransfer.extraction.division import GPU_LANES
from spptransfer.extraction.transfers import GPUTransfers, Lanes, stay, transfers_to

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
VIEWS = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)


def doubled(pixels):
    return [{6: pixels.float() * 2, None: pixels.sum(dim=(1, 2, 3))}]


def assert_doubled(found):
    ((found),) = found
    np.testing.assert_array_equal(found[6], VIEWS * np.float32(2))
    np.testing.assert_array_equal(found[None], VIEWS.sum(axis=(1, 2, 3)))


def test_on_the_cpu_nothing_is_copied():
    seen = []
    found = transfers_to(torch.device("cpu"))(
        VIEWS, lambda pixels: seen.append(pixels) or doubled(pixels)
    )
    assert_doubled(found)
    assert seen[0].data_ptr() == VIEWS.ctypes.data


def test_the_way_depends_on_the_device():
    assert transfers_to(torch.device("cpu")) is stay
    assert isinstance(transfers_to(torch.device("cuda")), GPUTransfers)


@pytest.mark.gpu
@needs_gpu
def test_a_batch_goes_to_the_gpu_and_comes_home():
    assert_doubled(transfers_to(torch.device("cuda"))(VIEWS, doubled))


@pytest.mark.gpu
@needs_gpu
def test_threads_on_a_gpu_do_not_mix_their_batches():
    way = transfers_to(torch.device("cuda"))
    weights = torch.randn(3, 3, device="cuda")
    wrong = []

    def work(number):
        rng = np.random.default_rng(number)
        for _ in range(50):
            views = rng.integers(0, 256, (8, 40, 50, 3), np.uint8)
            (found,) = way(views, lambda pixels: [{"product": pixels.float() @ weights}])
            expected = views.astype(np.float32) @ weights.cpu().numpy()
            if not np.allclose(found["product"], expected, rtol=1e-2, atol=1.0):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class StandIn:
    """Notes what a GPU's streams are asked for, and by which thread."""

    def __init__(self):
        self.log = []
        self.fails_at = None

    def note(self, what):
        self.log.append((what, threading.current_thread().name))
        if what == self.fails_at:
            raise RuntimeError(f"{what} failed")

    def count(self, what):
        return [noted for noted, _ in self.log].count(what)

    def stream(self, device):
        self.note("stream")
        return SimpleNamespace(
            wait_stream=lambda other: self.note("wait"),
            synchronize=lambda: self.note("synchronize"),
        )


@pytest.fixture
def gpu(monkeypatch):
    """A CPU in the place of a GPU."""
    gpu, empty = StandIn(), torch.empty
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: gpu.note(f"set {device}"))
    monkeypatch.setattr(torch.cuda, "Stream", gpu.stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    monkeypatch.setattr(torch, "empty", lambda *given, pin_memory, **more: empty(*given, **more))
    return gpu


def test_many_threads_share_a_few_streams_of_threads_that_keep_to_the_device(gpu):
    way, meeting = GPUTransfers(torch.device("cpu")), threading.Barrier(16, timeout=30)

    def work():
        meeting.wait()
        for _ in range(5):
            assert_doubled(way(VIEWS, doubled))

    run_all(*[work] * 16)
    assert 1 <= gpu.count("stream") <= GPU_LANES
    of_first = [what for what, thread in gpu.log if thread == gpu.log[0][1]]
    assert of_first[:4] == ["set cpu", "stream", "wait", "synchronize"]
    assert gpu.count("set cpu") == gpu.count("stream")


def test_no_gradients_are_prepared_for_by_whichever_thread_computes(gpu):
    seen = []
    GPUTransfers(torch.device("cpu"))(VIEWS, lambda pixels: seen.append(pixels) or doubled(pixels))
    assert seen[0].is_inference()


def test_the_threads_end_with_the_transfers(gpu):
    before = set(threading.enumerate())
    way = GPUTransfers(torch.device("cpu"))
    way(VIEWS, doubled)
    (own,) = set(threading.enumerate()) - before
    del way
    own.join(30)
    assert not own.is_alive()


@pytest.mark.parametrize("step", [None, "synchronize"])
def test_after_an_error_the_stream_is_waited_for_and_its_memory_let_go(gpu, step):
    way, kept = GPUTransfers(torch.device("cpu")), []
    gpu.fails_at = step

    def fails(pixels):
        activations = pixels.float()
        kept.extend(weakref.ref(tensor) for tensor in (pixels, activations))
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError) as caught:
        way(VIEWS, fails)
    assert gpu.log[-1][0] == "synchronize"
    assert [reference() for reference in kept] == [None] * 2
    assert caught.value.__traceback__ is not None
    gpu.fails_at = None
    assert_doubled(way(VIEWS, doubled))


def test_who_is_interrupted_waits_for_the_batch_under_way(gpu, monkeypatch):
    done = []

    def interrupted(future):
        raise KeyboardInterrupt

    monkeypatch.setattr(Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        GPUTransfers(torch.device("cpu"))(
            VIEWS, lambda pixels: time.sleep(0.05) or done.append(1) or doubled(pixels)
        )
    assert done


def test_a_thread_that_could_not_begin_begins_with_the_next_batch(gpu):
    way = GPUTransfers(torch.device("cpu"))
    gpu.fails_at = "stream"
    with pytest.raises(RuntimeError, match="stream failed"):
        way(VIEWS, doubled)
    gpu.fails_at = None
    assert_doubled(way(VIEWS, doubled))


class Crowd:
    """Counts how many are inside at once, and the most there ever were."""

    def __init__(self):
        self.lock = threading.Lock()
        self.inside = self.most = 0

    def __enter__(self):
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        return self

    def __exit__(self, *_):
        with self.lock:
            self.inside -= 1


def run_all(*functions):
    threads = [threading.Thread(target=function, daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)


def test_no_more_compute_at_once_than_there_are_lanes():
    lanes, crowd = Lanes(2), Crowd()

    def work():
        for _ in range(20):
            with lanes.one(), crowd:
                time.sleep(0.001)

    run_all(*[work] * 6)
    assert crowd.most == 2


def test_who_needs_all_lanes_is_alone_and_several_such_do_not_wait_for_each_other_for_ever():
    lanes, everybody = Lanes(3), Crowd()
    company = []

    def beside():
        for _ in range(30):
            with lanes.one(), everybody:
                time.sleep(0.0005)

    def alone():
        for _ in range(10):
            with lanes.all(), everybody:
                company.append(everybody.inside)

    run_all(beside, beside, beside, alone, alone)
    assert company == [1] * 20


def test_an_error_leaves_the_lanes_free():
    lanes = Lanes(1)
    for entered in (lanes.one, lanes.all):
        with pytest.raises(MemoryError), entered():
            raise MemoryError
    with lanes.all():
        pass
