from __future__ import annotations

import numpy as np
import pytest
from cache_files import make_cache, make_rows, make_spec, write_cache
from damaged_caches import flip, position_of, rewrite
from image_files import encode, picture

from spptransfer import images
from spptransfer.cache import FeatureCache
from spptransfer.cache.verify import Problem, verify
from spptransfer.datasets import Dataset
from spptransfer.errors import CacheError

IDS = [f"{i:04d}.png" for i in range(8)]


def open_folder(root, ids):
    return Dataset("folder", root, tuple(ids), (), np.full(len(ids), -1, np.int32))


@pytest.fixture
def made(tmp_path):
    """A folder of images, the last one broken, and its cache."""
    (tmp_path / "images").mkdir()
    for i, id in enumerate(IDS):
        content = encode(picture(20, 30, i)) if i < 7 else b"text"
        (tmp_path / "images" / id).write_bytes(content)
    dataset = open_folder(tmp_path / "images", IDS)
    rows, features = make_rows(IDS, make_spec(), failed=[7])
    contents = [images.read_bytes(dataset.path(id)) for id in IDS]
    rows.digest[:] = [images.content_digest(content).encode() for content in contents]
    write_cache(tmp_path / "a.h5", rows, features, make_spec(), labels="default")
    return dataset, tmp_path / "a.h5"


def test_a_sound_cache_has_no_problems(made):
    dataset, path = made
    assert verify(path) == []
    assert verify(path, dataset) == []


@pytest.mark.parametrize(
    "name",
    ["features/spp/scale_64/level_4", "rows/digest", "rows/width", "rows/status", "rows/error"],
)
def test_a_flipped_byte_is_found_in_its_row(made, name):
    _, path = made
    flip(path, position_of(path, name, 3) - (3 if name == "rows/status" else 0))
    assert verify(path) == [Problem(IDS[3], "the row is not what was written (checksum)")]


@pytest.mark.parametrize("name", ["rows/checksum", "rows/stamp", "labels/targets"])
def test_a_flipped_byte_of_the_head_is_found_before_the_file_is_read(made, name):
    _, path = made
    flip(path, position_of(path, name, 3))
    with pytest.raises(CacheError, match="its head is not what was written; copy it anew"):
        FeatureCache.open(path)


def test_every_flipped_byte_of_the_file_is_found(tmp_path):
    path = tmp_path / "a.h5"
    make_cache(path, 40, make_spec(levels=(3, 2), scales=(48, 64)), failed=[3])
    content, extents = path.read_bytes(), FeatureCache.open(path).extents.values()
    edges = {at + step for pair in extents for at in pair for step in (-1, 0)}
    sample = np.random.default_rng(0).integers(0, len(content), 60).tolist()
    for position in sorted({*edges, *sample, 0, 60, 4095, 4096} - {len(content)}):
        path.write_bytes(content)
        flip(path, position)
        try:
            problems = verify(path)
        except CacheError:
            continue
        assert problems, f"byte {position} of {len(content)}"


def test_images_that_changed_vanished_or_came_are_named(made):
    dataset, path = made
    (dataset.root / IDS[1]).write_bytes(encode(picture(9, 9)))
    (dataset.root / IDS[2]).unlink()
    ids = [id for id in IDS if id != IDS[3]]
    problems = {p.id: p.what for p in verify(path, open_folder(dataset.root, [*ids, "new.png"]))}
    assert problems == {
        IDS[1]: "the image has changed since",
        IDS[2]: "cannot read the image: No such file or directory",
        IDS[3]: "the dataset has no such image",
        "new.png": "the image has no row",
    }


def test_numbers_that_are_not_finite_are_found(made):
    _, path = made
    rewrite(path, lambda rows, values: values.__setitem__((4, 7), np.inf))
    assert [problem.id for problem in verify(path)] == [IDS[4]]


def test_an_id_that_occurs_twice_is_found(made):
    _, path = made
    rewrite(path, lambda rows, values: rows.ids.__setitem__(5, IDS[4]))
    assert Problem(IDS[4], "the id occurs more than once") in verify(path)


def test_a_row_that_was_never_written_is_found(made):
    _, path = made
    rewrite(path, lambda rows, values: rows.status.__setitem__(2, 0))
    assert [problem.id for problem in verify(path)] == [IDS[2]]
