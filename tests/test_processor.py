from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from spptransfer.processor import beginning, has_bfloat16, is_out_of_memory, one_thread

CPU = torch.device("cpu")


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


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_running_out_of_memory_is_told_from_other_errors(error, expected):
    assert is_out_of_memory(error) is expected


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
