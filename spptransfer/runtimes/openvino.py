"""Maps computed by OpenVINO.

The graph is put together from OpenVINO's operators. Its converter for torch's modules is not
used: it reports its use over the network.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino
from openvino import opset14 as operators
from torch import fx, nn

from spptransfer.runtimes.compiled import CompiledNetwork, Run
from spptransfer.runtimes.graph import Operators, Pair, Value, build
from spptransfer.system import count_processors

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVINONetwork(CompiledNetwork):
    """A backbone's trunk as OpenVINO's graph."""

    runtime = "openvino"

    def compile(self, traced: fx.GraphModule, layers: Sequence[str]) -> Run:
        """Compile the graph with a stream for every thread that asks."""
        ways = _OpenVINO()
        maps, places = build(traced, self.backbone, layers, ways)
        self.lent += ways.constants
        model = openvino.Model([operators.result(value) for value in maps], [ways.pixels])
        settings = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[self.precision],
            "NUM_STREAMS": str(self.threads),
            "INFERENCE_NUM_THREADS": str(self.threads),
            # Fewer would be pinned to the same processors as those of our other processes.
            "ENABLE_CPU_PINNING": self.threads == count_processors() > 1,
        }
        compiled = _core().compile_model(model, "CPU", settings)
        mine = threading.local()  # a request computes one batch at a time

        def run(pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
            if not hasattr(mine, "request"):
                mine.request = compiled.create_infer_request()
            given = openvino.Tensor(pixels, shared_memory=True)
            mine.request.infer([given], share_inputs=True, share_outputs=True)
            # Copied, since the next batch is written over it.
            found = [output.data.copy() for output in mine.request.output_tensors]
            return [found[place] for place in places]

        return run


@functools.cache
def _core() -> openvino.Core:
    """The process's only one.

    Each sets a stack for signals and, when it goes, puts back the one that it found: with two
    that do not go in turn, the next signal would be handled on memory that is no longer there.
    """
    return openvino.Core()


class _OpenVINO(Operators):
    runtime = "openvino"

    def __init__(self) -> None:
        self.constants: list[npt.NDArray[np.float32]] = []
        self.pixels = operators.parameter([-1, -1, -1, 3], np.uint8, name="pixels")

    def normalized(self, shift: Sequence[float], span: Sequence[float]) -> Value:
        numbers = operators.convert(self.pixels, "f32")
        centred = operators.subtract(numbers, np.array(shift, np.float32))
        normal = operators.divide(centred, np.array(span, np.float32))
        return operators.transpose(normal, np.array([0, 3, 1, 2]))

    def convolution(self, maps: Value, module: nn.Conv2d, padding: Pair) -> Value:
        weight = module.weight.detach().numpy()
        geometry: tuple[Any, ...] = (module.stride, padding, padding, module.dilation)
        if module.groups == 1:
            filtered = operators.convolution(maps, self._constant(weight), *geometry)
        else:
            grouped = weight.reshape(module.groups, -1, *weight.shape[1:])
            filtered = operators.group_convolution(maps, self._constant(grouped), *geometry)
        if module.bias is None:
            return filtered
        return operators.add(
            filtered, self._constant(module.bias.detach().numpy().reshape(1, -1, 1, 1))
        )

    def clip(self, maps: Value, low: float, high: float | None) -> Value:
        return operators.relu(maps) if high is None else operators.clamp(maps, low, high)

    def max_pool(self, maps: Value, kernel: Pair, stride: Pair, before: Pair, after: Pair) -> Value:
        pooled = operators.max_pool(maps, stride, (1, 1), before, after, kernel)
        return pooled.output(0)  # the other one is where the maximum was

    def average_pool(self, maps: Value, kernel: Pair, stride: Pair, padding: Pair) -> Value:
        return operators.avg_pool(maps, stride, padding, padding, kernel, exclude_pad=False)

    def response_norm(self, maps: Value, module: nn.LocalResponseNorm) -> Value:
        constants = (module.alpha, module.beta, module.k, module.size)
        return operators.lrn(maps, np.array([1]), *constants)

    def concatenate(self, maps: Sequence[Value], axis: int) -> Value:
        return operators.concat(list(maps), axis)

    def combine(self, kind: str, left: Value, right: Value | float) -> Value:
        other = np.float32(right) if isinstance(right, (int, float)) else right
        return getattr(operators, kind)(left, other)

    def _constant(self, numbers: npt.NDArray[np.float32]) -> Value:
        """Numbers that stay where they are; by itself OpenVINO makes a list of them first."""
        self.constants.append(np.ascontiguousarray(numbers))
        return operators.constant(self.constants[-1], shared_memory=True)
