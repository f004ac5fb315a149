"""Results as a plain-text table for the command line."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping
from typing import Any

from spptransfer.report.formatting import clean, count, duration, percent, plus_minus
from spptransfer.report.summary import (
    ClassScore,
    choice_of_C,
    class_table,
    metrics,
    per_class_metric,
    stages,
)
from spptransfer.text import plural

WIDTH = 100
CLASSES_SHOWN = 5
_LABEL = 11
_SECOND_COLUMN = 35


def terminal_table(results: Mapping[str, Any]) -> str:
    """Write a run's results as plain text.

    Parameters
    ----------
    results : mapping
        Contents of ``results.json``. Paths under the key ``"files"`` (a mapping of what to
        where), if there are any, are listed last.

    Returns
    -------
    str
        Lines of at most 100 columns (paths excepted, which must stay whole to be copied),
        without a trailing newline.

    Examples
    --------
    >>> print(terminal_table({
    ...     "name": "demo",
    ...     "dataset": {"name": "demo", "classes": ["disc", "ring"]},
    ...     "headline": {"metric": "overall accuracy", "value": 0.9, "std": 0.02},
    ...     "splits": [{"C": 1.0}, {"C": 1.0}],
    ... }))  # doctest: -NORMALIZE_WHITESPACE
    demo   90.00 ± 2.00 %   overall accuracy
    <BLANKLINE>
      metrics    overall accuracy                   90.00 ± 2.00 %
      C          1 in every split
    """
    lines = [_headline(results), *_protocol(results), ""]
    for label, block in (
        ("metrics", _metrics(results)),
        ("classes", _classes(results)),
        ("C", _choice(results)),
        ("rows", _rows(results)),
        ("time", _time(results)),
        ("files", _files(results)),
    ):
        lines += [
            f"  {label if number == 0 else '':<{_LABEL}}{line}".rstrip()
            for number, line in enumerate(block)
        ]
    return "\n".join(lines)


def _headline(results: Mapping[str, Any]) -> str:
    """Name of the run, its number, the number's metric."""
    headline = results["headline"]
    value = plus_minus(headline.get("value"), headline.get("std"))
    return f"{clean(results['name'], 40)}   {value} %   {clean(headline['metric'], 40)}"


def _protocol(results: Mapping[str, Any]) -> list[str]:
    """The protocol in its own words."""
    text = clean((results.get("protocol") or {}).get("description") or "")
    return textwrap.wrap(text, WIDTH)


def _metrics(results: Mapping[str, Any]) -> list[str]:
    """Every metric with its deviation."""
    named = [(clean(metric.name, 50), metric) for metric in metrics(results)]
    width = max((len(name) + 2 for name, _ in named), default=0)
    column = max(width, _SECOND_COLUMN)
    return [f"{name:<{column}}{plus_minus(metric.value, metric.std)} %" for name, metric in named]


def _classes(results: Mapping[str, Any]) -> list[str]:
    """The worst and the best classes side by side; few classes are listed whole."""
    name = per_class_metric(results)
    if name is None:
        return []
    values, classes = results["metrics"][name]["per_class"], results["dataset"]["classes"]
    known = [
        score for score in class_table(name, values, classes).scores if score.value is not None
    ]
    shown = min(CLASSES_SHOWN, len(known) // 2)
    if not shown:
        return []
    worst, best = known[:shown], known[::-1][:shown]
    rows = [f"{'lowest':<{_SECOND_COLUMN}}highest"]
    rows += [
        f"{_class(low):<{_SECOND_COLUMN}}{_class(high)}"
        for low, high in zip(worst, best, strict=True)
    ]
    left = len(known) - 2 * shown
    return [*rows, f"… {plural(left, 'class', 'classes')} between"] if left else rows


def _class(score: ClassScore) -> str:
    """One class with its value."""
    return f"{clean(score.name, 24):<24} {percent(score.value):>6}"


def _choice(results: Mapping[str, Any]) -> list[str]:
    """Which C was chosen, how often."""
    choice = choice_of_C(results["splits"])
    chosen: Counter[float] = Counter(choice.shared)
    for counts in choice.per_class.values():
        chosen.update(counts)
    if not chosen:
        return []
    noun = ("class", "classes") if choice.per_class else ("split", "splits")
    if len(chosen) == 1:
        return [f"{next(iter(chosen)):g} in every {noun[0]}"]
    listed = ", ".join(f"{C:g} in {plural(chosen[C], *noun)}" for C in sorted(chosen))
    return textwrap.wrap(listed, WIDTH - _LABEL - 2)


def _rows(results: Mapping[str, Any]) -> list[str]:
    """What became of the images."""
    rows = results.get("rows") or {}
    if not rows:
        return []
    line = f"{count(rows.get('ok'))} ok, {count(rows.get('reused'))} of them reused, "
    return [line + f"{count(rows.get('failed'))} failed"]


def _time(results: Mapping[str, Any]) -> list[str]:
    """The whole time and its parts."""
    timings = results.get("timings") or {}
    if not timings:
        return []
    parts = ", ".join(f"{stage.name} {duration(stage.seconds)}" for stage in stages(timings))
    return textwrap.wrap(f"{duration(timings.get('total'))}: {parts}", WIDTH - _LABEL - 2)


def _files(results: Mapping[str, Any]) -> list[str]:
    """Where the files are."""
    files = results.get("files") or {}
    return [f"{clean(name, 10):<10} {clean(path)}" for name, path in files.items() if path]
