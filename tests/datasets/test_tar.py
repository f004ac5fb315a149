"""Tar shards of WebDataset's layout, read in place."""

from __future__ import annotations

import io
import json
import os
import tarfile

import numpy as np
import pytest
from image_files import encode, picture
from small_projects import experiment

from spptransfer import images
from spptransfer.cache import FeatureCache
from spptransfer.cache.verify import verify
from spptransfer.datasets import open_dataset
from spptransfer.errors import DatasetError
from spptransfer.experiment import extract_features, run


def write_tar(path, members: dict[str, bytes], **options):
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def sample(number: int, kind: str = "cls") -> dict[str, bytes]:
    """An image and its label as two members."""
    label = "cat" if number % 2 else "dog"
    text = label if kind == "cls" else json.dumps({"label": label, "width": 3})
    image = encode(picture(40 + number % 3, 50, number % 2))
    return {f"s/{number:04d}.png": image, f"s/{number:04d}.{kind}": text.encode()}


@pytest.fixture
def shards(tmp_path):
    """Three shards of six images each; the root that stands for them."""
    for shard in range(3):
        members = {}
        for number in range(6):
            members |= sample(6 * shard + number, ("cls", "json")[shard % 2])
        write_tar(tmp_path / f"shard-{shard:02d}.tar", members)
    return tmp_path / "shard-{00..02}.tar"


def test_keys_are_ids_and_labels_come_from_cls_and_json(shards):
    dataset = open_dataset("tar", shards)
    assert list(dataset.ids) == [f"s/{number:04d}" for number in range(18)]
    assert dataset.classes == ("cat", "dog")
    assert dataset.targets.tolist() == [1, 0] * 9


def test_images_are_those_bytes_of_the_tar(shards):
    dataset = open_dataset("tar", shards)
    for number in (0, 7, 17):
        data = images.read_bytes(dataset.path(f"s/{number:04d}"))
        assert data == encode(picture(40 + number % 3, 50, number % 2))
    part = dataset.subset([17, 3])
    assert [str(path).rpartition("/s/")[2] for path in part.paths()] == ["0017", "0003"]
    assert str(part.paths()[0]).endswith(f"shard-02.tar{'/'}s/0017")


def test_features_are_those_of_the_same_images_in_a_folder(shards, tmp_path):
    for number, label in ((n, "cat" if n % 2 else "dog") for n in range(18)):
        path = tmp_path / "photos" / label / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(40 + number % 3, 50, number % 2).save(path)
    in_tar = experiment(tmp_path, tmp_path, dataset={"name": "tar", "root": str(shards)})
    in_folder = experiment(tmp_path / "photos", tmp_path)
    before = sorted(os.listdir(tmp_path))
    one, other = (FeatureCache.open(extract_features([e])[0].path) for e in (in_tar, in_folder))
    label = {i.rpartition("/")[2].removesuffix(".png"): i for i in other.ids}
    np.testing.assert_array_equal(
        one.matrix(), other.matrix([label[id.removeprefix("s/")] for id in one.ids])
    )
    assert sorted(os.listdir(tmp_path)) == sorted({*before, "cache"})  # nothing was unpacked
    assert verify(one.path, in_tar.dataset) == []
    again = extract_features([in_tar])[0]
    assert (again.added, again.changed, again.reused) == (0, 0, 18)


def test_a_run_on_shards_is_a_run(shards, tmp_path):
    prepared = experiment(tmp_path, tmp_path, dataset={"name": "tar", "root": str(shards)})
    done = run(prepared, "a test")
    assert done.results["headline"]["value"] > 0.9
    assert 'src="data:image/jpeg;base64,' in done.report.read_text(encoding="utf-8")


def test_shards_written_anew_are_read_anew_only_where_images_changed(shards, tmp_path):
    given = {"dataset": {"name": "tar", "root": str(shards)}}
    extract_features([experiment(tmp_path, tmp_path, **given)])
    members = sample(12) | sample(13) | {"s/0014.png": encode(picture(44, 60, 9))}
    members |= {"s/0014.cls": b"dog"}
    write_tar(tmp_path / "shard-02.tar", members, format=tarfile.GNU_FORMAT)
    done = extract_features([experiment(tmp_path, tmp_path, **given)])[0]
    assert (done.changed, done.removed, done.added) == (1, 3, 0)


def test_a_folder_of_shards_and_a_single_one_are_read(shards, tmp_path):
    assert len(open_dataset("tar", tmp_path)) == 18
    assert len(open_dataset("tar", tmp_path / "shard-01.tar")) == 6


def test_classes_that_are_numbers_are_in_their_order(tmp_path):
    members = {}
    for number, label in enumerate((10, 9, 100, 9)):
        members |= {f"{number}.jpg": b"x", f"{number}.cls": str(label).encode()}
    dataset = open_dataset("tar", write_tar(tmp_path / "a.tar", members))
    assert dataset.classes == ("9", "10", "100")
    assert dataset.targets.tolist() == [1, 0, 2, 0]


def test_lists_of_labels_are_several_labels(tmp_path):
    members = {}
    for number, tags in enumerate((["cat", "sofa"], [], ["cat"])):
        members |= {f"{number}.jpg": b"x", f"{number}.json": json.dumps({"tags": tags}).encode()}
    dataset = open_dataset("tar", write_tar(tmp_path / "a.tar", members), label="tags")
    assert dataset.targets.tolist() == [[1, 1], [-1, -1], [1, -1]]


def test_images_without_labels_are_read_without(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"./b.jpg": b"x", "a.jpg": b"y", "._a.jpg": b"z"})
    dataset = open_dataset("tar", path)
    assert (list(dataset.ids), dataset.classes) == (["a", "b"], ())


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/a.jpg", "x/../../a.jpg"])
def test_members_that_lead_out_of_the_archive_are_refused(tmp_path, name):
    path = write_tar(tmp_path / "a.tar", {name: b"x"})
    with pytest.raises(DatasetError, match=r"a\.tar: the member '.*' leads out of the archive"):
        open_dataset("tar", path)


def test_links_in_a_tar_are_not_followed(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(DatasetError, match="no images in"):
        open_dataset("tar", tmp_path / "a.tar")


def test_a_tar_cut_short_anywhere_is_one_line_that_names_it(shards, tmp_path):
    whole = (tmp_path / "shard-01.tar").read_bytes()
    end = len(whole.rstrip(b"\0"))
    with tarfile.open(tmp_path / "shard-01.tar") as tar:
        behind_a_member = tar.getmembers()[4].offset
    for length in (0, 100, 512, 700, end // 2, end - 2000, behind_a_member):
        (tmp_path / "shard-01.tar").write_bytes(whole[:length])
        with pytest.raises(DatasetError, match=r"^[^\n]*shard-01\.tar: no whole tar file[^\n]*$"):
            open_dataset("tar", shards)


def test_damage_in_a_header_and_compression_are_told(shards, tmp_path):
    path = tmp_path / "shard-01.tar"
    whole = bytearray(path.read_bytes())
    second = whole.index(b"s/0008.png")
    whole[second : second + 20] = bytes([255]) * 20
    path.write_bytes(whole)
    with pytest.raises(DatasetError, match=r"shard-01\.tar: no whole tar file, byte [\d,]+: no"):
        open_dataset("tar", shards)
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(DatasetError, match="compressed ones must be unpacked first"):
        open_dataset("tar", shards)


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"a.jpg": b"x", "a.cls": b"cat", "b.jpg": b"y"}, "1 of 2 images have no label, as 'b'"),
        ({"a.jpg": b"x", "a.json": b"{"}, "'a.json' is no JSON"),
        ({"a.jpg": b"x", "a.cls": b"\xff"}, "'a.cls' is not UTF-8"),
        ({"a.txt": b"x"}, "no images in .*looked for .*.jpg"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, members, why):
    with pytest.raises(DatasetError, match=why):
        open_dataset("tar", write_tar(tmp_path / "a.tar", members))


def test_a_missing_shard_and_a_key_in_two_are_named(shards, tmp_path):
    write_tar(tmp_path / "shard-02.tar", sample(3))
    with pytest.raises(DatasetError, match="the key 's/0003' has more than one sample"):
        open_dataset("tar", shards)
    (tmp_path / "shard-01.tar").unlink()
    with pytest.raises(DatasetError, match=r"there is no tar file '.*shard-01\.tar'"):
        open_dataset("tar", shards)
