"""Fixtures shared by all tests: where real data lies, and small images made on the spot."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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


def python(code: str, *arguments) -> str:
    """Run code in a process of its own that finds what tests share; gives what it printed."""
    paths = os.pathsep.join([str(REPOSITORY / "tests"), str(REPOSITORY)])
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Escape what no UTF-8 can say: files with such names are logged, and processes exchange it."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


class Server(ThreadingHTTPServer):
    """Files of a folder on this machine, and what it was asked for; `cut.bin` ends half way."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.asked = folder, []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        path = self.server.folder / self.path[1:]
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // (2 if path.name == "cut.bin" else 1)])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with Server(tmp_path_factory.mktemp("served")) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture(scope="session")
def alexnet_weights() -> Path:
    return real_data("weights/alexnet_trunk.pth")


@pytest.fixture(scope="session")
def caltech101_root() -> Path:
    return real_data("caltech101")


@pytest.fixture(scope="session")
def voc2007_root() -> Path:
    return real_data("voc2007")


@pytest.fixture(scope="session")
def detector_run(tmp_path_factory) -> Path:
    """A folder with drawn scenes in which a detector of them was trained; that is in run/."""
    from small_detectors import detection_experiment, draw_scenes
    from small_projects import machine_in

    from spptransfer.experiment import run

    work = tmp_path_factory.mktemp("detector")
    root = draw_scenes(work / "scenes")
    run(detection_experiment(root, machine_in(work)), "run scenes").folder.rename(work / "run")
    return work
