"""A backbone's trunk, operator by operator, in the words of any runtime.

Torch's own exporters need further packages, are deprecated or report their use over the network.
The networks of this package are made of a dozen operators, so they are followed here.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from spptransfer.backbones.loading import Backbone
from spptransfer.backbones.tracing import trace
from spptransfer.errors import ConfigError
from spptransfer.runtimes.network import Normalization

# What a runtime's graph is made of.
Value = Any
Pair = tuple[int, int]


class Operators(ABC):
    """The operators of a runtime; maps are N x C x H x W, in float32."""

    runtime: str

    @abstractmethod
    def normalized(self, normalization: Normalization) -> Value:
        """The network's input: N x H x W x 3 bytes, normalised, as N x 3 x H x W maps."""

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


def build(
    backbone: Backbone,
    layers: Sequence[str],
    normalization: Normalization,
    operators: Operators,
) -> tuple[list[Value], list[int]]:
    """Say a backbone's trunk in a runtime's operators.

    Parameters
    ----------
    backbone : Backbone
        In float32, batch norms folded.
    layers : sequence of str
        Some of the backbone's layers.
    normalization : Normalization
        Of the pixels.
    operators : Operators
        The runtime's.

    Returns
    -------
    maps : list of value
        All that the layers are made of, each once: a layer may have two names.
    places : list of int
        Which of them each layer is made of.

    Raises
    ------
    ConfigError
        If the trunk has an operator that is not known here.
    """
    traced = trace(_Trunk(backbone, layers))
    follow = _Follower(traced, operators)
    follow.extra_traceback = False  # its messages are for the user
    found: dict[str, Value] = follow.run(operators.normalized(normalization))
    numbers = {value: number for number, value in enumerate(dict.fromkeys(found.values()))}
    return list(numbers), [numbers[found[layer]] for layer in layers]


class _Trunk(nn.Module):
    """From images to the maps of some layers."""

    def __init__(self, backbone: Backbone, layers: Sequence[str]) -> None:
        super().__init__()
        self.backbone = backbone
        self.layers = tuple(layers)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.backbone.maps_of(images, self.layers)


class _Follower(fx.Interpreter):
    """Runs a traced trunk on a runtime's values instead of tensors.

    What works in place is taken for what gives a new value. That is the same wherever nobody
    reads the old one afterwards, which the comparison with torch finds out.
    """

    def __init__(self, traced: fx.GraphModule, operators: Operators) -> None:
        super().__init__(traced)
        self._operators = operators

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        """Say one of torch's modules."""
        module, (maps,) = self.fetch_attr(target), args
        to = self._operators
        match module:
            case nn.Identity():
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
        """Say a function of tensors."""
        to = self._operators
        if target is torch.cat and len({*kwargs, "dim"}) == 1:
            axis = kwargs["dim"] if kwargs else args[1]
            return to.concatenate(args[0], axis)
        if target in _ARITHMETIC and not kwargs:
            left, right = args if not isinstance(args[0], (int, float)) else reversed(args)
            return to.combine(_ARITHMETIC[target], left, right)
        raise self._unknown(getattr(target, "__name__", str(target)))

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        """Say a method of tensors."""
        to, name = self._operators, str(target).removesuffix("_")
        if name == "relu":
            return to.clip(args[0], 0.0, None)
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
