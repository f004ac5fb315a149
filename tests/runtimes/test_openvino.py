from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runtime_cases import FAMILIES, awkward_sizes, drawn, exact, need, noise, opened, worst_error

from spptransfer.runtimes.devices import has_bfloat16
from spptransfer.system import count_processors

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


def test_bfloat16_is_another_arithmetic_than_float32():
    if not has_bfloat16(torch.device("cpu")):
        pytest.skip("this processor has no arithmetic for bfloat16")
    backbone = drawn("spp-mini")
    low = opened("openvino", backbone, precision="bfloat16")
    assert worst_error(low, backbone, [(1, 64, 80)]) > 1e-4


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


@pytest.mark.parametrize("threads", sorted({1, count_processors(), count_processors() + 1}))
def test_its_threads_stay_on_processors_if_there_is_one_for_each(monkeypatch, threads):
    import openvino

    asked, compile_model = [], openvino.Core.compile_model
    monkeypatch.setattr(
        openvino.Core,
        "compile_model",
        lambda core, model, device, settings: (
            asked.append(settings) or compile_model(core, model, device, settings)
        ),
    )
    runtime = opened("openvino", drawn("spp-mini"), threads=threads)
    (settings,) = asked
    one_each = threads == count_processors() > 1
    assert settings["ENABLE_CPU_PINNING"] is one_each
    assert settings["NUM_STREAMS"] == settings["INFERENCE_NUM_THREADS"] == str(threads)
    assert runtime.workers == runtime.computers == threads + one_each


_SIGNAL_AFTER_NETWORKS = """
import gc, os, signal, sys
sys.path.insert(0, sys.argv[1])
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
    python = [sys.executable, "-c", _SIGNAL_AFTER_NETWORKS, Path(__file__).parents[1]]
    ended = subprocess.run(python, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "SIGTERM\n"), ended.stderr
