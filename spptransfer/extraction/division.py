"""How the work of an extraction is divided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from spptransfer.system import count_processors
from spptransfer.errors import ConfigError, suggestion
from spptransfer.runtimes import count_callers

# Images per part; a GPU's batches are larger, and those of one size in a part share them.
PART_ROWS, GPU_PART_ROWS = 128, 256
# Batches at once on a GPU: one is copied while the other is computed.
GPU_LANES = 2

Engine = Literal["auto", "threads", "processes", "dask"]
ENGINES: tuple[Engine, ...] = get_args(Engine)


def check_engine(name: str) -> Engine:
    """Validate the name of an engine, one of those of `extract`."""
    for known in ENGINES:
        if name == known:
            return known
    raise ConfigError(f"engine: {name!r} is unknown; {suggestion(str(name), ENGINES)}")


@dataclass(frozen=True)
class Division:
    """Who makes the parts, and how many work side by side.

    Attributes
    ----------
    engine : {"threads", "processes", "dask"}
        Who makes them; on a GPU processes only read, and threads of this one compute.
    on_gpu : bool
        Whether the network runs on a GPU.
    jobs : int
        Threads that compute, or processes.
    readers, computers : int
        How many read and compute side by side. On a GPU a few batches are computed at once,
        whoever reads them.
    part_rows : int
        Images per part.
    """

    engine: Engine
    on_gpu: bool
    jobs: int
    readers: int
    computers: int
    part_rows: int

    @property
    def is_here(self) -> bool:
        """Whether rows come into being in this process, which writes them where they will stay."""
        return self.engine == "threads" or (self.on_gpu and self.engine == "processes")


def divide(
    engine: Engine,
    jobs: int | None,
    runtime: str,
    *,
    on_gpu: bool,
    part_rows: int | None = None,
) -> Division:
    """Divide the work.

    Parameters
    ----------
    engine : {"auto", "threads", "processes", "dask"}
        "auto" is "processes" if several are asked for, on a CPU, else "threads".
    jobs : int or None
        Threads or processes; one for each processor by default.
    runtime : str
        Who computes the maps.
    on_gpu : bool
        Whether the network runs on a GPU.
    part_rows : int, optional
        Images per part, if not the usual number.

    Returns
    -------
    Division

    Examples
    --------
    >>> divided = divide("auto", 4, "torch", on_gpu=False)
    >>> divided.engine, divided.readers, divided.computers, divided.is_here
    ('processes', 4, 4, False)
    """
    if engine == "auto":
        engine = "threads" if on_gpu or (jobs or 1) == 1 else "processes"
    jobs = jobs or count_processors()
    readers = count_callers(runtime, jobs) if engine == "threads" else jobs
    return Division(
        engine,
        on_gpu,
        jobs,
        readers,
        computers=min(readers, GPU_LANES) if on_gpu else readers,
        part_rows=part_rows or (GPU_PART_ROWS if on_gpu else PART_ROWS),
    )
