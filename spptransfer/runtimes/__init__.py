"""Who computes a backbone's maps: torch, OpenVINO or ONNX Runtime, behind one interface.

Naming and checking a runtime imports none of them; `open_network` does.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal, get_args

from spptransfer.affinity import are_one_each
from spptransfer.errors import ConfigError, suggestion

if TYPE_CHECKING:
    from spptransfer.backbones.loading import Backbone
    from spptransfer.runtimes.network import FrozenNetwork, Normalization

Runtime = Literal["torch", "openvino", "onnxruntime"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)

# Arithmetic that each offers, and the packages that it needs besides torch.
_PRECISIONS = {
    "torch": ("float32", "bfloat16", "float16"),
    "openvino": ("float32", "bfloat16"),
    "onnxruntime": ("float32",),
}
# Those that compute in threads of their own, for which those that ask wait.
_HAVE_THREADS = ("openvino",)
_PACKAGES = {"torch": (), "openvino": ("openvino",), "onnxruntime": ("onnxruntime", "onnx")}


def check_runtime(name: str) -> Runtime:
    """Validate the name of a runtime and find its packages, without importing them.

    Raises
    ------
    ConfigError
        If there is no such runtime or it is not installed.

    Examples
    --------
    >>> check_runtime("torch")
    'torch'
    """
    for known in RUNTIMES:
        if name == known:
            break
    else:
        raise ConfigError(f"runtime: {name!r} is unknown; {suggestion(str(name), RUNTIMES)}")
    if any(importlib.util.find_spec(package) is None for package in _PACKAGES[known]):
        raise ConfigError(f"runtime '{known}' is not installed: pip install 'spptransfer[{known}]'")
    return known


def check_precision(runtime: str, precision: str) -> None:
    """Refuse arithmetic that a runtime does not offer.

    Raises
    ------
    ConfigError
        With what it offers.

    Examples
    --------
    >>> check_precision("openvino", "bfloat16")
    """
    offered = precisions_of(runtime)
    if precision not in offered:
        raise ConfigError(
            f"precision: '{precision}' is not offered by runtime '{runtime}'; "
            f"allowed: {', '.join(offered)}"
        )


def check_device(runtime: str, device: str) -> None:
    """Refuse a GPU by name for a runtime that computes on the CPU only.

    Raises
    ------
    ConfigError
        With the devices that it may have.

    Examples
    --------
    >>> check_device("openvino", "auto")
    """
    if runtime != "torch" and device.startswith("cuda"):
        raise ConfigError(f"device: '{device}' is not for runtime '{runtime}'; allowed: auto, cpu")


def precisions_of(runtime: str) -> tuple[str, ...]:
    """Arithmetic that a runtime offers.

    Examples
    --------
    >>> precisions_of("onnxruntime")
    ('float32',)
    """
    return _PRECISIONS[runtime]


def describe_runtime(name: str) -> str:
    """Name and version, for the record.

    Examples
    --------
    >>> describe_runtime("torch").split()[0]
    'torch'
    """
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:  # torch, for one, can be there without its metadata
        return name


def count_callers(runtime: str, threads: int) -> int:
    """How many threads keep so many computing ones busy.

    Where a runtime's own threads have all processors, one caller more reads what comes next
    while the others wait.

    Examples
    --------
    >>> count_callers("torch", 2)
    2
    """
    return threads + (has_threads(runtime) and are_one_each(threads))


def has_threads(runtime: str) -> bool:
    """Whether a runtime computes in threads of its own.

    Examples
    --------
    >>> has_threads("onnxruntime")
    False
    """
    return runtime in _HAVE_THREADS


def open_network(
    runtime: str,
    backbone: Backbone,
    layers: Sequence[str],
    normalization: Normalization,
    *,
    precision: str = "float32",
    threads: int = 1,
) -> FrozenNetwork:
    """Make a backbone's trunk ready to be run.

    Parameters
    ----------
    runtime : {"torch", "openvino", "onnxruntime"}
        Who runs it.
    backbone : Backbone
        For torch on its device and in `precision`; for the others on the CPU in float32.
    layers : sequence of str
        What will be asked for.
    normalization : Normalization
        Of the pixels.
    precision : str, default="float32"
        Arithmetic.
    threads : int, default=1
        How many threads will ask at once.

    Returns
    -------
    FrozenNetwork

    Raises
    ------
    ConfigError
        If there is no such runtime, it is not installed or does not offer the precision, it
        lacks an operator, or its maps are not torch's.
    """
    check_precision(check_runtime(runtime), precision)
    if runtime == "torch":
        from spptransfer.runtimes.torch import TorchNetwork

        return TorchNetwork(backbone, normalization)
    asked: dict[str, Any] = {"precision": precision, "threads": threads}
    if runtime == "openvino":
        from spptransfer.runtimes.openvino import OpenVINONetwork

        return OpenVINONetwork(backbone, layers, normalization, **asked)
    from spptransfer.runtimes.onnxruntime import ONNXRuntimeNetwork

    return ONNXRuntimeNetwork(backbone, layers, normalization, **asked)
