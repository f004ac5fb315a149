"""What an audit found to one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from spptransfer._version import __version__
from spptransfer.experiment.auditing import Audit
from spptransfer.report.template import fill, thumbnail, write_page

# So that the page stays below some megabytes.
PAIRS_SHOWN = 40
LABELS_SHOWN = 60
OUTLIERS_SHOWN = 36


def write_audit_page(found: Audit, name: str, command: str, path: Path) -> Path:
    """Write the page of an audit: pairs side by side, doubtful labels, outliers."""
    doubtful = [i for i in found.doubtful[:LABELS_SHOWN].tolist() if found.contradictions[i] > 0]
    page = fill(
        "audit",
        "report",
        found=found,
        title=name,
        command=command,
        version=__version__,
        pairs=_pairs(found),
        doubtful=[(*_picture(found, i), found.doubt(i), found.contradictions[i]) for i in doubtful],
        outliers=[
            (*_picture(found, i), found.distances[i], found.ratios[i])
            for i in found.outliers[:OUTLIERS_SHOWN].tolist()
        ],
        contradicted=int((found.contradictions > 0).sum()),
    )
    return write_page(page, path)


def _pairs(found: Audit) -> Iterable[Any]:
    columns = (column[:PAIRS_SHOWN].tolist() for column in found.near_copies)
    for one, other, distance, across in zip(*columns, strict=True):
        yield [_picture(found, one), _picture(found, other)], distance, across


def _picture(found: Audit, position: int) -> tuple[str | None, str, str]:
    """An image's thumbnail, id and label."""
    id = found.dataset.ids[position]
    return thumbnail(found.dataset.path(id)), id, found.label(position)
