from __future__ import annotations

import numpy as np
import pytest
from extraction_cases import (
    backbone,
    broken_images,
    make_dataset,
    many_images,
    open_folder,
    run,
)
from image_files import encode, picture
from unfinished_caches import drafted_rows

from spptransfer.cache import FeatureCache
from spptransfer.cache.draft import Draft
from spptransfer.cache.ids import encoded_width
from spptransfer.cache.rows import Chunk, checksums
from spptransfer.cache.verify import Problem, repair, verify
from spptransfer.cache.writing import write_cache
from spptransfer.errors import CacheError


@pytest.fixture
def made(tmp_path):
    dataset = make_dataset(tmp_path / "images", many_images(10) | broken_images())
    run(dataset, tmp_path / "a.h5")
    return dataset, tmp_path / "a.h5"


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


def position_of(path, name, row):
    extent = FeatureCache.open(path).header.extents[name]
    return extent.offset + extent.nbytes // extent.shape[0] * row + 3


def test_a_sound_cache_has_no_problems(made):
    dataset, path = made
    assert verify(path) == []
    assert verify(path, dataset, backbone, sample=4) == []


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


def rewrite(path, change):
    """Write the cache anew with right checksums around wrong contents."""
    cache = FeatureCache.open(path)
    rows, block = cache.rows, cache.blocks[0]
    features = {block: cache.read(block, slice(None))}
    change(rows, features[block])
    write_cache(
        path,
        spec=cache.spec,
        channels=cache.channels,
        dataset=cache.dataset,
        count=len(rows),
        id_width=encoded_width(rows.ids),
        chunks=[Chunk(rows, features)],
    )


def test_features_of_another_image_are_found_by_extracting_again(made):
    dataset, path = made
    rewrite(path, lambda rows, values: values.__setitem__(slice(0, 10), values[9::-1].copy()))
    assert verify(path, dataset) == []
    problems = verify(path, dataset, backbone, sample=10)
    assert len(problems) == 10
    assert "extracted again, it differs by" in problems[0].what


def test_numbers_that_are_not_finite_are_found(made):
    _, path = made
    rewrite(path, lambda rows, values: values.__setitem__((4, 7), np.inf))
    assert [problem.id for problem in verify(path)] == ["0004.png"]


def test_an_id_that_occurs_twice_is_found(made):
    _, path = made
    rewrite(path, lambda rows, values: rows.ids.__setitem__(5, "0004.png"))
    assert Problem("0004.png", "the id occurs more than once") in verify(path)


@pytest.mark.parametrize(
    "name",
    ["features/scale_48/level_3", "rows/id", "rows/status", "rows/by_id", "labels/targets", None],
)
def test_a_repaired_file_is_byte_for_byte_the_undamaged_one(made, name):
    dataset, path = made
    before = path.read_bytes()
    flip(path, position_of(path, name, 6) if name else len(before) - 1)
    assert verify(path)
    decoded = []

    def counting():
        decoded.append(1)
        return backbone()

    report = repair(path, verify(path, dataset), dataset, counting, jobs=1, part_rows=4)
    assert verify(path, dataset) == []
    cache = FeatureCache.open(path)
    rows = cache.rows
    values = {b: cache.read(b, slice(None)) for b in cache.blocks}
    path.write_bytes(before)
    original = FeatureCache.open(path)
    expected = {b: original.read(b, slice(None)) for b in original.blocks}
    assert rows.ids == original.rows.ids
    for block in expected:
        np.testing.assert_allclose(values[block], expected[block], rtol=0, atol=1e-5)
    assert checksums(rows, values, cache.blocks).shape == (14, 16)
    assert report.unchanged >= 8  # a flipped id may be that of another row


def test_a_row_of_another_image_is_repaired(made):
    dataset, path = made
    before = FeatureCache.open(path).matrix()
    rewrite(path, lambda rows, values: values.__setitem__(2, values[3]))
    repair(path, verify(path, dataset, backbone, sample=10), dataset, backbone)
    np.testing.assert_allclose(FeatureCache.open(path).matrix(), before, rtol=0, atol=1e-5)


def test_a_wrong_row_is_repaired_though_an_interrupted_update_has_it_too(made, monkeypatch):
    dataset, path = made
    before = FeatureCache.open(path).matrix()
    rewrite(path, lambda rows, values: values.__setitem__(2, values[3]))
    with monkeypatch.context() as patched:
        patched.setattr(Draft, "seal", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(dataset, path, redo=["0000.png"])
    assert 2 in drafted_rows(path)
    repair(path, verify(path, dataset, backbone, sample=10), dataset, backbone)
    np.testing.assert_allclose(FeatureCache.open(path).matrix(), before, rtol=0, atol=1e-5)


def interrupted(*_):
    raise KeyboardInterrupt


def test_a_file_that_is_no_cache_gives_one_line(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"text")
    with pytest.raises(CacheError, match="no feature cache"):
        verify(tmp_path / "a.h5")


def test_a_problem_reads_as_a_line():
    assert str(Problem(None, "broken")) == "broken"
