from __future__ import annotations

import contextlib
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from spptransfer.processor import (
    beginning,
    full_float32,
    has_bfloat16,
    is_out_of_memory,
    may_be_unsupported,
    one_thread,
)

CPU = torch.device("cpu")
ACCELERATOR_ERROR = getattr(torch, "AcceleratorError", RuntimeError)
NO_ENGINE = "GET was unable to find an engine to execute this computation"


def test_this_machine_can_be_asked():
    assert has_bfloat16(torch.device("cpu")) in (True, False)


@pytest.mark.parametrize(
    ("abilities", "expected"),
    [
        ({}, False),
        ({"avx512_f": True, "avx512_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"bf16": True}, True),
        ({"arm_bf16": True}, True),
    ],
    ids=str,
)
def test_any_instruction_that_multiplies_bfloat16_will_do(monkeypatch, abilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities, raising=False)
    assert has_bfloat16(CPU) is expected


def test_a_torch_that_cannot_say_has_none(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert has_bfloat16(CPU) is False


@pytest.mark.parametrize("hip", [None, "6.2"])
def test_of_several_gpus_the_one_that_computes_is_asked(monkeypatch, hip):
    generations = {0: 9, 1: 7, 2: 8}
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda device: SimpleNamespace(major=generations[device.index]),
    )
    found = [has_bfloat16(torch.device("cuda", number)) for number in generations]
    assert found == ([True, False, True] if hip is None else [True] * 3)


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_one_thread_computes_and_as_many_as_before_afterwards(error):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        try:
            with one_thread():
                assert torch.get_num_threads() == 1
                if error:
                    raise error
        except RuntimeError:
            assert error
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


CUDNN = torch.backends.cudnn
NEWER = [
    kind for kind in (getattr(CUDNN, "conv", None), CUDNN.rnn) if hasattr(kind, "fp32_precision")
]
needs_newer = pytest.mark.skipif(not NEWER, reason="this torch has no such switches")


def switches():
    try:
        common = CUDNN.allow_tf32
    except RuntimeError:
        common = "contradicted"
    return common, [kind.fp32_precision for kind in NEWER]


@pytest.fixture
def tf32():
    """Switches that a test may turn."""
    before = switches()
    yield
    CUDNN.allow_tf32 = before[0]
    for kind, precision in zip(NEWER, before[1], strict=True):
        kind.fp32_precision = precision


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("error", [None, RuntimeError])
@pytest.mark.parametrize("common", [True, False])
@pytest.mark.parametrize(
    "newer",
    [
        None,
        *(
            pytest.param(pair, marks=needs_newer)
            for pair in itertools.product(("none", "ieee", "tf32"), repeat=2)
        ),
    ],
)
def test_nothing_is_rounded_to_tf32_and_switches_stand_as_before_afterwards(common, newer, error):
    CUDNN.allow_tf32 = common
    for kind, precision in zip(NEWER, newer or (), strict=False):
        kind.fp32_precision = precision
    before = switches()
    with contextlib.suppress(RuntimeError), full_float32(), full_float32():
        assert switches() == (False, ["ieee" for _ in NEWER])
        if error:
            raise error
    assert switches() == before


@needs_newer
@pytest.mark.usefixtures("tf32")
def test_not_even_what_the_user_set_for_all_of_torch_rounds_to_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends, "fp32_precision", "tf32")
    with full_float32():
        assert switches() == (False, ["ieee"] * 2)
    assert switches()[1] == ["tf32"] * 2


@pytest.mark.usefixtures("tf32")
def test_the_last_one_out_of_several_threads_turns_tf32_on_again():
    CUDNN.allow_tf32 = True
    before, inside, leave = switches(), threading.Barrier(2, timeout=30), threading.Event()

    def stay():
        with full_float32():
            inside.wait()
            assert leave.wait(30)

    with ThreadPoolExecutor(1) as pool:
        with full_float32():
            staying = pool.submit(stay)
            inside.wait()
        assert CUDNN.allow_tf32 is False
        leave.set()
        staying.result()
    assert switches() == before


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (ACCELERATOR_ERROR("CUDA error: out of memory\nCUDA kernel errors might be"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError(NO_ENGINE), True),
        (ACCELERATOR_ERROR("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_running_out_of_memory_is_told_from_other_errors(error, expected):
    assert is_out_of_memory(error) is expected


def test_only_one_of_the_messages_may_mean_something_else():
    assert may_be_unsupported(RuntimeError(NO_ENGINE))
    assert not may_be_unsupported(torch.OutOfMemoryError("CUDA out of memory"))


def test_torch_reports_a_full_memory_as_we_expect():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


PROCESSORS = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("workers", "waiting", "pinned"),
    [
        (PROCESSORS, False, PROCESSORS > 1),
        (PROCESSORS, True, False),
        (PROCESSORS + 1, False, False),
        (1, False, False),
    ],
)
def test_a_thread_computes_alone_and_stays_on_a_processor_if_there_is_one_for_each(
    workers, waiting, pinned
):
    def look():
        return torch.get_num_threads(), len(os.sched_getaffinity(0))

    with ThreadPoolExecutor(1, initializer=beginning(workers, waiting=waiting)) as pool:
        assert pool.submit(look).result() == (1, 1 if pinned else PROCESSORS)
    assert len(os.sched_getaffinity(0)) == PROCESSORS
