"""Runtimes: who computes a backbone's maps, on which device, with how many threads.

This is the only room that knows devices, runtimes and threads. `ComputeOptions` come down from the
command untouched; `open_runtime` makes them a `Runtime`. Naming and checking imports no runtime.

How ``runtime: auto`` chooses: on a GPU, torch. On a CPU, the first of `PREFERENCE` for the
precision that is installed, whose operators express the backbone, and that agrees with torch on
noisy images; torch, which comes last, expresses all of them. What is passed over, and why, is
logged. A runtime that is asked for by name is taken or refused. Which one computed is recorded with
the features and never part of their fingerprint.

Numbers that are not finite come out of every runtime as such, so that the row fails: ONNX Runtime's
operators keep them as torch's do, while OpenVINO's ReLU and max pooling make NaN a plain number.
They only come about where finite weights overflow, so a backbone whose numbers come near that on
noise (above 1e25) is computed by torch alone.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from spptransfer.backbones import Backbone
from spptransfer.errors import ConfigError, suggestion
from spptransfer.system import count_processors

if TYPE_CHECKING:
    import torch

    from spptransfer.runtimes.compiled import CompiledNetwork
    from spptransfer.runtimes.runtime import Runtime

__all__ = [
    "PREFERENCE",
    "RUNTIMES",
    "ComputeOptions",
    "candidates",
    "check_options",
    "describe_runtime",
    "open_runtime",
    "precisions_of",
]

logger = logging.getLogger(__name__)

# On a CPU, the fastest first, as measured over four networks; see docs/performance.md.
PREFERENCE = {
    "float32": ("onnxruntime", "openvino", "torch"),
    "bfloat16": ("openvino", "torch"),
    "float16": ("torch",),
}
RUNTIMES = ("torch", "onnxruntime", "openvino")
_PACKAGES = {"torch": ("torch",), "onnxruntime": ("onnxruntime", "onnx"), "openvino": ("openvino",)}
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:(0|[1-9][0-9]*))?")


@dataclass(frozen=True)
class ComputeOptions:
    """Where and by whom features are computed; none of it changes what they are.

    Parameters
    ----------
    device : str, default="auto"
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``; "auto" is a CUDA device if
        there is one, else the CPU.
    runtime : str, default="auto"
        ``"auto"``, ``"torch"``, ``"onnxruntime"`` or ``"openvino"``, see the module.
    threads : int, optional
        Threads that compute, by default one per processor.
    read_processes : int, default=0
        Processes that decode images for a GPU; 0 means threads of this process.
    """

    device: str = "auto"
    runtime: str = "auto"
    threads: int | None = None
    read_processes: int = 0

    def shared_by(self, processes: int) -> ComputeOptions:
        """Return what each of several processes takes, that share this machine's processors.

        Examples
        --------
        >>> ComputeOptions(threads=8).shared_by(3).threads
        2
        """
        threads = self.threads or count_processors()
        return replace(self, threads=max(1, threads // processes))


def check_options(options: ComputeOptions, precision: str | None = None) -> None:
    """Validate options, by their names alone; torch is not imported.

    Examples
    --------
    >>> check_options(ComputeOptions(runtime="torch", device="cuda"), "float16")
    >>> check_options(ComputeOptions(device="gpu"))
    Traceback (most recent call last):
    ...
    spptransfer.errors.ConfigError: device: 'gpu' is unknown; allowed: auto, cpu, cuda, cuda:N, mps
    """
    device, runtime = options.device, options.runtime
    if not isinstance(device, str) or not _DEVICE.fullmatch(device):
        raise ConfigError(f"device: '{device}' is unknown; allowed: auto, cpu, cuda, cuda:N, mps")
    if runtime not in ("auto", *RUNTIMES):
        hint = suggestion(str(runtime), ["auto", *RUNTIMES])
        raise ConfigError(f"runtime: {runtime!r} is unknown; {hint}")
    if runtime not in ("auto", "torch") and device not in ("auto", "cpu"):
        raise ConfigError(f"device: '{device}' is not for runtime '{runtime}'; allowed: auto, cpu")
    if runtime != "auto" and not _is_installed(runtime):
        raise ConfigError(
            f"runtime '{runtime}' is not installed: pip install {' '.join(_PACKAGES[runtime])}"
        )
    if precision is not None and precision not in precisions_of(runtime):
        raise ConfigError(
            f"precision: '{precision}' is not offered by runtime '{runtime}'; "
            f"allowed: {', '.join(precisions_of(runtime))}"
        )
    for key, least in (("threads", 1), ("read_processes", 0)):
        value = getattr(options, key)
        is_count = isinstance(value, int) and not isinstance(value, bool) and value >= least
        if not is_count and not (key == "threads" and value is None):
            raise ConfigError(f"{key}: {value!r} must be a whole number of at least {least}")


def candidates(options: ComputeOptions, precision: str, *, on_cpu: bool = True) -> tuple[str, ...]:
    """List the runtimes that may compute, in the order in which they are tried.

    >>> candidates(ComputeOptions(), "bfloat16", on_cpu=False)
    ('torch',)
    """
    if options.runtime != "auto":
        return (options.runtime,)
    return PREFERENCE[precision] if on_cpu else ("torch",)


def _is_installed(runtime: str) -> bool:
    return all(importlib.util.find_spec(package) is not None for package in _PACKAGES[runtime])


def precisions_of(runtime: str) -> tuple[str, ...]:
    """List the arithmetic that a runtime offers.

    >>> precisions_of("onnxruntime"), precisions_of("openvino")
    (('float32',), ('float32', 'bfloat16'))
    """
    return tuple(
        precision
        for precision, runtimes in PREFERENCE.items()
        if runtime in runtimes or runtime == "auto"
    )


def describe_runtime(name: str) -> str:
    """Return name and version, for the record."""
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:  # torch, for one, can be there without its metadata
        return name


def open_runtime(
    backbone: Backbone, layers: Sequence[str], *, precision: str, options: ComputeOptions
) -> Runtime:
    """Make a backbone ready to be run.

    Parameters
    ----------
    backbone : Backbone
        On the CPU, in float32. It is not changed.
    layers : sequence of str
        What will be asked for: some of the backbone's layers.
    precision : {"float32", "bfloat16", "float16"}
        Arithmetic.
    options : ComputeOptions
        Where and by whom.

    Returns
    -------
    Runtime

    Raises
    ------
    ConfigError
        If an option is wrong, there is no such device or layer, or the runtime that is named
        lacks an operator or does not agree with torch.

    Examples
    --------
    >>> import numpy as np
    >>> from spptransfer import backbones
    >>> mini = backbones.load("spp-mini", "embedded", layer="fc6")
    >>> options = ComputeOptions(device="cpu", runtime="torch")
    >>> with open_runtime(mini, ["fc6"], precision="float32", options=options) as runtime:
    ...     with runtime.session():
    ...         maps = runtime.maps(runtime.upload(np.zeros((2, 64, 96, 3), np.uint8)), ["fc6"])
    ...         vectors = runtime.vectors(maps, ["fc6"])
    ...         runtime.download([vectors])[0]["fc6"].shape
    (2, 128)
    """
    check_options(options, precision)
    for layer in layers:
        if backbone.info.layer(layer).name not in backbone.layers:
            raise ConfigError(
                f"layer '{layer}' is not one that this backbone was loaded for: "
                f"{', '.join(backbone.layers)}"
            )
    from spptransfer.runtimes.devices import choose_device

    device = choose_device(options.device, options.runtime)
    *preferred, last = candidates(options, precision, on_cpu=device.type == "cpu")
    for name in preferred:
        if not _is_installed(name):
            logger.info("runtime '%s' is passed over: it is not installed", name)
            continue
        try:
            return _open(name, backbone, layers, device, precision, options)
        except ConfigError as error:
            logger.info("runtime '%s' is passed over: %s", name, error)
    return _open(last, backbone, layers, device, precision, options)


def _open(
    name: str,
    backbone: Backbone,
    layers: Sequence[str],
    device: torch.device,
    precision: str,
    options: ComputeOptions,
) -> Runtime:
    import torch

    from spptransfer.runtimes.runtime import MapsNetwork, Runtime, TorchNetwork, place

    dtype, threads = getattr(torch, precision), options.threads or count_processors()
    network: MapsNetwork
    if name == "torch":
        channels_last = getattr(backbone, "channels_last", False)
        placed = place(backbone, backbone, device, dtype, channels_last=channels_last)
        network = TorchNetwork(placed)
    else:
        exact = place(backbone, backbone, device, torch.float32)
        network = _compiler(name)(exact, layers, precision=precision, threads=threads)
        # Vectors stay torch's; without them the trunk need not be there twice.
        vectors = any(exact.info.layer(layer).kind == "vector" for layer in exact.layers)
        head = getattr(exact, "head", exact if vectors else None)
        placed = exact if head is None else place(exact, head, device, dtype)
    return Runtime(
        name,
        describe_runtime(name),
        backbone,
        placed,
        network,
        precision=precision,
        device=device,
        threads=threads,
        read_processes=options.read_processes,
    )


def _compiler(name: str) -> type[CompiledNetwork]:
    try:
        if name == "openvino":
            from spptransfer.runtimes.openvino import OpenVINONetwork

            return OpenVINONetwork
        from spptransfer.runtimes.onnxruntime import ONNXRuntimeNetwork
    except (ImportError, OSError) as error:
        raise ConfigError(f"runtime '{name}' cannot be imported: {error}") from error
    return ONNXRuntimeNetwork
