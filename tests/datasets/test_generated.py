from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score
from sklearn.svm import LinearSVC

from spptransfer.datasets import generated
from spptransfer.datasets.drawing import draw
from spptransfer.datasets.generated import DEMO_CLASSES, generate
from spptransfer.errors import ConfigError, DatasetError

TWO = ("striped_disc", "dotted_star")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("generated") / "demo"
    generate(root, images_per_class=len(generated._FORMS))
    return root


def images(root):
    return sorted(path for path in Path(root).glob("*/*") if path.is_file())


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in images(root)}


def upright(path):
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image)


# The classes -------------------------------------------------------------------------------


def test_neither_shape_nor_texture_tells_a_demo_class():
    textures = Counter(name.split("_")[0] for name in DEMO_CLASSES)
    shapes = Counter(name.split("_")[1] for name in DEMO_CLASSES)
    assert len(DEMO_CLASSES) >= 8
    assert len(set(DEMO_CLASSES)) == len(DEMO_CLASSES)
    assert min(textures.values()) >= 2
    assert min(shapes.values()) >= 2


def test_colours_alone_do_badly():
    histograms, labels = [], []
    for name in DEMO_CLASSES:
        for index in range(30):
            rng = generated._generator(0, name, index)
            pixels = np.asarray(draw(*name.split("_"), (72, 60), rng)).reshape(-1, 3)
            counts, _ = np.histogramdd(pixels, bins=6, range=[(0, 256)] * 3)
            histograms.append(np.sqrt(counts.ravel() / counts.sum()))
            labels.append(name)
    splits = StratifiedShuffleSplit(5, test_size=0.5, random_state=0)
    scores = cross_val_score(LinearSVC(C=10), np.stack(histograms), labels, cv=splits)
    assert scores.mean() < 0.2


def test_sizes_and_files_do_not_tell_the_class(demo):
    suffixes = [[path.name for path in sorted((demo / name).iterdir())] for name in DEMO_CLASSES]
    assert all(names == suffixes[0] for names in suffixes)


# The files ---------------------------------------------------------------------------------


def test_every_class_has_its_folder_of_images(demo):
    folders = {path.name: len(list(path.iterdir())) for path in demo.iterdir() if path.is_dir()}
    assert folders == dict.fromkeys(DEMO_CLASSES, len(generated._FORMS))


def test_the_files_are_as_awkward_as_users_own(demo):
    modes, formats, orientations, portrait = Counter(), Counter(), Counter(), Counter()
    for path in images(demo):
        with Image.open(path) as image:
            modes[image.mode] += 1
            formats[image.format, path.suffix] += 1
            orientations[image.getexif().get(0x0112)] += 1
        width, height = upright(path).size
        portrait[height > width] += 1
        assert min(width, height) >= 60
        assert max(width, height) <= 500
    assert set(modes) == {"RGB", "L", "P", "RGBA"}
    assert set(formats) == {("JPEG", ".jpg"), ("PNG", ".png")}
    assert set(orientations) == {None, 3, 6, 8}
    assert min(portrait[True], portrait[False]) > 30


def test_sides_reach_from_about_60_to_beyond_400(demo):
    sizes = np.array([upright(path).size for path in images(demo)])
    assert sizes.min() < 80
    assert sizes.max() > 400


@pytest.mark.parametrize("form", generated._FORMS)
def test_decoded_and_turned_upright_a_file_is_the_image_drawn(form, tmp_path):
    image = draw("striped", "star", (150, 100), np.random.default_rng(0))
    suffix = ".png" if form in ("png", "palette", "alpha") else ".jpg"
    path = tmp_path / f"image{suffix}"
    generated._save(image, path, form, np.random.default_rng(0))
    expected = image.convert("L") if form == "grey" else image
    found = upright(path)
    assert found.size == image.size
    difference = np.asarray(found.convert(expected.mode), float) - np.asarray(expected, float)
    assert np.abs(difference).mean() < {"png": 1e-9, "alpha": 1e-9}.get(form, 14)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_each_orientation_is_stored_turned(orientation, tmp_path, monkeypatch):
    monkeypatch.setattr(generated, "_STORED_AS", {orientation: generated._STORED_AS[orientation]})
    image = draw("striped", "star", (150, 100), np.random.default_rng(0))
    generated._save(image, tmp_path / "a.jpg", "rotated", np.random.default_rng(0))
    with Image.open(tmp_path / "a.jpg") as stored:
        assert stored.size == ((150, 100) if orientation == 3 else (100, 150))
        plain = np.asarray(stored.convert("RGB"), float)
    turned = np.asarray(upright(tmp_path / "a.jpg"), float)
    assert np.abs(turned - np.asarray(image, float)).mean() < 14
    if orientation == 3:
        assert np.abs(plain - np.asarray(image, float)).mean() > 14


# The seed ----------------------------------------------------------------------------------


def test_a_seed_gives_the_same_files_again(tmp_path):
    for name in ("a", "b"):
        np.random.seed(len(name))
        generate(tmp_path / name, 7, 3, TWO)
        np.random.random(5)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_another_seed_gives_other_images(tmp_path):
    generate(tmp_path / "a", 0, 2, TWO)
    generate(tmp_path / "b", 1, 2, TWO)
    a, b = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert all(a[path] != b[path] for path in a)


def test_an_image_depends_on_nothing_but_seed_class_and_index(tmp_path):
    generate(tmp_path / "small", 3, 2, TWO)
    generate(tmp_path / "large", 3, 4, ("checked_cross", *reversed(TWO)))
    small, large = contents(tmp_path / "small"), contents(tmp_path / "large")
    assert small.items() <= large.items()
    assert len(large) == 12


# Whole or not at all -----------------------------------------------------------------------


def test_a_complete_set_is_reused(tmp_path, monkeypatch):
    generate(tmp_path / "set", 0, 2, TWO)
    monkeypatch.setattr(generated, "_draw_set", lambda *_: pytest.fail("drawn again"))
    generate(tmp_path / "set", 0, 2, list(TWO))


def test_parents_are_made_and_an_empty_folder_is_filled(tmp_path):
    generate(tmp_path / "a" / "b" / "set", 0, 1, TWO)
    (tmp_path / "empty").mkdir()
    generate(tmp_path / "empty", 0, 1, TWO)
    assert contents(tmp_path / "empty") == contents(tmp_path / "a" / "b" / "set")


def test_an_interrupted_generation_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(generated, "_save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "set", 0, 2, TWO)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_generation_leaves_no_half_set_and_the_next_one_succeeds(tmp_path):
    script = (
        "import os, sys; from pathlib import Path\n"
        "from spptransfer.datasets import generated\n"
        "save, saved = generated._save, []\n"
        "def die_at_third(*a):\n"
        "    saved.append(a); save(*a)\n"
        "    if len(saved) == 3: os._exit(9)\n"
        "generated._save = die_at_third\n"
        f"generated.generate(Path(sys.argv[1]), 0, 2, {TWO})\n"
    )
    root = tmp_path / "set"
    assert subprocess.run([sys.executable, "-c", script, str(root)]).returncode == 9
    assert not root.exists()
    generate(root, 0, 2, TWO)
    assert len(images(root)) == 4


def test_of_two_generations_at_once_both_end_well(tmp_path, monkeypatch):
    draw_set = generated._draw_set

    def draw_while_another_process_finishes(root, manifest):
        draw_set(root, manifest)
        draw_set(tmp_path / "set", manifest)

    monkeypatch.setattr(generated, "_draw_set", draw_while_another_process_finishes)
    generate(tmp_path / "set", 0, 1, TWO)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert len(images(tmp_path / "set")) == 2


def test_a_rename_that_fails_for_another_reason_is_reported(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError):
        generate(tmp_path / "set", 0, 1, TWO)


# What a user can get wrong -----------------------------------------------------------------


def test_a_users_folder_is_not_touched(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_bytes(b"x")
    with pytest.raises(DatasetError, match=r"mine.* is not a generated image set"):
        generate(tmp_path / "mine", 0, 1, TWO)
    assert os.listdir(tmp_path / "mine") == ["photo.jpg"]


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "set").write_bytes(b"x")
    with pytest.raises(DatasetError, match="set exists"):
        generate(tmp_path / "set", 0, 1, TWO)


@pytest.mark.parametrize("other", [(1, 2, TWO), (0, 3, TWO), (0, 2, TWO[:1]), (0, 2, TWO[::-1])])
def test_a_set_with_other_settings_is_not_taken_for_this_one(other, tmp_path):
    generate(tmp_path / "set", 0, 2, TWO)
    with pytest.raises(DatasetError, match="other settings"):
        generate(tmp_path / "set", *other)


def test_a_missing_image_is_named(tmp_path):
    generate(tmp_path / "set", 0, 2, TWO)
    images(tmp_path / "set")[0].unlink()
    with pytest.raises(DatasetError, match=r"lacks 1 of its images, dotted_star/000\.jpg"):
        generate(tmp_path / "set", 0, 2, TWO)


def test_a_damaged_manifest_is_not_trusted(tmp_path):
    generate(tmp_path / "set", 0, 1, TWO)
    (tmp_path / "set" / generated._MANIFEST).write_text("{")
    with pytest.raises(DatasetError, match="not a generated image set"):
        generate(tmp_path / "set", 0, 1, TWO)


def test_the_manifest_records_the_settings(tmp_path):
    generate(tmp_path / "set", 5, 1, TWO)
    manifest = json.loads((tmp_path / "set" / generated._MANIFEST).read_text())
    assert (manifest["seed"], manifest["images_per_class"]) == (5, 1)
    assert manifest["classes"] == list(TWO)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, ["stripd_disc"]), "unknown texture 'stripd'; did you mean 'striped'?"),
        ((0, 1, ["striped_disk"]), "unknown shape 'disk'; did you mean 'disc'?"),
        ((0, 1, ["disc"]), "unknown texture 'disc'; allowed: striped"),
        ((0, 1, []), "at least one"),
        ((0, 1, ["striped_disc"] * 2), "different names"),
        ((-1, 1, TWO), "got -1 and 1"),
        ((0, 0, TWO), "got 0 and 0"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_written(arguments, message, tmp_path):
    with pytest.raises(ConfigError) as error:
        generate(tmp_path / "set", *arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_drawing_needs_no_torch():
    script = "import sys, spptransfer.datasets.generated; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
