"""Small views gain nothing from a second thread inside an operator, and other jobs lose one."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def one_thread_per_operator():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def read(monkeypatch):
    """Names of all image files whose content is read."""
    from spptransfer import images

    seen, read_bytes = [], images.read_bytes
    monkeypatch.setattr(
        images, "read_bytes", lambda path: seen.append(path.name) or read_bytes(path)
    )
    return seen
