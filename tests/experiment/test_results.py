"""A run's folder on a disk that is full or read-only: one line, and nothing that is half a run."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from small_projects import experiment

from spptransfer.errors import CacheError
from spptransfer.experiment import results, run

COMMAND = "spptransfer run small.yaml"
FULL = Path("/dev/full")

needs_full = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")


def refuse_to(monkeypatch, module, name: str, about: str, number: int) -> None:
    """Let a function of the system fail for paths that end in some way."""
    original = getattr(module, name)

    def refusing(*paths, **options):
        if str(paths[-1]).endswith(about):
            raise OSError(number, os.strerror(number))
        return original(*paths, **options)

    monkeypatch.setattr(module, name, refusing)


@needs_full
def test_a_log_that_finds_no_room_later_is_told_once(images, tmp_path, caplog, capfd):
    given = experiment(images, tmp_path)
    library = logging.getLogger("spptransfer.somewhere")
    with results.run_folder(given, datetime.now(UTC), COMMAND) as folder:
        (handler,) = (h for h in library.parent.handlers if isinstance(h, logging.FileHandler))
        handler.setStream(FULL.open("w")).close()
        for line in ("one", "two"):
            library.info(line)
        (folder / "results.json").write_text("{}")
    assert capfd.readouterr().err == ""
    (warning,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert "log.txt' is not complete: No space left on device" in warning.getMessage()


@pytest.mark.parametrize("name", ["model.safetensors", "predictions.npz", "results.json"])
def test_a_file_that_finds_no_room_leaves_no_folder_of_a_run(images, tmp_path, monkeypatch, name):
    refuse_to(monkeypatch, os, "replace", name, errno.ENOSPC)
    with pytest.raises(CacheError, match=f"the disk is full while writing '.*{name}'"):
        run(experiment(images, tmp_path), COMMAND)
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_of_runs_that_takes_no_other_folder_is_told(images, tmp_path, monkeypatch, number):
    (tmp_path / "runs").mkdir()
    make = Path.mkdir

    def refusing(folder, *arguments, **options):
        if folder.parent.name == "runs":
            raise OSError(number, os.strerror(number))
        return make(folder, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refusing)
    with pytest.raises(CacheError, match=r"writ(e|ing) '.*small-"):
        run(experiment(images, tmp_path), COMMAND)


@pytest.mark.parametrize("name", ["con", "a: b?", "nul.txt", "ends in a dot."])
def test_a_runs_folder_has_a_name_that_every_system_takes(images, tmp_path, name):
    named = dataclasses.replace(experiment(images, tmp_path), name=name)
    for given in (None, name):
        with results.run_folder(named, datetime.now(UTC), COMMAND, given) as folder:
            (folder / "results.json").write_text("{}")
        assert not set(folder.name) & set('<>:"/\\|?*')
        assert folder.name.rstrip(". ") == folder.name
        assert folder.name.partition(".")[0].lower() not in ("con", "nul")


def test_a_report_that_finds_no_room_leaves_a_run_that_is_told_to_lack_it(
    images, tmp_path, monkeypatch
):
    refuse_to(monkeypatch, os, "replace", "report.html", errno.ENOSPC)
    with pytest.raises(CacheError, match=r"complete but for its report; `spptransfer report .*/"):
        run(experiment(images, tmp_path), COMMAND)
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "results.json").exists()
    assert not (folder / "report.html").exists()
