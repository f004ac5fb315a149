"""Small views gain nothing from a second thread inside an operator, and other jobs lose one."""

from __future__ import annotations

import pytest
import torch
from graph_cases import OFTEN, World


@pytest.fixture(autouse=True, scope="package")
def one_thread_per_operator():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def soon(monkeypatch):
    """Shapes become graphs after a few batches."""
    from spptransfer.extraction import graphs

    monkeypatch.setattr(graphs, "OFTEN", OFTEN)
    monkeypatch.setattr(graphs, "OFTEN_AGAIN", 4 * OFTEN)


@pytest.fixture
def world():
    """What captures graphs on a CPU."""
    return World()
