"""The machine that a pre-training runs on: folders, device, threads, and who is told."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from spptransfer.errors import ConfigError
from spptransfer.pretraining.distributed import Team
from spptransfer.system import count_processors

logger = logging.getLogger(__name__)


def _passed_through(items: Iterable[Any], total: int, label: str) -> Iterable[Any]:
    return items


@dataclass
class Machine:
    """Where and with what a pre-training runs.

    Parameters
    ----------
    folder : Path
        Folder of the run: checkpoint, metrics, weights, the teacher's features.
    data_root : Path or None
        Folder in which the images are looked for.
    weights_dir : Path or None
        Folder of official weights, for a teacher.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    jobs : int or None
        Background threads; by default as many as are worth it.
    threads : int or None
        Threads of the network itself, on a CPU; by default one per processor. On a machine that
        others use too, fewer may be faster.
    progress : callable
        Wraps an iterable, given its length and a label.
    tell : callable
        Told one line for people, now and then.
    stop : Event
        Once set, the step in work is finished, the state saved, and the run ends.
    """

    folder: Path
    data_root: Path | None = None
    weights_dir: Path | None = None
    device: str = "auto"
    jobs: int | None = None
    threads: int | None = None
    progress: Callable[[Iterable[Any], int, str], Iterable[Any]] = _passed_through
    tell: Callable[[str], None] = logger.info
    stop: threading.Event = field(default_factory=threading.Event)

    def preparing(self, items: Iterable[Any], total: int, label: str) -> Iterator[Any]:
        """Show progress of work whose parts are kept or cheap, ending it where asked to stop."""
        for item in self.progress(items, total, label):
            if self.stop.is_set():
                raise KeyboardInterrupt
            yield item

    def silent(self) -> Machine:
        """The same machine, telling nobody."""
        return dataclasses.replace(self, progress=_passed_through, tell=logger.debug)

    def decoders(self, team: Team) -> int:
        """Threads that decode: by default the processors, shared out among the processes."""
        return self.jobs or max(1, count_processors() // team.local_count)

    def torch_device(self, team: Team) -> torch.device:
        """The device of this process.

        Raises
        ------
        ConfigError
            If there is no such device, or several processes would share a GPU.
        """
        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if name.partition(":")[0] not in ("cpu", "cuda"):  # torch knows others
            raise ConfigError(f"--device {name}: unknown; allowed: auto, cpu, cuda, cuda:N")
        if team.count > 1 and name.startswith("cuda:"):
            raise ConfigError(
                f"--device {name}: {team.count} processes need a GPU each; allowed: auto, cpu, cuda"
            )
        if team.count > 1 and name == "cuda":
            name = f"cuda:{team.local_rank}"
        try:
            device = torch.device(name)
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"--device {name}: {reason}; allowed: auto, cpu, cuda, cuda:N"
            ) from error
        return device
