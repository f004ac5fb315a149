"""Protocols: splits, choice of C and metric, so that numbers can be compared and quoted."""

from __future__ import annotations

from spptransfer.protocols.protocol import PROTOCOLS, Protocol, ProtocolSection, get, sections
from spptransfer.protocols.splits import (
    Split,
    all_images,
    check_splits,
    read_splits,
    shared_content,
    splits_checksum,
    write_splits,
)

__all__ = [
    "PROTOCOLS",
    "Protocol",
    "ProtocolSection",
    "Split",
    "all_images",
    "check_splits",
    "get",
    "read_splits",
    "sections",
    "shared_content",
    "splits_checksum",
    "write_splits",
]
