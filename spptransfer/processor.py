"""What torch's processor can do, how it is kept to one thread, and when memory was too small."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 numbers without converting them.

    Examples
    --------
    >>> has_bfloat16(torch.device("cpu")) in (True, False)
    True
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    describe = getattr(torch.cpu, "get_capabilities", None)  # absent from older versions
    known: Mapping[str, Any] = describe() if describe is not None else {}
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16"))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute in this thread alone: others, waiting for work, would only burn time.

    The processor time of what is computed then does not depend on who else is at work.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice, on a device or on the CPU (a plain RuntimeError there).

    Examples
    --------
    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("wrong shape"))
    (True, False)
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
