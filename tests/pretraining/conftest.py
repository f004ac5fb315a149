"""A small training set, as a folder and in a ZIP file; a network that knows drawn images."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from drawn_network import CLASSES, drawn_tensors
from safetensors.torch import save_file
from small_projects import draw_folder
from torch import nn

from spptransfer import backbones
from spptransfer.pretraining.evaluation import NetworkClassifier, load_classifier


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """A folder of class folders, images of several sizes."""
    return draw_folder(tmp_path_factory.mktemp("pretraining") / "photos", per_class=10)


@pytest.fixture(scope="session")
def zipped(photos: Path) -> Path:
    """The same as a ZIP file."""
    path = photos.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(photos.rglob("*.png")):
            archive.write(file, file.relative_to(photos.parent).as_posix())
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A network that knows drawn images, whose file says nothing about it."""
    path = tmp_path_factory.mktemp("weights") / "drawn.safetensors"
    save_file(drawn_tensors(), path)
    return path


@pytest.fixture(scope="module")
def mini(weights) -> NetworkClassifier:
    return load_classifier("spp-mini", weights)


@pytest.fixture(scope="module")
def original() -> nn.Module:
    """The network that `mini` was taken apart from."""
    network = backbones.network("spp-mini", num_classes=len(CLASSES))
    tensors = {key: value.float() for key, value in drawn_tensors().items()}
    network.load_state_dict(tensors, strict=False)
    return network.eval()
