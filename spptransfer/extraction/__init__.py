"""Images + backbone -> rows: grouping by size, batches, workers, parts."""

from __future__ import annotations

from spptransfer.extraction.division import ENGINES
from spptransfer.extraction.engine import (
    Destination,
    Extraction,
    Interrupted,
    extract,
    extract_together,
)

__all__ = ["ENGINES", "Destination", "Extraction", "Interrupted", "extract", "extract_together"]
