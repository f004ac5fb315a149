from __future__ import annotations

import numpy as np
import pytest
from damaged_caches import flip, make, position_of, rewrite
from extraction_cases import open_folder
from image_files import encode, picture

from spptransfer.cache.verify import Problem, verify
from spptransfer.errors import CacheError


@pytest.fixture
def made(tmp_path):
    return make(tmp_path)


def test_a_sound_cache_has_no_problems(made):
    dataset, path = made
    assert verify(path) == []
    assert verify(path, dataset) == []


@pytest.mark.parametrize("name", ["features/scale_48/level_3", "rows/digest", "rows/checksum"])
def test_a_flipped_byte_is_found_in_its_row(made, name):
    dataset, path = made
    flip(path, position_of(path, name, 6))
    problems = verify(path, dataset)
    assert Problem("0006.png", "the row is not what was written (checksum)") in problems
    # A row vouches for its features, the file's hash for all the rest.
    wrong = {"0006.png"} if name.startswith("features/") else {"0006.png", None}
    assert {problem.id for problem in problems} == wrong


def test_every_flipped_byte_of_the_file_is_found(made):
    _, path = made
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for position in generator.integers(0, len(content), 60):
        path.write_bytes(content)
        flip(path, int(position))
        try:
            problems = verify(path)
        except CacheError:
            continue
        assert problems, f"byte {position} of {len(content)}"


def test_images_that_changed_vanished_or_came_are_named(made):
    dataset, path = made
    (dataset.root / "0001.png").write_bytes(encode(picture(9, 9)))
    (dataset.root / "0002.png").unlink()
    ids = [id for id in dataset.ids if id != "0003.png"]
    problems = {p.id: p.what for p in verify(path, open_folder(dataset.root, [*ids, "new.png"]))}
    assert problems == {
        "0001.png": "the image has changed since",
        "0002.png": "cannot read the image: No such file or directory",
        "0003.png": "the dataset has no such image",
        "new.png": "the image has no row",
    }


def test_numbers_that_are_not_finite_are_found(made):
    _, path = made
    rewrite(path, lambda rows, values: values.__setitem__((4, 7), np.inf))
    assert [problem.id for problem in verify(path)] == ["0004.png"]


def test_an_id_that_occurs_twice_is_found(made):
    _, path = made
    rewrite(path, lambda rows, values: rows.ids.__setitem__(5, "0004.png"))
    assert Problem("0004.png", "the id occurs more than once") in verify(path)


def test_damage_that_leaves_no_rows_to_read_is_told_with_a_way_out(made):
    _, path = made
    flip(path, position_of(path, "failures/row", 0))
    with pytest.raises(CacheError, match="'failures/row' points beyond its rows; copy it anew"):
        verify(path)


def test_a_file_that_is_no_cache_gives_one_line(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"text")
    with pytest.raises(CacheError, match="no feature cache"):
        verify(tmp_path / "a.h5")


def test_a_problem_reads_as_a_line():
    assert str(Problem(None, "broken")) == "broken"
