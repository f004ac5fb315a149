from __future__ import annotations

import errno
import multiprocessing
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from small_projects import draw_folder, draw_image

from spptransfer.errors import DatasetError, ImageError
from spptransfer.pretraining.config import ImageFilesSection
from spptransfer.pretraining.source import LabelledFiles, open_source, open_splits


def splits(root, **section):
    source = open_source(str(root))
    return source, *open_splits(source, ImageFilesSection(root=str(root), **section))


def test_a_zip_file_is_the_folder_it_was_made_of(photos, zipped):
    held = {"train": "", "val": None}
    folder, train, val = splits(photos, **held)
    archive, zip_train, zip_val = splits(zipped, **held | {"train": "photos"})
    assert train.classes == zip_train.classes == zip_val.classes == ("bee", "cat", "dog")
    assert [f"photos/{name}" for name in train.names] == list(zip_train.names)
    assert val.labels.tolist() == zip_val.labels.tolist()
    for name in train.names:
        assert folder.read(name) == archive.read(f"photos/{name}")
        assert folder.size(name) == archive.size(f"photos/{name}")


def test_what_is_held_out_is_a_share_of_every_class_and_not_trained_on(photos):
    _, train, val = splits(photos, train="", val=None, holdout=0.2)
    assert np.bincount(val.labels).tolist() == [2, 2, 2]
    assert not set(train.names) & set(val.names)
    assert len(train) + len(val) == 30


def test_a_class_of_one_image_is_trained_on_and_where_all_are_none_can_be_held_out(tmp_path):
    root = draw_folder(tmp_path, per_class=1)
    with pytest.raises(DatasetError, match=r"dataset\.val: no class has two images"):
        splits(root, train="", val=None)
    draw_image(root / "bee" / "001.png", 0, 1)
    _, train, val = splits(root, train="", val=None)
    assert sorted(train.labels.tolist()) == [0, 1, 2]
    assert [val.classes[label] for label in val.labels] == ["bee"]


def test_two_folders_may_be_training_and_validation(tmp_path):
    draw_folder(tmp_path / "train")
    draw_image(tmp_path / "val" / "dog" / "1.png", 2, 99)
    _, train, val = splits(tmp_path)
    assert (len(train), len(val)) == (18, 1)
    assert val.classes[val.labels[0]] == "dog"


@pytest.mark.parametrize(
    "spelled", ["photos", "/photos", "./photos/", "photos//.", "photos/../photos"]
)
def test_a_folder_may_be_spelled_in_any_way(photos, spelled):
    _, train, _ = splits(photos.parent, train=spelled, val=None)
    assert train.classes == ("bee", "cat", "dog")
    assert len(train) == 27


@pytest.mark.parametrize("spelled", ["", ".", "./", "/"])
@pytest.mark.parametrize("kind", ["folder", "ZIP"])
def test_the_root_may_be_spelled_in_any_way(photos, tmp_path, spelled, kind):
    root = photos
    if kind == "ZIP":
        root = tmp_path / "photos.zip"
        with zipfile.ZipFile(root, "w") as archive:
            for file in photos.rglob("*.png"):
                archive.write(file, file.relative_to(photos).as_posix())
    assert splits(root, train=spelled, val=None)[1].classes == ("bee", "cat", "dog")


def test_a_class_that_cannot_be_learnt_is_refused(tmp_path):
    draw_folder(tmp_path / "train")
    draw_image(tmp_path / "val" / "eel" / "1.png", 2, 99)
    with pytest.raises(DatasetError, match="'val' holds the class 'eel', which 'train' lacks"):
        splits(tmp_path)


@pytest.mark.parametrize(("classes", "message"), [((), "no images"), (("cat",), "two classes")])
def test_a_folder_without_two_classes_is_refused(tmp_path, classes, message):
    (tmp_path / "train").mkdir()
    draw_folder(tmp_path / "train", classes)
    with pytest.raises(DatasetError, match=message):
        splits(tmp_path)


def test_a_missing_root_and_a_damaged_zip_file_are_named(tmp_path):
    with pytest.raises(DatasetError, match=r"no folder or ZIP file 'absent'"):
        open_source("absent", tmp_path)
    with pytest.raises(DatasetError, match=r"no folder or ZIP file 'xxx"):
        open_source("x" * 300, tmp_path)
    (tmp_path / "bad.zip").write_bytes(b"PK nothing")
    with pytest.raises(DatasetError, match=r"cannot read the ZIP file '.*bad\.zip'"):
        open_source("bad.zip", tmp_path)


def test_a_tilde_is_the_home_folder(photos, monkeypatch):
    monkeypatch.setenv("HOME", str(photos.parent))
    assert open_source("~/photos").root == photos


def test_the_digest_tells_other_images_and_other_classes(photos):
    _, train, val = splits(photos, train="", val=None)
    others = LabelledFiles(train.source, train.names, train.labels[::-1], train.classes)
    assert splits(photos, train="", val=None)[1].digest() == train.digest()
    assert len({train.digest(), val.digest(), others.digest()}) == 3


def test_damaged_data_in_a_zip_file_are_one_image_that_cannot_be_read(photos, tmp_path):
    with zipfile.ZipFile(tmp_path / "damaged.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("train/bee/1.png", "train/cat/1.png"):
            archive.write(photos / "bee" / "000.png", name)
        start = archive.getinfo("train/bee/1.png").header_offset + 30 + len("train/bee/1.png")
    data = bytearray((tmp_path / "damaged.zip").read_bytes())
    data[start : start + 20] = b"\xff" * 20
    (tmp_path / "damaged.zip").write_bytes(data)
    source = open_source(str(tmp_path / "damaged.zip"))
    with pytest.raises(ImageError, match=r"cannot read the image: .* while decompressing"):
        source.read("train/bee/1.png")
    assert source.read("train/cat/1.png")


@pytest.mark.parametrize(("offset", "wrong"), [(6, b"\xc8\x00"), (46, b"\xff\xfe")])
def test_a_damaged_directory_of_a_zip_file_is_one_line(zipped, tmp_path, offset, wrong):
    data = bytearray(zipped.read_bytes())
    entry = data.find(b"PK\x01\x02")
    data[entry + 8 : entry + 10] = b"\x00\x08"  # names are UTF-8
    data[entry + offset : entry + offset + len(wrong)] = wrong
    (tmp_path / "damaged.zip").write_bytes(data)
    with pytest.raises(DatasetError, match=r"cannot read the ZIP file '.*damaged\.zip'"):
        open_source(str(tmp_path / "damaged.zip"))


def test_a_link_that_leads_nowhere_is_one_image_that_cannot_be_read(tmp_path):
    root = draw_folder(tmp_path / "photos")
    (root / "bee" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    source, *both = splits(root, train="", val=None)
    assert "bee/gone.png" in both[0].names + both[1].names
    assert all(len(files.digest()) == 64 for files in both)
    with pytest.raises(ImageError, match="No such file"):
        source.read("bee/gone.png")


def test_a_disk_that_fails_for_a_moment_does_not_make_other_images_of_them(photos, monkeypatch):
    _, train, _ = splits(photos, train="", val=None)

    def fail(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "stat", fail)
    with pytest.raises(DatasetError, match=r"cannot read '.*\.png': Input/output error"):
        train.digest()


@pytest.mark.parametrize("kind", ["folder", "ZIP"])
def test_what_is_left_out_is_told_with_counts_as_of_a_dataset(tmp_path, caplog, kind):
    root = draw_folder(tmp_path / "photos" / "train").parent
    for name in ("cat/1.HEIC", "dog/deep/2.heic", "raw/1.nef", "cat/notes.txt", "x.png/3.heic"):
        (root / "train" / name).parent.mkdir(exist_ok=True)
        (root / "train" / name).touch()
    (root / "train" / "empty").mkdir()
    (root / "train" / ".hidden").touch()
    draw_image(root / "train" / "stray.png", 0, 0)
    draw_image(root / "val" / "dog" / "1.png", 2, 99)
    (root / "elsewhere.heic").touch()
    for name in ("@eaDir", "cat/@eaDir/deep"):
        draw_image(root / "train" / name / "1.png", 0, 0)
    if kind == "ZIP":
        root = Path(shutil.make_archive(str(tmp_path / "photos"), "zip", root))
    splits(root)
    assert caplog.messages == [
        f"{root}/train: skipped 1 image that lies in no class folder",
        f"{root}/train: skipped 4 files by suffix: .heic (3), .nef (1); "
        "2 folders of systems: @eaDir (2)",
        f"{root}/train: folders without images are no classes: empty, raw, x.png",
    ]


def test_where_there_are_no_images_the_suffixes_that_are_there_are_told(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "1.heic").touch()
    with pytest.raises(DatasetError, match=r"of 'train'; skipped 1 file by suffix: \.heic \(1\)"):
        splits(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name")
def test_a_name_that_is_not_utf8_is_one_like_others(tmp_path):
    root = draw_folder(tmp_path, classes=("bee", "d\udce9g"))
    (root / "bee" / "000.png").rename(root / "bee" / "\udcff.png")
    _, train, val = splits(root, train="", val=None)
    assert train.classes == val.classes == ("bee", "d\udce9g")
    assert len(train.digest()) == 64


def test_labelled_files_are_the_same_from_a_folder_and_a_zip(tmp_path):
    folder = tmp_path / "data"
    for number, name in enumerate(("bee/2.png", "ant/deep/1.png", "bee/1.png", "stray.png")):
        (folder / "val" / name).parent.mkdir(parents=True, exist_ok=True)
        draw_image(folder / "val" / name, 0, number)
    shutil.make_archive(str(folder), "zip", folder)
    unpacked, zipped = (LabelledFiles.open(str(root), "val") for root in (folder, f"{folder}.zip"))
    expected = ("val/ant/deep/1.png", "val/bee/1.png", "val/bee/2.png")
    assert unpacked.names == zipped.names == expected
    for position, label in enumerate((0, 1, 1)):
        assert unpacked[position][1] == zipped[position][1] == label
        assert np.array_equal(unpacked[position][0], zipped[position][0])
    with pytest.raises(DatasetError, match="no images in class folders of 'test'"):
        LabelledFiles.open(str(folder), "test")
    (folder / "val/bee/2.png").write_bytes(b"")
    with pytest.raises(ImageError):
        unpacked[2]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_processes_read_one_zip_file_at_once(zipped, start):
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {start}")
    files = LabelledFiles.open(str(zipped), "photos")
    expected = [files.source.read(name) for name in files.names]
    with multiprocessing.get_context(start).Pool(2) as pool:
        found = pool.map(files.source.read, files.names * 3, chunksize=1)
    assert found == expected * 3
