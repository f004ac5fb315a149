from __future__ import annotations

import socket
import sys

import pytest
from conftest import python
from runtime_cases import FAMILIES, awkward_sizes, drawn, exact, need, noise, opened, worst_error

need("openvino")


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "mobilenet_v2"])
def test_bfloat16_is_within_its_tolerance_or_as_good_as_torchs(name):
    backbone = drawn(name)
    network, torchs = (
        opened(runtime, backbone, precision="bfloat16") for runtime in ("openvino", "torch")
    )
    for size in awkward_sizes(backbone):
        error, allowed = (worst_error(each, backbone, [size]) for each in (network, torchs))
        assert error < max(3e-2, 1.5 * allowed)


def test_nothing_is_sent_anywhere(monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    telemetry = sys.modules.get("openvino_telemetry")
    if telemetry is not None:
        monkeypatch.setattr(telemetry.Telemetry, "__init__", refuse)
    backbone, pixels = drawn("spp-mini"), noise(1, 64, 64)
    found = opened("openvino", backbone, ["spp"]).maps(pixels, ["spp"])
    assert found["spp"].shape == exact(backbone, pixels, ["spp"])["spp"].shape


_SIGNAL_AFTER_NETWORKS = """
import gc, os, signal
from runtime_cases import drawn, opened

heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append("SIGTERM"))
first, second = (opened("openvino", drawn("spp-mini")) for _ in range(2))
del first
gc.collect()
del second
gc.collect()
os.kill(os.getpid(), signal.SIGTERM)
print(*heard)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such signal to be handled")
def test_a_signal_after_networks_that_were_not_closed_in_turn_does_no_harm():
    assert python(_SIGNAL_AFTER_NETWORKS) == "SIGTERM\n"
