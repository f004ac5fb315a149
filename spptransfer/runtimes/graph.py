"""A backbone's trunk as an ONNX graph, which the runtimes besides torch compile.

Torch's own exporters need further packages, are deprecated or report their use over the network.
The networks of this package are made of a dozen operators, so they are followed here.
"""

from __future__ import annotations

import copy
import math
import operator
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper
from torch import fx, nn
from torch.fx.proxy import GraphAppendingTracer
from torch.nn import functional

from spptransfer.backbones import Backbone
from spptransfer.errors import ConfigError
from spptransfer.runtimes.devices import TorchNetwork, one_thread, place

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
_OPSET, _FORMAT = 17, 8
PIXELS = "pixels"

Pair = tuple[int, int]
# From N x H x W x 3 bytes to the outputs of a graph, in their order.
Run = Callable[[npt.NDArray[np.uint8]], Sequence[npt.NDArray[np.float32]]]


class CompiledNetwork:
    """A trunk that a runtime compiles as a graph, once for each set of layers asked for.

    The backbone is in float32 and on the CPU; `compile` makes a graph ready for several threads.
    What the runtime lacks, or computes in another way than torch, is a `ConfigError`.
    """

    def __init__(
        self,
        runtime: str,
        compile: Callable[[Graph], Run],
        backbone: Backbone,
        layers: Sequence[str],
        precision: str,
    ) -> None:
        self._runtime, self._backbone, self._precision = runtime, backbone, precision
        self._compile = compile
        self._compiled: dict[tuple[str, ...], tuple[Graph, Run]] = {}
        self._lock = threading.Lock()
        self._compiled_for(tuple(layers))

    def maps(self, pixels: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        """Compute the maps that some layers are made of, in one pass."""
        return _run(*self._compiled_for(tuple(layers)), pixels)

    def _compiled_for(self, layers: tuple[str, ...]) -> tuple[Graph, Run]:
        with self._lock:
            if layers not in self._compiled:
                self._compiled[layers] = self._checked(layers)
            return self._compiled[layers]

    def _checked(self, layers: Sequence[str]) -> tuple[Graph, Run]:
        """Compile the graph of some layers, and compare it with torch on noisy images."""
        probes = self._probes()
        try:
            traced = trace(
                self._backbone, lambda likeness, images: likeness.maps_of(images, layers)
            )
        except Exception as error:  # whatever a user's classes say to values that are no tensors
            why = f"cannot follow backbone '{self._backbone.info.name}' ({type(error).__name__})"
            raise _refusal(self._runtime, why) from error
        self._check_range(traced, probes[0])
        graph = Graph(traced, self._backbone, self._runtime)
        run = self._compile(graph)
        for pixels in map(torch.from_numpy, probes):
            self._check(_run(graph, run, pixels), pixels)
        return graph, run

    def _probes(self) -> list[npt.NDArray[np.uint8]]:
        """Draw noise of two sizes, neither of them a round number."""
        info, drawn = self._backbone.info, np.random.default_rng(0)
        side, step = max(_PROBE_SIDE, info.min_side), info.grid
        shapes = (1, side + 3, side + 14), (2, side, side + 1)
        return [
            drawn.integers(0, 256, (n, -(-h // step) * step, -(-w // step) * step, 3), np.uint8)
            for n, h, w in shapes
        ]

    def _check_range(self, traced: fx.GraphModule, drawn: npt.NDArray[np.uint8]) -> None:
        """Refuse a backbone whose numbers may overflow."""
        measure = _Measure(traced)
        with one_thread(), torch.inference_mode():
            measure.run(TorchNetwork(self._backbone).normalize(torch.from_numpy(drawn)))
        if not measure.largest <= _LARGEST:
            why = (
                f"is not for '{self._backbone.info.name}' with these weights, whose numbers are "
                f"too large or not finite ({measure.largest:.1g} on a noisy image)"
            )
            raise _refusal(self._runtime, why)

    def _check(self, found: Mapping[str, torch.Tensor], pixels: torch.Tensor) -> None:
        """Compare maps with torch's."""
        with one_thread(), torch.inference_mode():
            exact = TorchNetwork(self._backbone).maps(pixels, list(found))
            error, allowed = _distance(found, exact), TOLERANCES[self._precision]
            if self._precision == "bfloat16" and error > allowed:
                low = place(self._backbone, self._backbone, pixels.device, torch.bfloat16)
                rounded = TorchNetwork(low).maps(pixels, list(found))
                allowed = max(allowed, _AS_GOOD * _distance(rounded, exact))
        if not error <= allowed < math.inf:
            why = (
                f"does not agree with torch on '{self._backbone.info.name}' in {self._precision} "
                f"(relative error {error:.2g}, allowed {allowed:.2g})"
            )
            raise _refusal(self._runtime, why)


def _refusal(runtime: str, why: str) -> ConfigError:
    return ConfigError(f"runtime '{runtime}' {why}; use runtime 'torch'")


def _run(graph: Graph, run: Run, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    try:
        found = run(pixels.contiguous().numpy())
    except Exception as error:
        if any(words in str(error).lower() for words in _OUT_OF_MEMORY):
            raise MemoryError(str(error)) from error
        raise
    values = dict(zip(graph.outputs, map(torch.from_numpy, found), strict=True))
    return {layer: values[name] for layer, name in graph.layers.items()}


def _distance(found: Mapping[str, torch.Tensor], exact: Mapping[str, torch.Tensor]) -> float:
    """Return the largest relative l2 distance of all layers; infinite if some are not finite."""
    largest = 0.0
    for layer, expected in exact.items():
        maps = found[layer]
        if maps.shape != expected.shape or not (maps.isfinite() & expected.isfinite()).all():
            return math.inf
        length = torch.linalg.vector_norm(expected).clamp(min=1e-30)
        largest = max(largest, float(torch.linalg.vector_norm(maps.float() - expected) / length))
    return largest


class _Measure(fx.Interpreter):
    """Find the largest absolute number, inside as well; NaN if there is one."""

    largest = 0.0

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        if isinstance(found, torch.Tensor) and not math.isnan(self.largest):
            here = float(found.abs().max())
            self.largest = here if math.isnan(here) else max(self.largest, here)
        return found


class Graph(fx.Interpreter):
    """A traced trunk in ONNX's operators: it is run on the names of values instead of tensors.

    What works in place is taken for what gives a new value. That is the same wherever nobody
    reads the old one afterwards, which the comparison with torch finds out.
    """

    def __init__(self, traced: fx.GraphModule, backbone: Backbone, runtime: str) -> None:
        super().__init__(traced)
        self.extra_traceback = False  # messages are for the user
        self.constants: dict[str, npt.NDArray[np.float32]] = {}
        self._runtime = runtime
        self._nodes: list[onnx.NodeProto] = []
        # Bytes are turned around, since there is less of them than of numbers.
        maps = self._node("Transpose", PIXELS, perm=[0, 3, 1, 2])
        maps = self._node("Cast", maps, to=TensorProto.FLOAT)
        for kind, values in (("Sub", backbone.info.mean), ("Div", backbone.info.std)):
            numbers = np.reshape([255.0 * value for value in values], (1, 3, 1, 1))
            maps = self._node(kind, maps, numbers)
        self.layers: dict[str, str] = self.run(maps)
        # Each value once, since a layer may have two names.
        self.outputs = list(dict.fromkeys(self.layers.values()))

    def model(self, *, embedded: bool) -> bytes:
        """Serialise the graph, its constants in it or to be handed over beside it."""
        tensors = []
        for name, numbers in self.constants.items():
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=numbers.shape)
            if embedded:
                tensor.raw_data = numbers.tobytes()
            else:
                tensor.data_location = TensorProto.EXTERNAL
                tensor.external_data.add(key="location", value=name)
            tensors.append(tensor)
        given = helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, [None, None, None, 3])
        shape = [None] * 4
        found = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in self.outputs]
        graph = helper.make_graph(self._nodes, "trunk", [given], found, tensors)
        operators = [helper.make_opsetid("", _OPSET)]
        model = helper.make_model(graph, opset_imports=operators, ir_version=_FORMAT)
        return bytes(model.SerializeToString())

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Translate one of torch's modules."""
        module, (maps,) = self.fetch_attr(target), args
        match module:
            case nn.Identity() | nn.Dropout():
                return str(maps)
            case nn.Conv2d() if module.padding_mode == "zeros" and module.padding != "same":
                pad = _pair(0 if isinstance(module.padding, str) else module.padding)
                parameters = [p.detach().numpy() for p in module.parameters(recurse=False)]
                how = {"strides": module.stride, "dilations": module.dilation, "pads": pad * 2}
                return self._node("Conv", maps, *parameters, group=module.groups, **how)
            case nn.ReLU():
                return self._node("Relu", maps)
            case nn.ReLU6():
                return self._node("Clip", maps, 0.0, 6.0)
            case nn.MaxPool2d(dilation=1, return_indices=False):
                windows = _windows(module)
                kernel, after = windows["kernel_shape"], windows["pads"][2:]
                # Else a window could lie in the padding alone.
                if all(added < side for added, side in zip(after, kernel, strict=True)):
                    return self._node("MaxPool", maps, **windows)
            case nn.AvgPool2d(ceil_mode=False, count_include_pad=True, divisor_override=None):
                return self._node("AveragePool", maps, count_include_pad=1, **_windows(module))
            case nn.LocalResponseNorm():
                size, alpha, beta = module.size, module.alpha, module.beta
                bias = float(module.k)
                return self._node("LRN", maps, size=size, alpha=alpha, beta=beta, bias=bias)
        raise self._unknown(type(module).__name__)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Translate a function of tensors."""
        if target is torch.cat and len({*kwargs, "dim"}) == 1:
            return self._node("Concat", *args[0], axis=kwargs["dim"] if kwargs else args[1])
        if target in (torch.relu, functional.relu):
            return self._node("Relu", args[0])
        if target in _ARITHMETIC and not kwargs:
            return self._node(_ARITHMETIC[target], *args)
        raise self._unknown(getattr(target, "__name__", str(target)))

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Translate a method of tensors."""
        name = str(target).removesuffix("_")
        if name in ("clone", "contiguous"):
            return str(args[0])
        if name == "square":
            return self._node("Mul", args[0], args[0])
        if name in _METHODS and not kwargs:
            return self._node(_METHODS[name], *args)
        raise self._unknown(name)

    def _node(self, kind: str, *inputs: Any, **attributes: Any) -> str:
        """Add an operator; its inputs are names of values, or numbers."""
        names = [given if isinstance(given, str) else self._constant(given) for given in inputs]
        name = f"{kind}{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, names, [name], name=name, **attributes))
        return name

    def _constant(self, value: npt.ArrayLike) -> str:
        name = f"constant{len(self.constants)}"
        # Not copied where it lies as it should: the same memory serves torch.
        self.constants[name] = np.ascontiguousarray(value, np.float32).reshape(np.shape(value))
        return name

    def _unknown(self, name: str) -> ConfigError:
        return _refusal(self._runtime, f"does not know this backbone's operator '{name}'")


_METHODS = {"relu": "Relu", "add": "Add", "mul": "Mul", "pow": "Pow"}
_ARITHMETIC = {
    operator.add: "Add",
    operator.iadd: "Add",
    torch.add: "Add",
    operator.mul: "Mul",
    torch.mul: "Mul",
}


def _windows(module: nn.MaxPool2d | nn.AvgPool2d) -> dict[str, tuple[int, ...]]:
    stride, before = _pair(module.stride), _pair(module.padding)
    # A pooling that rounds down has the windows of one that rounds up with so much more padding;
    # runtimes differ in how they round up, above all where a map is smaller than a window.
    more = stride if module.ceil_mode else (1, 1)
    after = before[0] + more[0] - 1, before[1] + more[1] - 1
    return {"kernel_shape": _pair(module.kernel_size), "strides": stride, "pads": before + after}


def _pair(value: int | tuple[int, ...]) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def trace(module: Any, call: Callable[[Any, fx.Proxy], Any] = nn.Module.__call__) -> fx.GraphModule:
    """Follow what a module does with maps, down to the modules that are torch's own.

    `torch.fx.symbolic_trace` replaces methods of every module in the process as long as it runs:
    what another thread computes at that moment fails. Here the module's own code runs on a
    likeness of it that writes down its calls; the module is not changed.

    >>> traced = trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))
    >>> [(node.op, node.target) for node in traced.graph.nodes][1:3]
    [('call_module', '0'), ('call_module', '1')]
    """
    graph = fx.Graph()
    tracer = _Tracer(graph)
    found = call(_likeness(module, "", {}, tracer), fx.Proxy(graph.placeholder("maps"), tracer))
    graph.output(tracer.create_arg(found))
    return fx.GraphModule(module, graph)


class _Tracer(GraphAppendingTracer):
    def create_arg(self, a: Any) -> Any:
        if isinstance(a, torch.Tensor):
            raise NotImplementedError("a module's own tensors cannot be followed")
        return super().create_arg(a)


class _Call(nn.Module):
    """In place of one of torch's modules: its calls are written down."""

    def __init__(self, module: nn.Module, name: str, tracer: _Tracer) -> None:
        super().__init__()
        self._forward_hooks = module._forward_hooks  # a user's layer is found by its hook
        self._name_of_it = name
        self._tracer = tracer

    def forward(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        return self._tracer.create_proxy("call_module", self._name_of_it, args, kwargs)


def _likeness(
    module: nn.Module, name: str, known: dict[nn.Module, nn.Module], tracer: _Tracer
) -> nn.Module:
    """The same module of likenesses; one that has two names is known by the first."""
    torchs = type(module).__module__.startswith("torch.nn") and not isinstance(
        module, nn.Sequential
    )
    if module not in known and name and torchs:
        known[module] = _Call(module, name, tracer)
    elif module not in known:
        known[module] = likeness = copy.copy(module)
        likeness._modules = {
            key: child and _likeness(child, f"{name}.{key}".lstrip("."), known, tracer)
            for key, child in module._modules.items()
        }
    return known[module]
