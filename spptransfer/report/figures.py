"""Numbers to inline SVG: small pure functions that know nothing of runs or pages.

Colours come from the page's style sheet through class names, so that one drawing serves light
mode, dark mode and paper. Bars and strips place everything in percent of their width: they fill
whatever column they stand in without scaling text or lines.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

HEAT_STEPS = 9


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round positions that cover an interval from the inside.

    Parameters
    ----------
    low, high : float
        The interval.
    wanted : int, default=5
        About how many.

    Returns
    -------
    list of float
        Multiples of 1, 2 or 5 times a power of ten.

    Examples
    --------
    >>> ticks(0.62, 0.91)
    [0.65, 0.7, 0.75, 0.8, 0.85, 0.9]
    """
    if not high > low:
        return [low]
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((power * factor for factor in (1, 2, 5, 10)), key=lambda step: abs(step - raw))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def padded(values: Iterable[float], *, share: float = 0.12) -> tuple[float, float]:
    """Interval around values, widened at both ends, within [0, 1].

    Parameters
    ----------
    values : iterable of float
        Fractions.
    share : float, default=0.12
        Widening as a share of the values' range.

    Returns
    -------
    low, high : float
        The interval; never empty.

    Examples
    --------
    >>> padded([0.4, 0.8], share=0.25)
    (0.3, 0.9)
    """
    known = list(values) or [0.0, 1.0]
    extent = max(max(known) - min(known), 0.01)
    low, high = min(known) - share * extent, max(known) + share * extent
    return round(max(0.0, low), 9), round(min(1.0, high), 9)


def bar(value: float | None, low: float | None = None, high: float | None = None) -> Markup:
    """Draw a horizontal bar of a fraction, with the range over the splits as a whisker.

    Parameters
    ----------
    value : float or None
        Length of the bar, in [0, 1].
    low, high : float or None, default=None
        Ends of the whisker.

    Returns
    -------
    Markup
        An SVG that fills its box.
    """
    body = Markup('<rect class="track" width="100%" height="100%" rx="2"/>')
    if value is not None:
        body += Markup('<rect class="fill" width="{}%" height="100%" rx="2"/>').format(_pct(value))
    if low is not None and high is not None and high > low:
        body += Markup('<line class="whisker" x1="{}%" x2="{}%" y1="50%" y2="50%"/>').format(
            _pct(low), _pct(high)
        )
    return Markup('<svg class="bar" aria-hidden="true">{}</svg>').format(body)


def dot_strip(
    values: Sequence[float], mean: float, std: float | None, domain: tuple[float, float]
) -> Markup:
    """Draw the splits' values as dots on a band of mean ± one standard deviation.

    Parameters
    ----------
    values : sequence of float
        One value per split.
    mean : float
        Their mean.
    std : float or None
        Their standard deviation.
    domain : (float, float)
        Values at the left and right ends.

    Returns
    -------
    Markup
        An SVG that fills its box.
    """
    place = _scale(domain)
    body = Markup('<line class="axis" x1="0" x2="100%" y1="50%" y2="50%"/>')
    if std:
        left = place(mean - std)
        body += Markup(
            '<rect class="band" x="{}%" y="15%" width="{}%" height="70%" rx="3"/>'
        ).format(left, round(place(mean + std) - left, 2))
    for value in values:
        body += Markup('<circle class="dot" cx="{}%" cy="50%" r="4.5"/>').format(place(value))
    body += Markup('<line class="mean" x1="{0}%" x2="{0}%" y1="8%" y2="92%"/>').format(place(mean))
    return Markup('<svg class="strip" role="img" aria-label="{}">{}</svg>').format(
        f"{len(values)} splits, mean {mean:.4f}", body
    )


def strip_axis(domain: tuple[float, float]) -> Markup:
    """Draw the percent axis that belongs under dot strips.

    Parameters
    ----------
    domain : (float, float)
        Values at the left and right ends.

    Returns
    -------
    Markup
        An SVG that fills its box.
    """
    place = _scale(domain)
    body = Markup("")
    for tick in ticks(*domain):
        body += Markup(
            '<line class="axis" x1="{0}%" x2="{0}%" y1="0" y2="5"/>'
            '<text class="tick" x="{0}%" y="17" text-anchor="middle">{1:g}</text>'
        ).format(place(tick), round(100 * tick, 6))
    return Markup('<svg class="strip-axis" aria-hidden="true">{}</svg>').format(body)


def precision_recall(
    curves: Sequence[npt.NDArray[np.floating]],
    envelopes: Sequence[npt.NDArray[np.floating]],
    chance: float,
) -> Markup:
    """Draw precision against recall: the curves, the area under the first one's envelope.

    Parameters
    ----------
    curves, envelopes : sequence of ndarray of shape (n_points, 2)
        Recall and precision of every split, and the same raised to its envelope.
    chance : float
        Precision of a random ranking, drawn dashed.

    Returns
    -------
    Markup
        An SVG of 100 × 100 units that scales with its box.
    """
    body = Markup("")
    for points in envelopes[:1]:
        body += Markup('<path class="area" d="{}V100H0Z"/>').format(_steps(points))
    body += Markup(
        '<path class="grid" d="M0 25H100M0 50H100M0 75H100M25 0V100M50 0V100M75 0V100"/>'
    )
    for number, points in enumerate(curves):
        css = "curve" if number == 0 else "curve faint"
        body += Markup('<path class="{}" d="{}"/>').format(css, _polyline(points))
    body += Markup('<path class="chance" d="M0 {0}H100"/>').format(_unit(1 - chance))
    body += Markup('<path class="frame" d="M0 0V100H100"/>')
    return Markup(
        '<svg class="pr" viewBox="-1 -1 102 102" role="img" aria-label="precision over recall">'
        "{}</svg>"
    ).format(body)


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


def heat_scale() -> Markup:
    """Draw the shades of `heat_map` from faint to strong.

    Returns
    -------
    Markup
        An SVG of one unit per shade.
    """
    return Markup(
        '<svg class="scale" viewBox="0 0 {} 1" preserveAspectRatio="none">{}</svg>'
    ).format(HEAT_STEPS, cells(np.arange(HEAT_STEPS)[None], "heat"))


def cells(shades: npt.NDArray[np.integer], prefix: str) -> Markup:
    """Draw unit squares, one path for all cells of a shade.

    Parameters
    ----------
    shades : ndarray of int, shape (height, width)
        Shade of every cell; negative ones are left empty.
    prefix : str
        Shade 3 gets the class ``prefix-3``.

    Returns
    -------
    Markup
        The paths.

    Examples
    --------
    >>> print(cells(np.array([[0, 0], [-1, 2]]), "heat"))
    <path class="heat-0" d="M0 0h2v1h-2z"/><path class="heat-2" d="M1 1h1v1h-1z"/>
    """
    paths: dict[int, list[str]] = defaultdict(list)
    for row, shade_row in enumerate(shades):
        edges = np.flatnonzero(np.diff(shade_row, prepend=shade_row[:1] - 1))
        for start, stop in zip(edges, [*edges[1:], len(shade_row)], strict=True):
            shade, run = int(shade_row[start]), stop - start
            if shade >= 0:
                paths[shade].append(f"M{start} {row}h{run}v1h-{run}z")
    return Markup("").join(
        Markup('<path class="{}-{}" d="{}"/>').format(prefix, shade, "".join(paths[shade]))
        for shade in sorted(paths)
    )


def stacked_bar(names: Sequence[str], shares: Sequence[float]) -> Markup:
    """Draw parts of a whole side by side.

    Parameters
    ----------
    names : sequence of str
        Names of the parts; part "read" gets the class ``part-read``.
    shares : sequence of float
        Share of every part.

    Returns
    -------
    Markup
        An SVG that fills its box.
    """
    body, start = Markup(""), 0.0
    for name, share in zip(names, shares, strict=True):
        body += Markup(
            '<rect class="part-{}" x="{}%" width="{}%" height="100%"><title>{}</title></rect>'
        ).format(name, _pct(start), _pct(share), f"{name}: {100 * share:.1f} %")
        start += share
    return Markup('<svg class="stack" role="img" aria-label="time by stage">{}</svg>').format(body)


def choice_strip(shares: Sequence[float]) -> Markup:
    """Draw how often each of a few candidates was chosen, as dots whose area is the share.

    Parameters
    ----------
    shares : sequence of float
        Share of every candidate, in their order.

    Returns
    -------
    Markup
        An SVG that fills its box.
    """
    body = Markup('<line class="axis" x1="0" x2="100%" y1="50%" y2="50%"/>')
    for index, share in enumerate(shares):
        css, radius = ("dot", round(6 * math.sqrt(share), 2)) if share else ("stop", 1.5)
        body += Markup('<circle class="{}" cx="{}%" cy="50%" r="{}"/>').format(
            css, candidate_place(index, len(shares)), radius
        )
    return Markup('<svg class="choice" aria-hidden="true">{}</svg>').format(body)


def candidate_place(index: int, n_candidates: int) -> float:
    """Say where `choice_strip` draws a candidate.

    Parameters
    ----------
    index, n_candidates : int
        Which candidate of how many.

    Returns
    -------
    float
        Distance from the left in percent of the width.
    """
    return round(100 * (index + 0.5) / n_candidates, 2)


def pyramid(levels: Sequence[int]) -> Markup:
    """Draw a pyramid's grids side by side, as an emblem.

    Parameters
    ----------
    levels : sequence of int
        The n of every n×n grid.

    Returns
    -------
    Markup
        An SVG whose grids are 36 units wide.
    """
    side, gap = 36, 9
    paths = []
    for number, level in enumerate(levels):
        left = number * (side + gap)
        for line in range(level + 1):
            offset = round(side * line / level, 2)
            paths.append(f"M{left + offset:g} 0v{side}M{left} {offset:g}h{side}")
    width = len(levels) * (side + gap) - gap
    return Markup(
        '<svg class="pyramid" viewBox="-1 -1 {} {}" width="{}" height="{}" aria-hidden="true">'
        '<path d="{}"/></svg>'
    ).format(width + 2, side + 2, width + 2, side + 2, "".join(paths))


def _scale(domain: tuple[float, float]) -> Callable[[float], float]:
    """Map a domain to percent of the width."""
    low, high = domain
    return lambda value: _pct((value - low) / (high - low))


def _pct(share: float) -> float:
    """Write a share as a percentage within the drawing, to a hundredth."""
    return round(100 * min(max(share, 0.0), 1.0), 2)


def _unit(share: float) -> str:
    """Write a share in units of a 100 × 100 drawing."""
    return f"{100 * share:.1f}".rstrip("0").rstrip(".")


def _polyline(points: npt.NDArray[np.floating]) -> str:
    """Join points of the unit square, y upwards, by straight lines."""
    return "M" + "L".join(f"{_unit(x)} {_unit(1 - y)}" for x, y in points)


def _steps(points: npt.NDArray[np.floating]) -> str:
    """Join points of the unit square by a falling staircase, each level up to its recall."""
    path = f"M0 {_unit(1 - points[0, 1])}"
    for x, y in points:
        path += f"V{_unit(1 - y)}H{_unit(x)}"
    return path
