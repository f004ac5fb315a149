"""Whether a step is faster in bfloat16, found by trying."""

from __future__ import annotations

import logging
import time

import torch
from torch.nn import functional

from spptransfer.pretraining.distributed import Team
from spptransfer.pretraining.student import Student
from spptransfer.runtimes.devices import has_bfloat16, one_thread

logger = logging.getLogger(__name__)

_BATCH = 32
_TRIALS = 3
# A gain that small may be noise, and float32 is the safer choice.
_LEAST_GAIN = 1.1


def choose_precision(
    wanted: str, student: Student, side: int, device: torch.device, team: Team | None = None
) -> str:
    """Resolve ``"auto"`` by timing training steps on this machine.

    Parameters
    ----------
    wanted : {"auto", "float32", "bfloat16"}
        What the pipeline file asks for.
    student : Student
        The network; its weights stay as they are, its batch norms' statistics too.
    side : int
        Side of the input in pixels.
    device : torch.device
        Where it trains.
    team : Team, optional
        Processes that train together; the first one's choice is everybody's.

    Returns
    -------
    str
        ``"float32"`` or ``"bfloat16"``.
    """
    if wanted != "auto":
        return wanted
    gains = has_bfloat16(device)
    if gains and device.type == "cpu":
        gains = _gains_here(student, side)
    return "bfloat16" if (team or Team()).told(gains) else "float32"


def _gains_here(student: Student, side: int) -> bool:
    """Whether steps in bfloat16 are clearly faster, the network staying as it is."""
    kept = {key: value.clone() for key, value in student.state_dict().items()}
    with torch.random.fork_rng(devices=[]), one_thread():
        gain = _gain(student, side)
    student.load_state_dict(kept)
    logger.info("a step in bfloat16 is %.2f times as fast as in float32", gain)
    return gain >= _LEAST_GAIN


def _gain(student: Student, side: int) -> float:
    """How many times as fast a step is in bfloat16 as in float32, each at its best."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(_TRIALS):
        for low in seconds:
            seconds[low].append(_time_step(student, side, low))
    return min(seconds[False]) / min(seconds[True])


def _time_step(student: Student, side: int, low: bool) -> float:
    """Seconds of processor time for a step, forward and backward."""
    images = torch.randn(_BATCH, 3, side, side).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(_BATCH, dtype=torch.int64)
    start = time.thread_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        scores, _ = student(images)
    functional.cross_entropy(scores.float(), labels).backward()
    spent = time.thread_time() - start
    student.zero_grad(set_to_none=True)
    return spent
