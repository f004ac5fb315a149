"""What a report says, as plain data: results (and predictions) in, a view model out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

STAGES = ("read", "compute", "write", "train")


@dataclass(frozen=True)
class Metric:
    """One metric over the splits.

    Attributes
    ----------
    name : str
        Its full name.
    value : float
        The mean over the splits, a fraction.
    std : float or None
        Standard deviation over the splits; None for a single split.
    per_split : tuple of float
        The splits' values.
    """

    name: str
    value: float | None
    std: float | None
    per_split: tuple[float, ...]

    @property
    def shown(self) -> list[float]:
        """Every number that a figure of this metric has to hold."""
        value, std = self.value, self.std or 0.0
        return [*self.per_split] if value is None else [*self.per_split, value - std, value + std]


@dataclass(frozen=True)
class ClassScore:
    """One class's value of a metric.

    Attributes
    ----------
    name : str
        The class.
    value : float or None
        Mean over the splits, a fraction; None where the class has no test image.
    low, high : float or None
        Smallest and largest value of a split; None where that is not known.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class ClassTable:
    """Every class's value of the metric that is shown per class.

    Attributes
    ----------
    metric : str
        The metric's full name.
    scores : tuple of ClassScore
        Lowest first; classes without a value last.
    """

    metric: str
    scores: tuple[ClassScore, ...]


@dataclass(frozen=True)
class ChoiceOfC:
    """How C was chosen.

    Attributes
    ----------
    candidates : tuple of float
        Every C that was tried or used, ascending.
    curves : tuple of tuple of (C, score)
        Validation score against C, one curve per split; empty where C was given.
    shared : Counter of float
        How many splits chose which C for all classes; empty if C is chosen per class.
    per_class : dict of str to Counter of float
        The same for each class; empty if C is shared.
    """

    candidates: tuple[float, ...]
    curves: tuple[tuple[tuple[float, float], ...], ...]
    shared: Counter[float]
    per_class: dict[str, Counter[float]]


@dataclass(frozen=True)
class Stage:
    """A stage of the run.

    Attributes
    ----------
    name : str
        What was done.
    seconds : float
        Time spent.
    share : float
        Share of the whole run, in [0, 1].
    """

    name: str
    seconds: float
    share: float


def metrics(results: Mapping[str, Any]) -> list[Metric]:
    """List all metrics, the headline first.

    Parameters
    ----------
    results : mapping
        Contents of ``results.json``.

    Returns
    -------
    list of Metric
        The headline, then the others in their order.
    """
    headline = results["headline"]
    listed = dict(results.get("metrics") or {})
    listed.setdefault(headline["metric"], headline)
    names = sorted(listed, key=lambda name: name != headline["metric"])
    return [
        Metric(
            name,
            number(listed[name].get("value")),
            number(listed[name].get("std")),
            tuple(
                value for value in listed[name].get("per_split") or () if number(value) is not None
            ),
        )
        for name in names
    ]


def per_class_metric(results: Mapping[str, Any]) -> str | None:
    """Name the metric that is shown per class.

    Parameters
    ----------
    results : mapping
        Contents of ``results.json``.

    Returns
    -------
    str or None
        The headline if it is known per class, else the first that is; None if none is.
    """
    known = results.get("metrics") or {}
    names = [metric.name for metric in metrics(results)]
    return next((name for name in names if known.get(name, {}).get("per_class")), None)


def class_table(
    metric: str,
    values: Mapping[str, float | None],
    classes: Sequence[str],
    per_split: npt.NDArray[np.floating] | None = None,
) -> ClassTable:
    """Sort the classes by their value.

    Parameters
    ----------
    metric : str
        The metric's full name.
    values : mapping of str to float or None
        Each class's value; a class that is not in it has none.
    classes : sequence of str
        Class names.
    per_split : ndarray of shape (n_splits, n_classes) or None, default=None
        The splits' values, for the spread.

    Returns
    -------
    ClassTable
        The classes, lowest value first.

    Examples
    --------
    >>> table = class_table("accuracy", {"crab": 0.5, "ant": 0.9}, ["ant", "bee", "crab"])
    >>> [(score.name, score.value) for score in table.scores]
    [('crab', 0.5), ('ant', 0.9), ('bee', None)]
    """
    lows, highs = _spread(per_split, len(classes))
    scores = [
        ClassScore(name, number(values.get(name)), low, high)
        for name, low, high in zip(classes, lows, highs, strict=True)
    ]
    scores.sort(key=lambda score: math.inf if score.value is None else score.value)
    return ClassTable(metric, tuple(scores))


def _spread(
    per_split: npt.NDArray[np.floating] | None, n_classes: int
) -> tuple[list[float | None], list[float | None]]:
    """Smallest and largest value of every class; None for a single split."""
    nothing: list[float | None] = [None] * n_classes
    if per_split is None or len(per_split) < 2:
        return nothing, nothing
    lows = np.where(np.isnan(per_split), np.inf, per_split).min(axis=0)
    highs = np.where(np.isnan(per_split), -np.inf, per_split).max(axis=0)
    return [number(low) for low in lows], [number(high) for high in highs]


def choice_of_C(splits: Sequence[Mapping[str, Any]]) -> ChoiceOfC:
    """Collect every split's choice of C.

    Parameters
    ----------
    splits : sequence of mapping
        ``results["splits"]``.

    Returns
    -------
    ChoiceOfC
        Choices counted over the splits, with the validation curves.

    Examples
    --------
    >>> splits = [{"C": 1.0, "validation": [{"C": 0.1, "score": 0.7}, {"C": 1.0, "score": 0.8}]}]
    >>> choice = choice_of_C(splits)
    >>> choice.shared, choice.candidates
    (Counter({1.0: 1}), (0.1, 1.0))
    """
    shared: Counter[float] = Counter()
    per_class: dict[str, Counter[float]] = {}
    curves = []
    for split in splits:
        chosen = split.get("C")
        if isinstance(chosen, Mapping):
            for name, value in chosen.items():
                per_class.setdefault(str(name), Counter())[float(value)] += 1
        elif chosen is not None:
            shared[float(chosen)] += 1
        points = [
            (float(point["C"]), number(point["score"])) for point in split.get("validation") or ()
        ]
        curves.append(tuple(sorted((C, score) for C, score in points if score is not None)))
    used = {C for choices in (shared, *per_class.values()) for C in choices}
    tried = {C for curve in curves for C, _ in curve}
    kept = tuple(curve for curve in curves if curve)
    return ChoiceOfC(tuple(sorted(used | tried)), kept, shared, per_class)


def stages(timings: Mapping[str, float] | None) -> list[Stage]:
    """Split the time of a run into read, compute, write, train and the rest.

    Parameters
    ----------
    timings : mapping of str to float or None
        Seconds per stage and ``total``.

    Returns
    -------
    list of Stage
        Stages that took time; their shares add up to 1. Where stages overlap in time, so that
        they exceed the total, the shares are of their sum.

    Examples
    --------
    >>> [(stage.name, stage.share) for stage in stages({"read": 1, "train": 2, "total": 4})]
    [('read', 0.25), ('train', 0.5), ('other', 0.25)]
    """
    seconds = {name: number((timings or {}).get(name)) or 0.0 for name in STAGES}
    total = number((timings or {}).get("total")) or 0.0
    named = sum(seconds.values())
    seconds["other"] = max(0.0, total - named)
    whole = max(total, named)
    return [Stage(name, spent, spent / whole) for name, spent in seconds.items() if spent > 0]


def number(value: Any) -> float | None:
    """Take a number from JSON.

    Parameters
    ----------
    value : any
        A number, or anything else.

    Returns
    -------
    float or None
        The number; None for what is none, NaN and infinities included.

    Examples
    --------
    >>> number(3), number(float("nan")), number("three")
    (3.0, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)
