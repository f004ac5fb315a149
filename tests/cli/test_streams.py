"""What a command prints goes to streams that may be full, closed, or left by their reader."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FULL = "/dev/full"

needs_full = pytest.mark.skipif(not Path(FULL).exists(), reason="there is no /dev/full here")

ARGUMENTS = [
    ["backbones"],
    ["backbones", "spp-mini", "--json", "--quiet"],
    ["run", "--help"],
]


def in_shell(arguments: list[str], redirections: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a shell does it, with its streams wherever the shell puts them."""
    line = f'exec "$@" {redirections}'
    command = ["sh", "-c", line, "sh", sys.executable, "-m", "spptransfer", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@needs_full
@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_an_output_that_is_full_is_told_on_one_line(arguments):
    done = in_shell(arguments, f">{FULL}")
    assert done.stderr == "spptransfer: cannot write the output: No space left on device\n"
    assert done.returncode == 2


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_an_output_that_is_closed_is_told_on_one_line(arguments):
    done = in_shell(arguments, ">&-")
    assert done.stderr == "spptransfer: cannot write the output: it is closed\n"
    assert done.returncode == 2


def test_a_command_that_prints_nothing_needs_no_output():
    done = in_shell(["backbones", "--quiet"], ">&- <&-")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "redirections", [">&- 2>&-", pytest.param(f">{FULL} 2>&1", marks=needs_full)]
)
def test_where_both_streams_are_gone_the_status_tells(redirections):
    assert in_shell(["backbones"], redirections).returncode == 2


@pytest.mark.parametrize("redirections", ["2>&-", pytest.param(f"2>{FULL}", marks=needs_full)])
def test_a_mistake_that_cannot_be_told_still_has_its_status_and_its_json(redirections):
    done = in_shell(["run", "nowhere.yaml", "--json"], redirections)
    assert done.returncode == 2
    assert json.loads(done.stdout)["status"] == "error"


def test_words_that_have_no_stream_do_not_get_into_the_json():
    done = in_shell(["backbones", "--json"], "2>&-")
    assert done.returncode == 0
    assert json.loads(done.stdout)["status"] == "ok"


def test_no_file_takes_the_number_of_a_closed_stream(tmp_path):
    code = (
        "import os; from spptransfer.cli import main; main(['backbones', '--quiet']); "
        f"number = os.open({str(tmp_path / 'file')!r}, os.O_CREAT); raise SystemExit(number < 3)"
    )
    line = 'exec "$@" <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", line, "sh", sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("arguments", [["backbones"], ["backbones", "--json", "--quiet"]])
def test_a_reader_that_leaves_early_is_no_error(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "spptransfer", *arguments]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")
