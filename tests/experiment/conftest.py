from __future__ import annotations

import logging
from pathlib import Path

import pytest
from small_projects import draw_folder

from spptransfer.experiment.preparation import STEPS


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """A folder of class folders, which no test changes."""
    return draw_folder(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture
def told(caplog):
    """The lines that were told of steps since this was last called."""
    caplog.set_level(logging.INFO, STEPS)

    def lines() -> list[str]:
        found = [r.getMessage() for r in caplog.records if r.name == STEPS]
        caplog.clear()
        return found

    return lines
