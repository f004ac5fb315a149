"""Translate a backbone's trunk into a runtime's graph, operator by operator.

Torch's own exporters need further packages, are deprecated or report their use over the network.
The networks of this package are made of a dozen operators, so they are followed here.
"""

from __future__ import annotations

import copy
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.fx.proxy import GraphAppendingTracer
from torch.nn import functional

from spptransfer.backbones import Backbone
from spptransfer.errors import ConfigError

# What a runtime's graph is made of.
Value = Any
Pair = tuple[int, int]


class Operators(ABC):
    """The operators of a runtime; maps are N x C x H x W, in float32."""

    runtime: str

    @abstractmethod
    def normalized(self, shift: Sequence[float], span: Sequence[float]) -> Value:
        """Turn the input, N x H x W x 3 bytes, into N x 3 x H x W: (bytes - shift) / span."""

    @abstractmethod
    def convolution(self, maps: Value, module: nn.Conv2d, padding: Pair) -> Value:
        """Filter maps."""

    @abstractmethod
    def clip(self, maps: Value, low: float, high: float | None) -> Value:
        """Bring all numbers to an interval, which may be open above."""

    @abstractmethod
    def max_pool(self, maps: Value, kernel: Pair, stride: Pair, before: Pair, after: Pair) -> Value:
        """Maximum over windows, incomplete ones left out, after padding the sides unequally."""

    @abstractmethod
    def average_pool(self, maps: Value, kernel: Pair, stride: Pair, padding: Pair) -> Value:
        """Mean over windows; cells outside the map are zeros that count."""

    @abstractmethod
    def response_norm(self, maps: Value, module: nn.LocalResponseNorm) -> Value:
        """Normalise across neighbouring channels."""

    @abstractmethod
    def concatenate(self, maps: Sequence[Value], axis: int) -> Value:
        """Put maps one after the other."""

    @abstractmethod
    def combine(self, kind: str, left: Value, right: Value | float) -> Value:
        """``add``, ``multiply`` or ``power``, number by number."""


def follow(backbone: Backbone, layers: Sequence[str], runtime: str) -> fx.GraphModule:
    """Trace a float32 backbone to the maps of some layers; a `ConfigError` if that is no graph."""
    try:
        return trace(_Trunk(backbone, layers))
    except Exception as error:  # whatever a user's classes say to values that are no tensors
        raise ConfigError(
            f"runtime '{runtime}' cannot follow backbone '{backbone.info.name}' "
            f"({type(error).__name__}); use runtime 'torch'"
        ) from error


def build(
    traced: fx.GraphModule, backbone: Backbone, layers: Sequence[str], operators: Operators
) -> tuple[list[Value], list[int]]:
    """Translate a traced trunk into a runtime's operators; an unknown one is a `ConfigError`.

    Returns all values that the layers are made of, each once, since a layer may have two names;
    and for each layer which of them it is.
    """
    translator = _Translator(traced, operators)
    translator.extra_traceback = False  # its messages are for the user
    shift, span = (
        [255.0 * v for v in values] for values in (backbone.info.mean, backbone.info.std)
    )
    found: dict[str, Value] = translator.run(operators.normalized(shift, span))
    numbers = {value: number for number, value in enumerate(dict.fromkeys(found.values()))}
    return list(numbers), [numbers[found[layer]] for layer in layers]


def largest_number(traced: fx.GraphModule, images: torch.Tensor) -> float:
    """Return the largest absolute number, inside as well, that images give; NaN if there is one."""
    measure = _Measure(traced)
    measure.run(images)
    return measure.largest


class _Measure(fx.Interpreter):
    largest = 0.0

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        if isinstance(found, torch.Tensor) and not math.isnan(self.largest):
            here = float(found.abs().max())
            self.largest = here if math.isnan(here) else max(self.largest, here)
        return found


class _Trunk(nn.Module):
    """From images to the maps of some layers."""

    def __init__(self, backbone: Backbone, layers: Sequence[str]) -> None:
        super().__init__()
        self.backbone = backbone
        self.layers = tuple(layers)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.backbone.maps_of(images, self.layers)


class _Translator(fx.Interpreter):
    """Runs a traced trunk on a runtime's values instead of tensors.

    What works in place is taken for what gives a new value. That is the same wherever nobody
    reads the old one afterwards, which the comparison with torch finds out.
    """

    def __init__(self, traced: fx.GraphModule, operators: Operators) -> None:
        super().__init__(traced)
        self._operators = operators

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        """Translate one of torch's modules."""
        module, (maps,) = self.fetch_attr(target), args
        to = self._operators
        match module:
            case nn.Identity() | nn.Dropout():
                return maps
            case nn.Conv2d() if module.padding_mode == "zeros" and module.padding != "same":
                padding = 0 if isinstance(module.padding, str) else module.padding
                return to.convolution(maps, module, _pair(padding))
            case nn.ReLU():
                return to.clip(maps, 0.0, None)
            case nn.ReLU6():
                return to.clip(maps, 0.0, 6.0)
            case nn.MaxPool2d(dilation=1, return_indices=False):
                kernel, stride, before = _windows(module)
                after = _with_incomplete(before, stride) if module.ceil_mode else before
                if _fits(after, kernel):
                    return to.max_pool(maps, kernel, stride, before, after)
            case nn.AvgPool2d(ceil_mode=False, count_include_pad=True, divisor_override=None):
                return to.average_pool(maps, *_windows(module))
            case nn.LocalResponseNorm():
                return to.response_norm(maps, module)
        raise self._unknown(type(module).__name__)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        """Translate a function of tensors."""
        to = self._operators
        if target is torch.cat and len({*kwargs, "dim"}) == 1:
            axis = kwargs["dim"] if kwargs else args[1]
            return to.concatenate(args[0], axis)
        if target in (torch.relu, functional.relu):
            return to.clip(args[0], 0.0, None)
        if target in _ARITHMETIC and not kwargs:
            left, right = args if not isinstance(args[0], (int, float)) else reversed(args)
            return to.combine(_ARITHMETIC[target], left, right)
        raise self._unknown(getattr(target, "__name__", str(target)))

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        """Translate a method of tensors."""
        to, name = self._operators, str(target).removesuffix("_")
        if name == "relu":
            return to.clip(args[0], 0.0, None)
        if name in ("clone", "contiguous"):
            return args[0]
        if name == "square":
            return to.combine("multiply", args[0], args[0])
        if name in _METHODS and not kwargs:
            return to.combine(_METHODS[name], *args)
        raise self._unknown(name)

    def _unknown(self, name: str) -> ConfigError:
        return ConfigError(
            f"runtime '{self._operators.runtime}' does not know this backbone's operator "
            f"'{name}'; use runtime 'torch'"
        )


_METHODS = {"add": "add", "mul": "multiply", "pow": "power"}
_ARITHMETIC = {
    operator.add: "add",
    operator.iadd: "add",
    torch.add: "add",
    operator.mul: "multiply",
    torch.mul: "multiply",
}


def _windows(module: nn.MaxPool2d | nn.AvgPool2d) -> tuple[Pair, Pair, Pair]:
    return _pair(module.kernel_size), _pair(module.stride), _pair(module.padding)


def _with_incomplete(padding: Pair, stride: Pair) -> Pair:
    """Padding with which a pooling that rounds down has the windows of one that rounds up.

    Runtimes differ in how they round up, above all where a map is smaller than a window.
    """
    return padding[0] + stride[0] - 1, padding[1] + stride[1] - 1


def _fits(padding: Pair, kernel: Pair) -> bool:
    """Whether no window can lie in the padding alone."""
    return all(added < side for added, side in zip(padding, kernel, strict=True))


def _pair(value: int | tuple[int, ...]) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def trace(module: nn.Module) -> fx.GraphModule:
    """Follow a module's `forward` down to the modules that are torch's own.

    `torch.fx.symbolic_trace` replaces methods of every module in the process as long as it runs:
    what another thread computes at that moment fails. Here the module's own `forward` runs on a
    likeness of it that writes down its calls; the module is not changed.

    >>> traced = trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))
    >>> [(node.op, node.target) for node in traced.graph.nodes][1:3]
    [('call_module', '0'), ('call_module', '1')]
    """
    graph = fx.Graph()
    tracer = _Tracer(graph)
    likeness = _likeness(module, "", {}, tracer)
    found = likeness(fx.Proxy(graph.placeholder("maps"), tracer))
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
    if module not in known and name and _is_torchs(module):
        known[module] = _Call(module, name, tracer)
    elif module not in known:
        known[module] = likeness = copy.copy(module)
        likeness._modules = {
            key: child and _likeness(child, f"{name}.{key}".lstrip("."), known, tracer)
            for key, child in module._modules.items()
        }
    return known[module]


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential)
