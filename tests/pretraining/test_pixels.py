from __future__ import annotations

import logging
import time

import numpy as np
import pytest
from small_projects import draw_folder, draw_image

from spptransfer.errors import DatasetError
from spptransfer.images import decode, render
from spptransfer.pretraining.batches import TrainingBatches, ValidationBatches
from spptransfer.pretraining.config import DatasetSection, ImagesSection
from spptransfer.pretraining.pixels import Pixels
from spptransfer.pretraining.source import open_source, read_splits

SECTION = ImagesSection(resize=36, size=32, small=24)


def passed(items, total, label):
    return items


def opened(root, **options):
    source = open_source(str(root))
    _, train, _ = read_splits(source, DatasetSection(root=str(root), train="", val=None))
    pixels = Pixels(source, train, SECTION.resize, **options)
    pixels.load(2, passed)
    return pixels


@pytest.fixture
def broken(tmp_path):
    """A folder with one file that is no image."""
    root = draw_folder(tmp_path / "photos", per_class=5)
    (root / "bee" / "000.png").write_bytes(b"nothing")
    return root


def test_images_read_as_needed_make_the_same_batches_as_those_in_memory(photos):
    kept, streamed = opened(photos), opened(photos, limit=0)
    assert kept.fits
    assert not streamed.fits
    for made in (
        lambda pixels: TrainingBatches(pixels, SECTION, batch=7, seed=1).make(3, 2),
        lambda pixels: ValidationBatches(pixels, 32, batch=7).make(1),
    ):
        one, other = made(kept), made(streamed)
        assert np.array_equal(one.images, other.images)
        assert np.array_equal(one.labels, other.labels)
        assert np.array_equal(one.colours, other.colours)


def test_an_image_is_the_whole_image_at_the_scale(photos):
    pixels = opened(photos)
    for position in (0, 5):
        file = photos / pixels.split.names[position]
        whole = render(decode(file.read_bytes()), SECTION.resize)
        assert min(whole.shape[:2]) == SECTION.resize
        assert np.array_equal(pixels.image(position), whole)


@pytest.mark.parametrize("limit", [0, 2**30])
def test_a_damaged_file_is_no_image_and_said_to_be_left_out(broken, caplog, limit):
    with caplog.at_level(logging.WARNING):
        pixels = opened(broken, limit=limit)
        for _ in range(2):
            found = [pixels.image(position) for position in range(len(pixels))]
    gone = [name for name, image in zip(pixels.split.names, found, strict=True) if image is None]
    assert gone == ["bee/000.png"]
    assert caplog.text.count("'bee/000.png' is left out") == 1
    assert pixels.damaged == (1 if pixels.fits else 0)


def test_without_one_image_there_is_no_training(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(DatasetError, match="not one image can be decoded"):
        opened(tmp_path)


def test_an_image_that_would_take_the_room_of_many_is_decoded_anew(tmp_path):
    root = draw_folder(tmp_path / "photos", per_class=3)
    for name in root.iterdir():
        draw_image(name / "banner.png", 0, 0, size=(4, 400))
    pixels = opened(root)
    (banner,) = (i for i, name in enumerate(pixels.split.names) if name == "bee/banner.png")
    assert pixels._kept[banner] is None
    assert pixels.image(banner).shape == (36, 16 * 36, 3)
    assert pixels.damaged == 0


def test_who_is_interrupted_while_images_are_decoded_does_not_wait_for_all(photos, monkeypatch):
    pixels, begun = opened(photos), []

    def interrupted(decoded, total, label):
        yield next(decoded)
        raise KeyboardInterrupt

    def slowly(data):
        begun.append(data)
        time.sleep(0.02)
        return decode(data)

    monkeypatch.setattr("spptransfer.pretraining.pixels.decode", slowly)
    with pytest.raises(KeyboardInterrupt):
        pixels.load(1, interrupted)
    assert len(begun) < len(pixels) / 2
