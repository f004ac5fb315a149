"""What torch's processor can do, how threads share it, and when memory was too small."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from spptransfer.affinity import are_one_each, spread

# As the CPU's allocator, CUDA itself (for pinned memory too), cuBLAS and cuDNN say it.
_OUT_OF_MEMORY = ("can't allocate memory", "error: out of memory", "_STATUS_ALLOC_FAILED")
# What cuDNN says where it finds no memory to work in, and where it does not know how to.
_NO_ENGINE = "unable to find an engine to execute this computation"

_lock = threading.Lock()
_exact = 0
_as_the_user_wants: tuple[bool, Sequence[str]] = (True, ())


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 numbers without converting them.

    Examples
    --------
    >>> has_bfloat16(torch.device("cpu")) in (True, False)
    True
    """
    if device.type == "cuda":
        # Not `torch.cuda.is_bf16_supported`, which asks the current device.
        by_amd = torch.version.hip is not None
        return by_amd or torch.cuda.get_device_properties(device).major >= 8
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


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Have a GPU's convolutions keep all of float32's digits as long as anybody is inside.

    By default cuDNN rounds what it multiplies to TF32, which has the digits of float16. Its
    switches are the process's: the last one out leaves them as the first one found them.

    Examples
    --------
    >>> with full_float32():
    ...     torch.backends.cudnn.allow_tf32
    False
    """
    global _exact, _as_the_user_wants
    with _lock:
        _exact += 1
        if _exact == 1:
            _as_the_user_wants = _tf32_switches()
            _set_tf32_switches(False, ["ieee" for _ in _newer_switches()])
    try:
        yield
    finally:
        with _lock:
            _exact -= 1
            if not _exact:
                _set_tf32_switches(*_as_the_user_wants)


def digits_of(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[None]:
    """Compute with all the digits of a type on a device, see `full_float32`."""
    exact = device.type == "cuda" and dtype == torch.float32
    return full_float32() if exact else contextlib.nullcontext()


def _newer_switches() -> list[Any]:
    """Those that newer versions of torch have beside the one for all of cuDNN."""
    kinds = (getattr(torch.backends.cudnn, name, None) for name in ("conv", "rnn"))
    return [kind for kind in kinds if hasattr(kind, "fp32_precision")]


def _tf32_switches() -> tuple[bool, Sequence[str]]:
    newer = [kind.fp32_precision for kind in _newer_switches()]
    try:
        return bool(torch.backends.cudnn.allow_tf32), newer
    except RuntimeError:  # it contradicts them and is not told then
        return any(precision != "tf32" for precision in newer), newer


def _set_tf32_switches(common: bool, newer: Sequence[str]) -> None:
    torch.backends.cudnn.allow_tf32 = common  # first, for it changes the newer ones
    for kind, precision in zip(_newer_switches(), newer, strict=True):
        kind.fp32_precision = precision


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
    messages = (*_OUT_OF_MEMORY, _NO_ENGINE)
    return isinstance(error, RuntimeError) and any(known in str(error) for known in messages)


def may_be_unsupported(error: BaseException) -> bool:
    """Whether what `is_out_of_memory` takes for that is also how cuDNN says that it cannot.

    Examples
    --------
    >>> may_be_unsupported(MemoryError())
    False
    """
    return _NO_ENGINE in str(error)
