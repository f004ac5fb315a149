"""A run's metrics as a picture: losses, accuracies and the learning rate over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from spptransfer.report.figures import Axes, ticks

_WIDTH, _HEIGHT, _GAP = 640, 130, 46
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 30, 34
_STYLE = """
svg { background: #fcfcfa; font: 12px sans-serif; }
text { fill: #5b626b; } .title { fill: #191c20; font-weight: 600; } .grid { stroke: #e2e2dc; }
.curve { fill: none; stroke: #1d5c9e; stroke-width: 1.8; stroke-linejoin: round; }
.dot { fill: #1d5c9e; }
@media (prefers-color-scheme: dark) {
  svg { background: #121518; } text { fill: #9aa2ab; } .title { fill: #e8e8e4; }
  .grid { stroke: #2b3138; } .curve { stroke: #79b6ee; } .dot { fill: #79b6ee; }
}
"""
# Title of each plot, and by how much its numbers are multiplied.
_PLOTS = {
    "cross_entropy": ("cross entropy, training", 1),
    "distillation": ("distance from the teacher, training", 1),
    "val_top1": ("top-1 accuracy, validation, %", 100),
    "val_top5": ("top-5 accuracy, validation, %", 100),
    "lr": ("learning rate", 1),
}


def training_curves(history: Sequence[Mapping[str, float]], epochs: int) -> str:
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
        An SVG file; pointing at a dot tells its numbers.

    Examples
    --------
    >>> line = {"epoch": 1, "cross_entropy": 2.0, "distillation": 0.0, "val_top1": 0.5,
    ...         "val_top5": 0.9, "lr": 0.01, "size": 224}
    >>> training_curves([line], epochs=70).count("<circle")
    4
    """
    drawn = [key for key in _PLOTS if key != "distillation" or any(e[key] for e in history)]
    height = _TOP + len(drawn) * (_HEIGHT + _GAP) - _GAP + _BOTTOM
    edges = (1, max(epochs, 2))
    body = Markup("")
    for number, key in enumerate(drawn):
        top, (title, factor) = _TOP + number * (_HEIGHT + _GAP), _PLOTS[key]
        points = [(line["epoch"], factor * line[key]) for line in history]
        domain = _domain([value for _, value in points])
        axes = Axes(edges, domain, _LEFT, top, _WIDTH - _RIGHT, top + _HEIGHT)
        body += Markup('<text class="title" x="{}" y="{}">{}</text>').format(_LEFT, top - 10, title)
        body += axes.guides(5) + axes.line("curve", points)
        for line, point in zip(history, points, strict=True):
            said = f"epoch {line['epoch']} at {line['size']} pixels: {point[1]:.4g}"
            body += axes.dot("dot", point, 2.5 if len(points) <= 50 else 1.5, said)
    numbers = [number for number in ticks(*edges, wanted=8) if 2 <= number <= epochs]
    body += axes.labels([1, *numbers], "epoch ")
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}" '
        'role="img" aria-label="loss and accuracy over epochs"><style>{2}</style>{3}</svg>\n'
    ).format(_WIDTH, height, Markup(_STYLE), body)


def _domain(values: Sequence[float]) -> tuple[float, float]:
    """Interval around values; never empty."""
    extent = max(max(values) - min(values), 0.02 * max(map(abs, values)), 1e-6)
    return min(values) - 0.06 * extent, max(values) + 0.1 * extent
