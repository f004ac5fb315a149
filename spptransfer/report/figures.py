"""Numbers to inline SVG: small pure functions that know nothing of runs or pages.

Colours come from the page's style sheet through class names, so that one drawing serves light
mode, dark mode and paper. Plots against axes are drawn by `Axes`. Bars and strips place
everything in percent of their width: they fill whatever column they stand in without scaling
text or lines.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from spptransfer.report.formatting import cut

HEAT_STEPS = 9
# Upper ends of all shades but the strongest, as shares of the true class's images.
RIGHT_SHADES = (0.5, 0.7, 0.8, 0.9, 0.95)
WRONG_SHADES = (0.01, 0.02, 0.05, 0.1, 0.2)
LABEL_CHARACTERS = 22
_COUNTS_UP_TO = 25
_LABELS_UP_TO = 150

Points = Iterable[Sequence[float]] | npt.NDArray[np.floating]


@dataclass(frozen=True)
class Axes:
    """A rectangle of a drawing and the numbers at its edges; y points upwards.

    Attributes
    ----------
    x, y : (float, float)
        Numbers at left and right, and at the bottom and the top.
    left, top, right, bottom : float
        The rectangle in units of the drawing.
    inset : float
        Room between the rectangle's sides and the numbers at its left and right.
    logarithmic : bool
        Whether x is.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    left: float
    top: float
    right: float
    bottom: float
    inset: float = 0.0
    logarithmic: bool = False

    def across(self, x: float) -> float:
        """Map a number to the drawing's x, to a tenth; the middle if all numbers are one."""
        low, high = self.x
        if not high > low:
            return round((self.left + self.right) / 2, 1)
        if self.logarithmic:
            low, high, x = math.log(low), math.log(high), math.log(x)
        room = self.right - self.left - 2 * self.inset
        return round(self.left + self.inset + room * (x - low) / (high - low), 1)

    def upward(self, y: float) -> float:
        """Map a number to the drawing's y, to a tenth."""
        low, high = self.y
        return round(self.bottom - (self.bottom - self.top) * (y - low) / (high - low), 1)

    def line(self, css: str, points: Points) -> Markup:
        """Join points by straight lines."""
        steps = [f"{self.across(x):g} {self.upward(y):g}" for x, y in points]
        return Markup('<path class="{}" d="M{}"/>').format(css, "L".join(steps))

    def dot(self, css: str, point: Sequence[float], radius: float, title: str) -> Markup:
        """Mark a point; pointing at it tells its title."""
        return Markup(
            '<circle class="{}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>'
        ).format(css, self.across(point[0]), self.upward(point[1]), radius, title)

    def guides(self, wanted: int, factor: float = 1) -> Markup:
        """Draw horizontal guide lines with their numbers, times a factor."""
        body = Markup("")
        for tick in ticks(*self.y, wanted):
            y = self.upward(tick)
            body += Markup(
                '<path class="grid" d="M{0} {1}H{2}"/>'
                '<text class="tick" x="{3}" y="{4}" text-anchor="end">{5:g}</text>'
            ).format(self.left, y, self.right, self.left - 7, y + 4, round(factor * tick, 6))
        return body

    def labels(self, numbers: Iterable[float], name: str = "") -> Markup:
        """Write numbers below the axes, the first one after a name."""
        body = Markup("")
        for x in numbers:
            body += Markup(
                '<text class="tick" x="{}" y="{}" text-anchor="middle">{}{:g}</text>'
            ).format(self.across(x), self.bottom + 22, name, x)
            name = ""
        return body


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Choose round positions, multiples of 1, 2 or 5 times a power of ten, within an interval.

    Examples
    --------
    >>> ticks(0.62, 0.91)
    [0.65, 0.7, 0.75, 0.8, 0.85, 0.9]
    """
    if not high > low:
        return [low]
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    steps = power * np.array([1, 2, 5, 10])
    step = float(steps[np.abs(steps - raw).argmin()])
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return (step * np.arange(first, last + 1)).round(12).tolist()


def padded(values: Iterable[float], share: float = 0.12) -> tuple[float, float]:
    """Interval around fractions, widened at both ends by a share of their range, within [0, 1].

    Examples
    --------
    >>> padded([0.4, 0.8], share=0.25)
    (0.3, 0.9)
    """
    known = list(values) or [0.0, 1.0]
    extent = max(max(known) - min(known), 0.01)
    low, high = min(known) - share * extent, max(known) + share * extent
    return round(max(0.0, low), 9), round(min(1.0, high), 9)


def validation_curves(
    curves: Sequence[Sequence[tuple[float, float]]], chosen: Mapping[float, int]
) -> Markup:
    """Draw the validation score against C: every split faint, their mean strong.

    Parameters
    ----------
    curves : sequence of sequence of (C, score)
        One curve per split, by rising C; not empty.
    chosen : mapping of float to int
        How many splits chose which C; marked on the mean.

    Returns
    -------
    Markup
        An SVG that scales with its box.
    """
    mean, axes, body = _mean_curve(curves)
    for C, score in mean:
        times = chosen.get(C, 0)
        css, radius = ("dot", 5.5) if times else ("stop", 2.5)
        body += axes.dot(
            css, (C, score), radius, f"C = {C:g}: {100 * score:.2f} %, chosen {times}×"
        )
    return _plot(body, "validation score over C")


def learning_curve(curves: Sequence[Sequence[tuple[float, float]]]) -> Markup:
    """Draw a score against the number of training images: every repeat faint, the mean strong."""
    mean, axes, body = _mean_curve(curves)
    for size, score in mean:
        title = f"{size:g} of each class: {100 * score:.2f} %"
        body += axes.dot("dot", (size, score), 3.5, title)
    return _plot(body, "score over training images of each class")


def _mean_curve(
    curves: Sequence[Sequence[tuple[float, float]]],
) -> tuple[list[tuple[float, float]], Axes, Markup]:
    """Draw curves and their mean over a logarithmic axis; return the mean and the axes too."""
    by_x = defaultdict(list)
    for x, score in chain.from_iterable(curves):
        by_x[x].append(score)
    mean = [(x, math.fsum(by_x[x]) / len(by_x[x])) for x in sorted(by_x)]
    domain = padded(chain.from_iterable(by_x.values()))
    axes = Axes((mean[0][0], mean[-1][0]), domain, 36, 10, 412, 206, 12, logarithmic=True)
    body = axes.guides(4, factor=100) + axes.labels(sorted(by_x)[:: math.ceil(len(by_x) / 7)])
    for curve in curves if len(curves) > 1 else ():
        body += axes.line("curve faint", curve)
    return mean, axes, body + axes.line("curve", mean)


def _plot(body: Markup, label: str) -> Markup:
    return Markup(
        '<svg class="plot" viewBox="0 0 420 240" role="img" aria-label="{}">{}</svg>'
    ).format(label, body)


def precision_recall(
    curves: Sequence[npt.NDArray[np.floating]],
    envelopes: Sequence[npt.NDArray[np.floating]],
    chance: float | None = None,
    ceiling: float | None = None,
) -> Markup:
    """Draw precision against recall: the curves, the area under the first one's envelope.

    Parameters
    ----------
    curves, envelopes : sequence of ndarray of shape (n_points, 2)
        Recall and precision of every split, and the same raised to its envelope.
    chance, ceiling : float, optional
        Precision of a random ranking and the largest recall possible, drawn dashed.

    Returns
    -------
    Markup
        An SVG of 100 × 100 units that scales with its box.
    """
    axes = Axes((0, 1), (0, 1), 0, 0, 100, 100)
    body = Markup("")
    for points in envelopes[:1]:
        # Each precision holds back to the recall before it.
        recalls = np.concatenate([[0], points[:, 0]]).repeat(2)[1:]
        stairs = np.column_stack([recalls, np.append(points[:, 1].repeat(2), 0)])
        body += axes.line("area", [(0, 0), *stairs])
    body += Markup(
        '<path class="grid" d="M0 25H100M0 50H100M0 75H100M25 0V100M50 0V100M75 0V100"/>'
    )
    for number, points in enumerate(curves):
        body += axes.line("curve faint" if number else "curve", points)
    if chance is not None:
        body += axes.line("chance", [(0, chance), (1, chance)])
    if ceiling is not None:
        body += axes.line("chance", [(ceiling, 0), (ceiling, 1)])
    return Markup(
        '<svg class="pr" viewBox="-1 -1 102 102" role="img" aria-label="precision over recall">'
        '{}<path class="frame" d="M0 0V100H100"/></svg>'
    ).format(body)


def reliability(bins: Mapping[str, Sequence[Any]]) -> Markup:
    """Draw the share of right predictions against their confidence, beside the diagonal.

    Parameters
    ----------
    bins : mapping
        ``counts``, ``confidence`` and ``right`` of each bin; the larger its dot, the more
        predictions it has.

    Returns
    -------
    Markup
        An SVG that scales with its box.
    """
    axes = Axes((0, 1), (0, 1), 36, 10, 412, 206, 12)
    columns = (bins[name] for name in ("counts", "confidence", "right"))
    known = [each for each in zip(*columns, strict=True) if each[0]]
    body = axes.guides(4, factor=100) + axes.labels([0, 0.2, 0.4, 0.6, 0.8, 1])
    body += axes.line("chance", [(0, 0), (1, 1)])
    body += axes.line("curve", [each[1:] for each in known])
    most = max(count for count, *_ in known)
    for count, confidence, right in known:
        said = f"{count:,} of confidence {confidence:.2f}: {100 * right:.1f} % are right"
        radius = round(2 + 5 * math.sqrt(count / most), 1)
        body += axes.dot("dot", (confidence, right), radius, said)
    return Markup(
        '<svg class="plot" viewBox="0 0 420 240" role="img" '
        'aria-label="share of right predictions over confidence">{}</svg>'
    ).format(body)


def bar(value: float, low: float, high: float) -> Markup:
    """Draw a horizontal bar of a fraction, with its range over the splits as a whisker.

    What is NaN is not drawn.
    """
    body = Markup('<rect class="track" width="100%" height="100%" rx="2"/>')
    if math.isfinite(value):
        body += Markup('<rect class="fill" width="{}%" height="100%" rx="2"/>').format(_pct(value))
    if high > low:
        body += Markup('<line class="whisker" x1="{}%" x2="{}%" y1="50%" y2="50%"/>').format(
            _pct(low), _pct(high)
        )
    return Markup('<svg class="bar" aria-hidden="true">{}</svg>').format(body)


def difference_bar(value: float | None, extent: float) -> Markup:
    """Draw a difference as a bar from the middle, to the right if it is a gain."""
    share = _pct(abs(value or 0), 0, 2 * extent)
    css, left = ("fill", 50.0) if (value or 0) > 0 else ("loss", 50.0 - share)
    return Markup(
        '<svg class="bar" aria-hidden="true">'
        '<rect class="track" width="100%" height="100%" rx="2"/>'
        '<rect class="{}" x="{}%" width="{}%" height="100%"/>'
        '<line class="middle" x1="50%" x2="50%" y1="0" y2="100%"/></svg>'
    ).format(css, left, share)


def dot_strip(
    values: Sequence[float], mean: float, std: float | None, domain: tuple[float, float]
) -> Markup:
    """Draw the splits' values as dots on a band of mean ± one standard deviation.

    Parameters
    ----------
    values : sequence of float
        One value per split.
    mean, std : float, float or None
        Their mean and standard deviation.
    domain : (float, float)
        Values at the left and right ends.

    Returns
    -------
    Markup
        An SVG that fills its box.
    """
    low, high = domain
    body = Markup('<line class="axis" x1="0" x2="100%" y1="50%" y2="50%"/>')
    if std:
        left = _pct(mean - std, low, high)
        body += Markup(
            '<rect class="band" x="{}%" y="15%" width="{}%" height="70%" rx="3"/>'
        ).format(left, round(_pct(mean + std, low, high) - left, 2))
    for value in values:
        body += Markup('<circle class="dot" cx="{}%" cy="50%" r="4.5"/>').format(
            _pct(value, low, high)
        )
    body += Markup('<line class="mean" x1="{0}%" x2="{0}%" y1="8%" y2="92%"/>').format(
        _pct(mean, low, high)
    )
    return Markup('<svg class="strip" role="img" aria-label="{}">{}</svg>').format(
        f"{len(values)} splits, mean {mean:.4f}", body
    )


def strip_axis(domain: tuple[float, float]) -> Markup:
    """Draw the percent axis that belongs under dot strips."""
    body = Markup("")
    for tick in ticks(*domain):
        body += Markup(
            '<line class="axis" x1="{0}%" x2="{0}%" y1="0" y2="5"/>'
            '<text class="tick" x="{0}%" y="17" text-anchor="middle">{1:g}</text>'
        ).format(_pct(tick, *domain), round(100 * tick, 6))
    return Markup('<svg class="strip-axis" aria-hidden="true">{}</svg>').format(body)


def heat_map(grid: npt.NDArray[np.floating], domain: tuple[float, float]) -> Markup:
    """Draw a grid of numbers as cells in `HEAT_STEPS` shades.

    Parameters
    ----------
    grid : ndarray of shape (height, width)
        The numbers.
    domain : (float, float)
        Numbers with the faintest and the strongest shade; what lies beyond is clipped.

    Returns
    -------
    Markup
        An SVG of one unit per cell.
    """
    low, high = domain
    share = (np.asarray(grid) - low) / max(high - low, 1e-12)
    shades = np.clip((share * HEAT_STEPS).astype(int), 0, HEAT_STEPS - 1)
    height, width = shades.shape
    return Markup(
        '<svg class="heat" viewBox="0 0 {} {}" role="img" aria-label="{} by {} heat map">{}</svg>'
    ).format(width, height, height, width, cells(shades, "heat"))


def scale(prefix: str, steps: int) -> Markup:
    """Draw the shades of `cells` from faint to strong."""
    return Markup(
        '<svg class="scale" viewBox="0 0 {} 1" preserveAspectRatio="none" aria-hidden="true">'
        "{}</svg>"
    ).format(steps, cells(np.arange(steps)[None], prefix))


def cells(shades: npt.NDArray[np.integer], prefix: str) -> Markup:
    """Draw unit squares, one path for all cells of a shade; negative ones are left empty.

    Examples
    --------
    >>> print(cells(np.array([[0, 0], [-1, 2]]), "heat"))
    <path class="heat-0" d="M0 0h2v1h-2z"/><path class="heat-2" d="M1 1h1v1h-1z"/>
    """
    paths: dict[int, str] = defaultdict(str)
    for row, shade_row in enumerate(shades):
        edges = np.flatnonzero(np.diff(shade_row, prepend=shade_row[:1] - 1))
        for start, stop in zip(edges, [*edges[1:], len(shade_row)], strict=True):
            paths[int(shade_row[start])] += f"M{start} {row}h{stop - start}v1h-{stop - start}z"
    body = Markup("")
    for shade in sorted(paths):
        if shade >= 0:
            body += Markup('<path class="{}-{}" d="{}"/>').format(prefix, shade, paths[shade])
    return body


def confusion_matrix(counts: npt.NDArray[np.integer], labels: Sequence[str]) -> Markup:
    """Draw a confusion matrix at its natural size, with labels, for a box that scrolls.

    Cells are shaded by their share of the true class's images: those on the diagonal in one
    colour, the confusions in another on a finer scale, or a few of them would vanish beside the
    diagonal. Up to 25 classes the counts are written into the cells.

    Parameters
    ----------
    counts : ndarray of int, shape (n_classes, n_classes)
        Rows are true classes, columns predicted ones.
    labels : sequence of str
        Class names.

    Returns
    -------
    Markup
        An SVG whose ``data-`` attributes say where the cells lie.
    """
    n_classes, shades = len(labels), shade(counts)
    # Pixels per cell: as large as a wide screen allows; the page may shrink it.
    limits = np.array([3, 8, 14, _COUNTS_UP_TO, 50, _LABELS_UP_TO])
    cell = (84, 52, 34, 27, 16, 9, 4)[np.searchsorted(limits, n_classes)]
    margin, written = 4, Markup("")
    if n_classes <= _LABELS_UP_TO:
        margin, written = _class_labels(labels, cell)
    if n_classes <= _COUNTS_UP_TO:
        written += _cell_counts(counts, shades, margin, cell)
    diagonal = np.eye(n_classes, dtype=bool)
    body = Markup(
        '<g transform="translate({0} {0}) scale({1})">'
        '<rect class="ground" width="{2}" height="{2}"/>{3}{4}<path class="lines" d="{5}"/></g>{6}'
        '<rect class="cross" id="cross-row" x="0" height="{1}" width="{7}" visibility="hidden"/>'
        '<rect class="cross" id="cross-column" y="0" width="{1}" height="{7}" visibility="hidden"/>'
    ).format(
        margin,
        cell,
        n_classes,
        cells(np.where(diagonal, -1, shades), "wrong"),
        cells(np.where(diagonal, shades, -1), "right"),
        _guide_lines(n_classes, 1 if n_classes <= _COUNTS_UP_TO else 10),
        written,
        margin + n_classes * cell,
    )
    density = "small" if n_classes <= 8 else "medium" if n_classes <= _COUNTS_UP_TO else "dense"
    return Markup(
        '<svg class="matrix {0}" id="matrix" tabindex="0" role="img" viewBox="0 0 {1} {1}" '
        'width="{1}" height="{1}" data-margin="{2}" data-cell="{3}" '
        'aria-label="confusion matrix of {4} classes">{5}</svg>'
    ).format(density, margin + n_classes * cell + 1, margin, cell, n_classes, body)


def shade(counts: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Say how strongly each cell of a confusion matrix is drawn; -1 for empty ones.

    The diagonal follows `RIGHT_SHADES`, the rest `WRONG_SHADES`.

    Examples
    --------
    >>> shade(np.array([[98, 2], [30, 70]]))
    array([[5, 1],
           [5, 1]])
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shades = np.searchsorted(WRONG_SHADES, shares, side="left")
    diagonal = np.diag_indices(len(counts))
    shades[diagonal] = np.searchsorted(RIGHT_SHADES, shares[diagonal], side="left")
    shades[counts == 0] = -1
    return shades


def _guide_lines(n_cells: int, step: int) -> str:
    path = ""
    for at in range(0, n_cells + 1, step):
        path += f"M0 {at}H{n_cells}M{at} 0V{n_cells}"
    return path


def _class_labels(labels: Sequence[str], cell: float) -> tuple[int, Markup]:
    """Write the class names left of the rows and, upwards, over the columns, with their room."""
    font = min(12.0, max(7.0, cell - 0.5))
    longest = min(LABEL_CHARACTERS, max(map(len, labels)))
    margin = round(longest * 0.64 * font) + 10  # a wide sans-serif's mean letter has 0.64 em
    rows, columns = Markup(""), Markup("")
    for index, label in enumerate(labels):
        place = Markup('<text x="{}" y="{}">{}</text>')
        middle, text = round(margin + (index + 0.5) * cell, 2), cut(label, LABEL_CHARACTERS)
        rows += place.format(margin - 5, middle, text)
        columns += place.format(5 - margin, middle, text)
    return margin, Markup(
        '<g class="labels" font-size="{0}"><g text-anchor="end">{1}</g>'
        '<g transform="rotate(-90)">{2}</g></g>'
    ).format(font, rows, columns)


def _cell_counts(
    counts: npt.NDArray[np.integer], shades: npt.NDArray[np.integer], margin: float, cell: float
) -> Markup:
    """Write the counts into the cells that have any."""
    body = Markup("")
    for row, column in np.argwhere(counts).tolist():
        strong = shades[row, column] >= (3 if row == column else 4)
        body += Markup('<text class="{}" x="{}" y="{}">{}</text>').format(
            "on-strong" if strong else "on-faint",
            round(margin + (column + 0.5) * cell, 2),
            round(margin + (row + 0.5) * cell, 2),
            counts[row, column],
        )
    return Markup('<g class="counts" font-size="{}">{}</g>').format(
        round(min(12, cell * 0.42), 1), body
    )


def stacked_bar(parts: Sequence[tuple[str, float, float]], label: str = "time by stage") -> Markup:
    """Draw parts of a whole, each a name, an amount and a share, side by side.

    Part "read" gets the class ``part-read``.
    """
    body, start = Markup(""), 0.0
    for name, _, share in parts:
        body += Markup(
            '<rect class="part-{}" x="{}%" width="{}%" height="100%"><title>{}</title></rect>'
        ).format(name, _pct(start), _pct(share), f"{name}: {100 * share:.1f} %")
        start += share
    return Markup('<svg class="stack" role="img" aria-label="{}">{}</svg>').format(label, body)


def choice_axis(candidates: Sequence[float]) -> Markup:
    """Write the candidates over their dots in choice strips."""
    body = Markup("")
    for index, C in enumerate(candidates):
        body += Markup('<text class="tick" x="{}%" y="13" text-anchor="middle">{:g}</text>').format(
            _pct(index + 0.5, 0, len(candidates)), C
        )
    return Markup('<svg class="choice" aria-hidden="true">{}</svg>').format(body)


def choice_strip(chosen: Mapping[float, int], candidates: Sequence[float]) -> Markup:
    """Draw how often each candidate was chosen, as dots whose area is the share."""
    body = Markup('<line class="axis" x1="0" x2="100%" y1="50%" y2="50%"/>')
    for index, C in enumerate(candidates):
        share = chosen.get(C, 0) / sum(chosen.values())
        css, radius = ("dot", round(6 * math.sqrt(share), 2)) if share else ("stop", 1.5)
        body += Markup('<circle class="{}" cx="{}%" cy="50%" r="{}"/>').format(
            css, _pct(index + 0.5, 0, len(candidates)), radius
        )
    return Markup('<svg class="choice" aria-hidden="true">{}</svg>').format(body)


def pyramid(levels: Sequence[int]) -> Markup:
    """Draw a pyramid's grids side by side, as an emblem."""
    side, gap = 36, 9
    path = ""
    for number, level in enumerate(levels):
        left = number * (side + gap)
        for offset in np.linspace(0, side, level + 1).round(2).tolist():
            path += f"M{left + offset:g} 0v{side}M{left} {offset:g}h{side}"
    width = len(levels) * (side + gap) - gap
    return Markup(
        '<svg class="pyramid" viewBox="-1 -1 {0} {1}" width="{0}" height="{1}" aria-hidden="true">'
        '<path d="{2}"/></svg>'
    ).format(width + 2, side + 2, path)


def _pct(value: float, low: float = 0, high: float = 1) -> float:
    """Map a number to percent of the width, to a hundredth."""
    return round(100 * min(max((value - low) / (high - low), 0.0), 1.0), 2)
