"""What trainings share: images held out, windows proposed once, and what is kept of them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from painted_images import PaintedImages
from PIL import Image

from spptransfer.backbones import BackboneRef
from spptransfer.datasets.annotations import Objects
from spptransfer.detection.fitting import (
    hold_out,
    kept_until_done,
    open_proposals,
    propose_in,
    training_key,
)
from spptransfer.detection.proposal_cache import ProposalCache
from spptransfer.detection.settings import DetectionSection
from spptransfer.detection.training import Plan
from spptransfer.errors import CacheError
from spptransfer.specify import feature_spec


@given(
    st.lists(st.lists(st.integers(0, 2), max_size=3), min_size=1, max_size=40),
    st.sampled_from([0, 0.1, 0.2, 0.5]),
    st.integers(0, 3),
)
def test_about_a_share_is_held_out_and_always_the_same(labels, share, seed):
    objects = [Objects.of([[0, 0, 9, 9]] * len(each), each) for each in labels]
    found = hold_out(objects, 3, share, seed)
    assert len(set(found.tolist())) == len(found) < max(2, len(objects))
    assert abs(len(found) - share * len(objects)) <= 3
    assert set(found.tolist()) <= set(range(len(objects)))
    np.testing.assert_array_equal(found, hold_out(objects, 3, share, seed))


def test_a_class_in_one_image_trains():
    for lone in range(10):
        labels = [[0], [0, 1]]
        objects = [Objects.of([[0, 0, 9, 9]] * 2, [0, 0]) for _ in range(10)]
        objects[lone] = Objects.of([[0, 0, 9, 9]] * 2, labels[1])
        assert lone not in hold_out(objects, 2, 0.2)


@dataclass(frozen=True)
class Counting:
    """Proposes the whole image, and remembers what it was asked for."""

    asked: list
    name: ClassVar[str] = "counting"
    needs_pixels: ClassVar[bool] = True
    needs_maps: ClassVar[bool] = False
    key: ClassVar[str] = "counting"

    def propose(self, image, maps=None, *, id=None):
        self.asked.append(image.copy())
        return np.array([[0, 0, image.shape[1], image.shape[0]]], np.float32)


@pytest.mark.parametrize("shape", [(6, 9, 3), (6, 9), (6, 9, 4)])
def test_windows_of_arrays_and_files_are_proposed_once_and_kept_by_content(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    cache, asked = ProposalCache(tmp_path / "kept"), []
    images = [pixels, tmp_path / "a.png", pixels[:4]]
    for _ in range(2):
        propose = propose_in(images, Counting(asked), cache)
        for _ in range(3):
            windows = [propose(position, []) for position in range(3)]
    _, one, other = sorted(asked, key=len)  # threads ask in any order
    np.testing.assert_array_equal(one, other)
    assert [box.tolist() for box in windows] == [[[0, 0, 9, 6]], [[0, 0, 9, 6]], [[0, 0, 9, 4]]]


def test_a_training_is_another_once_anything_of_it_changes(tmp_path):
    painted = PaintedImages(4)
    spec = feature_spec(BackboneRef("spp-mini", "embedded"), scales=[128])
    array = np.zeros((4, 4, 3), np.uint8)
    (tmp_path / "a.png").write_bytes(b"some")

    def key(settings=None, images=(array, tmp_path / "a.png"), objects=None, C=1.0, held=(1,)):
        section = DetectionSection(proposals="grid", **(settings or {}))
        plan = Plan(painted.features, section, 2, C=(C,))
        given = objects or painted.objects
        return training_key(plan, spec, open_proposals(section), images, given, held)

    moved = [each._replace(boxes=each.boxes + 1) for each in painted.objects]
    keys = [
        key(),
        key({"nms": 0.4}),
        key({"max_windows": 9}),
        key(images=(array + 1, tmp_path / "a.png")),
        key(images=(array, tmp_path / "absent.png")),
        key(objects=moved),
        key(C=2.0),
        key(held=(2,)),
    ]
    (tmp_path / "a.png").write_bytes(b"other")
    keys.append(key())
    assert len(set(keys)) == len(keys)
    assert key(images=(array.copy(), tmp_path / "a.png")) == keys[-1]


def test_what_is_kept_goes_once_a_training_is_done_and_nobody_else_writes_there(tmp_path):
    with contextlib.suppress(KeyboardInterrupt), kept_until_done(tmp_path, "k" * 64) as folder:
        folder.mkdir()
        raise KeyboardInterrupt
    assert folder.is_dir()
    with kept_until_done(tmp_path, "k" * 64) as again:
        assert again == folder
        with (
            pytest.raises(CacheError, match=r"the training .* is being written by"),
            kept_until_done(tmp_path, "k" * 64),
        ):
            pass
    assert list(tmp_path.iterdir()) == []
    with kept_until_done(None, "k") as folder:
        assert folder.is_dir()
    assert not folder.exists()
