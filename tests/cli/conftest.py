from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
from small_projects import draw_folder, write_pipeline

from spptransfer.cli import main


class Outcome(NamedTuple):
    """What a command left: exit status, both streams, and its last line as JSON if it is some."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        return json.loads(self.out.splitlines()[-1])

    @property
    def complaint(self) -> str:
        """The one line of a refused command."""
        assert "Traceback" not in self.err
        lines = self.err.splitlines()
        assert lines[-1].startswith("spptransfer: ")
        return lines[-1]


@pytest.fixture
def cli(capfd, monkeypatch):
    """Run a command in this process."""

    def run(*arguments) -> Outcome:
        monkeypatch.setattr("sys.argv", ["spptransfer", *map(str, arguments)])
        capfd.readouterr()
        status = main()
        return Outcome(status, *capfd.readouterr())

    return run


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """The current folder: images in class folders and a pipeline file for them."""
    monkeypatch.chdir(tmp_path)
    draw_folder(tmp_path / "photos")
    write_pipeline(tmp_path / "small.yaml", Path("photos"))
    return tmp_path


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A folder in which the small pipeline was run; the run is in runs/."""
    work = tmp_path_factory.mktemp("my work")
    draw_folder(work / "photos")
    write_pipeline(work / "small.yaml", work / "photos")
    places = ["--cache-dir", str(work / "cache"), "--runs-dir", str(work / "runs")]
    assert main(["run", str(work / "small.yaml"), *places, "--quiet", "--device", "cpu"]) == 0
    return work
