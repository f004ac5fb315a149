from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from spptransfer.datasets.coco import read_coco
from spptransfer.datasets.drawing import SHAPES, TEXTURES, draw
from spptransfer.datasets.generated import DEMO_CLASSES, SCENE_CLASSES, generate, generate_scenes
from spptransfer.errors import ConfigError, DatasetError

PER_CLASS = 10


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("generated") / "demo"
    generate(root, images_per_class=PER_CLASS)
    return root


def images(root):
    return sorted(path for path in Path(root).glob("*/*") if path.is_file())


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in images(root)}


def upright(path):
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image)


# The images ----------------------------------------------------------------------------------


def test_neither_shape_nor_texture_tells_a_demo_class():
    textures = Counter(name.split("_")[0] for name in DEMO_CLASSES)
    shapes = Counter(name.split("_")[1] for name in DEMO_CLASSES)
    assert len(DEMO_CLASSES) == len(set(DEMO_CLASSES)) == 10
    assert set(textures.values()) == set(shapes.values()) == {2}
    assert textures.keys() <= TEXTURES.keys()
    assert shapes.keys() == SHAPES.keys()


@pytest.mark.parametrize("seed", range(5))
def test_classes_differ_on_the_object_only(seed):
    # Whatever else is drawn cannot tell the class, since it does not depend on it.
    def pixels(texture, shape):
        return np.asarray(draw(texture, shape, (90, 70), np.random.default_rng(seed))).astype(int)

    first = pixels("striped", "disc")
    for other in (pixels("dotted", "disc"), pixels("striped", "triangle")):
        rows, columns = np.nonzero((first != other).any(axis=2))
        assert 0 < np.ptp(rows) <= 2 * 0.50 * 70
        assert 0 < np.ptp(columns) <= 2 * 0.50 * 70


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 7), (300, 3), (3, 300)])
def test_awkward_sizes_can_be_drawn(size):
    for texture in TEXTURES:
        for shape in SHAPES:
            image = draw(texture, shape, size, np.random.default_rng(0))
            assert (image.mode, image.size) == ("RGB", size)


def test_the_pixels_are_those_of_every_machine_so_that_the_demos_number_is():
    drawn = [
        np.asarray(draw(*name.split("_"), (90, 70), np.random.default_rng(0)))
        for name in DEMO_CLASSES
    ]
    digest = hashlib.sha256(np.stack(drawn).tobytes()).hexdigest()
    assert digest.startswith("35e4e6c9372504da")


# The files -----------------------------------------------------------------------------------


def test_the_files_are_as_awkward_as_users_own(demo):
    modes, formats, orientations, portrait = Counter(), Counter(), Counter(), Counter()
    sides = []
    for path in images(demo):
        with Image.open(path) as image:
            modes[image.mode] += 1
            formats[image.format, path.suffix] += 1
            orientations[image.getexif().get(0x0112)] += 1
        width, height = upright(path).size
        portrait[height > width] += 1
        sides += [width, height]
    assert set(modes) == {"RGB", "L", "P", "RGBA"}
    assert set(formats) == {("JPEG", ".jpg"), ("PNG", ".png")}
    assert set(orientations) == {None, 3, 6, 8}
    assert min(portrait[True], portrait[False]) > 30
    assert 60 <= min(sides) < 80
    assert 400 < max(sides) <= 500


# The seed ------------------------------------------------------------------------------------


def test_an_image_depends_on_nothing_but_seed_class_and_index(tmp_path, demo):
    np.random.seed(3)
    generate(tmp_path / "small", images_per_class=2)
    generate(tmp_path / "other", seed=1, images_per_class=2)
    small, other = contents(tmp_path / "small"), contents(tmp_path / "other")
    assert len(small) == 2 * len(DEMO_CLASSES)
    assert small.items() <= contents(demo).items()
    assert all(small[path] != other[path] for path in small)


# Scenes --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("generated") / "scenes"
    generate_scenes(root, train=40, val=20)
    return read_coco(root)


def test_scenes_show_several_shapes_of_every_class_each_in_its_box(scenes, caplog):
    assert scenes.classes == SCENE_CLASSES
    assert {name: len(ids) for name, ids in scenes.official_splits.items()} == {
        "train": 40,
        "val": 20,
    }
    annotations = scenes.annotations()
    assert caplog.messages == []
    boxes, labels, _ = annotations.objects
    assert np.bincount(labels).min() > 10
    assert 45 < (boxes[:, 2:] - boxes[:, :2]).min() < 60 < 120 < (boxes[:, 2:] - boxes[:, :2]).max()
    numbers = Counter(len(found.labels) for found in annotations)
    assert set(numbers) == {0, 1, 2, 3, 4}
    assert numbers[0] == 3


def test_shapes_of_a_scene_hardly_overlap(scenes):
    for boxes, _, _ in scenes.annotations():
        for k, (x0, y0, x1, y1) in enumerate(boxes):
            others = boxes[:k]
            across = np.minimum(x1, others[:, 2]) - np.maximum(x0, others[:, 0])
            along = np.minimum(y1, others[:, 3]) - np.maximum(y0, others[:, 1])
            assert np.minimum(across, along).max(initial=0) <= 10


def test_a_box_holds_its_shape_and_touches_it(scenes):
    # Where a shape ends, its contrast with what is around ends too.
    (found,) = scenes.subset([scenes.ids.index("train/001.png")]).annotations()
    pixels = np.asarray(upright(scenes.path("train/001.png")).convert("L")).astype(int)
    for x0, y0, x1, y1 in found.boxes.astype(int):
        inside = np.abs(np.diff(pixels[y0:y1, x0:x1], axis=1)).mean()
        around = np.abs(np.diff(pixels[y0:y1, x1 : x1 + x1 - x0], axis=1)).mean()
        assert inside > 1.5 * around


def test_scenes_files_are_awkward_too(scenes):
    forms, turned = Counter(), Counter()
    for path in scenes.paths():
        with Image.open(path) as image:
            forms[path.suffix, image.mode] += 1
            turned[image.getexif().get(0x0112)] += 1
    assert set(forms) == {(".jpg", "RGB"), (".png", "RGB"), (".jpg", "L")}
    assert set(turned) == {None, 3, 6, 8}


def test_a_scene_depends_on_nothing_but_seed_split_and_index(tmp_path, scenes):
    generate_scenes(tmp_path / "small", train=2, val=1)
    small = {
        path: data for path, data in contents(tmp_path / "small").items() if "json" not in path
    }
    assert len(small) == 3
    assert small.items() <= contents(scenes.root).items()
    (first,) = read_coco(tmp_path / "small").subset([0]).annotations()
    assert np.array_equal(first.boxes, scenes.annotations()[0].boxes)


def test_scenes_with_other_settings_or_wrong_numbers_are_refused(tmp_path):
    generate_scenes(tmp_path / "scenes", train=1, val=1)
    with pytest.raises(DatasetError, match="other settings"):
        generate_scenes(tmp_path / "scenes", train=2, val=1)
    with pytest.raises(ConfigError, match="train and val at least 1; got 0, 1 and 0"):
        generate_scenes(tmp_path / "none", train=1, val=0)
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


# Whole or not at all -------------------------------------------------------------------------


def test_parents_are_made_and_an_empty_folder_is_filled(tmp_path):
    generate(tmp_path / "a" / "b" / "set", 0, 1)
    (tmp_path / "empty").mkdir()
    generate(tmp_path / "empty", 0, 1)
    assert contents(tmp_path / "empty") == contents(tmp_path / "a" / "b" / "set")


def test_a_killed_generation_leaves_no_half_set_and_the_next_one_succeeds(tmp_path):
    script = (
        "import sys; from pathlib import Path\n"
        "from spptransfer.datasets.generated import generate\n"
        "generate(Path(sys.argv[1]), images_per_class=10_000)\n"
    )
    root = tmp_path / "set"
    with subprocess.Popen([sys.executable, "-c", script, str(root)]) as process:
        while process.poll() is None and not any(tmp_path.glob(".set-*/set/*/*.jpg")):
            time.sleep(0.02)
        process.kill()
    assert not root.exists()
    generate(root, 0, 1)
    assert len(images(root)) == len(DEMO_CLASSES)


def test_of_two_generations_at_once_both_end_well(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: generate(tmp_path / "set", 0, 2), range(4)))
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert len(images(tmp_path / "set")) == 2 * len(DEMO_CLASSES)


# What a user can get wrong -------------------------------------------------------------------


def test_a_users_folder_is_not_touched(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_bytes(b"x")
    with pytest.raises(DatasetError, match=r"mine.* is not a generated image set"):
        generate(tmp_path / "mine", 0, 1)
    assert os.listdir(tmp_path / "mine") == ["photo.jpg"]


def test_a_set_with_other_settings_is_not_taken_for_this_one(tmp_path):
    generate(tmp_path / "set", 0, 1)
    for seed, count in ((1, 1), (0, 2)):
        with pytest.raises(DatasetError, match="other settings"):
            generate(tmp_path / "set", seed, count)


def test_a_missing_image_is_told_with_its_class(tmp_path):
    generate(tmp_path / "set", 0, 2)
    (tmp_path / "set" / "dotted_star" / "001.png").unlink()
    with pytest.raises(DatasetError, match=r"set.dotted_star lacks 1 of its images"):
        generate(tmp_path / "set", 0, 2)


@pytest.mark.parametrize(("seed", "count"), [(-1, 1), (0, 0)])
def test_wrong_numbers_are_named_before_anything_is_written(seed, count, tmp_path):
    with pytest.raises(ConfigError, match=f"got {seed} and {count}"):
        generate(tmp_path / "set", seed, count)
    assert list(tmp_path.iterdir()) == []
