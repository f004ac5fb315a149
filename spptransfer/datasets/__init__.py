"""Images, labels and official splits of the datasets that protocols are defined on."""

from __future__ import annotations

from spptransfer.datasets.base import Dataset
from spptransfer.datasets.catalogue import DatasetStatus, names, open_dataset, status
from spptransfer.datasets.folder import IMAGE_SUFFIXES

__all__ = ["IMAGE_SUFFIXES", "Dataset", "DatasetStatus", "names", "open_dataset", "status"]
