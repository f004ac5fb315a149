from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from spptransfer.datasets import open_dataset
from spptransfer.datasets.fetch import Archive, fetch, unpack
from spptransfer.errors import DatasetError

MAIN = "VOCdevkit/VOC2007/ImageSets/Main"


def tar_bytes(files: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def voc_tar(split: str, id: str) -> bytes:
    return tar_bytes(
        {
            f"{MAIN}/{split}.txt": f"{id}\n".encode(),
            f"{MAIN}/cat_{split}.txt": f"{id} 1\n".encode(),
            f"{MAIN}/dog_{split}.txt": f"{id} -1\n".encode(),
            f"VOCdevkit/VOC2007/JPEGImages/{id}.jpg": b"jpeg",
        }
    )


def caltech_zip() -> bytes:
    inner = tar_bytes(
        {
            "101_ObjectCategories/BACKGROUND_Google/tmp": b"",
            "101_ObjectCategories/BACKGROUND_Google/image_0001.jpg": b"a",
            "101_ObjectCategories/accordion/image_0001.jpg": b"b",
            "._101_ObjectCategories": b"clutter",
        },
        mode="w:gz",
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("caltech-101/Annotations.tar", b"")
        archive.writestr("caltech-101/101_ObjectCategories.tar.gz", inner)
    return buffer.getvalue()


@pytest.fixture
def official(server):
    """Small archives under the official names, served from two mirrors."""

    def archive(filename, content, marker, inner=None):
        for mirror in ("first", "second"):
            (server.folder / mirror).mkdir(exist_ok=True)
            (server.folder / mirror / filename).write_bytes(content)
        mirrors = tuple(f"{server.url}/{mirror}/{filename}" for mirror in ("first", "second"))
        digest = hashlib.sha256(content).hexdigest()
        return Archive(filename, digest, len(content), marker, mirrors, inner)

    return {
        "voc2007": (
            archive("trainval.tar", voc_tar("trainval", "000005"), f"{MAIN}/trainval.txt"),
            archive("test.tar", voc_tar("test", "000001"), f"{MAIN}/test.txt"),
        ),
        "caltech101": (
            archive(
                "caltech-101.zip",
                caltech_zip(),
                "101_ObjectCategories",
                inner="101_ObjectCategories.tar.gz",
            ),
        ),
    }


def test_voc2007_is_fetched_from_both_archives_and_opens(tmp_path, official):
    root = fetch("voc2007", tmp_path / "data", progress=False, official=official)
    assert root == tmp_path / "data" / "voc2007"
    dataset = open_dataset("voc2007", data_root=tmp_path / "data")
    assert dataset.official_splits == {"trainval": ("000005",), "test": ("000001",)}
    assert all(path.read_bytes() == b"jpeg" for path in dataset.paths())


def test_caltech101_is_fetched_from_the_tar_inside_the_zip_and_opens(tmp_path, official):
    fetch("caltech101", tmp_path, progress=False, official=official)
    dataset = open_dataset("caltech101", data_root=tmp_path)
    assert dataset.ids == ("BACKGROUND_Google/image_0001.jpg", "accordion/image_0001.jpg")


def test_what_is_there_is_not_fetched_again(tmp_path, official, server):
    fetch("voc2007", tmp_path, progress=False, official=official)
    asked = len(server.asked)
    fetch("voc2007", tmp_path, progress=False, official=official)
    assert len(server.asked) == asked


def test_only_the_missing_archive_is_fetched_and_joins_the_other(tmp_path, official, server):
    trainval = server.folder / "first" / "trainval.tar"
    fetch("voc2007", tmp_path, from_file=trainval, official=official)
    assert list(open_dataset("voc2007", data_root=tmp_path).official_splits) == ["trainval"]
    assert server.asked == []
    fetch("voc2007", tmp_path, progress=False, official=official)
    assert not any("trainval" in request for request in server.asked)
    assert len(open_dataset("voc2007", data_root=tmp_path)) == 2


def test_a_dataset_that_lies_in_the_data_root_itself_is_completed_there(tmp_path, official, server):
    fetch("voc2007", tmp_path, from_file=server.folder / "first" / "test.tar", official=official)
    place = tmp_path / "voc2007"
    assert fetch("voc2007", place, progress=False, official=official) == place
    assert len(open_dataset("voc2007", data_root=place)) == 2


def test_the_next_mirror_is_asked_when_one_fails_or_serves_something_else(
    tmp_path, official, server
):
    (server.folder / "first" / "trainval.tar").unlink()
    (server.folder / "first" / "test.tar").write_bytes(b"<html>moved</html>")
    fetch("voc2007", tmp_path, progress=False, official=official)
    assert len(open_dataset("voc2007", data_root=tmp_path)) == 2
    assert [request for request in server.asked if "second" in request] == [
        "/second/trainval.tar",
        "/second/test.tar",
    ]


def test_when_no_mirror_helps_each_is_named_and_nothing_is_left(tmp_path, official, server):
    (server.folder / "first" / "caltech-101.zip").unlink()
    (server.folder / "second" / "caltech-101.zip").write_bytes(b"damaged")
    with pytest.raises(DatasetError) as caught:
        fetch("caltech101", tmp_path, progress=False, official=official)
    message = str(caught.value)
    assert "could not fetch caltech-101.zip" in message
    assert "/first/" in message
    assert "/second/" in message
    assert "--from" in message
    assert "\n" not in message
    assert not (tmp_path / "caltech101").exists()
    with pytest.raises(DatasetError, match="not found"):
        open_dataset("caltech101", data_root=tmp_path)


def test_files_are_recognised_by_content_under_any_name(tmp_path, official, server):
    files = []
    for number, name in enumerate(("test.tar", "trainval.tar")):
        content = (server.folder / "first" / name).read_bytes()
        files.append(tmp_path / f"download ({number})")
        files[-1].write_bytes(content)
    fetch("voc2007", tmp_path, from_file=files, official=official)
    assert len(open_dataset("voc2007", data_root=tmp_path)) == 2
    assert server.asked == []
    assert all(file.is_file() for file in files)


def test_a_file_of_other_content_is_refused(tmp_path, official):
    stranger = tmp_path / "trainval.tar"
    stranger.write_bytes(voc_tar("trainval", "999999"))
    with pytest.raises(DatasetError, match=r"none of the official archives: trainval\.tar"):
        fetch("voc2007", tmp_path, from_file=stranger, official=official)
    assert not (tmp_path / "voc2007").exists()


def test_an_archive_that_fails_halfway_leaves_no_dataset(tmp_path, official):
    evil = tmp_path / "evil.tar"
    evil.write_bytes(tar_bytes({f"{MAIN}/trainval.txt": b"x", "../evil": b"x"}))
    known = Archive(
        "evil.tar",
        hashlib.sha256(evil.read_bytes()).hexdigest(),
        evil.stat().st_size,
        f"{MAIN}/trainval.txt",
    )
    with pytest.raises(DatasetError, match="outside its folder"):
        fetch("voc2007", tmp_path, from_file=evil, official={"voc2007": (known,)})
    assert list((tmp_path / "voc2007").iterdir()) == []


def test_an_archive_without_what_it_should_hold_is_refused(tmp_path, official):
    empty = tmp_path / "empty.tar"
    empty.write_bytes(tar_bytes({"readme.txt": b"nothing"}))
    known = Archive("e.tar", hashlib.sha256(empty.read_bytes()).hexdigest(), 0, "VOCdevkit")
    with pytest.raises(DatasetError, match="does not hold VOCdevkit"):
        fetch("voc2007", tmp_path, from_file=empty, official={"voc2007": (known,)})


# Unpacking -----------------------------------------------------------------------------------


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
