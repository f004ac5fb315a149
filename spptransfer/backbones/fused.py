"""A convolution with its weights in the processor's order, together with what follows it.

Made of the operators that torch's own compiler uses. They are private to torch, so `fusing` tries
them before anything relies on them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from spptransfer.backbones.arranged import ArrangedWeights
from spptransfer.backbones.winograd import MinimalFiltering

DTYPES = (torch.float32, torch.bfloat16)

# Name and parameters by which oneDNN knows an activation.
_POST_OPERATORS: dict[str, tuple[str, list[float]]] = {
    "none": ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
}
# The interval that an activation brings numbers to.
_INTERVALS = {"none": (-math.inf, math.inf), "relu": (0.0, math.inf), "relu6": (0.0, 6.0)}
_MAX_SHAPES = 1024

_MAKING = threading.Lock()
# What a convolution makes for itself, of its parameters.
_MADE = ("_known", "_arranged", "_minimal")

# What filters maps, and its arguments after maps and shortcut.
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
    a map is first seen. There are few such orders, mostly one; all of them are kept. Maps that
    are large enough for it are filtered with fewer multiplications. Where the operators do not
    exist (another device, another type, while gradients are recorded), the same is computed step
    by step.

    oneDNN's activations turn NaN into 0, torch's keep it.
    """

    _known: dict[torch.Size, _Call]
    _arranged: ArrangedWeights
    _minimal: MinimalFiltering | None

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
        self.forget()

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
        inputs = (maps,) if shortcut is None else (maps, shortcut)
        return function(*inputs, *arguments)

    def _first_time(self, maps: torch.Tensor, shortcut: torch.Tensor | None) -> torch.Tensor:
        """Filter maps of a new shape, and find out what to call for such maps with what."""
        if len(self._known) >= _MAX_SHAPES:
            self._known = {}
        minimal = self._minimal_filtering()
        if minimal is not None and minimal.pays(*maps.shape[2:]):
            self._known[maps.shape] = minimal, ()
            return self._at_once(maps, shortcut, minimal, ())
        weight, found = self._arranged.first_use(
            maps.shape,
            lambda: self.weight,
            lambda weight: self._at_once(maps, shortcut, *self._call_with(weight)),
        )
        self._known[maps.shape] = self._call_with(weight)
        return found

    def _minimal_filtering(self) -> MinimalFiltering | None:
        """The way with fewer multiplications, if there is one for such a convolution."""
        if (*self.stride, *self.dilation, self.groups) != (1, 1, 1, 1, 1):
            return None
        if not MinimalFiltering.suits(self.weight, self.padding):
            return None
        with _MAKING:  # threads that meet here share one, for its weights are large
            if self._minimal is None:
                interval = _INTERVALS[self.activation]
                self._minimal = MinimalFiltering(self.weight, self.bias, self.padding, *interval)
            return self._minimal

    def _call_with(self, weight: torch.Tensor) -> _Call:
        """Operator and its arguments after the maps, made up once: a call costs microseconds."""
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        name, values = _POST_OPERATORS[self.activation]
        arguments: tuple[Any, ...] = (weight, self.bias, *geometry)
        onednn = torch.ops.mkldnn
        if not self.adds:
            return onednn._convolution_pointwise.default, (*arguments, name, values, "")
        after = (None, [], None) if name == "none" else (name, values, None)
        adding = _over_shortcut if self.overwrites else onednn._convolution_pointwise.binary
        return adding, (*arguments, "add", 1.0, *after)

    def _step_by_step(self, maps: torch.Tensor, shortcut: torch.Tensor | None) -> torch.Tensor:
        maps = functional.conv2d(
            maps, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )
        if shortcut is not None:
            maps = maps + shortcut
        if self.activation == "none":
            return maps
        return maps.relu() if self.activation == "relu" else functional.relu6(maps)

    def forget(self) -> None:
        """Drop what was made of the parameters; it is made again where needed."""
        self._known, self._minimal = {}, None
        self._arranged = ArrangedWeights(self.padding, self.stride, self.dilation, self.groups)

    def _apply(self, fn: Any, recurse: bool = True) -> FusedConvolution:
        self.forget()  # the parameters change
        super()._apply(fn, recurse)
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Arranged weights cannot be copied; they are made again where needed.
        return {key: value for key, value in self.__dict__.items() if key not in _MADE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.forget()

    def extra_repr(self) -> str:
        """Show the shape of the weights and the activation."""
        return f"{tuple(self.weight.shape)}, stride={self.stride}, activation='{self.activation}'"


def _over_shortcut(maps: torch.Tensor, shortcut: torch.Tensor, *arguments: Any) -> torch.Tensor:
    """Write the sum over the shortcut."""
    found: torch.Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
        shortcut, maps, *arguments
    )
    return found


def _padding(convolution: nn.Conv2d) -> list[int]:
    """Padding in numbers; that of "valid" is none."""
    padding = convolution.padding
    return [0, 0] if isinstance(padding, str) else list(padding)
