"""Learning rates: the paper's, divided by 10 on plateaus, and a cosine."""

from __future__ import annotations

import math
from collections.abc import Iterable

from spptransfer.pretraining.config import TrainingSection

# An error that falls by less has not fallen: one image of ten thousand.
_LEAST_GAIN = 1e-4


def rate(section: TrainingSection, done: float, step: float, errors: Iterable[float]) -> float:
    """Compute the learning rate of a step.

    `done` is how many epochs are done before it, `step` what it is of one, `errors` the share of
    the validation images that was wrong after each epoch.

    Examples
    --------
    >>> section = TrainingSection(epochs=2, schedule="cosine", learning_rate=1.0)
    >>> [round(rate(section, done, 0.5, []), 2) for done in (0, 0.5, 1, 1.5)]
    [1.0, 0.85, 0.5, 0.15]
    """
    if done < section.warmup:
        # The first step learns a little: a rate of 0 would waste it.
        return section.learning_rate * (done + step) / (section.warmup + step)
    if section.schedule == "plateau":
        return section.learning_rate / float(10 ** divisions(section, errors))
    progress = (done - section.warmup) / (section.epochs - section.warmup)
    return section.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def divisions(section: TrainingSection, errors: Iterable[float]) -> int:
    """Count how often the rate has been divided after epochs with some errors."""
    best, waited, divided = math.inf, 0, 0
    for error in errors:
        if error < best - _LEAST_GAIN:
            best, waited = error, 0
            continue
        waited += 1
        if waited >= section.patience and divided < section.divisions:
            divided, waited = divided + 1, 0
    return divided
