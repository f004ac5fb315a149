from __future__ import annotations

import itertools
import threading
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spptransfer.pretraining.batches import (
    IGNORED,
    TrainingBatches,
    ValidationBatches,
    crop_at,
    prefetched,
    principal_colours,
    resized_crop,
    side_of_epoch,
)
from spptransfer.pretraining.config import ImagesSection
from spptransfer.pretraining.pixels import Pixels
from spptransfer.pretraining.source import Source, Split

SECTION = ImagesSection(resize=12, size=8, small=6)


class Drawn(Pixels):
    """Images whose every pixel tells its image and its place."""

    def __init__(self, count=23, height=12, width=17, missing=()):
        names = tuple(map(str, range(count)))
        super().__init__(Source(None), Split(names, np.arange(count)), 12)
        self.shape, self.missing = (height, width), missing

    def image(self, position):
        if position in self.missing:
            return None
        height, width = self.shape
        y, x = np.mgrid[0:height, 0:width]
        return np.stack([np.full((height, width), position), y, x], 2).astype(np.uint8)


def batches(section=SECTION, **options):
    return TrainingBatches(Drawn(), section, batch=5, seed=3, **options)


def equal(one, other):
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("images", "labels", "positions", "flipped", "colours")
    )


def test_an_epoch_shows_every_image_at_most_once_and_the_next_in_another_order():
    made = batches()
    shown = [[*made.make(epoch, step).positions] for epoch in (0, 1) for step in range(made.steps)]
    first, second = np.concatenate(shown[:4]), np.concatenate(shown[4:])
    assert len(set(first)) == len(first) == 20
    assert first.tolist() != second.tolist()


def test_a_batch_depends_on_seed_epoch_and_step_alone():
    made = batches()
    later = made.make(1, 2)
    made.make(0, 1)
    assert equal(made.make(1, 2), later)
    assert equal(batches().make(1, 2), later)
    assert not equal(made.make(1, 3), later)
    assert not equal(TrainingBatches(Drawn(), SECTION, batch=5, seed=4).make(1, 2), later)


@pytest.mark.parametrize("processes", [2, 3])
def test_the_shares_of_all_processes_are_the_batch(processes):
    whole = batches().make(0, 1)
    shares = [batches(rank=rank, processes=processes).make(0, 1) for rank in range(processes)]
    for rank, share in enumerate(shares):
        assert share.labels.tolist() == whole.labels[rank::processes].tolist()
        assert np.array_equal(share.images, whole.images[rank::processes])


@pytest.mark.parametrize("crops", ["corners", "anywhere"])
def test_crops_lie_where_they_should_and_flips_turn_them_round(crops):
    made = batches(SECTION.model_copy(update={"crops": crops}))
    corners = {(0, 0), (0, 9), (4, 0), (4, 9), (2, 4)}
    places = set()
    for epoch in range(30):
        for step in range(made.steps):
            batch = made.make(epoch, step)
            for image, flipped, label in zip(
                batch.images, batch.flipped, batch.labels, strict=True
            ):
                upright = image[:, ::-1] if flipped else image
                _, top, left = upright[0, 0]
                assert (upright[:, :, 0] == label).all()
                assert (upright[:, 0, 1] == np.arange(top, top + 8)).all()
                assert (upright[0, :, 2] == np.arange(left, left + 8)).all()
                places.add((int(top), int(left)))
    assert places == corners if crops == "corners" else len(places) == 5 * 10


def squares_at_centre_and_corners(image, size):
    """By the plainest definition: which squares lie at a corner, and which in the middle."""
    height, width = image.shape[:2]
    middle = (height - size) // 2, (width - size) // 2
    corners = [(y, x) for y in (0, height - size) for x in (0, width - size)]
    return [image[y : y + size, x : x + size] for y, x in (middle, *corners)]


def test_the_papers_crops_are_centre_and_corners_in_equal_numbers():
    made = batches(SECTION.model_copy(update={"flip": False}))
    counts = np.zeros(5, int)
    for epoch, step in itertools.product(range(100), range(made.steps)):
        batch = made.make(epoch, step)
        for image, position in zip(batch.images, batch.positions, strict=True):
            squares = squares_at_centre_and_corners(Drawn().image(position), 8)
            found = [np.array_equal(image, square) for square in squares]
            assert sum(found) == 1
            counts += found
    # 400 of each are expected; five standard deviations are 90.
    assert counts.sum() == 2000
    assert abs(counts - 400).max() < 90


def test_without_flip_and_colour_nothing_is_mirrored_or_shifted():
    section = SECTION.model_copy(update={"flip": False, "colour": 0.0})
    batch = batches(section).make(0, 0)
    assert not batch.flipped.any()
    assert not batch.colours.any()


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


def test_a_damaged_image_is_shown_black_and_does_not_count():
    made = TrainingBatches(Drawn(missing=(4, 7)), SECTION, batch=23, seed=0)
    batch = made.make(0, 0)
    gone = np.isin(batch.positions, (4, 7))
    assert (batch.labels[gone] == IGNORED).all()
    assert not batch.images[gone].any()
    assert (batch.labels[~gone] == batch.positions[~gone]).all()


def test_validation_shows_every_image_once_at_its_centre():
    made = ValidationBatches(Drawn(), size=8, batch=5)
    shown = [made.make(step) for step in range(made.steps)]
    assert np.concatenate([batch.labels for batch in shown]).tolist() == list(range(23))
    assert (shown[-1].images[0] == crop_at(Drawn().image(20), 8, 0.5, 0.5)).all()


def test_two_sizes_take_turns_and_end_with_the_larger_one():
    section = SECTION.model_copy(update={"sizes": "multi"})
    for epochs in (4, 5):
        sides = [side_of_epoch(section, 0, epoch, epochs) for epoch in range(epochs)]
        assert sides[-1] == 8
        assert all({a, b} == {6, 8} for a, b in itertools.pairwise(sides))


def test_a_random_size_lies_between_the_two_and_belongs_to_its_epoch():
    section = SECTION.model_copy(update={"sizes": "random"})
    sides = [side_of_epoch(section, 1, epoch, 99) for epoch in range(99)]
    assert set(sides) == {6, 7, 8}
    assert sides == [side_of_epoch(section, 1, epoch, 99) for epoch in range(99)]
    assert side_of_epoch(SECTION, 1, 0, 99) == 8


def test_a_random_size_is_uniform_from_the_smaller_to_the_larger():
    section = ImagesSection(sizes="random")
    sides = [side_of_epoch(section, 5, epoch, 9000) for epoch in range(9000)]
    counts = np.bincount(sides)[180:]
    # 200 of each are expected; six standard deviations are 85.
    assert len(counts) == 45
    assert abs(counts - 200).max() < 85
    assert sides[:20] != [side_of_epoch(section, 6, epoch, 9000) for epoch in range(20)]


@pytest.mark.parametrize("workers", [1, 4])
def test_results_come_in_order_whatever_takes_longest(workers):
    def make(step):
        time.sleep(0.003 * (step % 3))
        return step

    assert list(prefetched(make, 2, 20, workers)) == list(range(2, 20))


def test_no_more_is_prepared_ahead_than_may_wait():
    made = []
    results = prefetched(made.append, 0, 1000, 2)
    next(results)
    results.close()
    assert len(made) <= 4


def test_what_fails_in_the_background_fails_here():
    def make(step):
        raise ValueError(threading.current_thread().name)

    with pytest.raises(ValueError, match="batches"):
        next(prefetched(make, 0, 3, 1))


def test_principal_colours_are_those_of_all_pixels():
    pixels = Drawn(count=3, height=200, width=200)
    axes = principal_colours(pixels)
    covariance = np.cov(np.concatenate([pixels.image(i).reshape(-1, 3) for i in range(3)]).T)
    assert np.allclose(axes.T @ axes, covariance, rtol=0.02, atol=2)


def test_principal_colours_of_very_long_images_need_the_memory_of_few(monkeypatch):
    pixels = Drawn(count=12)
    monkeypatch.setattr(pixels, "image", lambda position: np.zeros((8, 1_000_000, 3), np.uint8))
    tracemalloc.start()
    assert not principal_colours(pixels).any()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * pixels.image(0).nbytes
