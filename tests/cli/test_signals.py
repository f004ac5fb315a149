from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from small_projects import draw_folder, write_pipeline

from spptransfer.cache.inventory import is_begun
from spptransfer.cli import main
from spptransfer.cli import process as process_of_a_command

pytestmark = pytest.mark.slow

SMALL = ("small.yaml", "--threads", "2", "--json")


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Enough images for several parts, with what an uninterrupted run makes of them."""
    folder = tmp_path_factory.mktemp("work")
    draw_folder(folder / "photos", per_class=200)
    write_pipeline(
        folder / "small.yaml",
        folder / "photos",
        features={"scales": [96, 128], "precision": "float32"},
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        assert main(["run", *SMALL, "--cache-dir", "whole", "--runs-dir", "models"]) == 0
    return folder


def listen() -> None:
    """Let Ctrl-C through: what a shell starts in the background inherits that it is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "spptransfer", *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=listen,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def unfinished(folder: Path) -> list[Path]:
    return [path.with_name(path.name.rsplit(".", 2)[0]) for path in folder.glob("*.partial")]


def wait_for_a_part(folder: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not any(map(is_begun, unfinished(folder))):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_extraction_exits_130_and_goes_on_to_the_same_cache(
    cli, work, monkeypatch, number
):
    """As a terminal does it, the signal reaches all processes of the command."""
    place = f"interrupted-{number}"
    command = ("extract", *SMALL, "--cache-dir", place)
    process = start(work, *command)
    wait_for_a_part(work / place, process)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "run the same command again" in err
    assert json.loads(out.splitlines()[-1])["status"] == "interrupted"
    assert not list((work / place).glob("*.h5"))

    monkeypatch.chdir(work)
    resumed = cli(*command)
    assert resumed.json["rows"]["reused"] > 0
    (whole,) = (work / "whole").glob("*.h5")
    assert Path(resumed.json["cache"]).read_bytes() == whole.read_bytes()


def test_a_second_signal_stops_at_once(work):
    process = start(work, "extract", *SMALL, "--cache-dir", "twice")
    wait_for_a_part(work / "twice", process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_prediction_exits_130(work, number):
    # More lines than a pipe holds: it cannot be done before the signal comes.
    photos = ["photos", "more", "still more", "even more"]
    for copy in photos[1:]:
        shutil.copytree(work / "photos", work / copy, dirs_exist_ok=True)
    process = start(work, "predict", "models", *photos, "--threads", "1")
    shown = [process.stdout.readline() for _ in range(2)]
    assert shown[1].startswith("image ")
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err == "spptransfer: interrupted; what was printed is all: no scores are kept\n"


def test_one_signal_that_comes_twice_is_one_and_a_later_one_stops_at_once(monkeypatch):
    stop = threading.Event()
    with process_of_a_command.stopping_training(stop):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set()
        monkeypatch.setattr(process_of_a_command, "ONE_SIGNAL_SECONDS", 0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
