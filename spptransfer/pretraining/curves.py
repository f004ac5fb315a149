"""A run's metrics as a picture: loss and accuracy over the epochs, where the rate was divided."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from spptransfer.report.figures import Axes, ticks

Line = Mapping[str, float]

_WIDTH, _PANEL, _GAP = 640, 190, 46
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 30, 34
_STYLE = """
svg { background: #fcfcfa; font: 12px sans-serif; }
text { fill: #5b626b; } .title { fill: #191c20; font-weight: 600; }
.grid { stroke: #e2e2dc; } .rate { stroke: #b8401a; stroke-dasharray: 3 3; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.first { stroke: #1d5c9e; } .second { stroke: #d99a3d; }
circle.first { fill: #1d5c9e; } circle.second { fill: #d99a3d; }
text.first { fill: #1d5c9e; stroke: none; } text.second { fill: #a8701c; stroke: none; }
@media (prefers-color-scheme: dark) {
  svg { background: #121518; } text { fill: #9aa2ab; } .title { fill: #e8e8e4; }
  .grid { stroke: #2b3138; } .rate { stroke: #f39a70; }
  .first { stroke: #79b6ee; } circle.first, text.first { fill: #79b6ee; }
  .second { stroke: #d9a657; } circle.second, text.second { fill: #d9a657; }
}
"""


class _Panel(NamedTuple):
    """One pair of axes: a title, and by key of the metrics what a curve is called."""

    title: str
    names: Mapping[str, str]
    factor: float = 1.0


def training_curves(history: Sequence[Line], epochs: int) -> str:
    """Draw the metrics of a run.

    Parameters
    ----------
    history : sequence of mapping
        Lines of ``metrics.jsonl``, not empty.
    epochs : int
        Epochs of the whole run, to which the axis extends.

    Returns
    -------
    str
        An SVG file. A dashed line stands where the learning rate has first fallen to a tenth of
        its maximum, to a hundredth, and so on.

    Examples
    --------
    >>> line = {"epoch": 1, "cross_entropy": 2.0, "distillation": 0.0, "val_top1": 0.5,
    ...         "val_top5": 0.9, "lr": 0.01, "size": 224}
    >>> training_curves([line], epochs=70).count("<circle")
    3
    """
    panels = _panels(history)
    height = _TOP + len(panels) * (_PANEL + _GAP) - _GAP + _BOTTOM
    body = Markup("")
    for number, panel in enumerate(panels):
        top = _TOP + number * (_PANEL + _GAP)
        values = [panel.factor * line[key] for key in panel.names for line in history]
        edges = (1, max(epochs, 2))
        axes = Axes(edges, _domain(values), _LEFT, top, _WIDTH - _RIGHT, top + _PANEL)
        body += _draw(panel, history, axes)
    numbers = [number for number in ticks(*edges, wanted=8) if 2 <= number <= epochs]
    body += axes.labels([1, *numbers], "epoch ")
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}" '
        'role="img" aria-label="loss and accuracy over epochs"><style>{2}</style>{3}</svg>\n'
    ).format(_WIDTH, height, Markup(_STYLE), body)


def _panels(history: Sequence[Line]) -> list[_Panel]:
    panels = [_Panel("cross entropy, training", {"cross_entropy": ""})]
    if any(line["distillation"] for line in history):
        panels.append(_Panel("distance from the teacher, training", {"distillation": ""}))
    names = {"val_top1": "top-1", "val_top5": "top-5"}
    return [*panels, _Panel("accuracy, validation, %", names, factor=100)]


def _draw(panel: _Panel, history: Sequence[Line], axes: Axes) -> Markup:
    """Draw one pair of axes with its curves; pointing at a dot tells its numbers."""
    body = Markup('<text class="title" x="{}" y="{}">{}</text>').format(
        axes.left, axes.top - 10, panel.title
    )
    body += axes.guides(5)
    for epoch, rate in rate_marks(history):
        x = axes.across(epoch)
        body += Markup(
            '<path class="rate" d="M{0} {1}V{2}"/><text x="{3}" y="{4}">lr {5:.2g}</text>'
        ).format(x, axes.top, axes.bottom, x + 4, axes.top + 11, rate)
    for css, (key, name) in zip(("first", "second"), panel.names.items(), strict=False):
        points = [(line["epoch"], panel.factor * line[key]) for line in history]
        x, y = axes.across(points[-1][0]), axes.upward(points[-1][1])
        body += axes.line(f"line {css}", points)
        body += Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
            css, x, y - 8, "end" if x > _LEFT + 60 else "start", name
        )
        for line, point in zip(history, points, strict=True):
            body += axes.dot(css, point, 2.5 if len(points) <= 50 else 1.5, _told(line, key))
    return body


def _told(line: Line, key: str) -> str:
    number = f"{100 * line[key]:.2f} %" if key.startswith("val") else f"{line[key]:.4f}"
    return f"epoch {line['epoch']} at {line['size']} pixels, lr {line['lr']:.3g}: {number}"


def rate_marks(history: Sequence[Line]) -> list[tuple[float, float]]:
    """Epochs at which the rate has first fallen to a tenth, a hundredth, ... of its maximum.

    Parameters
    ----------
    history : sequence of mapping
        Lines with ``epoch`` and ``lr``.

    Returns
    -------
    list of (epoch, rate)

    Examples
    --------
    >>> rates = [0.01, 0.01, 0.001, 0.001, 0.0001]
    >>> rate_marks([{"epoch": i + 1, "lr": rate} for i, rate in enumerate(rates)])
    [(3, 0.001), (5, 0.0001)]
    """
    marks: list[tuple[float, float]] = []
    highest, tenths = 0.0, 0
    for line in history:
        highest = max(highest, line["lr"])
        # Rates are divided in binary: 0.001 is not exactly a tenth of 0.01.
        if line["lr"] <= 0:
            continue
        fallen = math.floor(math.log10(highest) - math.log10(line["lr"]) + 1e-6)
        if fallen > tenths:
            tenths = fallen
            marks.append((line["epoch"], line["lr"]))
    return marks


def _domain(values: Sequence[float]) -> tuple[float, float]:
    """Interval around values; never empty."""
    extent = max(max(values) - min(values), 0.02 * max(map(abs, values)), 1e-6)
    return min(values) - 0.06 * extent, max(values) + 0.1 * extent
