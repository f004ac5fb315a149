"""Fixtures shared by all tests: where real data lies, and small images made on the spot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
REAL_DATA = Path(os.environ.get("SPPTRANSFER_TEST_DATA", REPOSITORY.parent / "shared" / "data"))


def real_data(relative: str) -> Path:
    """Path of a piece of the optional real data, or a skip that says what is absent."""
    path = REAL_DATA / relative
    if not path.exists():
        pytest.skip(f"real data '{relative}' is not on this machine (SPPTRANSFER_TEST_DATA)")
    return path


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Escape what no UTF-8 can say: files with such names are logged, and processes exchange it."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture(scope="session")
def alexnet_weights() -> Path:
    return real_data("weights/alexnet_trunk.pth")


@pytest.fixture(scope="session")
def caltech101_root() -> Path:
    return real_data("caltech101")


@pytest.fixture(scope="session")
def voc2007_root() -> Path:
    return real_data("voc2007")
