from __future__ import annotations

import hashlib
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import encode, picture, rotated_by_exif

from spptransfer import images
from spptransfer.extraction import batches
from spptransfer.extraction.batches import (
    CHANGED,
    OUT_OF_MEMORY,
    Batch,
    Gathering,
    Rendering,
    Stamp,
    group,
    load,
    probe,
)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(rotated_by_exif(picture(50, 70), 6))
    return path


def test_a_probe_knows_size_and_digest_without_decoding(image, monkeypatch):
    monkeypatch.setattr(images, "_decode", None)
    found = probe(image, [25, 64], "full")
    assert (found.height, found.width) == (50, 70)
    assert found.view_sizes == ((25, 35), (64, 90))
    assert found.digest == hashlib.sha256(image.read_bytes()).hexdigest()
    assert found.stamp == Stamp.of(image)


def test_the_views_loaded_have_the_size_that_was_probed(image):
    found = probe(image, [25, 64], "full")
    loaded = load(image, found.digest, [Rendering(25, "full"), Rendering(64, "full")])
    assert tuple(view.shape[:2] for view in loaded.views) == found.view_sizes
    assert loaded.error == ""


@pytest.mark.parametrize(
    ("content", "message", "has_digest"),
    [
        (b"", "the file is empty", False),
        (b"text", "no image of a known format", True),
        (encode(picture(5, 5))[:20], "no image of a known format", True),
    ],
)
def test_a_broken_image_is_a_result_with_its_reason(tmp_path, content, message, has_digest):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    found = probe(path, [64], "full")
    assert found.view_sizes is None
    assert message in found.error
    assert bool(found.digest) == has_digest


def test_missing_files_folders_loops_and_pipes_are_results_too(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    messages = {
        "none": "No such file",
        ".": "a directory",
        "loop": "symbolic links",
        "pipe": "no regular file",
        "x" * 300: "name too long",
        "nul\0": "null",
    }
    for name, message in messages.items():
        assert message in probe(tmp_path / name, [64], "full").error


def test_an_image_cut_off_after_its_header_fails_when_it_is_decoded(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode(picture(50, 70))[:900])
    found = probe(path, [64], "full")
    assert found.error == ""
    assert "cannot decode" in load(path, found.digest, [Rendering(64, "full")]).error


def test_an_image_that_changes_between_probing_and_loading_fails(image):
    found = probe(image, [64], "full")
    image.write_bytes(encode(picture(50, 70, 9)))
    assert load(image, found.digest, [Rendering(64, "full")]).error == CHANGED


def test_a_small_file_is_kept_from_the_look_to_the_decoding(image):
    found = probe(image, [64], "full")
    assert found.data == image.read_bytes()
    expected = load(image, found.digest, [Rendering(64, "full")])
    image.unlink()
    loaded = load(image, found.digest, [Rendering(64, "full")], found.data)
    assert loaded.error == expected.error == ""
    np.testing.assert_array_equal(loaded.views[0], expected.views[0])


def test_a_large_file_is_not_kept_and_nothing_is_of_arrays_and_of_what_cannot_be_read(
    image, tmp_path, monkeypatch
):
    monkeypatch.setattr(batches, "KEPT_BYTES", len(image.read_bytes()) - 1)
    seen = batches.look(image)
    assert (seen.height, seen.width, seen.error, seen.data) == (50, 70, "", b"")
    assert batches.look(np.zeros((4, 5, 3), np.uint8)).data == b""
    assert batches.look(tmp_path / "missing.png").data == b""
    (tmp_path / "text.png").write_bytes(b"text")
    assert batches.look(tmp_path / "text.png").data == b""


def test_contents_are_no_part_of_what_a_probe_shows(image):
    assert "data" not in repr(batches.look(image))


def test_an_image_too_large_to_decode_fails(image, monkeypatch):
    found = probe(image, [64], "full")

    def exhausted(*_):
        raise MemoryError

    monkeypatch.setattr(batches.images, "render", exhausted)
    assert load(image, found.digest, [Rendering(64, "full")]).error == OUT_OF_MEMORY


@given(
    st.lists(st.one_of(st.none(), st.integers(1, 5)), max_size=40),
    st.integers(1, 30),
)
def test_every_position_with_a_key_is_in_one_batch_of_equals_within_the_budget(keys, budget):
    costs = [key or 0 for key in keys]
    found = list(group(keys, costs, budget))
    assert sorted(p for batch in found for p in batch) == [
        p for p, key in enumerate(keys) if key is not None
    ]
    for batch in found:
        assert len({keys[p] for p in batch}) == 1
        assert len(batch) == 1 or sum(costs[p] for p in batch) <= budget
        assert batch == sorted(batch)


def test_views_are_bytes_of_three_channels(image):
    loaded = load(image, probe(image, [33], "warp").digest, [Rendering(33, "warp")])
    assert loaded.views[0].shape == (33, 33, 3)
    assert loaded.views[0].dtype == np.uint8


@st.composite
def batches_of_a_part(draw):
    """Batches in which every image is at most once per rendering, and at least in one."""
    count = draw(st.integers(1, 12))
    found = []
    for scale in draw(st.lists(st.integers(1, 4), min_size=1, max_size=3, unique=True)):
        keys = draw(
            st.lists(st.one_of(st.none(), st.integers(1, 3)), min_size=count, max_size=count)
        )
        for positions in group(keys, [1] * count, draw(st.integers(1, 4))):
            found.append(Batch(Rendering(scale, "full"), (keys[positions[0]],), tuple(positions)))
    return found


@given(batches_of_a_part(), st.integers(1, 5))
def test_no_thread_loads_more_images_in_a_row_than_it_may(some, limit):
    chunks = list(Gathering(some).chunks(limit))
    assert all(1 <= len(chunk) <= limit for chunk in chunks)
    assert [p for chunk in chunks for p in chunk] == [
        p for chunk in Gathering(some).chunks(1000) for p in chunk
    ]


@given(batches_of_a_part(), st.randoms(), st.sets(st.integers(0, 11)))
def test_every_batch_is_completed_once_by_the_last_of_its_views(some, chance, broken):
    gathering = Gathering(some)
    order = [position for chunk in gathering.chunks() for position in chunk]
    assert sorted(order) == sorted({p for batch in some for p in batch.positions})
    chance.shuffle(order)
    done = []
    for count, position in enumerate(order, start=1):
        renderings = gathering.renderings(position)
        views = [np.full((1, 1, 3), scale, np.uint8) for scale, _ in renderings]
        put = set(order[:count])
        for batch, gathered in gathering.put(position, [] if position in broken else views):
            assert put.issuperset(batch.positions)
            assert list(gathered) == [p for p in batch.positions if p not in broken]
            assert all((view == batch.rendering.scale).all() for view in gathered.values())
            done.append(batch)
    assert len(done) == len(some)
    assert {(b.rendering, b.positions) for b in done} == {(b.rendering, b.positions) for b in some}
    for position in order:
        caches = {c for batch in some if position in batch.positions for c in batch.wanted}
        assert gathering.wanted(position) == caches
