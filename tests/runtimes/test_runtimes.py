"""Names of runtimes: told before anything is computed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from spptransfer.errors import ConfigError
from spptransfer.extraction.compute import choose_device
from spptransfer.runtimes import (
    RUNTIMES,
    check_precision,
    check_runtime,
    count_callers,
    describe_runtime,
)


def test_an_unknown_runtime_gets_the_allowed_names():
    with pytest.raises(ConfigError, match=r"did you mean 'openvino'. allowed: torch,"):
        check_runtime("openvin")


@pytest.mark.parametrize(
    ("runtime", "package"),
    [("openvino", "openvino"), ("onnxruntime", "onnxruntime"), ("onnxruntime", "onnx")],
)
def test_a_runtime_that_is_not_installed_says_what_to_install(runtime, package, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    with pytest.raises(ConfigError, match=rf"pip install 'spptransfer\[{runtime}\]'"):
        check_runtime(runtime)


@pytest.mark.parametrize("runtime", [name for name in RUNTIMES if name != "torch"])
def test_a_gpu_is_torchs_alone(runtime):
    with pytest.raises(ConfigError, match=f"'cuda' is not for runtime '{runtime}'"):
        choose_device("cuda", runtime)
    assert choose_device("auto", runtime).type == "cpu"


def test_arithmetic_that_is_not_offered_is_named():
    with pytest.raises(ConfigError, match=r"'float16' .* 'openvino'; allowed: float32, bfloat16"):
        check_precision("openvino", "float16")
    check_precision("torch", "float16")


def test_checking_names_imports_no_runtime():
    code = (
        "import sys; from spptransfer import runtimes\n"
        "for name in runtimes.RUNTIMES:\n"
        "    try: runtimes.describe_runtime(runtimes.check_runtime(name))\n"
        "    except ValueError: pass\n"
        "print({'torch', 'openvino', 'onnxruntime', 'onnx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_version_is_recorded_where_it_is_known():
    assert describe_runtime("torch").startswith("torch 2.")
    assert describe_runtime("no such package") == "no such package"


@pytest.mark.parametrize(
    ("runtime", "threads", "expected"),
    [
        ("torch", 4, 4),
        ("onnxruntime", 4, 4),
        ("openvino", 4, 5),
        ("openvino", 3, 3),
        ("openvino", 1, 1),
    ],
)
def test_one_more_asks_where_a_runtimes_own_threads_have_all_processors(
    monkeypatch, runtime, threads, expected
):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)))
    assert count_callers(runtime, threads) == expected
