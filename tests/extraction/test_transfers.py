"""Batches go to a device and come home whole, and lanes let in as many as they say."""

import threading
import time

import numpy as np
import pytest
import torch

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
