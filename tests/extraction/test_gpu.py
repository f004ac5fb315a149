from __future__ import annotations

import numpy as np
import pytest
import torch
from image_files import picture

from spptransfer import SPPFeatures

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.fixture
def photos() -> list[np.ndarray]:
    return [np.asarray(picture(*size)) for size in ((80, 120), (120, 80), (70, 70), (3, 90))]


@pytest.mark.parametrize("backbone", ["squeezenet1_1", "resnet18", "alexnet"])
def test_features_on_the_gpu_are_those_of_the_cpu(photos, backbone):
    here, there = (
        SPPFeatures(backbone, "random:1", scales=[96], device=device).fit_transform(photos)
        for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(there, here, rtol=1e-3, atol=1e-5 * np.abs(here).max())


def test_auto_takes_the_gpu():
    from spptransfer.extraction.compute import choose_device

    assert choose_device("auto").type == "cuda"
