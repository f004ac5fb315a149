from __future__ import annotations

import pytest
from runtime_cases import drawn, need, noise, opened

from spptransfer.errors import ConfigError

need("onnxruntime")


def test_only_float32_is_offered():
    with pytest.raises(ConfigError, match=r"'bfloat16' is not offered .* allowed: float32"):
        opened("onnxruntime", drawn("spp-mini"), precision="bfloat16")


def test_no_file_is_left_and_nothing_is_printed(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    opened("onnxruntime", drawn("mobilenet_v2")).maps(noise(1, 64, 64), ["spp"])
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_memory_that_does_not_suffice_is_a_memory_error(monkeypatch):
    import onnxruntime

    network = opened("onnxruntime", drawn("spp-mini"), ["spp"])

    def fail(*_):
        raise RuntimeError("[ONNXRuntimeError] : Failed to allocate memory for requested buffer")

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", fail)
    with pytest.raises(MemoryError, match="requested buffer"):
        network.maps(noise(1, 64, 64), ["spp"])
