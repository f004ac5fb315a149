"""Files that appear whole, one writer at a time, and downloads that are checked."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from spptransfer import files
from spptransfer.errors import CacheError

# ---- files that appear whole or not at all ----


def test_a_file_appears_once_it_is_whole(tmp_path):
    path = tmp_path / "a.bin"
    with files.atomic_write(path) as temporary:
        temporary.write_bytes(b"half")
        assert temporary.parent == tmp_path
        assert not path.exists()
        temporary.write_bytes(b"whole")
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_there_stays_if_something_goes_wrong(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")
    with (
        contextlib.suppress(ZeroDivisionError),
        files.atomic_write(path) as temporary,
    ):
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_text_keeps_names_that_are_no_utf8(tmp_path):
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    files.write_text(tmp_path / "a.txt", name)
    assert (tmp_path / "a.txt").read_bytes() == b"caf\xe9"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_byte_order_mark_is_skipped_and_heeded(tmp_path, encoding):
    mark = "\ufeff" if encoding[-3:] in ("-le", "-be") else ""
    (tmp_path / "a.txt").write_bytes(f"{mark}é\r\nb".encode(encoding))
    assert files.read_text(tmp_path / "a.txt") == "é\nb"
    (tmp_path / "a.txt").write_bytes(b"")
    assert files.read_text(tmp_path / "a.txt") == ""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full .*is kept: free some"),
        (OSError(errno.EIO, "Input/output error"), "cannot write .*: Input/output error"),
        (RuntimeError("HDF5:\n (errno = 28, error message = 'no space')"), "the disk is full"),
        (RuntimeError("can't close\n the file"), "cannot write .*: can't close the file"),
    ],
)
def test_what_the_system_says_becomes_one_line_that_names_the_file(tmp_path, error, message):
    with pytest.raises(CacheError, match=message) as told, files.atomic_write(tmp_path / "a.h5"):
        raise error
    assert "a.h5" in str(told.value)
    assert "\n" not in str(told.value)


def test_a_file_larger_than_the_free_space_is_refused_with_its_size(tmp_path):
    with (
        pytest.raises(CacheError, match=r"the disk is full .* \(1000.0 TB are needed\)"),
        files.atomic_write(tmp_path / "a.h5", needed=10**15),
    ):
        pytest.fail("begun")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match=r"cannot write '.*file.*': "):
        files.make_folder(tmp_path / "file" / "below")
    with pytest.raises(CacheError, match=r"cannot write .*No such file"):
        files.write_text(tmp_path / "nowhere" / "a.txt", "")


@pytest.mark.parametrize(("number", "expected"), [(errno.EROFS, True), (errno.ENOSPC, False)])
def test_a_read_only_place_is_told_from_other_trouble(tmp_path, number, expected):
    with pytest.raises(CacheError) as told, files.os_errors_as_cache_error(tmp_path):
        raise OSError(number, os.strerror(number))
    assert files.is_read_only(told.value) is expected


def test_a_full_disk_is_found_behind_other_errors():
    buried = ValueError("outer")
    buried.__cause__ = RuntimeError("middle")
    buried.__cause__.__context__ = OSError(errno.ENOSPC, "No space left on device")
    assert files.is_disk_full(buried)
    assert not files.is_disk_full(ValueError("outer"))
    assert not files.is_disk_full(None)


def dead_process() -> int:
    number = max(psutil.pids()) + 1
    while psutil.pid_exists(number):
        number += 1
    return number


def test_only_leftovers_of_dead_processes_of_this_machine_are_removed(tmp_path):
    dead, here = dead_process(), socket.gethostname()
    removed = [f"a.h5.{here}.{dead}.tmp", f"b.h5.{here}.{dead}.tmp"]
    kept = [
        f"a.h5.{here}.{os.getpid()}.tmp",
        f"a.h5.other{here}.{dead}.tmp",
        f"a.h5.{here}.x.tmp",
        f"a.h5.{dead}",
        "note.tmp",
    ]
    for name in (*removed, *kept):
        (tmp_path / name).touch()
    files.remove_leftovers(tmp_path, "a.h5*")
    assert (tmp_path / removed[1]).exists()
    files.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_a_link_stands_for_its_file(tmp_path):
    (tmp_path / "link.h5").symlink_to(tmp_path / "real.h5")
    assert files.resolve_symlink(tmp_path / "link.h5") == (tmp_path / "real.h5").resolve()
    plain = tmp_path / "a" / ".." / "b.h5"
    assert files.resolve_symlink(plain) is plain


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (5_500_000, "5.5 MB"),
        (4 * 10**16, "40000.0 TB"),
    ],
)
def test_bytes_are_written_with_a_unit(count, text):
    assert files.human_bytes(count) == text


def test_room_that_was_never_written_to_is_not_held(tmp_path):
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.write(bytes(8192))
        file.truncate(10**8)
    assert path.stat().st_size == 10**8
    assert files.bytes_held(path) < 10**6


# ---- locks ----

HOLDING = """
import sys
from pathlib import Path
from spptransfer.files import exclusive_lock
with exclusive_lock(Path(sys.argv[1]), "the cache 'a.h5'"):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextlib.contextmanager
def another_process(lock: Path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_who_comes_second_is_told_who_holds_the_lock_until_that_process_ends(tmp_path):
    lock = tmp_path / "a.lock"
    with another_process(lock) as other:
        since = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"
        message = rf"'a.h5' is being written by process {other.pid} on .+ since {since}"
        with (
            pytest.raises(CacheError, match=message),
            files.exclusive_lock(lock, "the cache 'a.h5'"),
        ):
            pytest.fail("held twice")
        other.kill()
        other.wait()
        with files.exclusive_lock(lock, "the cache"):
            assert str(os.getpid()).encode() in lock.read_bytes()


def test_threads_of_one_process_exclude_each_other_too(tmp_path):
    lock, refused = tmp_path / "a.lock", []

    def second():
        try:
            with files.exclusive_lock(lock, "the cache 'a.h5'"):
                pass
        except CacheError as error:
            refused.append(str(error))

    with files.exclusive_lock(lock, "the cache 'a.h5'"):
        for run in (second, threading.Thread(target=second).run):
            run()
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(refused) == 3
    assert all(f"by process {os.getpid()} on" in text for text in refused)
    second()
    assert len(refused) == 3


def test_a_lock_whose_holder_left_no_note_is_still_a_lock(tmp_path):
    lock = tmp_path / "a.lock"
    with files.exclusive_lock(lock, "the cache"):
        lock.write_bytes(b" \x00\xff\n" * 9)
        with (
            pytest.raises(CacheError, match=r"by another process$"),
            files.exclusive_lock(lock, "the cache"),
        ):
            pytest.fail("held twice")


def test_a_lock_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(CacheError, match=r"cannot lock the cache: '.*a\.lock': \w+"),
        files.exclusive_lock(tmp_path / "file" / "a.lock", "the cache"),
    ):
        pytest.fail("held")


# ---- downloads ----

CONTENT = b"weights" * 10_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize("digits", [8, 64])
def test_a_file_is_fetched_checked_and_put_in_its_place(server, tmp_path, caplog, digits):
    caplog.set_level(logging.INFO)
    (server.folder / "right.bin").write_bytes(CONTENT)
    path = tmp_path / "new" / "a.bin"
    files.download([f"{server.url}/right.bin"], SHA256[:digits], path)
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    assert f"fetching {server.url}/right.bin to '{path}'" in caplog.text
    assert files.sha256_of(path) == SHA256


def test_what_no_address_gives_is_told_with_each_ones_reason(server, tmp_path):
    with socket.socket() as unused:  # bound, but nobody listens
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}/a.bin"
        with pytest.raises(OSError, match="404") as told:
            files.download([f"{server.url}/gone.bin", dead], SHA256, tmp_path / "a.bin")
    assert dead in str(told.value)
    assert "refused" in str(told.value)
    assert "\n" not in str(told.value)
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_hash_is_not_taken_and_what_was_there_stays(server, tmp_path):
    (server.folder / "right.bin").write_bytes(CONTENT)
    (tmp_path / "a.bin").write_bytes(b"before")
    expected = rf"SHA-256 starts with {SHA256[:12]} instead of {'0' * 12}"
    with pytest.raises(OSError, match=expected):
        files.download([f"{server.url}/right.bin"], "0" * 64, tmp_path / "a.bin")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def test_a_download_that_ends_early_is_no_file(server, tmp_path):
    (server.folder / "cut.bin").write_bytes(CONTENT)
    with pytest.raises(OSError, match=r"cut\.bin \("):
        files.download([f"{server.url}/cut.bin"], SHA256, tmp_path / "a.bin")
    assert not list(tmp_path.iterdir())


def test_a_progress_bar_is_shown_where_it_is_asked_for(server, tmp_path, capsys):
    (server.folder / "right.bin").write_bytes(CONTENT)
    files.download([f"{server.url}/right.bin"], SHA256, tmp_path / "a.bin", progress=True)
    assert "100%" in capsys.readouterr().err
