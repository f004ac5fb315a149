"""What torch's processor can do, how threads share it, and when memory was too small."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from spptransfer.affinity import are_one_each, spread


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


def beginning(workers: int, *, waiting: bool = False) -> Callable[[], None]:
    """What threads that compute side by side do first: each keeps to itself.

    Parameters
    ----------
    workers : int
        How many there are.
    waiting : bool, default=False
        Whether they wait for other threads that compute, which may want any processor.

    Returns
    -------
    callable
        To be called in each of the threads. It has torch compute in that thread alone and, where
        there is one for every processor, keeps it to one of them.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> with ThreadPoolExecutor(2, initializer=beginning(2)) as pool:
    ...     pool.submit(torch.get_num_threads).result()
    1
    """
    stay = spread() if are_one_each(workers) and not waiting else None

    def begin() -> None:
        torch.set_num_threads(1)
        if stay is not None:
            stay()

    return begin


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
