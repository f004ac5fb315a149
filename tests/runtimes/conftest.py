from __future__ import annotations

import pytest
from runtime_cases import PACKAGES, need


@pytest.fixture(params=list(PACKAGES))
def runtime(request) -> str:
    """Every runtime besides torch that is installed."""
    need(request.param)
    return request.param
