from __future__ import annotations

import errno
import fcntl
import json
import logging
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from spptransfer.cache import lock as module
from spptransfer.cache.lock import STALE_SECONDS, Holder, Lock
from spptransfer.errors import CacheError


@pytest.fixture
def lock(tmp_path) -> Lock:
    return Lock(tmp_path / "lock", tmp_path / "a.h5")


@pytest.fixture
def without_locks(monkeypatch):
    """A file system that knows no locks."""

    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


def leave_note(tmp_path, silent=0.0, **changes) -> None:
    """What a holder that was killed leaves behind, last changed `silent` seconds ago."""
    note = {"process": 7, "host": "elsewhere", "since": "2026-01-01T00:00:00", "boot": "other"}
    path = tmp_path / "lock"
    path.write_text(json.dumps(note | changes))
    os.utime(path, (time.time() - silent,) * 2)


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_note_comes_back_as_it_was_written(lock, tmp_path):
    lock.acquire()
    holder = Holder.parse((tmp_path / "lock").read_text())
    lock.release()
    assert (holder.process, holder.host) == (os.getpid(), socket.gethostname())
    assert holder.on_this_host
    assert holder.shares_our_locks
    assert Holder.parse((tmp_path / "lock").read_text()) is None


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{", '{"process": 1}', "[" * 100_000]
    + [
        json.dumps({"process": process, "host": host, "since": "x"})
        for process, host in (("1", "a"), (True, "a"), (1.5, "a"), (1, None), (1, ["a"]))
    ],
)
def test_a_note_that_names_nobody_is_none(text):
    assert Holder.parse(text) is None


@pytest.mark.parametrize("locks", [True, False], ids=["flock", "no flock"])
@pytest.mark.parametrize("silent", [0, STALE_SECONDS - 30])
def test_a_holder_elsewhere_that_showed_itself_is_named_with_when(
    lock, tmp_path, request, silent, locks
):
    if not locks:
        request.getfixturevalue("without_locks")
    leave_note(tmp_path, silent)
    pattern = (
        r"'.*a\.h5' is being written by process 7 on elsewhere since 2026-01-01T00:00:00, last "
        rf"seen {str(silent)[:-1]}\d s ago; .* after 600 s of silence, or once '.*lock' is deleted"
    )
    with pytest.raises(CacheError, match=pattern) as caught:
        lock.acquire()
    assert "\n" not in str(caught.value)
    assert json.loads((tmp_path / "lock").read_text())["process"] == 7


@pytest.mark.parametrize("locks", [True, False], ids=["flock", "no flock"])
def test_a_holder_elsewhere_that_was_silent_for_long_is_gone(
    lock, tmp_path, request, caplog, locks
):
    if not locks:
        request.getfixturevalue("without_locks")
    leave_note(tmp_path, STALE_SECONDS + 5)
    with caplog.at_level(logging.WARNING):
        lock.acquire()
    lock.release()
    assert "from process 7 on elsewhere" in caplog.text


def test_deleting_the_lock_file_lets_a_dead_holder_elsewhere_go(lock, tmp_path):
    leave_note(tmp_path)
    (tmp_path / "lock").unlink()
    lock.acquire()
    lock.release()


def test_a_killed_holder_on_this_host_is_gone_at_once(lock, tmp_path):
    leave_note(tmp_path, process=os.getpid(), host=socket.gethostname())
    lock.acquire()  # whatever process has that number now: the lock itself is free
    lock.release()


def test_a_killed_container_on_this_machine_is_gone_at_once(lock, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_boot_id", lambda: "this boot")
    leave_note(tmp_path, host="a1b2c3d4e5f6", boot="this boot")
    lock.acquire()
    lock.release()


def test_two_systems_that_do_not_tell_their_boots_apart_are_two(lock, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_boot_id", lambda: "")
    leave_note(tmp_path, boot="")
    with pytest.raises(CacheError, match="on elsewhere"):
        lock.acquire()


@pytest.mark.usefixtures("without_locks")
def test_without_locks_a_process_of_this_host_is_believed_while_it_lives(lock, tmp_path, caplog):
    leave_note(tmp_path, process=os.getppid(), host=socket.gethostname())
    with pytest.raises(CacheError, match=f"written by process {os.getppid()} on"):
        lock.acquire()
    leave_note(tmp_path, process=dead_process(), host=socket.gethostname())
    lock.acquire()
    lock.release()
    assert "knows no locks" in caplog.text


@pytest.mark.usefixtures("without_locks")
def test_without_locks_a_number_that_another_process_has_by_now_blocks_nobody_for_ever(
    lock, tmp_path
):
    leave_note(tmp_path, STALE_SECONDS + 5, process=os.getpid(), host=socket.gethostname())
    lock.acquire()
    lock.release()


def test_who_was_taken_for_dead_leaves_the_note_of_the_next_one_alone(lock, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.01)
    lock.acquire()
    leave_note(tmp_path, STALE_SECONDS + 5)
    note = (tmp_path / "lock").read_text()
    seen = (tmp_path / "lock").stat().st_mtime
    time.sleep(0.1)
    assert not lock.is_ours()
    lock.release()
    assert (tmp_path / "lock").read_text() == note
    assert (tmp_path / "lock").stat().st_mtime == seen


@pytest.mark.usefixtures("without_locks")
def test_a_container_without_locks_is_believed_while_it_shows_itself(lock, tmp_path, monkeypatch):
    """Its process cannot be looked for: numbers mean something else there."""
    monkeypatch.setattr(module, "_boot_id", lambda: "this boot")
    leave_note(tmp_path, process=dead_process(), host="a1b2c3d4e5f6", boot="this boot")
    with pytest.raises(CacheError, match="on a1b2c3d4e5f6"):
        lock.acquire()


def test_silence_is_told_by_the_clock_of_the_folder_not_by_ours(lock, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)
    (tmp_path / "lock").write_text(json.dumps({"process": 7, "host": "elsewhere", "since": "x"}))
    with pytest.raises(CacheError, match=r"last seen \d s ago"):
        lock.acquire()


def test_the_holder_shows_itself_until_it_releases(lock, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.01)
    threads = threading.active_count()
    lock.acquire()
    os.utime(tmp_path / "lock", (0, 0))
    deadline = time.monotonic() + 30
    while (tmp_path / "lock").stat().st_mtime == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lock.release()
    assert threading.active_count() == threads
    os.utime(tmp_path / "lock", (0, 0))
    time.sleep(0.05)
    assert (tmp_path / "lock").stat().st_mtime == 0


def test_a_lock_can_be_taken_and_released_again_and_again(lock):
    for _ in range(3):
        lock.acquire()
        lock.release()
    lock.release()


def _hold(path, cache, ready):
    Lock(path, cache).acquire()
    ready.set()
    time.sleep(60)


def test_a_lock_that_is_held_is_held_however_old_its_note(lock, tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "lock", tmp_path / "a.h5", ready))
    process.start()
    assert ready.wait(30)
    os.utime(tmp_path / "lock", (0, 0))
    with pytest.raises(CacheError, match=rf"process {process.pid} on \S+ since \S+$"):
        lock.acquire()
    process.kill()
    process.join()
    lock.acquire()
    lock.release()
