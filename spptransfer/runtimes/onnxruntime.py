"""Maps computed by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper
from torch import fx, nn

from spptransfer.runtimes.compiled import CompiledNetwork, Run
from spptransfer.runtimes.graph import Operators, Pair, Value, build

_OPSET, _FORMAT = 17, 8
_ERRORS_ONLY = 3


class ONNXRuntimeNetwork(CompiledNetwork):
    """A backbone's trunk as an ONNX graph, in one session that all threads share."""

    runtime = "onnxruntime"

    def compile(self, traced: fx.GraphModule, layers: Sequence[str]) -> Run:
        """Open a session that computes each batch in the thread that asks."""
        ways = _ONNX()
        maps, places = build(traced, self.backbone, layers, ways)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        self.lent += ways.lend_constants(options)
        session = onnxruntime.InferenceSession(
            ways.model(maps).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

        def run(pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
            found = session.run(maps, {_ONNX.PIXELS: pixels})
            return [found[place] for place in places]

        return run


class _ONNX(Operators):
    """Operators of ONNX's standard set; a value is its name."""

    runtime = "onnxruntime"
    PIXELS = "pixels"

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, npt.NDArray[np.float32]] = {}

    def model(self, outputs: Sequence[Value]) -> onnx.ModelProto:
        """Everything said so far, with some values as outputs."""
        graph = helper.make_graph(
            self._nodes,
            "trunk",
            [helper.make_tensor_value_info(self.PIXELS, TensorProto.UINT8, [None, None, None, 3])],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4)
                for name in outputs
            ],
            [_elsewhere(name, numbers) for name, numbers in self._constants.items()],
        )
        operators = [helper.make_opsetid("", _OPSET)]
        return helper.make_model(graph, opset_imports=operators, ir_version=_FORMAT)

    def lend_constants(self, options: onnxruntime.SessionOptions) -> list[Any]:
        """Let a session use the constants where they are; gives what has to stay for that."""
        values = list(map(onnxruntime.OrtValue.ortvalue_from_numpy, self._constants.values()))
        options.add_external_initializers(list(self._constants), values)
        return values

    def normalized(self, shift: Sequence[float], span: Sequence[float]) -> Value:
        # Bytes are turned around, since there is less of them than of numbers.
        maps = self._node("Transpose", self.PIXELS, perm=[0, 3, 1, 2])
        maps = self._node("Cast", maps, to=TensorProto.FLOAT)
        for kind, values in (("Sub", shift), ("Div", span)):
            maps = self._node(kind, maps, self._constant(np.reshape(values, (1, 3, 1, 1))))
        return maps

    def convolution(self, maps: Value, module: nn.Conv2d, padding: Pair) -> Value:
        parameters = [module.weight] if module.bias is None else [module.weight, module.bias]
        return self._node(
            "Conv",
            maps,
            *(self._constant(parameter.detach().numpy()) for parameter in parameters),
            strides=module.stride,
            dilations=module.dilation,
            group=module.groups,
            pads=(*padding, *padding),
        )

    def clip(self, maps: Value, low: float, high: float | None) -> Value:
        if high is None:
            return self._node("Relu", maps)
        return self._node("Clip", maps, self._constant(low), self._constant(high))

    def max_pool(self, maps: Value, kernel: Pair, stride: Pair, before: Pair, after: Pair) -> Value:
        pads = (*before, *after)
        return self._node("MaxPool", maps, kernel_shape=kernel, strides=stride, pads=pads)

    def average_pool(self, maps: Value, kernel: Pair, stride: Pair, padding: Pair) -> Value:
        windows = {"kernel_shape": kernel, "strides": stride, "pads": (*padding, *padding)}
        return self._node("AveragePool", maps, count_include_pad=1, **windows)

    def response_norm(self, maps: Value, module: nn.LocalResponseNorm) -> Value:
        constants = {"alpha": module.alpha, "beta": module.beta, "bias": float(module.k)}
        return self._node("LRN", maps, size=module.size, **constants)

    def concatenate(self, maps: Sequence[Value], axis: int) -> Value:
        return self._node("Concat", *maps, axis=axis)

    def combine(self, kind: str, left: Value, right: Value | float) -> Value:
        other = self._constant(right) if isinstance(right, (int, float)) else right
        return self._node({"add": "Add", "multiply": "Mul", "power": "Pow"}[kind], left, other)

    def _node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind}{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def _constant(self, value: npt.ArrayLike) -> str:
        name = f"constant{len(self._constants)}"
        numbers = np.ascontiguousarray(value, np.float32).reshape(np.shape(value))
        self._constants[name] = numbers
        return name


def _elsewhere(name: str, numbers: npt.NDArray[np.float32]) -> onnx.TensorProto:
    """A constant whose numbers are handed over beside the model, not copied into it."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=numbers.shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=name)
    return tensor
