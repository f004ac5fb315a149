"""Runtimes: who computes a backbone's maps, on which device, with how many threads.

This is the only room that knows devices, runtimes and threads. `ComputeOptions` come down from the
command untouched; `runtime.open_runtime` makes them a `Runtime`. Here no runtime is imported.

How ``runtime: auto`` chooses: on a GPU, torch. On a CPU, the first of `PREFERENCE` for the
precision that is installed, can express the backbone as torch's ONNX exporter writes it, and agrees
with torch on noisy images; torch, which comes last, computes all of them. What is passed over, and
why, is logged. A runtime that is asked for by name is taken or refused. Which one computed is
recorded with the features and never part of their fingerprint. An extraction of a dataset of fewer
than `FEW_IMAGES` is torch's: to start another runtime would take longer than it saves. The dataset
counts and not what is left to be done, so that a resumed run ends in the same bytes.

Numbers that are not finite come out of every runtime as such, so that the row fails: ONNX Runtime's
operators keep them as torch's do, while OpenVINO's ReLU and max pooling make NaN a plain number.
They only come about where finite weights overflow, so a backbone whose numbers come near that on
noise (above 1e25) is computed by torch alone.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version

from spptransfer.errors import ConfigError, one_of
from spptransfer.system import count_processors

# On a CPU, the fastest first, as measured over four networks; see docs/performance.md.
PREFERENCE = {
    "float32": ("onnxruntime", "openvino", "torch"),
    "bfloat16": ("openvino", "torch"),
    "float16": ("torch",),
}
_PACKAGES = {
    "torch": ("torch",),
    "onnxruntime": ("onnxruntime", "onnx"),
    "openvino": ("openvino", "onnx"),
}
RUNTIMES = tuple(_PACKAGES)
# For fewer images neither another runtime's start (a second or two) nor a trial of bfloat16 pays.
FEW_IMAGES = 64
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
        """Return what each of several processes takes, that share this machine's processors."""
        threads = self.threads or count_processors()
        return replace(self, threads=max(1, threads // processes))


def check_options(options: ComputeOptions, precision: str | None = None) -> None:
    """Validate options, by their names alone; torch is not imported."""
    device, runtime = options.device, options.runtime
    if not isinstance(device, str) or not _DEVICE.fullmatch(device):
        raise ConfigError(f"device: '{device}' is unknown; allowed: auto, cpu, cuda, cuda:N, mps")
    one_of("runtime", runtime, ("auto", *RUNTIMES))
    if runtime not in ("auto", "torch") and device not in ("auto", "cpu"):
        raise ConfigError(f"device: '{device}' is not for runtime '{runtime}'; allowed: auto, cpu")
    if runtime != "auto" and not is_installed(runtime):
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


def for_images(options: ComputeOptions, count: int) -> ComputeOptions:
    """Return what ``auto`` means for so many images: for few, torch, which needs no start."""
    few = options.runtime == "auto" and count < FEW_IMAGES
    return replace(options, runtime="torch") if few else options


def is_installed(runtime: str) -> bool:
    """Tell whether all packages of a runtime are there."""
    return None not in map(importlib.util.find_spec, _PACKAGES[runtime])


def precisions_of(runtime: str) -> tuple[str, ...]:
    """List the arithmetic that a runtime offers."""
    offered = [name for name, known in PREFERENCE.items() if runtime in (*known, "auto")]
    return tuple(offered)


def describe_runtime(name: str) -> str:
    """Return name and version, for the record."""
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:  # torch, for one, can be there without its metadata
        return name
