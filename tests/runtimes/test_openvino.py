from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from runtime_cases import FAMILIES, awkward_sizes, drawn, exact, need, noise, opened, worst_error

from spptransfer.runtimes import compiled

need("openvino")


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "mobilenet_v2"])
def test_bfloat16_is_within_its_tolerance(name):
    backbone = drawn(name)
    network = opened("openvino", backbone, precision="bfloat16")
    assert worst_error(network, backbone, awkward_sizes(backbone)) < 3e-2


def test_bfloat16_is_another_arithmetic_than_float32():
    from spptransfer.extraction.precision import has_bfloat16

    backbone = drawn("spp-mini")
    if not has_bfloat16(next(backbone.parameters()).device):
        pytest.skip("this processor has no arithmetic for bfloat16")
    low = opened("openvino", backbone, precision="bfloat16")
    assert worst_error(low, backbone, [(1, 64, 80)]) > 1e-4


def test_where_torchs_own_bfloat16_is_worse_so_may_openvinos_be(monkeypatch):
    monkeypatch.setitem(compiled.TOLERANCES, "bfloat16", 1e-6)
    backbone = drawn("resnet18")
    network = opened("openvino", backbone, precision="bfloat16")
    assert network.maps(noise(1, 64, 64), ["spp"])["spp"].isfinite().all()
    monkeypatch.setattr(compiled, "_AS_GOOD", 0.01)
    with pytest.raises(ValueError, match=r"in bfloat16 .relative error"):
        opened("openvino", backbone, precision="bfloat16")


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


@pytest.mark.parametrize(("threads", "pinned"), [(1, False), (3, False), (4, True)])
def test_its_threads_stay_on_processors_if_there_is_one_for_each(monkeypatch, threads, pinned):
    import openvino

    asked, compile_model = [], openvino.Core.compile_model
    monkeypatch.setattr(
        openvino.Core,
        "compile_model",
        lambda core, model, device, settings: (
            asked.append(settings) or compile_model(core, model, device, settings)
        ),
    )
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)))
    opened("openvino", drawn("spp-mini"), threads=threads)
    (settings,) = asked
    assert settings["ENABLE_CPU_PINNING"] is pinned
    assert settings["NUM_STREAMS"] == settings["INFERENCE_NUM_THREADS"] == str(threads)


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


def test_a_signal_after_networks_that_were_not_closed_in_turn_does_no_harm():
    python = [sys.executable, "-c", _SIGNAL_AFTER_NETWORKS, Path(__file__).parents[1]]
    ended = subprocess.run(python, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "SIGTERM\n"), ended.stderr
