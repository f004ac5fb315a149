"""A confusion matrix as inline SVG, from two classes to a few hundred."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from spptransfer.report.figures import cells

# Upper ends of all shades but the strongest, as shares of the true class's images.
RIGHT_SHADES = (0.5, 0.7, 0.8, 0.9, 0.95)
WRONG_SHADES = (0.01, 0.02, 0.05, 0.1, 0.2)
LABEL_CHARACTERS = 22
_COUNTS_UP_TO = 25
_LABELS_UP_TO = 150


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
    n_classes = len(labels)
    cell = _cell_side(n_classes)
    font = min(12.0, max(7.0, cell - 0.5))
    margin = _label_width(labels, font) if n_classes <= _LABELS_UP_TO else 4
    side = n_classes * cell
    body = Markup('<g transform="translate({0} {0}) scale({1})">{2}</g>').format(
        margin, cell, _shaded_cells(counts)
    )
    if n_classes <= _LABELS_UP_TO:
        body += _labels(labels, margin, cell, font)
    if n_classes <= _COUNTS_UP_TO:
        body += _counts(counts, margin, cell)
    body += Markup(
        '<rect class="cross" id="cross-row" x="0" height="{0}" width="{1}" visibility="hidden"/>'
        '<rect class="cross" id="cross-column" y="0" width="{0}" height="{1}" visibility="hidden"/>'
    ).format(cell, margin + side)
    density = "small" if n_classes <= 8 else "medium" if n_classes <= _COUNTS_UP_TO else "dense"
    return Markup(
        '<svg class="matrix {5}" id="matrix" tabindex="0" role="img" viewBox="0 0 {0} {0}" '
        'width="{0}" height="{0}" data-margin="{1}" data-cell="{2}" aria-label="{3}">{4}</svg>'
    ).format(
        margin + side + 1, margin, cell, f"confusion matrix of {n_classes} classes", body, density
    )


def shade(counts: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Say how strongly each cell is drawn.

    Parameters
    ----------
    counts : ndarray of int, shape (n_classes, n_classes)
        Rows are true classes, columns predicted ones.

    Returns
    -------
    ndarray of int, shape (n_classes, n_classes)
        Shades from 0 up, -1 for empty cells. The diagonal follows `RIGHT_SHADES`, the rest
        `WRONG_SHADES`.

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


def _cell_side(n_classes: int) -> float:
    """Pixels per cell: as large as a wide screen allows; the page may shrink it."""
    limits = ((3, 84), (8, 52), (14, 34), (_COUNTS_UP_TO, 27), (50, 16), (_LABELS_UP_TO, 9))
    return next((side for limit, side in limits if n_classes <= limit), 4)


def _label_width(labels: Sequence[str], font: float) -> int:
    """Pixels the longest label needs; 0.64 em is a wide sans-serif's mean letter."""
    longest = max((len(_short(label)) for label in labels), default=0)
    return round(longest * 0.64 * font) + 10


def _short(label: str) -> str:
    """Cut a label to what the margin holds."""
    return label if len(label) <= LABEL_CHARACTERS else label[: LABEL_CHARACTERS - 1] + "…"


def _shaded_cells(counts: npt.NDArray[np.integer]) -> Markup:
    """Draw background, guide lines and cells in units of a cell."""
    shades = shade(counts)
    n_classes = len(shades)
    diagonal = np.eye(n_classes, dtype=bool)
    step = 1 if n_classes <= _COUNTS_UP_TO else 10
    lines = "".join(
        f"M0 {at}H{n_classes}M{at} 0V{n_classes}" for at in range(0, n_classes + 1, step)
    )
    return (
        Markup('<rect class="ground" width="{0}" height="{0}"/>').format(n_classes)
        + cells(np.where(diagonal, -1, shades), "wrong")
        + cells(np.where(diagonal, shades, -1), "right")
        + Markup('<path class="lines" d="{}"/>').format(lines)
    )


def _labels(labels: Sequence[str], margin: float, cell: float, font: float) -> Markup:
    """Write the class names left of the rows and, upwards, over the columns."""
    rows, columns = Markup(""), Markup("")
    for index, label in enumerate(labels):
        middle = round(margin + (index + 0.5) * cell, 2)
        place = Markup('<text x="{}" y="{}">{}</text>')
        rows += place.format(margin - 5, middle, _short(label))
        columns += place.format(5 - margin, middle, _short(label))
    return Markup(
        '<g class="labels" font-size="{0}"><g text-anchor="end">{1}</g>'
        '<g transform="rotate(-90)">{2}</g></g>'
    ).format(font, rows, columns)


def _counts(counts: npt.NDArray[np.integer], margin: float, cell: float) -> Markup:
    """Write the counts into the cells that have any."""
    shades = shade(counts)
    body = Markup("")
    for row, column in zip(*np.nonzero(counts), strict=True):
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
