"""What the network is shown."""

from __future__ import annotations

import io
import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from spptransfer.errors import DatasetError, ImageError
from spptransfer.pretraining.config import ImagesSection
from spptransfer.pretraining.data import (
    IGNORED,
    Steps,
    TrainingImages,
    ValidationImages,
    make_loader,
    principal_colours,
    resized_crop,
    side_of_epoch,
)
from spptransfer.pretraining.source import LabelledFiles

SECTION = ImagesSection(resize=12, size=8, small=6)


class Drawn:
    """Files of images whose every pixel tells its image and its place."""

    root = "drawn"

    def __init__(self, height=12, width=17, missing=()):
        self.shape, self.missing = (height, width), missing

    def pixels(self, position):
        y, x = np.mgrid[: self.shape[0], : self.shape[1]]
        return np.stack([np.full(self.shape, position), y, x], 2).astype(np.uint8)

    def read(self, name):
        if int(name) in self.missing:
            raise ImageError("it is gone")
        with io.BytesIO() as buffer:
            Image.fromarray(self.pixels(int(name))).save(buffer, "PNG", compress_level=1)
            return buffer.getvalue()


def drawn(count=23, **source):
    return LabelledFiles(Drawn(**source), tuple(map(str, range(count))), np.arange(count), ())


def training(seed=3, files=None, **changes):
    return TrainingImages(files or drawn(), SECTION.model_copy(update=changes), seed)


def same(one, other):
    return all(np.array_equal(one[key], other[key]) for key in one)


def positions(steps):
    return [[position for _, position in indices] for indices in steps]


def test_an_epoch_shows_every_image_at_most_once_and_the_next_in_another_order():
    steps = Steps(23, 5, seed=3)
    first = positions(steps)
    steps.epoch = 1
    shown = list(itertools.chain(*first))
    assert len(steps) == len(first) == 4
    assert len(set(shown)) == len(shown) == 20
    assert positions(steps) != first
    assert positions(Steps(23, 5, seed=4)) != first


def test_an_epoch_goes_on_from_a_step():
    steps = Steps(23, 5, seed=3)
    whole = list(steps)
    steps.first = 2
    assert list(steps) == whole[2:]


@pytest.mark.parametrize("processes", [2, 3])
def test_the_shares_of_all_processes_are_the_batch(processes):
    whole = positions(Steps(40, 6, seed=3))
    shares = [positions(Steps(40, 6, 3, rank, processes)) for rank in range(processes)]
    for step, batch in enumerate(whole):
        together = itertools.chain(*(share[step] for share in shares))
        assert sorted(together) == sorted(batch)


def test_what_is_shown_of_an_image_depends_on_seed_epoch_and_position_alone():
    shown = training()[1, 2]
    assert same(training()[1, 2], shown)
    assert not same(training()[2, 2], shown)
    assert not same(training(seed=4)[1, 2], shown)


@pytest.mark.parametrize("crops", ["corners", "anywhere"])
def test_crops_lie_where_they_should_and_flips_turn_them_round(crops):
    """The paper's: centre and corners in equal numbers."""
    images, places = training(crops=crops), []
    for index in itertools.product(range(50), range(20)):
        item = images[index]
        upright = item["image"][:, ::-1] if item["flipped"] else item["image"]
        _, top, left = upright[0, 0]
        assert (upright[:, :, 0] == item["label"]).all()
        assert (upright[:, 0, 1] == np.arange(top, top + 8)).all()
        assert (upright[0, :, 2] == np.arange(left, left + 8)).all()
        places.append((int(top), int(left)))
    if crops == "anywhere":
        assert len(set(places)) == 5 * 10
        return
    counts = [places.count(place) for place in [(0, 0), (0, 9), (4, 0), (4, 9), (2, 4)]]
    # 200 of each are expected; five standard deviations are 63.
    assert sum(counts) == 1000
    assert max(abs(count - 200) for count in counts) < 63


def test_without_flip_and_colour_nothing_is_mirrored_or_shifted():
    items = [training(flip=False, colour=0.0)[0, i] for i in range(20)]
    assert not any(item["flipped"] or item["shift"].any() for item in items)


@given(
    st.integers(8, 40),
    st.integers(8, 40),
    st.floats(0.05, 1),
    st.lists(st.floats(0, 0.999), min_size=4, max_size=4),
)
def test_a_resized_crop_shows_the_image_and_nothing_beyond_it(height, width, area, place):
    image = np.full((height, width, 3), 200, np.uint8)
    assert (resized_crop(image, 8, area, np.array(place)) == 200).all()


def test_a_resized_crop_of_everything_is_the_image():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    assert np.array_equal(resized_crop(image, 8, 1.0, np.array([0, 0.5, 0.3, 0.3])), image)


@pytest.mark.parametrize("jobs", [0, 2])
def test_a_damaged_image_is_shown_black_says_why_and_does_not_count(jobs):
    images = training(files=drawn(missing=(4, 7)))
    (batch,) = make_loader(images, jobs, batch_sampler=Steps(23, 23, 0))
    gone = np.isin(batch["position"], (4, 7))
    assert (batch["label"][gone] == IGNORED).all()
    assert not batch["image"][gone].any()
    assert (batch["label"][~gone] == batch["position"][~gone]).all()
    assert [error for error in batch["error"] if error] == ["it is gone"] * 2


def test_validation_shows_centres():
    files = drawn()
    item = ValidationImages(files, SECTION)[20]
    assert item["label"] == 20
    assert np.array_equal(item["image"], files.source.pixels(20)[2:10, 4:12])


def test_two_sizes_take_turns_and_end_with_the_larger_one():
    section = SECTION.model_copy(update={"sizes": "multi"})
    for epochs in (4, 5):
        sides = [side_of_epoch(section, 0, epoch, epochs) for epoch in range(epochs)]
        assert sides[-1] == 8
        assert all({a, b} == {6, 8} for a, b in itertools.pairwise(sides))
    assert side_of_epoch(SECTION, 1, 0, 99) == 8


def test_a_random_size_is_uniform_from_the_smaller_to_the_larger():
    section = ImagesSection(sizes="random")
    sides = [side_of_epoch(section, 5, epoch, 9000) for epoch in range(9000)]
    counts = np.bincount(sides)[180:]
    # 200 of each are expected; six standard deviations are 85.
    assert len(counts) == 45
    assert abs(counts - 200).max() < 85
    assert sides[:20] != [side_of_epoch(section, 6, epoch, 9000) for epoch in range(20)]


def test_principal_colours_are_those_of_all_pixels():
    files = drawn(count=3, height=200, width=200)
    axes = principal_colours(files, 200)
    pixels = [files.source.pixels(i).reshape(-1, 3) for i in range(3)]
    covariance = np.cov(np.concatenate(pixels).T)
    assert np.allclose(axes.T @ axes, covariance, rtol=0.02, atol=2)


def test_very_long_images_need_the_memory_of_few():
    files = drawn(count=12, height=4, width=20_000)
    tracemalloc.start()
    principal_colours(files, 256)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 256 * 16 * 256 * 3  # the longest that a view may be
    assert training(files=files)[0, 0]["image"].shape == (8, 8, 3)


def test_without_one_image_there_is_no_training():
    with pytest.raises(DatasetError, match="'drawn': not one image can be decoded: it is gone"):
        training(files=drawn(count=2, missing=(0, 1)))
