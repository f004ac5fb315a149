from __future__ import annotations

import numpy as np
import pytest
import torch
from small_projects import draw_folder

from spptransfer import backbones
from spptransfer.images import decode, render
from spptransfer.pretraining import teacher
from spptransfer.pretraining.config import DistillSection, ImageFilesSection
from spptransfer.pretraining.source import open_source, open_splits
from spptransfer.pretraining.teacher import Teacher, prepare_teacher

SECTION = DistillSection(backbone="squeezenet1_1", weights="random:1", scale=33, levels=(2, 1))
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    """Several files of features, computed in float32 on any machine."""
    monkeypatch.setattr(teacher, "PART", 8)
    monkeypatch.setattr(teacher, "has_bfloat16", lambda device: False)


def opened(root):
    source = open_source(str(root))
    return open_splits(source, ImageFilesSection(root=str(root), train="", val=None))[0]


def prepare(images, folder, section=SECTION, data="0"):
    backbone = backbones.load(section.backbone, section.weights, layer=section.layer)
    return prepare_teacher(section, backbone, images, data, folder, CPU)


def targets(made, positions, flipped=None):
    positions = torch.as_tensor(positions)
    flipped = torch.zeros(len(positions)) if flipped is None else torch.as_tensor(flipped)
    return made.targets(positions, flipped).numpy()


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.npy"))


def features_one_by_one(images, mirrored):
    """By the definition: every image alone through the network, every bin by itself."""
    backbone = backbones.load("squeezenet1_1", "random:1")
    mean, std = (np.array(v, np.float32) for v in (backbone.info.mean, backbone.info.std))
    rows = []
    for name in images.names:
        image = render(decode(images.source.read(name)), 33)
        image = image[:, ::-1] if mirrored else image
        normal = (image / np.float32(255) - mean) / std
        maps = backbone(torch.from_numpy(normal.transpose(2, 0, 1).copy())[None])[0].numpy()
        height, width = maps.shape[1:]
        bins = []
        for n in (2, 1):
            for i in range(n):
                for j in range(n):
                    top, bottom = i * height // n, -(-(i + 1) * height // n)
                    left, right = j * width // n, -(-(j + 1) * width // n)
                    bins.append(maps[:, top:bottom, left:right].mean((1, 2)))
        rows.append(bins)
    return np.array(rows)


def test_targets_are_the_standardised_features_of_the_images_as_they_are_shown(photos, tmp_path):
    images = opened(photos)
    made = prepare(images, tmp_path)
    upright, mirrored = (features_one_by_one(images, flip) for flip in (False, True))
    mean, std = upright.mean((0, 1)), np.maximum(upright.std((0, 1)), 1e-4)
    order = np.random.default_rng(0).permutation(len(images))
    flipped = np.arange(len(images)) % 2 == 1
    expected = np.where(flipped[:, None, None], mirrored[order], upright[order])
    found = targets(made, order, flipped)
    # The features lie on the disk in 16 bits.
    assert np.allclose(found * std + mean, expected, rtol=2e-3, atol=2e-3)
    everything = targets(made, np.arange(len(images)))
    assert np.abs(everything.mean((0, 1))).max() < 1e-2
    varying = upright.std((0, 1)) > 1e-2
    assert np.allclose(everything.std((0, 1))[varying], 1, atol=2e-2)


def test_without_mirror_a_flipped_image_has_the_uprights_features(photos, tmp_path):
    made = prepare(opened(photos), tmp_path, SECTION.model_copy(update={"mirror": False}))
    assert np.array_equal(targets(made, range(5), np.ones(5)), targets(made, range(5)))


def test_a_vector_layer_is_one_bin(photos, tmp_path):
    section = DistillSection(backbone="alexnet", weights="random:1", layer="fc6", scale=63)
    made = prepare(opened(photos), tmp_path, section)
    assert targets(made, range(3)).shape == (3, 1, 4096)


def test_only_missing_parts_are_computed(photos, tmp_path):
    images = opened(photos)
    before = targets(prepare(images, tmp_path), range(20))
    first, second, *rest = sorted(tmp_path.rglob("*.npy"))
    second.unlink()
    times = {path: path.stat().st_mtime_ns for path in (first, *rest)}
    after = targets(prepare(images, tmp_path), range(20))
    assert np.array_equal(before, after)
    assert times == {path: path.stat().st_mtime_ns for path in (first, *rest)}


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[:50],
        lambda whole: whole[:-1],
        lambda whole: b"PK\x03\x04" + whole[4:],
        lambda whole: whole.replace(b"), }", b"(, }", 1),
        lambda whole: whole.replace(b"(8, 2,", b"(3, 2,", 1),
        lambda whole: whole.replace(b"False", b"True ", 1),
        lambda whole: whole.replace(b"<f2", b"<i2", 1),
    ],
    ids=["empty", "begun", "cut", "ZIP", "open bracket", "fewer images", "transposed", "integers"],
)
def test_a_damaged_part_is_computed_again(photos, tmp_path, damage):
    images = opened(photos)
    prepare(images, tmp_path)
    part = sorted(tmp_path.rglob("*.npy"))[1]
    content = part.read_bytes()
    assert damage(content) != content
    part.write_bytes(damage(content))
    prepare(images, tmp_path)
    assert part.read_bytes() == content


def test_other_images_weights_or_settings_have_features_of_their_own(photos, tmp_path):
    images = opened(photos)
    prepare(images, tmp_path)
    prepare(images, tmp_path, data="1")
    prepare(images, tmp_path, SECTION.model_copy(update={"weights": "random:2"}))
    prepare(images, tmp_path, SECTION.model_copy(update={"scale": 34}))
    assert len(list(tmp_path.glob("teacher-*"))) == 4


def test_processes_share_the_parts(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher, "all_sums", list)  # nobody to wait for
    images, shared = opened(photos), tmp_path / "shared"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(FileNotFoundError):
        prepare(images, shared)
    assert [name[-9:] for name in files(shared)] == ["00001.npy", "00003.npy"]
    monkeypatch.setenv("RANK", "0")
    prepare(images, shared)
    monkeypatch.delenv("WORLD_SIZE")
    prepare(images, tmp_path / "alone")
    assert files(shared) == files(tmp_path / "alone")


def test_a_damaged_image_has_features_that_nobody_asks_for(tmp_path):
    root = draw_folder(tmp_path / "photos", per_class=4)
    (root / "bee" / "001.png").write_bytes(b"nothing")
    made = prepare(opened(root), tmp_path / "run")
    assert np.isfinite(targets(made, range(8))).all()


def test_constant_features_are_not_blown_up():
    made = Teacher([np.full((6, 1, 1, 3), 0.5, np.float16)])
    assert not targets(made, range(6)).any()
