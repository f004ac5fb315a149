"""What the runtimes besides torch have in common: a graph, compiled, and compared with torch."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from spptransfer.backbones import Backbone
from spptransfer.errors import ConfigError
from spptransfer.runtimes.devices import one_thread
from spptransfer.runtimes.graph import follow, largest_number
from spptransfer.runtimes.runtime import TorchNetwork, place

# Relative l2 distance from torch's maps up to which a runtime is trusted.
TOLERANCES = {"float32": 1e-3, "bfloat16": 3e-2}
# Where torch's own bfloat16 is further from float32 than that: a multiple of its distance.
_AS_GOOD = 1.5
# Runtimes differ in what they make of numbers that are not finite. Where none on noise is above
# this, none on any image overflows.
_LARGEST = 1e25
_PROBE_SIDE = 64
# What runtimes say where memory does not suffice; each has exceptions of its own.
_OUT_OF_MEMORY = ("bad_alloc", "failed to allocate", "could not allocate", "not enough memory")

# From N x H x W x 3 bytes to the maps of some layers.
Run = Callable[[npt.NDArray[np.uint8]], Sequence[npt.NDArray[np.float32]]]


class CompiledNetwork(ABC):
    """A trunk that a runtime compiles as a graph, once for each set of layers asked for.

    The backbone is in float32 and on the CPU; `threads` will ask at once. What the runtime lacks,
    or computes in another way than torch, is a `ConfigError`.
    """

    runtime: str

    def __init__(
        self,
        backbone: Backbone,
        layers: Sequence[str],
        *,
        precision: str = "float32",
        threads: int = 1,
    ) -> None:
        self.backbone = backbone
        self.precision = precision
        self.threads = threads
        self._compiled: dict[tuple[str, ...], Run] = {}
        self._lock = threading.Lock()
        # Numbers that graphs read where torch has them; they must not go before the graphs do.
        self.lent: list[Any] = []
        self._run_of(layers)

    @abstractmethod
    def compile(self, traced: fx.GraphModule, layers: Sequence[str]) -> Run:
        """Make the graph of some layers ready to be run from several threads."""

    def maps(self, pixels: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        """Compute the maps that some layers are made of, in one pass."""
        run = self._run_of(layers)
        try:
            found = run(pixels.contiguous().numpy())
        except Exception as error:
            if any(words in str(error).lower() for words in _OUT_OF_MEMORY):
                raise MemoryError(str(error)) from error
            raise
        return dict(zip(layers, map(torch.from_numpy, found), strict=True))

    def _run_of(self, layers: Sequence[str]) -> Run:
        wanted = tuple(layers)
        with self._lock:
            if wanted not in self._compiled:
                traced = follow(self.backbone, wanted, self.runtime)
                self._check_range(traced)
                run = self.compile(traced, wanted)
                for pixels in self._probes():
                    self._check(run, wanted, pixels)
                self._compiled[wanted] = run
            return self._compiled[wanted]

    def _probes(self) -> list[npt.NDArray[np.uint8]]:
        """Draw noise of two sizes, neither of them a round number."""
        side = max(_PROBE_SIDE, self.backbone.info.min_side)
        shapes, step = (
            ((1, side + 3, side + 14), (2, side, side + 1)),
            self.backbone.info.multiple_of,
        )
        drawn = np.random.default_rng(0)
        return [
            drawn.integers(0, 256, (n, -(-h // step) * step, -(-w // step) * step, 3), np.uint8)
            for n, h, w in shapes
        ]

    def _check_range(self, traced: fx.GraphModule) -> None:
        """Refuse a backbone whose numbers may overflow."""
        pixels = torch.from_numpy(self._probes()[0])
        with one_thread(), torch.inference_mode():
            largest = largest_number(traced, TorchNetwork(self.backbone).normalize(pixels))
        if not largest <= _LARGEST:
            raise ConfigError(
                f"runtime '{self.runtime}' is not for '{self.backbone.info.name}' with these "
                f"weights, whose numbers are too large or not finite ({largest:.1g} on a noisy "
                "image); use runtime 'torch'"
            )

    def _check(self, run: Run, layers: Sequence[str], drawn: npt.NDArray[np.uint8]) -> None:
        """Compare with torch on a noisy image."""
        pixels = torch.from_numpy(drawn)
        found = dict(zip(layers, map(torch.from_numpy, run(drawn)), strict=True))
        with one_thread(), torch.inference_mode():
            exact = TorchNetwork(self.backbone).maps(pixels, layers)
            error, allowed = _distance(found, exact), TOLERANCES[self.precision]
            if self.precision == "bfloat16" and error > allowed:
                backbone = place(self.backbone, self.backbone, pixels.device, torch.bfloat16)
                rounded = TorchNetwork(backbone).maps(pixels, layers)
                allowed = max(allowed, _AS_GOOD * _distance(rounded, exact))
        if not error <= allowed < float("inf"):
            raise ConfigError(
                f"runtime '{self.runtime}' does not agree with torch on "
                f"'{self.backbone.info.name}' in {self.precision} (relative error {error:.2g}, "
                f"allowed {allowed:.2g}); use runtime 'torch'"
            )


def _distance(found: Mapping[str, torch.Tensor], exact: Mapping[str, torch.Tensor]) -> float:
    """Return the largest relative l2 distance of all layers; infinite if some are not finite."""
    largest = 0.0
    for layer, expected in exact.items():
        maps = found[layer]
        if maps.shape != expected.shape or not (maps.isfinite() & expected.isfinite()).all():
            return float("inf")
        length = torch.linalg.vector_norm(expected).clamp(min=1e-30)
        largest = max(largest, float(torch.linalg.vector_norm(maps.float() - expected) / length))
    return largest
