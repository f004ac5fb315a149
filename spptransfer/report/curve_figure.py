"""Validation score against C as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from spptransfer.report.figures import padded, ticks

WIDTH, HEIGHT = 420, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 36, 8, 10, 34


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
        An SVG of `WIDTH` × `HEIGHT` units that scales with its box.
    """
    candidates = sorted({C for curve in curves for C, _ in curve})
    domain = padded(score for curve in curves for _, score in curve)
    across, upward = _across(candidates), _upward(domain)
    mean = [(C, _mean_at(curves, C)) for C in candidates]
    body = _axes(candidates, domain, across, upward)
    for curve in curves if len(curves) > 1 else ():
        body += _line("curve faint", curve, across, upward)
    body += _line("curve", mean, across, upward)
    for C, score in mean:
        times = chosen.get(C, 0)
        body += Markup(
            '<circle class="{}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>'
        ).format(
            "dot" if times else "stop",
            across(C),
            upward(score),
            5.5 if times else 2.5,
            f"C = {C:g}: {100 * score:.2f} %, chosen {times}×",
        )
    return Markup(
        '<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="validation score over C">'
        "{}</svg>"
    ).format(WIDTH, HEIGHT, body)


def _mean_at(curves: Sequence[Sequence[tuple[float, float]]], C: float) -> float:
    """Mean score of the splits that tried this C."""
    scores = [score for curve in curves for tried, score in curve if tried == C]
    return math.fsum(scores) / len(scores)


def _across(candidates: Sequence[float]) -> Callable[[float], float]:
    """Map C, on a logarithmic axis, to x."""
    low, high = math.log10(candidates[0]), math.log10(candidates[-1])
    room = WIDTH - _LEFT - _RIGHT - 24
    return lambda C: round(
        _LEFT + 12 + room * ((math.log10(C) - low) / (high - low) if high > low else 0.5), 1
    )


def _upward(domain: tuple[float, float]) -> Callable[[float], float]:
    """Map a score to y."""
    low, high = domain
    room = HEIGHT - _TOP - _BOTTOM
    return lambda score: round(_TOP + room * (high - score) / (high - low), 1)


def _line(
    css: str,
    points: Sequence[tuple[float, float]],
    across: Callable[[float], float],
    upward: Callable[[float], float],
) -> Markup:
    """Join points by straight lines."""
    path = "M" + "L".join(f"{across(C)} {upward(score)}" for C, score in points)
    return Markup('<path class="{}" d="{}"/>').format(css, path)


def _axes(
    candidates: Sequence[float],
    domain: tuple[float, float],
    across: Callable[[float], float],
    upward: Callable[[float], float],
) -> Markup:
    """Draw guide lines with percentages, and C below; of many candidates every second or third."""
    body = Markup("")
    for tick in ticks(*domain, wanted=4):
        body += Markup(
            '<path class="grid" d="M{0} {1}H{2}"/>'
            '<text class="tick" x="{3}" y="{4}" text-anchor="end">{5:g}</text>'
        ).format(
            _LEFT, upward(tick), WIDTH - _RIGHT, _LEFT - 7, upward(tick) + 4, round(100 * tick, 6)
        )
    for C in candidates[:: math.ceil(len(candidates) / 7)]:
        body += Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{:g}</text>').format(
            across(C), HEIGHT - 12, C
        )
    return body
