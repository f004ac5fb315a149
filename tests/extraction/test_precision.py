from __future__ import annotations

import copy
import dataclasses
import itertools
import logging

import numpy as np
import pytest
import torch
from cache_files import make_spec
from extraction_cases import SPEC, backbone
from image_files import encode, picture

from spptransfer import images
from spptransfer.extraction import precision
from spptransfer.extraction.compute import FeatureComputer
from spptransfer.extraction.precision import (
    LARGEST_ERROR,
    TRIED,
    WORTHWHILE,
    choose_precision,
    relative_error,
)


def load():
    return copy.deepcopy(backbone())


def photos(number=TRIED + 4):
    return [np.asarray(picture(50 + i, 70, i)) for i in range(number)]


def choose(specs=(SPEC,), sources=None, *, count=1000, load_backbone=load):
    sources = photos() if sources is None else sources
    return choose_precision(load_backbone, specs, sources, count=count)


def never():
    raise AssertionError("nothing is to be loaded")


@pytest.fixture
def capable(monkeypatch):
    """A machine that has bfloat16 and gains from it."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(precision, "_gain", lambda *trials: 1.9)


@pytest.fixture
def tolerant(monkeypatch):
    monkeypatch.setattr(precision, "LARGEST_ERROR", 0.5)


@pytest.mark.usefixtures("capable", "tolerant")
def test_bfloat16_is_chosen_where_it_gains_and_the_features_stand_it():
    choice = choose()
    assert choice.precision == "bfloat16"
    assert 0 < choice.error < 0.1
    assert choice.gain == 1.9
    assert f"first {TRIED} images" in choice.reason
    assert f"{100 * choice.error:.2f} %" in choice.reason


@pytest.mark.usefixtures("capable")
def test_float32_is_chosen_where_the_features_are_too_far_off(monkeypatch):
    monkeypatch.setattr(precision, "LARGEST_ERROR", 1e-6)
    choice = choose()
    assert choice.precision == "float32"
    assert choice.error > 1e-6
    assert "more than 0.0001 %" in choice.reason


@pytest.mark.usefixtures("capable", "tolerant")
def test_float32_is_chosen_where_there_is_little_to_gain(monkeypatch):
    monkeypatch.setattr(precision, "_gain", lambda *trials: 1.1)
    choice = choose()
    assert (choice.precision, choice.gain, choice.error) == ("float32", 1.1, None)
    assert "only 1.10 times as fast" in choice.reason


def test_float32_is_chosen_untried_without_the_arithmetic(monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    assert choose(load_backbone=never).reason == "this cpu has no arithmetic for bfloat16"


@pytest.mark.usefixtures("capable")
def test_few_images_are_not_worth_a_trial():
    assert choose(count=WORTHWHILE - 1, load_backbone=never).precision == "float32"


@pytest.mark.usefixtures("capable", "tolerant")
def test_images_that_cannot_be_read_are_passed_over(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "good.png").write_bytes(encode(picture(60, 80)))
    sources = [tmp_path / name for name in ("absent.jpg", "broken.jpg", "good.png")]
    assert "first 1 images" in choose(sources=sources).reason
    choice = choose(sources=sources[:2], load_backbone=never)
    assert choice.reason == "none of the first images can be read"


@pytest.mark.usefixtures("capable", "tolerant")
def test_a_missing_operator_means_float32(monkeypatch):
    def fail(*_):
        raise NotImplementedError("not implemented for 'BFloat16'")

    monkeypatch.setattr(precision, "_gain", fail)
    choice = choose()
    assert choice.precision == "float32"
    assert "BFloat16" in choice.reason


@pytest.mark.usefixtures("capable")
def test_numbers_beyond_counting_are_too_far_off(monkeypatch):
    monkeypatch.setattr(precision, "relative_error", lambda *_: float("nan"))
    assert choose().precision == "float32"


@pytest.mark.usefixtures("capable", "tolerant")
def test_one_block_that_is_not_finite_means_float32(monkeypatch):
    errors = iter([0.001, float("nan"), 0.001])
    monkeypatch.setattr(precision, "relative_error", lambda *_: next(errors))
    several = dataclasses.replace(SPEC, levels=(3, 2, 1), pooling="mean")
    choice = choose(specs=[several])
    assert (choice.precision, choice.error) == ("float32", None)
    assert "not finite" in choice.reason


@pytest.mark.usefixtures("capable", "tolerant")
def test_running_out_of_memory_means_float32(monkeypatch):
    def fail(*_):
        raise RuntimeError("[enforce fail] can't allocate memory: you tried 1 byte")

    monkeypatch.setattr(precision, "_gain", fail)
    assert "out of memory" in choose().reason


@pytest.mark.usefixtures("capable", "tolerant")
def test_other_errors_of_the_trial_are_not_hidden(monkeypatch):
    def fail(*_):
        raise RuntimeError("something else")

    monkeypatch.setattr(precision, "_gain", fail)
    with pytest.raises(RuntimeError, match="something else"):
        choose()


@pytest.mark.usefixtures("capable", "tolerant")
def test_images_with_enormous_views_are_not_tried():
    endless = np.zeros((3, 4000, 3), np.uint8)
    assert "first 2 images" in choose(sources=[endless, *photos(2)]).reason
    choice = choose(sources=[endless], load_backbone=never)
    assert choice.reason == "none of the first images can be read"


@pytest.mark.usefixtures("capable", "tolerant")
def test_the_worst_block_of_all_specs_counts():
    coarse = dataclasses.replace(SPEC, levels=(1,), scales=(64,))
    fine = dataclasses.replace(SPEC, levels=(4, 3), view="warp")
    errors = [choose([spec]).error for spec in (coarse, fine)]
    assert choose([coarse, fine]).error == pytest.approx(max(errors))


@pytest.mark.usefixtures("capable", "tolerant")
def test_the_measured_error_is_that_of_the_features():
    spec = make_spec(backbone="squeezenet1_1", layer="fire4", scales=(48,), levels=(2,))
    views = [images.render(picture(50, 70, i), 48) for i in range(3)]
    exact, low = (
        [
            FeatureComputer(load(), dataclasses.replace(spec, precision=name))(view[None])[2]
            for view in views
        ]
        for name in ("float32", "bfloat16")
    )
    sources = [np.asarray(picture(50, 70, i)) for i in range(3)]
    assert choose([spec], sources).error == pytest.approx(relative_error(low, exact), rel=1e-3)


@pytest.mark.usefixtures("capable", "tolerant")
def test_the_choice_is_logged_and_can_be_recorded(caplog):
    caplog.set_level(logging.INFO)
    choice = choose()
    assert f"bfloat16: {choice.reason}" in caplog.text
    assert choice.to_dict()["error"] == choice.error


def test_the_gain_is_measured_and_threads_are_left_as_they_were(monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    threads = torch.get_num_threads()
    choice = choose()
    assert choice.gain > 0
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("device", "images"), [("cpu", 1), ("cuda", 5)])
def test_a_gpu_is_timed_with_the_batches_of_an_extraction(monkeypatch, device, images):
    trial = precision._Trial(load(), [SPEC], "float32", "cpu", "torch")
    height, width = 48, 70
    trial._computer.device = torch.device(device)  # there need not be one
    monkeypatch.setattr(FeatureComputer, "batch_pixels", 6 * height * width - 1)
    sizes = []
    monkeypatch.setattr(
        FeatureComputer, "compute", lambda self, views, wanted: sizes.append(views.shape)
    )
    ticks = itertools.count()
    for clock in ("thread_time", "perf_counter"):
        monkeypatch.setattr(precision.time, clock, lambda: next(ticks))
    views = {(48, "full"): np.zeros((height, width, 3), np.uint8)}
    spent = trial.seconds(views)
    assert sizes == [(images, height, width, 3)]
    assert spent == 1 / images


def test_relative_errors_of_zeros():
    zero, one = np.zeros(3), np.ones(3)
    assert relative_error([zero], [zero]) == 0
    assert relative_error([one], [zero]) == float("inf")
    assert LARGEST_ERROR == 0.01
