"""Options and the choice of a runtime: told before anything is computed."""

from __future__ import annotations

import importlib.util

import pytest
from runtime_cases import PACKAGES, drawn, need, opened

from spptransfer.errors import ConfigError
from spptransfer.runtimes import (
    PREFERENCE,
    ComputeOptions,
    check_options,
    describe_runtime,
    precisions_of,
)
from spptransfer.runtimes.runtime import open_runtime


@pytest.fixture
def hide(monkeypatch):
    """Have a package look as if it were not installed."""
    find = importlib.util.find_spec

    def hidden(*packages):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name in packages else find(name)
        )

    return hidden


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "openvin"}, r"did you mean 'openvino'. allowed: auto, torch,"),
        ({"device": "gpu"}, "'gpu' is unknown; allowed: auto, cpu, cuda, cuda:N, mps"),
        ({"device": "cuda:01"}, "'cuda:01' is unknown"),
        ({"threads": 0}, "threads: 0 must be a whole number of at least 1"),
        ({"threads": True}, "threads: True must be"),
        ({"read_processes": -1}, "read_processes: -1 must be a whole number of at least 0"),
        ({"read_processes": None}, "read_processes: None must be"),
    ],
)
def test_a_wrong_option_is_one_line_with_what_is_allowed(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        check_options(ComputeOptions(**options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("runtime", "package"),
    [("openvino", "openvino"), ("onnxruntime", "onnxruntime"), ("onnxruntime", "onnx")],
)
def test_a_runtime_that_is_not_installed_says_what_to_install(runtime, package, hide):
    hide(package)
    with pytest.raises(ConfigError, match=rf"pip install {runtime}\b"):
        check_options(ComputeOptions(runtime=runtime))


@pytest.mark.parametrize("runtime", PACKAGES)
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_a_gpu_is_torchs_alone(runtime, device):
    need(runtime)
    with pytest.raises(ConfigError, match=f"'{device}' is not for runtime '{runtime}'"):
        check_options(ComputeOptions(device, runtime))
    check_options(ComputeOptions(device, "torch"))
    check_options(ComputeOptions("auto", runtime))


def test_arithmetic_that_is_not_offered_is_named():
    need("openvino")
    with pytest.raises(ConfigError, match=r"'float16' .* 'openvino'; allowed: float32, bfloat16"):
        check_options(ComputeOptions(runtime="openvino"), "float16")
    for runtime in ("torch", "auto"):
        check_options(ComputeOptions(runtime=runtime), "float16")
        assert precisions_of(runtime) == ("float32", "bfloat16", "float16")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_auto_takes_the_first_that_is_installed(precision, hide, caplog):
    installed = [name for name in PREFERENCE[precision] if not missing(name)]
    assert opened("auto", drawn("spp-mini"), precision=precision).name == installed[0]
    hide("onnx", "openvino")
    with caplog.at_level("INFO"):
        chosen = opened("auto", drawn("spp-mini"), precision=precision)
    assert (chosen.name, chosen.description) == ("torch", describe_runtime("torch"))
    for name in PREFERENCE[precision][:-1]:
        assert f"runtime '{name}' is passed over: it is not installed" in caplog.text


def missing(runtime):
    return any(importlib.util.find_spec(package) is None for package in PACKAGES.get(runtime, []))


def test_layers_that_the_backbone_was_not_loaded_for_are_named():
    from spptransfer import backbones

    backbone = backbones.load("spp-mini", "embedded", layer=["conv1", "conv3"])
    options = ComputeOptions("cpu")
    with pytest.raises(ConfigError, match=r"'spp' is not one .* loaded for: conv1, conv3"):
        open_runtime(backbone, ["spp"], precision="float32", options=options)
    with pytest.raises(ConfigError, match="unknown layer 'conv9'"):
        open_runtime(backbone, ["conv9"], precision="float32", options=options)
