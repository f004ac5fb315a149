from __future__ import annotations

import contextlib
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from spptransfer.errors import ConfigError
from spptransfer.runtimes.devices import (
    choose_device,
    full_float32,
    has_bfloat16,
    is_out_of_memory,
    may_be_unsupported,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
ACCELERATOR_ERROR = getattr(torch, "AcceleratorError", RuntimeError)
NO_ENGINE = "GET was unable to find an engine to execute this computation"
CUDNN = torch.backends.cudnn
NEWER = [
    kind for kind in (getattr(CUDNN, "conv", None), CUDNN.rnn) if hasattr(kind, "fp32_precision")
]


@pytest.mark.parametrize("name", ["cuda:99", "cuda", "mps"])
def test_a_device_that_is_not_there_is_named(name):
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if there.get(name):
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match=f"'{name}' is not on this machine; allowed: auto, cpu"):
        choose_device(name)


def test_auto_is_a_cuda_device_for_torch_alone():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device("auto").type == choose_device("auto", "auto").type == expected
    assert choose_device("auto", "openvino") == CPU


@pytest.mark.parametrize("name", ["", "avx512_f", "avx512_bf16", "amx_bf16", "bf16", "arm_bf16"])
def test_any_instruction_that_multiplies_bfloat16_will_do(monkeypatch, name):
    known = {"avx512_bf16": False, name: True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert has_bfloat16(CPU) is name.endswith("bf16")


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
@pytest.mark.parametrize("newer", [None, *itertools.product(("none", "ieee", "tf32"), repeat=2)])
def test_nothing_is_rounded_to_tf32_and_switches_stand_as_before_afterwards(common, newer, error):
    if newer and not NEWER:
        pytest.skip("this torch has no such switches")
    CUDNN.allow_tf32 = common
    for kind, precision in zip(NEWER, newer or (), strict=False):
        kind.fp32_precision = precision
    before = switches()
    exact = full_float32(CUDA, torch.float32)
    with contextlib.suppress(RuntimeError), exact, full_float32(CUDA, torch.float32):
        assert switches() == (False, ["ieee" for _ in NEWER])
        if error:
            raise error
    assert switches() == before


@pytest.mark.usefixtures("tf32")
def test_the_last_one_out_of_several_threads_turns_tf32_on_again():
    CUDNN.allow_tf32 = True
    before, inside, leave = switches(), threading.Barrier(2, timeout=30), threading.Event()

    def stay():
        with full_float32(CUDA, torch.float32):
            inside.wait()
            assert leave.wait(30)

    with ThreadPoolExecutor(1) as pool:
        with full_float32(CUDA, torch.float32):
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
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (ACCELERATOR_ERROR("CUDA error: out of memory\nCUDA kernel errors might be"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError(NO_ENGINE), True),
        (ACCELERATOR_ERROR("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_running_out_of_memory_is_told_from_other_errors(error, expected):
    assert is_out_of_memory(error) is expected
    assert may_be_unsupported(error) is (str(error) == NO_ENGINE)


def test_torch_reports_a_full_memory_as_we_expect():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
