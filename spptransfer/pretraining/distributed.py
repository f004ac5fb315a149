"""Several processes that train one network, as torch's launcher starts them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch
from torch import distributed

from spptransfer.errors import ConfigError
from spptransfer.runtimes import ComputeOptions, check_options
from spptransfer.runtimes.devices import choose_device

# The first process writes checkpoints while the others wait, and that on any disk.
_PATIENCE = timedelta(hours=1)


def world_size() -> int:
    """Return the number of processes."""
    return _told("WORLD_SIZE", 1)


def rank() -> int:
    """Return the number of this process; the first one, 0, writes the files and tells people."""
    return _told("RANK", 0) if world_size() > 1 else 0


def local_world_size() -> int:
    """Return the number of processes on this machine."""
    return _told("LOCAL_WORLD_SIZE", world_size())


def _told(name: str, alone: int) -> int:
    text = os.environ.get(name, str(alone))
    if not text.isdecimal():
        raise ConfigError(f"{name} must be a number, as torch's launcher sets it, got '{text}'")
    return int(text)


def training_device(name: str) -> torch.device:
    """Choose the device of this process; of several processes each has a GPU of its own."""
    check_options(ComputeOptions(device=name))
    if world_size() > 1 and name.startswith("cuda:"):
        raise ConfigError(
            f"device: '{name}': {world_size()} processes need a GPU each; allowed: auto, cpu, cuda"
        )
    device = choose_device(name)
    if world_size() > 1 and device.type == "cuda":
        device = choose_device(f"cuda:{_told('LOCAL_RANK', rank())}")
        torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Connect the processes; NCCL carries the gradients of GPUs, Gloo everything else.

    After an error the connection is left as it is: to close it, a process might wait for others
    that wait for it.
    """
    if world_size() == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        distributed.init_process_group(backend, timeout=_PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"cannot connect {world_size()} processes at MASTER_ADDR and MASTER_PORT: "
            f"{str(error).splitlines()[0]}"
        ) from error
    yield
    distributed.destroy_process_group()


def all_sums(values: Sequence[float]) -> list[float]:
    """Add numbers up over all processes, which all have to ask.

    Examples
    --------
    >>> all_sums([1, 2.5])
    [1.0, 2.5]
    """
    totals = torch.tensor(values, dtype=torch.float64)
    if world_size() > 1:
        distributed.all_reduce(totals)
    return totals.tolist()
