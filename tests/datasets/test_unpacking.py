from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from spptransfer.datasets.fetch import unpack
from spptransfer.errors import DatasetError


def member(name: str, content: bytes = b"content", **attributes):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, content


def make_tar(path: Path, *members, mode="w") -> Path:
    with tarfile.open(path, mode) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_files_and_folders_are_unpacked_whatever_the_compression(tmp_path, mode):
    members = [
        member("images", b"", type=tarfile.DIRTYPE),
        member("images/cat/1.jpg", b"one"),
        member("./images/2.jpg", b"two" * 100_000),
        member("images/empty.jpg", b""),
    ]
    archive = make_tar(tmp_path / "a.tar", *members, mode=mode)
    assert unpack(archive, tmp_path / "out") == 3
    assert contents(tmp_path / "out") == {
        "images/cat/1.jpg": b"one",
        "images/2.jpg": b"two" * 100_000,
        "images/empty.jpg": b"",
    }


def test_a_tar_inside_a_zip_is_unpacked(tmp_path):
    inner = make_tar(tmp_path / "images.tar.gz", member("images/1.jpg", b"one"), mode="w:gz")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("__MACOSX/record/._images.tar.gz", b"rubbish")
        archive.writestr("record/notes.m", b"notes")
        archive.write(inner, "record/images.tar.gz")
    assert unpack(tmp_path / "a.zip", tmp_path / "out", inner="images.tar.gz") == 1
    assert contents(tmp_path / "out") == {"images/1.jpg": b"one"}


def test_a_zip_without_the_tar_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("other.tar.gz", b"")
    with pytest.raises(DatasetError, match=r"does not hold images\.tar\.gz"):
        unpack(tmp_path / "a.zip", tmp_path / "out", inner="images.tar.gz")


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/evil", "a/..", "..", "a\\..\\..\\evil", "//evil"]
)
def test_paths_that_leave_the_folder_are_refused(tmp_path, name):
    archive = make_tar(tmp_path / "a.tar", member(name))
    (tmp_path / "deep").mkdir()
    with pytest.raises(DatasetError, match="would lie outside its folder"):
        unpack(archive, tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("evil*"))
    assert not os.path.lexists("/evil")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_refused(tmp_path, kind):
    entry = member("a", b"", type=kind, linkname="/etc/passwd")
    archive = make_tar(tmp_path / "a.tar", entry, member("a/b"))
    with pytest.raises(DatasetError, match="'a' in the archive is a link or a device"):
        unpack(archive, tmp_path / "out")
    assert not os.path.lexists(tmp_path / "out" / "a")


def test_others_get_no_right_to_write_or_to_run_as_the_owner(tmp_path):
    archive = make_tar(tmp_path / "a.tar", member("run.sh", mode=0o6777, uid=0))
    unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out" / "run.sh").stat().st_mode & 0o6022


def test_what_macos_adds_is_skipped(tmp_path):
    members = [
        member("._1.jpg"),
        member("a/.DS_Store"),
        member("__MACOSX/a/1.jpg"),
        member("1.jpg"),
    ]
    assert unpack(make_tar(tmp_path / "a.tar", *members), tmp_path / "out") == 1
    assert list(contents(tmp_path / "out")) == ["1.jpg"]


def test_too_many_bytes_or_files_are_refused_before_they_are_written(tmp_path):
    bomb = make_tar(tmp_path / "a.tar", member("big", b"0" * 10_000_000), mode="w:gz")
    assert bomb.stat().st_size < 100_000
    with pytest.raises(DatasetError, match="more than 100,000 files or 1,000,000 bytes"):
        unpack(bomb, tmp_path / "out", max_bytes=1_000_000)
    assert contents(tmp_path / "out") == {}
    many = make_tar(tmp_path / "b.tar", *(member(f"{k}", b"") for k in range(4)))
    with pytest.raises(DatasetError, match="more than 3 files"):
        unpack(many, tmp_path / "out", max_files=3)


def test_a_file_used_as_a_folder_is_refused(tmp_path):
    archive = make_tar(tmp_path / "a.tar", member("a", b"a"), member("a/b", b"b"))
    with pytest.raises(DatasetError, match="cannot unpack"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_truncated_archive_is_refused(tmp_path, mode, kept):
    whole = make_tar(tmp_path / "a.tar", member("1.jpg", os.urandom(100_000)), mode=mode)
    content = whole.read_bytes()
    whole.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DatasetError, match=r"damaged|cannot unpack"):
        unpack(whole, tmp_path / "out")


@pytest.mark.parametrize("inner", [None, "images.tar.gz"])
def test_what_is_no_archive_is_refused(tmp_path, inner):
    (tmp_path / "a.tar").write_bytes(b"<html>404</html>" * 100)
    with pytest.raises(DatasetError, match="is damaged"):
        unpack(tmp_path / "a.tar", tmp_path / "out", inner=inner)


def test_a_missing_archive_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="No such file"):
        unpack(tmp_path / "a.tar", tmp_path / "out")
