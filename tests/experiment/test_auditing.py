"""Planted copies, wrong labels and strangers are found in a cache."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
from conftest import real_data
from PIL import Image
from small_projects import draw_folder, draw_image, experiment, machine_in

from spptransfer.config import parse_pipeline
from spptransfer.datasets import open_dataset
from spptransfer.errors import CacheError
from spptransfer.experiment import extract_features, prepare
from spptransfer.experiment.auditing import audit, write_tables

KINDS = ("recompressed", "resized", "cropped")


def copy_of(image: Image.Image, kind: str, path) -> None:
    """A near-copy: compressed more, smaller, or without 3 % at every side."""
    if kind == "resized":
        image = image.resize((image.width * 3 // 5, image.height * 3 // 5))
    if kind == "cropped":
        x, y = round(0.03 * image.width), round(0.03 * image.height)
        image = image.crop((x, y, image.width - x, image.height - y))
    image.convert("RGB").save(path, quality=40 if kind == "recompressed" else 90)


def blobs(number: int, size=(180, 240)) -> Image.Image:
    """A picture of coarse blobs of colour, as a photograph has them, unlike that of any other."""
    coarse = np.random.default_rng(number).integers(0, 256, (7, 7, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """Pictures of which some were copied, and the experiment on their cache."""
    work = tmp_path_factory.mktemp("audit")
    for number in range(30):
        folder = work / "photos" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        image = blobs(number)
        image.save(folder / f"{number:02d}.png")
        if number < 12:
            copy_of(image, KINDS[number % 3], folder / f"{number:02d}-{KINDS[number % 3]}.jpg")
    prepared = experiment(work / "photos", work)
    extract_features([prepared])
    return prepared


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Generated images of three classes, and the experiment on their cache."""
    work = tmp_path_factory.mktemp("audit")
    prepared = experiment(draw_folder(work / "photos", per_class=12), work)
    extract_features([prepared])
    return prepared


def names(found, pairs):
    ids = found.dataset.ids
    return [{ids[i], ids[j]} for i, j in zip(pairs.first, pairs.second, strict=True)]


def test_copies_that_were_compressed_scaled_or_cropped_are_the_near_copies(copied):
    found = audit(copied)
    pairs = names(found, found.near_copies)
    assert len(pairs) == 12
    for one, other in map(sorted, pairs):
        assert one.split("-")[0] == other.removesuffix(".png")


def test_pairs_across_training_and_test_come_first(copied):
    found = audit(copied)
    (split,) = copied.splits
    pairs, across = names(found, found.near_copies), found.near_copies.across
    assert [len(pair & set(split.test)) == 1 for pair in pairs] == across.tolist()
    assert sorted(across, reverse=True) == across.tolist()
    assert 0 < sum(across) < len(across)


def test_exchanged_labels_lead_the_list(drawn, tmp_path):
    ids, targets = drawn.dataset.ids, drawn.dataset.targets.copy()
    wrong = drawn.dataset.positions(["bee/004.png", "dog/007.png"])
    targets[wrong] = targets[wrong[::-1]]
    found = audit(replace(drawn, dataset=replace(drawn.dataset, targets=targets)))
    assert set(found.doubtful[:2]) == set(wrong)
    assert [found.label(i) for i in wrong] == ["dog", "bee"]
    assert [found.doubt(i) for i in wrong] == ["bee", "dog"]
    write_tables(found, tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "labels.csv").open(newline="")))
    assert {rows[0]["id"], rows[1]["id"]} == {ids[i] for i in wrong}
    assert float(rows[0]["contradiction"]) > 0 > float(rows[-1]["contradiction"])
    assert len(rows) == len(ids)


def test_a_stranger_among_a_class_is_its_outlier(tmp_path):
    root = draw_folder(tmp_path / "photos", per_class=8)
    Image.new("RGB", (50, 50), (0, 200, 0)).save(root / "bee" / "stranger.png")
    prepared = experiment(root, tmp_path)
    extract_features([prepared])
    found = audit(prepared)
    assert found.dataset.ids[found.outliers[0]] == "bee/stranger.png"


def test_one_file_in_two_classes_is_told(tmp_path):
    root = draw_folder(tmp_path / "photos")
    (root / "dog" / "same.png").write_bytes((root / "bee" / "002.png").read_bytes())
    prepared = experiment(root, tmp_path)
    extract_features([prepared])
    tables = write_tables(audit(prepared), tmp_path / "out")
    rows = list(csv.DictReader(tables[0].open(newline="")))
    (same,) = [row for row in rows if row["same_file"] == "1"]
    assert (same["id"], same["other_id"]) == ("bee/002.png", "dog/same.png")
    assert float(same["cosine_distance"]) == pytest.approx(0, abs=1e-5)


def test_images_without_labels_are_compared_too(tmp_path):
    for number in range(6):
        draw_image(tmp_path / "photos" / f"{number}.png", 1, number)
    prepared = experiment(tmp_path / "photos", tmp_path)
    extract_features([prepared])
    found = audit(prepared)
    assert found.C is None
    assert len(found.doubtful) == 0
    assert len(found.outliers) == 6
    assert found.label(0) == ""


def test_a_class_of_one_image_is_not_judged(tmp_path):
    root = draw_folder(tmp_path / "photos")
    draw_image(root / "emu" / "0.png", 5, 0)
    (root / "emu" / "1.png").write_bytes(b"no image")
    prepared = experiment(root, tmp_path)
    extract_features([prepared])
    found = audit(prepared)
    assert "emu/0.png" not in {found.dataset.ids[i] for i in found.doubtful}


def test_several_labels_are_doubted_class_by_class(tmp_path):
    root, lines = draw_folder(tmp_path / "photos", per_class=10), ["path,labels,split"]
    for number, name in enumerate(
        f"{c}/{i:03d}.png" for c in ("bee", "cat", "dog") for i in range(10)
    ):
        label = name.split("/")[0] + (";small" if number % 3 == 0 else "")
        if name == "bee/004.png":
            label = "dog"
        lines.append(f"{name},{label},{'train' if number % 2 else 'test'}")
    (root / "list.csv").write_text("\n".join(lines))
    prepared = experiment(
        root,
        tmp_path,
        dataset={"name": "csv", "root": str(root / "list.csv")},
        protocol={"name": "csv"},
    )
    extract_features([prepared])
    found = audit(prepared)
    first = found.doubtful[:3].tolist()
    about = {found.dataset.ids[i]: (found.label(i), found.doubt(i)) for i in first}
    assert about["bee/004.png"][0] == "dog"
    assert about["bee/004.png"][1] in ("not dog", "bee")


def test_without_a_cache_nothing_is_audited(tmp_path):
    prepared = experiment(draw_folder(tmp_path / "photos"), tmp_path)
    with pytest.raises(CacheError, match="make it with `spptransfer extract`"):
        audit(prepared)


@pytest.mark.slow
def test_one_percent_of_wrong_labels_of_caltech101_is_found(tmp_path):
    where = real_data("caltech101/101_ObjectCategories")
    weights = real_data("weights/mobilenet_v2_trunk.pth")
    dataset = open_dataset("caltech101", where)
    generator = np.random.default_rng(0)
    chosen = [k for k in range(102) if dataset.classes[k] != "BACKGROUND_Google"][::4]
    rows = np.concatenate([np.flatnonzero(dataset.targets == k)[:60] for k in chosen])
    part = dataset.subset(np.sort(rows))
    classes = tuple(dataset.classes[k] for k in chosen)
    targets = np.searchsorted(chosen, part.targets)
    wrong = generator.choice(len(part), len(part) // 100, replace=False)
    shuffled = targets.copy()
    shuffled[wrong] = (targets[wrong] + generator.integers(1, len(chosen), len(wrong))) % len(
        chosen
    )
    part = replace(part, name="folder", classes=classes, targets=shuffled)
    values = {
        "dataset": {"name": "folder", "root": str(where)},
        "features": {
            "backbone": "mobilenet_v2",
            "weights": str(weights),
            "layer": "head",
            "levels": [1],
            "scales": [160],
            "precision": "float32",
        },
        "classifier": {"C": [0.1, 1.0, 10.0]},
        "protocol": {"name": "folder", "train_per_class": 15, "splits": 1},
    }
    prepared = prepare("part", parse_pipeline(values), machine_in(tmp_path), dataset=part)
    extract_features([prepared])
    found = audit(prepared)
    first = found.doubtful[: round(0.03 * len(part))]
    assert np.isin(wrong, first).mean() >= 0.8
