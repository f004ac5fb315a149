from __future__ import annotations

import numpy as np
import pytest
import torch
from small_projects import draw_folder

from spptransfer import backbones
from spptransfer.images import decode, render
from spptransfer.pretraining import teacher
from spptransfer.pretraining.config import DatasetSection, DistillSection
from spptransfer.pretraining.distributed import Team
from spptransfer.pretraining.machine import Machine
from spptransfer.pretraining.pixels import Pixels
from spptransfer.pretraining.source import open_source, read_splits
from spptransfer.pretraining.teacher import Teacher, prepare_teacher

SECTION = DistillSection(backbone="squeezenet1_1", weights="random:1", scale=33, levels=(2, 1))
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    """Several files of features, computed in float32 on any machine."""
    monkeypatch.setattr(teacher, "_PART", 8)
    monkeypatch.setattr(teacher, "has_bfloat16", lambda device: False)


def opened(root):
    source = open_source(str(root))
    _, train, _ = read_splits(source, DatasetSection(root=str(root), train="", val=None))
    return Pixels(source, train, 36)


def prepare(pixels, folder, section=SECTION, data="0", team=None):
    machine = Machine(folder, device="cpu", jobs=2)
    return prepare_teacher(section, pixels, data, machine, team or Team(), CPU)


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.npy"))


def features_one_by_one(pixels, mirrored):
    """By the definition: every image alone through the network, every bin by itself."""
    backbone = backbones.load("squeezenet1_1", "random:1")
    mean, std = (np.array(v, np.float32) for v in (backbone.info.mean, backbone.info.std))
    rows = []
    for name in pixels.split.names:
        image = render(decode(pixels._source.read(name)), 33)
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
    pixels = opened(photos)
    made = prepare(pixels, tmp_path)
    upright, mirrored = (features_one_by_one(pixels, flip) for flip in (False, True))
    mean, std = upright.mean((0, 1)), np.maximum(upright.std((0, 1)), 1e-4)
    order = np.random.default_rng(0).permutation(len(pixels))
    flipped = np.arange(len(pixels)) % 2 == 1
    expected = np.where(flipped[:, None, None], mirrored[order], upright[order])
    found = made.targets(order, flipped)
    # The features lie on the disk in 16 bits.
    assert np.allclose(found * std + mean, expected, rtol=2e-3, atol=2e-3)
    everything = made.targets(np.arange(len(pixels)), np.zeros(len(pixels), bool))
    assert np.abs(everything.mean((0, 1))).max() < 1e-2
    varying = upright.std((0, 1)) > 1e-2
    assert np.allclose(everything.std((0, 1))[varying], 1, atol=2e-2)


def test_without_mirror_a_flipped_image_has_the_uprights_features(photos, tmp_path):
    made = prepare(opened(photos), tmp_path, SECTION.model_copy(update={"mirror": False}))
    positions = np.arange(5)
    flipped = made.targets(positions, np.ones(5, bool))
    assert np.array_equal(flipped, made.targets(positions, np.zeros(5, bool)))


def test_a_vector_layer_is_one_bin(photos, tmp_path):
    section = DistillSection(backbone="alexnet", weights="random:1", layer="fc6", scale=63)
    made = prepare(opened(photos), tmp_path, section)
    assert made.targets(np.arange(3), np.zeros(3, bool)).shape == (3, 1, 4096)


def test_only_missing_parts_are_computed(photos, tmp_path):
    pixels = opened(photos)
    before = prepare(pixels, tmp_path).targets(np.arange(20), np.zeros(20, bool))
    first, second, *rest = sorted(tmp_path.rglob("*.npy"))
    second.unlink()
    times = {path: path.stat().st_mtime_ns for path in (first, *rest)}
    after = prepare(pixels, tmp_path).targets(np.arange(20), np.zeros(20, bool))
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
        lambda whole: whole.replace(b"(2, 8,", b"(2, 3,", 1),
        lambda whole: whole.replace(b"False", b"True ", 1),
        lambda whole: whole.replace(b"<f2", b"<i2", 1),
    ],
    ids=["empty", "begun", "cut", "ZIP", "open bracket", "fewer images", "transposed", "integers"],
)
def test_a_damaged_part_is_computed_again(photos, tmp_path, damage):
    pixels = opened(photos)
    prepare(pixels, tmp_path)
    part = sorted(tmp_path.rglob("*.npy"))[1]
    content = part.read_bytes()
    assert damage(content) != content
    part.write_bytes(damage(content))
    prepare(pixels, tmp_path)
    assert part.read_bytes() == content


def test_other_images_weights_or_settings_have_features_of_their_own(photos, tmp_path):
    pixels = opened(photos)
    prepare(pixels, tmp_path)
    prepare(pixels, tmp_path, data="1")
    prepare(pixels, tmp_path, SECTION.model_copy(update={"weights": "random:2"}))
    prepare(pixels, tmp_path, SECTION.model_copy(update={"scale": 34}))
    assert len(list(tmp_path.glob("teacher-*"))) == 4


def test_processes_share_the_parts(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(Team, "sums", lambda self, values: list(values))  # nobody to wait for
    pixels = opened(photos)
    with pytest.raises(FileNotFoundError):
        prepare(pixels, tmp_path / "shared", team=Team(rank=1, count=2))
    assert [name[-9:] for name in files(tmp_path / "shared")] == ["00001.npy", "00003.npy"]
    prepare(pixels, tmp_path / "shared", team=Team(rank=0, count=2))
    prepare(pixels, tmp_path / "alone")
    assert files(tmp_path / "shared") == files(tmp_path / "alone")


def test_a_damaged_image_has_features_that_nobody_asks_for(tmp_path):
    root = draw_folder(tmp_path / "photos", per_class=4)
    (root / "bee" / "001.png").write_bytes(b"nothing")
    made = prepare(opened(root), tmp_path / "run")
    assert np.isfinite(made.targets(np.arange(8), np.zeros(8, bool))).all()


def test_constant_features_are_not_blown_up():
    made = Teacher([np.full((1, 6, 1, 3), 0.5, np.float16)])
    assert not made.targets(np.arange(6), np.zeros(6, bool)).any()
