"""Several processes that train one network, as torch's own launcher starts them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from spptransfer.errors import ConfigError
from spptransfer.pretraining.student import Student

# The first process writes checkpoints while the others wait, and that on any disk.
_PATIENCE = timedelta(hours=1)


@dataclass(frozen=True)
class Team:
    """The processes of a training; usually there is one.

    What it tells and sums up goes between the processors' memories, whatever device trains.

    Parameters
    ----------
    rank : int, default=0
        Number of this process.
    count : int, default=1
        Number of processes.
    local_rank, local_count : int
        The same among the processes of this machine.

    Examples
    --------
    >>> Team().sums([1, 2.5]), Team().leads
    ([1.0, 2.5], True)
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and speaks to people."""
        return self.rank == 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """Add numbers up over all processes, which all have to ask."""
        totals = torch.tensor(values, dtype=torch.float64)
        if self.count > 1:
            distributed.all_reduce(totals)
        return totals.tolist()

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in one process or more."""
        return self.sums([flag])[0] > 0

    def told(self, value: float) -> float:
        """The first process's value of a number."""
        return self.sums([value if self.leads else 0.0])[0]

    def agrees(self, value: float) -> bool:
        """Whether all processes have the same value of a number."""
        return not self.any(value != self.told(value))

    def share_buffers(self, module: nn.Module) -> None:
        """Give all processes the first one's buffers, such as the statistics of batch norms."""
        if self.count > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, src=0)


def team_of_environment(environment: Mapping[str, str] = os.environ) -> Team:
    """The processes that torch's launcher started, as it tells each of them.

    Parameters
    ----------
    environment : mapping of str to str, optional
        By default this process's.

    Returns
    -------
    Team
        Of one process where nothing was launched.

    Raises
    ------
    ConfigError
        If the launcher's variables contradict each other.

    Examples
    --------
    >>> team_of_environment({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}).rank
    3
    >>> team_of_environment({}).count
    1
    """
    if not {"RANK", "WORLD_SIZE"} <= environment.keys():
        return Team()
    try:
        # The local numbers are the launcher's alone; others set the first two only.
        rank, count = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        local_rank = int(environment.get("LOCAL_RANK", rank))
        local_count = int(environment.get("LOCAL_WORLD_SIZE", count))
    except ValueError as error:
        raise ConfigError(f"RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE: {error}") from error
    team = Team(rank, count, local_rank, local_count)
    if not 0 <= team.rank < team.count:
        raise ConfigError(f"RANK must be from 0 to {team.count - 1}, got {team.rank}")
    return team


@contextlib.contextmanager
def joined(team: Team, device: torch.device) -> Iterator[None]:
    """Connect the processes; NCCL carries the gradients of GPUs, Gloo everything else.

    After an error the connection is left as it is: to close it, a process might wait for others
    that wait for it.

    Raises
    ------
    ConfigError
        If the launcher did not tell where, or nobody is there.
    """
    if team.count == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        distributed.init_process_group(backend, timeout=_PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"cannot connect {team.count} processes at MASTER_ADDR and MASTER_PORT: "
            f"{str(error).splitlines()[0]}"
        ) from error
    yield
    distributed.destroy_process_group()


def prepared(student: Student, team: Team, device: torch.device) -> Student:
    """Let batch norms of several GPUs use the statistics of the whole batch.

    On CPUs, for which torch has no such module, each process uses those of its own share, and
    the first process's running means are everybody's.
    """
    if team.count > 1 and device.type == "cuda":
        return cast(Student, nn.SyncBatchNorm.convert_sync_batchnorm(student))
    return student


def in_parallel(student: nn.Module, team: Team, device: torch.device) -> nn.Module:
    """Wrap a network whose gradients are to be the mean over all processes."""
    if team.count == 1:
        return student
    return DistributedDataParallel(student, device_ids=[device] if device.type == "cuda" else None)
