"""Networks without memory or time: built on torch's meta device, which only knows shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from spptransfer import backbones


@pytest.fixture(autouse=True)
def _weights_stay_out_of_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPPTRANSFER_WEIGHTS", str(tmp_path / "official"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    # Small maps gain nothing from threads, which wait for each other on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def _on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return backbones.network(name).eval()


@pytest.fixture(scope="session")
def on_meta() -> Callable[[str], nn.Module]:
    return _on_meta


@cache
def _random(name: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = backbones.network(name, num_classes=10)
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 2.0, generator=generator)
            for tensor in (module.bias, module.running_mean):
                tensor.data.normal_(generator=generator)
    return network.state_dict()


@pytest.fixture
def trained() -> Callable[[str], dict[str, torch.Tensor]]:
    """Tensors of a network with ten classes and batch norms that have seen something."""
    return lambda name: dict(_random(name))
