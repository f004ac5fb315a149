from __future__ import annotations

import dataclasses
import threading
import time

import numpy as np
import pytest
import torch
from extraction_cases import (
    SPEC,
    broken_images,
    counts,
    forbidden,
    make_dataset,
    many_images,
    run,
)
from image_files import encode, picture
from unfinished_caches import drafted_rows

from spptransfer import backbones
from spptransfer.cache import FeatureCache
from spptransfer.extraction.batches import OUT_OF_MEMORY


def test_numbers_beyond_float16_make_a_failed_row(tmp_path):
    dataset = make_dataset(tmp_path / "images", many_images(2))
    loud = backbones.load("squeezenet1_1", "random", layer="fire4")
    loud.trunk[0].weight.data *= 1e7
    spec = dataclasses.replace(SPEC, storage="float16")
    report = run(dataset, tmp_path / "a.h5", spec, load_backbone=lambda: loud)
    assert set(report.failures) == set(dataset.ids)
    assert "not finite" in report.failures["0000.png"]


def test_broken_images_are_failed_rows_with_their_reasons(tmp_path):
    files = many_images(3) | broken_images()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "folder.png").mkdir()
    (tmp_path / "images" / "loop.png").symlink_to("loop.png")
    dataset = make_dataset(tmp_path / "images", files, ("folder.png", "loop.png", "missing.png"))
    report = run(dataset, tmp_path / "a.h5")
    cache = FeatureCache.open(tmp_path / "a.h5")
    expected = {
        "empty.jpg": "empty",
        "text.jpg": "no image of a known format",
        "cut.png": "cannot decode",
        "huge.png": "more than",
        "folder.png": "a directory",
        "loop.png": "symbolic links",
        "missing.png": "No such file",
    }
    assert dict(cache.failures) == report.failures
    assert set(report.failures) == set(expected)
    for id, reason in expected.items():
        assert reason in report.failures[id]
    assert cache.ids == ["0000.png", "0001.png", "0002.png"]
    again = run(dataset, tmp_path / "a.h5", load_backbone=forbidden)
    assert counts(again) == (0, 0, 10, 0, 7)


def test_a_broken_image_that_was_repaired_is_extracted(tmp_path):
    dataset = make_dataset(tmp_path / "images", {"a.png": b"broken"}, ("b.png",))
    assert len(run(dataset, tmp_path / "a.h5").failures) == 2
    for name in ("a.png", "b.png"):
        (tmp_path / "images" / name).write_bytes(encode(picture(40, 50)))
    assert counts(run(dataset, tmp_path / "a.h5")) == (0, 2, 0, 0, 0)


def test_infinite_features_make_a_failed_row(tmp_path):
    dataset = make_dataset(tmp_path / "images", many_images(2))
    broken = backbones.load("squeezenet1_1", "random", layer="fire4")
    broken.trunk[0].bias.data[:] = torch.nan
    report = run(dataset, tmp_path / "a.h5", load_backbone=lambda: broken)
    assert len(report.failures) == 2
    assert "not finite" in report.failures["0001.png"]


def test_an_error_in_the_middle_keeps_the_parts_and_is_passed_on(tmp_path):
    dataset = make_dataset(tmp_path / "images", many_images(12))
    network = backbones.load("squeezenet1_1", "random", layer="fire4")
    calls = iter(range(100))
    original = network.maps_of

    def breaking(pixels, layers):
        if next(calls) > 20:
            raise RuntimeError("the device fell off the bus")
        return original(pixels, layers)

    network.maps_of = breaking
    network.fused = lambda: network
    with pytest.raises(RuntimeError, match="fell off the bus"):
        run(
            dataset,
            tmp_path / "a.h5",
            load_backbone=lambda: network,
            batch_pixels=1,
            jobs=1,
            part_rows=1,
            spec=dataclasses.replace(SPEC, flip=True, levels=(3, 1)),
        )
    assert len(drafted_rows(tmp_path / "a.h5")) >= 5
    assert threading.active_count() < 20


OUT = torch.OutOfMemoryError("out of memory")
NO_ENGINE = RuntimeError("GET was unable to find an engine to execute this computation")


def _without_memory(network, largest, error=OUT):
    original = network.maps_of

    def maps_of(pixels, layers):
        if pixels.shape[0] * pixels.shape[2] * pixels.shape[3] > largest:
            raise error
        return original(pixels, layers)

    network.maps_of = maps_of
    network.fused = lambda: network
    return network


@pytest.mark.parametrize("error", [OUT, NO_ENGINE])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(tmp_path, error):
    dataset = make_dataset(
        tmp_path / "images", {f"{i}": encode(picture(48, 48, i)) for i in range(7)}
    )
    network = backbones.load("squeezenet1_1", "random", layer="fire4")
    run(dataset, tmp_path / "a.h5", part_rows=7)
    expected = FeatureCache.open(tmp_path / "a.h5").matrix()
    small = _without_memory(network, 2 * 48 * 48, error)
    report = run(dataset, tmp_path / "b.h5", load_backbone=lambda: small, part_rows=7)
    assert not report.failures
    found = FeatureCache.open(tmp_path / "b.h5").matrix()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_an_image_that_does_not_fit_beside_another_is_computed_alone(tmp_path):
    files = {f"{i}.png": encode(picture(48, 48 + i, i)) for i in range(6)}
    dataset = make_dataset(tmp_path / "images", files)
    run(dataset, tmp_path / "a.h5")
    network = backbones.load("squeezenet1_1", "random", layer="fire4")
    original, inside, refused = network.maps_of, [], []

    def maps_of(pixels, layers):
        inside.append(threading.current_thread())
        try:
            time.sleep(0.05)
            if len(inside) > 1:
                refused.append(len(inside))
                raise torch.OutOfMemoryError("out of memory")
            return original(pixels, layers)
        finally:
            inside.remove(threading.current_thread())

    network.maps_of, network.fused = maps_of, lambda: network
    report = run(
        dataset, tmp_path / "b.h5", load_backbone=lambda: network, jobs=2, engine="threads"
    )
    assert refused
    assert not report.failures
    found = FeatureCache.open(tmp_path / "b.h5").matrix()
    expected = FeatureCache.open(tmp_path / "a.h5").matrix()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_an_image_that_does_not_fit_alone_fails_and_is_tried_again_next_time(tmp_path):
    files = {"large.png": encode(picture(48, 300)), "small.png": encode(picture(48, 48))}
    dataset = make_dataset(tmp_path / "images", files)
    network = backbones.load("squeezenet1_1", "random", layer="fire4")
    report = run(
        dataset, tmp_path / "a.h5", load_backbone=lambda: _without_memory(network, 48 * 200)
    )
    assert report.failures == {"large.png": OUT_OF_MEMORY}
    assert counts(run(dataset, tmp_path / "a.h5")) == (0, 1, 1, 0, 0)


def test_an_image_that_cannot_be_computed_alone_either_is_no_failure_of_the_image(tmp_path):
    dataset = make_dataset(tmp_path / "images", many_images(2))
    network = backbones.load("squeezenet1_1", "random", layer="fire4")
    unsupported = _without_memory(network, 0, NO_ENGINE)
    with pytest.raises(RuntimeError, match="unable to find an engine"):
        run(dataset, tmp_path / "a.h5", load_backbone=lambda: unsupported)
