"""Images + backbone -> rows of features: reading, batches of one size, threads, shards."""

from __future__ import annotations

from spptransfer.extraction.engine import Extraction, Interrupted, compare_sample, extract, repair
from spptransfer.extraction.shards import extract_shards, shard_of, shard_path

__all__ = [
    "Extraction",
    "Interrupted",
    "compare_sample",
    "extract",
    "extract_shards",
    "repair",
    "shard_of",
    "shard_path",
]
