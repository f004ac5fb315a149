"""Images, labels and official splits of the datasets that protocols are defined on."""

from __future__ import annotations

from spptransfer.datasets.base import Dataset
from spptransfer.datasets.folder import IMAGE_SUFFIXES
from spptransfer.datasets.registry import (
    DatasetSection,
    DatasetStatus,
    names,
    open_dataset,
    register,
    sections,
    status,
    unregister,
)

__all__ = [
    "IMAGE_SUFFIXES",
    "Dataset",
    "DatasetSection",
    "DatasetStatus",
    "names",
    "open_dataset",
    "register",
    "sections",
    "status",
    "unregister",
]
