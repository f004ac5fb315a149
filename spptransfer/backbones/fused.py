"""A convolution with its weights in the processor's order, together with what follows it.

Made of the operators that torch's own compiler uses. They are private to torch, so `fusing` tries
them before anything relies on them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

DTYPES = (torch.float32, torch.bfloat16)

# Name and parameters by which oneDNN knows an activation.
_POST_OPERATORS: dict[str, tuple[str, list[float]]] = {
    "none": ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
}
_MAX_ORDERS = 4
_MAX_SHAPES = 1024
_SHAPES_BEFORE_GUESSES = 8
# Seconds that oneDNN takes to get ready for a new shape, generously.
_SETTING_UP = 1e-3

# An operator and its arguments after the maps.
_Call = tuple[Callable[..., torch.Tensor], tuple[Any, ...]]


class FusedConvolution(nn.Module):
    """A convolution, the sum with a shortcut if there is one, and an activation, in one step.

    Parameters
    ----------
    convolution : Conv2d
        Whose parameters are shared.
    activation : {"none", "relu", "relu6"}
        What is applied in the end.
    adds : bool, default=False
        Whether a shortcut is added.
    overwrites : bool, default=False
        Whether the result may be written over the shortcut.

    Notes
    -----
    Weights are brought into the order that the processor wants for a map of some size when such
    a map is first seen. There are few such orders, mostly one; all of them are kept. Where the
    operators do not exist (another device, another type, while gradients are recorded), the same
    is computed step by step.

    oneDNN's activations turn NaN into 0, torch's keep it.
    """

    _by_order: dict[bytes, torch.Tensor]
    _known: dict[torch.Size, _Call]
    _arranged: int
    _pace: float  # seconds per number of the input, the best so far

    def __init__(
        self,
        convolution: nn.Conv2d,
        activation: str = "none",
        *,
        adds: bool = False,
        overwrites: bool = False,
    ) -> None:
        super().__init__()
        self.weight = convolution.weight
        self.bias = convolution.bias
        self.activation = activation
        self.adds = adds
        self.overwrites = overwrites
        self.padding = _padding(convolution)
        self.stride = list(convolution.stride)
        self.dilation = list(convolution.dilation)
        self.groups = convolution.groups
        self._forget()

    def forward(self, maps: torch.Tensor, shortcut: torch.Tensor | None = None) -> torch.Tensor:
        """Filter N x C x H x W maps."""
        known = None if torch.is_grad_enabled() else self._known.get(maps.shape)
        if known is not None:
            return self._at_once(maps, shortcut, *known)
        if self._is_quick(maps):
            return self._first_time(maps, shortcut)
        return self._step_by_step(maps, shortcut)

    def _is_quick(self, maps: torch.Tensor) -> bool:
        return (
            maps.device.type == "cpu"
            and maps.dtype == self.weight.dtype
            and maps.dtype in DTYPES
            and not torch.is_grad_enabled()
        )

    def _at_once(
        self,
        maps: torch.Tensor,
        shortcut: torch.Tensor | None,
        function: Callable[..., torch.Tensor],
        arguments: tuple[Any, ...],
    ) -> torch.Tensor:
        if shortcut is None:
            return function(maps, *arguments)
        first = (shortcut, maps) if self.overwrites else (maps, shortcut)
        return function(*first, *arguments)

    def _first_time(self, maps: torch.Tensor, shortcut: torch.Tensor | None) -> torch.Tensor:
        """Filter maps of a new shape, and find out what to call for such maps with what.

        Arranging weights takes about as long as filtering a map. Where all shapes so far wanted
        one order, this one is expected to want it too. oneDNN takes any order, but rearranges
        an unfitting one on every call, at such a price that the clock tells.
        """
        shape = maps.shape
        if len(self._known) >= _MAX_SHAPES or len(self._by_order) >= _MAX_ORDERS:
            self._forget()
        orders = list(self._by_order.values())
        guesses = len(orders) == 1 and self._arranged >= _SHAPES_BEFORE_GUESSES
        call = self._call_with(orders[0] if guesses else self._arrange(shape))
        start = time.thread_time()
        found = self._at_once(maps, shortcut, *call)
        seconds = time.thread_time() - start
        if guesses and seconds > 3 * self._pace * maps.numel() + _SETTING_UP:
            call = self._call_with(self._arrange(shape))
        self._pace = min(self._pace, seconds / maps.numel())
        self._known[shape] = call
        return found

    def _call_with(self, weight: torch.Tensor) -> _Call:
        """Operator and its arguments after the maps, made up once: a call costs microseconds."""
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        name, values = _POST_OPERATORS[self.activation]
        arguments: tuple[Any, ...] = (weight, self.bias, *geometry)
        onednn = torch.ops.mkldnn
        if not self.adds:
            return onednn._convolution_pointwise.default, (*arguments, name, values, "")
        after = (None, [], None) if name == "none" else (name, values, None)
        adding = (
            onednn._convolution_pointwise_ if self.overwrites else onednn._convolution_pointwise
        )
        return adding.binary, (*arguments, "add", 1.0, *after)

    def _arrange(self, shape: torch.Size) -> torch.Tensor:
        """Weights in the order for maps of a shape; equal orders share one copy."""
        fresh = torch.ops.mkldnn._reorder_convolution_weight(
            self.weight, self.padding, self.stride, self.dilation, self.groups, list(shape)
        )
        self._arranged += 1
        return self._by_order.setdefault(_order_of(fresh), fresh)

    def _step_by_step(self, maps: torch.Tensor, shortcut: torch.Tensor | None) -> torch.Tensor:
        maps = functional.conv2d(
            maps, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )
        if shortcut is not None:
            maps = maps + shortcut
        if self.activation == "none":
            return maps
        return maps.relu() if self.activation == "relu" else functional.relu6(maps)

    def _forget(self) -> None:
        self._by_order, self._known = {}, {}
        self._arranged, self._pace = 0, math.inf

    def _apply(self, fn: Any, recurse: bool = True) -> FusedConvolution:
        self._forget()  # the parameters change
        super()._apply(fn, recurse)
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Arranged weights cannot be copied; they are made again where needed.
        return self.__dict__ | {"_by_order": {}, "_known": {}, "_arranged": 0}

    def extra_repr(self) -> str:
        """Show the shape of the weights and the activation."""
        return f"{tuple(self.weight.shape)}, stride={self.stride}, activation='{self.activation}'"


def _padding(convolution: nn.Conv2d) -> list[int]:
    """Padding in numbers; that of "valid" is none."""
    padding = convolution.padding
    return [0, 0] if isinstance(padding, str) else list(padding)


def _order_of(weight: torch.Tensor) -> bytes:
    """How weights lie in memory, as oneDNN describes it."""
    described = bytearray(torch.ops.mkldnn._get_mkldnn_serialized_md(weight).tolist())
    described[_UNUSED_BYTES] = bytes(4)
    return bytes(described)


# Between the type (32 bits) and the padded sizes (64 bits each) of a description nothing is
# stored, and what happens to stand there differs.
_UNUSED_BYTES = slice(108, 112)
