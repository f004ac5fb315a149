"""bfloat16 is chosen where it is faster and the features stand it; what was found is told."""

from __future__ import annotations

import logging
import time

import numpy as np
import pytest
import torch
from extraction_cases import SPEC, altered, forbidden, net
from image_files import encode, picture

from spptransfer.extraction.precision import (
    LARGEST_ERROR,
    LEAST_GAIN,
    TRIED,
    choose_precision,
)
from spptransfer.runtimes import FEW_IMAGES, ComputeOptions

TORCH = ComputeOptions(device="cpu", runtime="torch", threads=1)
ONNX = ComputeOptions(device="cpu", runtime="onnxruntime")


@pytest.fixture
def capable(monkeypatch):
    """A processor that says that it multiplies bfloat16 numbers."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)


def photos(number=TRIED + 4):
    return [np.asarray(picture(50 + i, 70, i)) for i in range(number)]


def choose(specs=(SPEC,), sources=None, *, backbone=None, options=TORCH, count=1000):
    sources = photos() if sources is None else sources
    return choose_precision(backbone or net(), specs, sources, options, count=count)


@pytest.mark.parametrize(
    ("given", "abilities", "reason"),
    [
        ({"count": FEW_IMAGES - 1}, ["bf16"], "fewer than 64 images: bfloat16 is not tried"),
        ({"options": ONNX}, ["bf16"], "onnxruntime has no arithmetic for bfloat16"),
        ({}, [], "this cpu has no arithmetic for bfloat16"),
    ],
)
def test_where_bfloat16_cannot_pay_nothing_is_tried(monkeypatch, given, abilities, reason):
    known = dict.fromkeys(abilities, True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    choice = choose(backbone=net(forbidden), **given)
    assert (choice.precision, choice.reason, choice.gain) == ("float32", reason, None)


def slow(dtype, seconds=0.02):
    """A backbone that takes long for numbers of a type."""

    def burn(batch):
        end = time.thread_time() + seconds * (batch.dtype == dtype)
        while time.thread_time() < end:
            pass

    return net(burn)


@pytest.mark.usefixtures("capable")
def test_bfloat16_is_chosen_where_it_gains_and_the_features_stand_it(caplog):
    caplog.set_level(logging.INFO)
    choice = choose(backbone=slow(torch.float32))
    assert choice.precision == "bfloat16"
    assert choice.gain > LEAST_GAIN
    assert 0 < choice.error <= LARGEST_ERROR
    assert f"on the first {TRIED} images" in choice.reason
    assert f"{100 * choice.error:.2f} %" in choice.reason
    assert f"bfloat16: {choice.reason}" in caplog.text


@pytest.mark.usefixtures("capable")
def test_float32_is_chosen_where_there_is_little_to_gain():
    choice = choose(backbone=slow(torch.bfloat16))
    assert (choice.precision, choice.error) == ("float32", None)
    assert choice.gain < LEAST_GAIN
    assert f"only {choice.gain:.2f} times as fast" in choice.reason


@pytest.mark.usefixtures("capable")
def test_float32_is_chosen_where_the_features_are_too_far_off():
    """Differences of large numbers lose their digits."""
    backbone = slow(torch.float32)
    low, high = backbone.module.low[0], backbone.module.high[0]
    low.bias.data += 500
    high.padding = (0, 0)  # beyond the edge there is no such number
    high.weight.data -= high.weight.data.mean(dim=(1, 2, 3), keepdim=True)
    choice = choose(backbone=backbone)
    assert choice.precision == "float32"
    assert choice.error > LARGEST_ERROR
    assert f"off by {100 * choice.error:.2f} % in bfloat16, more than 1 %" in choice.reason
    high.weight.data[:] = float("nan")
    choice = choose(backbone=backbone)
    assert (choice.precision, choice.error) == ("float32", None)
    assert "not finite" in choice.reason


@pytest.mark.usefixtures("capable")
def test_images_that_cannot_be_read_or_have_enormous_views_are_passed_over(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    endless = np.zeros((3, 8000, 3), np.uint8)
    sources = [tmp_path / "absent.jpg", tmp_path / "broken.jpg", endless]
    spec = altered(SPEC, scales=(400,))
    choice = choose([spec], sources, backbone=net(forbidden))
    assert choice.reason == "none of the first images can be read"
    (tmp_path / "good.png").write_bytes(encode(picture(60, 80)))
    sources.append(tmp_path / "good.png")
    choice = choose([spec], sources, backbone=slow(torch.float32, 0.5))
    assert "on the first 1 images" in choice.reason


@pytest.mark.usefixtures("capable")
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NotImplementedError("not implemented for 'BFloat16'"), "lacks an operator in bfloat16"),
        (torch.OutOfMemoryError("out of memory"), "ran out of memory"),
        (RuntimeError("something else"), None),
    ],
)
def test_a_trial_that_fails_means_float32_but_other_errors_are_not_hidden(error, reason):
    def fail(batch):
        if batch.dtype == torch.bfloat16:
            raise error

    if reason is None:
        with pytest.raises(RuntimeError, match="something else"):
            choose(backbone=net(fail))
        return
    choice = choose(backbone=net(fail))
    assert choice.precision == "float32"
    assert reason in choice.reason
