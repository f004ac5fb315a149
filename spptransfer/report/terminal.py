"""A run's results as a plain-text table for the command line."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import repeat
from operator import itemgetter
from typing import Any

from spptransfer.report.formatting import clean, count, duration, percent, plus_minus
from spptransfer.report.run_folder import (
    chosen_C,
    coverage,
    metrics_of,
    per_class_metric,
    stages,
)
from spptransfer.text import plural

WIDTH = 100
CLASSES_SHOWN = 5
_LABEL = 11
_SECOND_COLUMN = 35
_ROOM = WIDTH - _LABEL - 2


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
    headline = results["headline"]
    value = plus_minus(headline.get("value"), headline.get("std"))
    lines = [f"{clean(results['name'], 40)}   {value} %   {clean(headline['metric'], 40)}"]
    description = (results.get("protocol") or {}).get("description") or ""
    lines += [*textwrap.wrap(clean(description), WIDTH), ""]
    labelled = ""
    for label, line in _parts(results):
        lines.append(f"  {label if label != labelled else '':<{_LABEL}}{line}".rstrip())
        labelled = label
    return "\n".join(lines)


def _parts(results: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each line with the label of its part; what the results do not hold has none."""
    yield from zip(repeat("metrics"), _metrics(results), strict=False)
    yield from zip(repeat("per class"), _learning_curve(results), strict=False)
    yield from zip(repeat("classes"), _classes(results), strict=False)
    yield from zip(repeat("C"), _choice(results), strict=False)
    if trained_on := (results.get("model") or {}).get("trained_on"):
        sentence = textwrap.wrap(f"trained on {clean(trained_on)}", _ROOM)
        yield from zip(repeat("model"), sentence, strict=False)
    if rows := results.get("rows"):
        ok, reused, failed = map(count, map(rows.get, ("ok", "reused", "failed")))
        yield "rows", f"{ok} ok, {reused} of them reused, {failed} failed"
    if timings := results.get("timings"):
        parts = []
        for name, seconds, _ in stages(timings):
            parts.append(f"{name} {duration(seconds)}")
        whole = f"{duration(timings.get('total'))}: {', '.join(parts)}"
        yield from zip(repeat("time"), textwrap.wrap(whole, _ROOM), strict=False)
    for name, path in (results.get("files") or {}).items():
        if path:
            yield "files", f"{clean(name, 10):<10} {clean(path)}"


def _metrics(results: Mapping[str, Any]) -> list[str]:
    """Every metric with its deviation."""
    metrics = metrics_of(results)
    column = max(_SECOND_COLUMN, min(50, max(map(len, metrics))) + 2)
    lines = []
    for name, metric in metrics.items():
        value = plus_minus(metric.get("value"), metric.get("std"))
        lines.append(f"{clean(name, 50):<{column}}{value} %")
        lines += textwrap.wrap(f"  {coverage(results, name)}", _ROOM, subsequent_indent="  ")
    return lines


def _learning_curve(results: Mapping[str, Any]) -> list[str]:
    """The headline for every number of training images of each class."""
    metric, lines = results["headline"]["metric"], []
    for point in results.get("learning_curve") or ():
        found = point["metrics"][metric]
        images = f"{plural(point['train_per_class'], 'image')} in training"
        lines.append(f"{images:<{_SECOND_COLUMN}}{plus_minus(found['value'], found['std'])} %")
    return lines


def _classes(results: Mapping[str, Any]) -> list[str]:
    """The worst and the best classes side by side."""
    name = per_class_metric(results)
    if name is None:
        return []
    values = results["metrics"][name]["per_class"]
    known = [(name, value) for name, value in values.items() if value is not None]
    known.sort(key=itemgetter(1))
    shown = min(CLASSES_SHOWN, len(known) // 2)
    if not shown:
        return []
    rows = [f"{'lowest':<{_SECOND_COLUMN}}highest"]
    for (low, least), (high, most) in zip(known[:shown], known[: -shown - 1 : -1], strict=True):
        worst = f"{clean(low, 24):<24} {percent(least):>6}"
        rows.append(f"{worst:<{_SECOND_COLUMN}}{clean(high, 24):<24} {percent(most):>6}")
    left = len(known) - 2 * shown
    return [*rows, f"… {plural(left, 'class', 'classes')} between"] if left else rows


def _choice(results: Mapping[str, Any]) -> list[str]:
    """Which C was chosen, how often."""
    choices = chosen_C(results)
    chosen = sum(choices.values(), Counter())
    if not chosen:
        return []
    noun = ("split", "splits") if None in choices else ("class", "classes")
    if len(chosen) == 1:
        return [f"{next(iter(chosen)):g} in every {noun[0]}"]
    times = ", ".join(f"{C:g} in {plural(chosen[C], *noun)}" for C in sorted(chosen))
    return textwrap.wrap(times, _ROOM)
