"""Learning rates: the paper's, divided by 10 on plateaus, and a cosine."""

from __future__ import annotations

import math
from typing import Any

from spptransfer.pretraining.config import TrainingSection

# An error that falls by less has not fallen: one image of ten thousand.
_LEAST_GAIN = 1e-4


class Schedule:
    """Learning rate of every step.

    Parameters
    ----------
    section : TrainingSection
        The rate to start from and how it falls.
    steps : int
        Steps in an epoch.

    Examples
    --------
    >>> section = TrainingSection(epochs=2, schedule="cosine", learning_rate=1.0)
    >>> schedule = Schedule(section, steps=2)
    >>> [round(schedule.rate(epoch, step), 2) for epoch in range(2) for step in range(2)]
    [1.0, 0.85, 0.5, 0.15]
    """

    def __init__(self, section: TrainingSection, steps: int) -> None:
        self._section = section
        self._steps = steps
        self._best = math.inf
        self._waited = 0
        self._divided = 0

    def rate(self, epoch: int, step: int) -> float:
        """Learning rate of a step, both counted from 0."""
        section = self._section
        done = epoch + step / self._steps
        if done < section.warmup:
            # The first step learns a little: a rate of 0 would waste it.
            return (
                section.learning_rate
                * (done + 1 / self._steps)
                / (section.warmup + 1 / self._steps)
            )
        if section.schedule == "plateau":
            return float(section.learning_rate / 10**self._divided)
        progress = (done - section.warmup) / (section.epochs - section.warmup)
        return section.learning_rate * (1 + math.cos(math.pi * progress)) / 2

    def observe(self, error: float) -> None:
        """Take note of an epoch's validation error, a share of the images."""
        if error < self._best - _LEAST_GAIN:
            self._best, self._waited = error, 0
            return
        self._waited += 1
        if self._waited >= self._section.patience and self._divided < self._section.divisions:
            self._divided += 1
            self._waited = 0

    def state(self) -> dict[str, Any]:
        """What a continued run has to know."""
        return {"best": self._best, "waited": self._waited, "divided": self._divided}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from another schedule's state."""
        self._best, self._waited = float(state["best"]), int(state["waited"])
        self._divided = int(state["divided"])
