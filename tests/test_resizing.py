from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import picture
from PIL import Image

from spptransfer import images, resizing
from spptransfer.resizing import MARGIN, reduction_of, resize


def triangle_resize(samples: np.ndarray, size: int) -> np.ndarray:
    """Antialiased bilinear resize of the first axis, by its definition in float64."""
    ratio = len(samples) / size
    support = max(ratio, 1.0)
    out = np.empty((size, *samples.shape[1:]))
    for i in range(size):
        centre = (i + 0.5) * ratio
        distance = np.abs(np.arange(len(samples)) + 0.5 - centre) / support
        weights = np.clip(1 - distance, 0, None)
        out[i] = np.tensordot(weights / weights.sum(), samples, axes=1)
    return out


@pytest.mark.parametrize(("size", "scale"), [((90, 61), 32), ((20, 33), 48), ((7, 90), 24)])
def test_the_resize_is_antialiased_bilinear(size, scale):
    image = picture(*size)
    height, width = images.view_size(*size, scale)
    columns = triangle_resize(np.asarray(image).astype(float).swapaxes(0, 1), width).swapaxes(0, 1)
    expected = triangle_resize(columns, height)
    difference = np.abs(images.render(image, scale).astype(float) - expected)
    assert difference.max() <= 1.6  # two roundings to 8 bits


@pytest.mark.parametrize("pixels", [0, 1 << 30])
@pytest.mark.parametrize("size", [(90, 61), (20, 33), (400, 3), (3, 400), (1, 1), (64, 64)])
@pytest.mark.parametrize("target", [(32, 48), (224, 224), (1, 9), (9, 1), (64, 64)])
def test_both_implementations_are_pillows_within_two_levels(monkeypatch, pixels, size, target):
    monkeypatch.setattr(resizing, "_TORCH_PIXELS", pixels)
    image = picture(*size)
    found = resize(image, *target)
    assert found.shape == (*target, 3)
    assert found.flags.c_contiguous
    assert found.flags.writeable
    expected = np.asarray(image.resize(target[::-1], Image.Resampling.BILINEAR))
    assert np.abs(found.astype(int) - expected).max() <= 2


_DIGEST = """
import hashlib, sys
import numpy as np
from PIL import Image
from spptransfer.resizing import resize
generator, digest = np.random.default_rng(0), hashlib.sha256()
for size in ((75, 100), (100, 75), (3, 400), (400, 3), (1, 1), (31, 31), (600, 80)):
    image = Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8))
    for target in ((32, 43), (45, 32), (1, 50), (50, 1), (120, 161), (31, 31)):
        digest.update(resize(image, *target).tobytes())
print(digest.hexdigest())
"""


def test_processors_with_and_without_vector_instructions_make_the_same_bytes():
    digests = set()
    for capability in ("default", "avx2", "native"):
        environment = dict(os.environ)
        environment.pop("ATEN_CPU_CAPABILITY", None)
        if capability != "native":
            environment["ATEN_CPU_CAPABILITY"] = capability
        command = [sys.executable, "-c", _DIGEST]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        digests.add(done.stdout)
    assert len(digests) == 1


@given(shorter=st.integers(1, 20_000), scale=st.integers(1, 1000))
def test_a_reduced_image_keeps_its_margin_and_no_smaller_one_would(shorter, scale):
    reduction = reduction_of(shorter, scale)
    assert reduction in (1, 2, 4, 8)
    assert reduction == 1 or shorter // reduction >= MARGIN * scale
    assert reduction == 8 or shorter // (2 * reduction) < MARGIN * scale


def test_a_result_that_does_not_fit_is_a_memory_error(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("torch.nn.functional.interpolate", fail)
    with pytest.raises(MemoryError, match="can't allocate"):
        resize(Image.new("RGB", (40, 30)), 60, 80)


def test_other_errors_of_torch_are_passed_on_as_they_are(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("not implemented for 'Byte'")

    monkeypatch.setattr("torch.nn.functional.interpolate", fail)
    with pytest.raises(RuntimeError, match="not implemented"):
        resize(Image.new("RGB", (40, 30)), 60, 80)
