"""Images that cannot be computed are rows with a reason; what fails otherwise is told."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from extraction_cases import (
    assert_near,
    broken_images,
    counts,
    forbidden,
    make_dataset,
    many_images,
    net,
    run,
)
from image_files import encode, picture
from torch import nn

from spptransfer import backbones
from spptransfer.cache import FeatureCache
from spptransfer.errors import ConfigError
from spptransfer.runtimes import ComputeOptions
from spptransfer.specify import feature_spec

# ---- broken images ----


def test_broken_images_are_failed_rows_with_their_reasons(tmp_path):
    files = broken_images() | many_images(3)
    dataset = make_dataset(
        tmp_path / "images", files, ("missing.png", ".", "loop.png", "pipe", "nul\0.png")
    )
    (dataset.root / "loop.png").symlink_to(dataset.root / "loop.png")
    os.mkfifo(dataset.root / "pipe")
    done = run(dataset, tmp_path / "a.h5")
    assert counts(done) == (12, 0, 0, 0, 9)
    for name, reason in {
        "empty.jpg": "the file is empty",
        "text.jpg": "no image of a known format",
        "cut.png": "cannot decode the image",
        "huge.png": "more than 178,956,970 pixels",
        "missing.png": "No such file",
        ".": "a directory",
        "loop.png": "symbolic links",
        "pipe": "no regular file",
        "nul\0.png": "null byte",
    }.items():
        assert reason in done.failures[name]
    cache = FeatureCache.open(tmp_path / "a.h5")
    assert cache.failures == done.failures
    assert np.isfinite(cache.matrix(sorted(many_images(3)))).all()
    (block,) = cache.blocks
    assert np.isnan(cache.read(block, slice(0, 4))).all()
    again = run(dataset, tmp_path / "a.h5", backbone=net(forbidden))
    assert (again.unchanged, again.reused, again.failures) == (12, 3, done.failures)


def test_a_file_that_changes_while_it_is_read_fails_once(tmp_path, monkeypatch):
    large = np.random.default_rng(0).integers(0, 256, (2, 400, 400, 3), np.uint8)
    dataset = make_dataset(tmp_path / "images", {"a.bmp": _bmp(large[0])})
    path, read = dataset.path("a.bmp"), Path.read_bytes

    def changing(self):
        data = read(self)
        self.write_bytes(_bmp(large[1]))
        return data

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", changing)
        done = run(dataset, tmp_path / "a.h5")
    assert done.failures == {"a.bmp": "the file changed while it was being read"}
    assert run(dataset, tmp_path / "a.h5").changed == 1
    assert path.read_bytes() == _bmp(large[1])


def _bmp(pixels) -> bytes:
    from PIL import Image

    return encode(Image.fromarray(pixels), "BMP")


def test_what_could_not_be_read_is_tried_again_until_it_can_or_the_reason_is_another(
    tmp_path, monkeypatch
):
    dataset = make_dataset(tmp_path / "images", many_images(10))
    reasons = {"0001.png": errno.EIO, "0003.png": errno.ESTALE, "0005.png": errno.EIO}
    read = Path.read_bytes

    def failing(path):
        if (number := reasons.get(path.name)) is not None:
            raise OSError(number, os.strerror(number))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    assert list(run(dataset, tmp_path / "a.h5").failures) == list(reasons)
    del reasons["0001.png"]
    reasons["0003.png"] = errno.EIO
    done = run(dataset, tmp_path / "a.h5")
    assert (done.changed, done.unchanged) == (2, 8)
    reasons.clear()
    assert run(dataset, tmp_path / "a.h5").changed == 2
    assert not FeatureCache.open(tmp_path / "a.h5").failures


# ---- numbers that are not finite ----


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])
@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 3e38])
def test_features_that_are_not_finite_are_failed_rows_with_every_runtime(tmp_path, runtime, weight):
    pytest.importorskip(runtime)
    broken = backbones.load("spp-mini", "embedded", layer="conv3")
    spec = feature_spec(broken, layer="conv3", levels=[2], scales=[32])
    first = next(module for module in broken.modules() if isinstance(module, nn.Conv2d))
    first.weight.data[:] = weight
    dataset = make_dataset(tmp_path / "images", many_images(3))
    options = ComputeOptions(device="cpu", runtime=runtime, threads=2)
    try:
        done = run(dataset, tmp_path / "a.h5", spec, broken, options)
    except ConfigError:  # a runtime that is named may also refuse the network
        assert runtime != "torch"
        return
    assert set(done.failures) == set(dataset.ids)
    assert all("not finite" in reason for reason in done.failures.values())


# ---- memory ----


class Memory:
    """A network that runs out of memory with more than so many pixels at once."""

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels
        self.seen: list[int] = []

    def __call__(self, batch) -> None:
        self.seen.append(batch.shape[0])
        if batch.shape[0] * batch.shape[2] * batch.shape[3] > self.pixels:
            raise torch.OutOfMemoryError("out of memory")


def test_a_batch_that_does_not_fit_is_halved_until_it_does(tmp_path):
    files = {f"{i}.png": encode(picture(32, 40, i)) for i in range(9)}
    dataset, memory = make_dataset(tmp_path / "images", files), Memory(3 * 32 * 40)
    assert not run(dataset, tmp_path / "a.h5", backbone=net(memory)).failures
    assert memory.seen == [9, 4, 2, 2, 5, 2, 3]
    run(dataset, tmp_path / "b.h5")
    a, b = (FeatureCache.open(tmp_path / name).matrix() for name in ("a.h5", "b.h5"))
    assert_near(a, b)


def test_an_image_that_fits_nowhere_is_tried_alone_fails_and_is_tried_again_next_time(tmp_path):
    files = many_images(5) | {"large.png": encode(picture(32, 300))}
    dataset, memory = make_dataset(tmp_path / "images", files), Memory(32 * 200)
    done = run(dataset, tmp_path / "a.h5", backbone=net(memory))
    assert done.failures == {"large.png": "out of memory: the image does not fit even on its own"}
    assert counts(run(dataset, tmp_path / "a.h5")) == (0, 1, 5, 0, 0)


def test_an_image_too_large_to_be_resized_is_a_failure_that_passes(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path / "images", {"a.png": encode(picture(50, 60))})

    def exhausted(*_, **__):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patched:
        patched.setattr("torch.nn.functional.interpolate", exhausted)
        done = run(dataset, tmp_path / "a.h5")
    assert "out of memory" in done.failures["a.png"]
    assert counts(run(dataset, tmp_path / "a.h5")) == (0, 1, 0, 0, 0)


def test_other_errors_are_passed_on_as_they_are_and_finished_parts_are_kept(tmp_path):
    dataset, calls = make_dataset(tmp_path / "images", many_images(280)), []

    def failing(batch):
        calls.extend(batch)
        if len(calls) > 270:
            raise ValueError("something of the user's own")

    options = ComputeOptions(device="cpu", runtime="torch", threads=1)
    with pytest.raises(ValueError, match="of the user's own"):
        run(dataset, tmp_path / "a.h5", backbone=net(failing), options=options)
    assert not (tmp_path / "a.h5").exists()
    assert run(dataset, tmp_path / "a.h5", options=options).unchanged >= 128
    run(dataset, tmp_path / "b.h5", options=options)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
